"""Sends chats to any server that speaks OpenAI's API, by its base URL, so that a person can compare it with TorchServe.

Such a server gets the parameters of OpenAI's reference; the others (top_k, min_p and so on) only if they differ from
their defaults. Knows nothing of TorchServe's keys and states, and nothing of Streamlit.
"""

import threading
import time
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, fetch
from torchserve_client.keys import FixedKey
from torchserve_client.model_description import ModelDescription
from torchserve_client.streaming import CompletionStream

MODELS_TIMEOUT_SECONDS = 2.0  # of connecting, of each silence, and of a page that waits
STATE_MAX_AGE_SECONDS = 10.0  # a page queries the state every two seconds; this spares the other server most of it
STANDARD = ("temperature", "top_p", "max_tokens", "seed", "stop")  # parameters that every such server knows
MOST_MODELS = 500  # of a server's list
LONGEST_NAME = 200  # characters of a model's id

State = Literal["down", "refused", "loading", "not openai", "ready"]
STATE_OF_STATUS: dict[int, State] = {401: "refused", 403: "refused", 502: "not openai", 503: "loading"}


class ModelList:
    """One server's state and the models that it lists. Threads may share one."""

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url.rstrip("/")
        self.key = key
        self.models: dict[str, ModelDescription] = {}  # by id, as last listed
        self._state: State = "down"
        self._state_time = float("-inf")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun = 0.0

    def state(self) -> State:
        """From the list of models. A ready server is queried every STATE_MAX_AGE_SECONDS at most; raises nothing.

        Returns in time also if a server sends a byte a second, or if its name is looked up for long. Until such a query
        has ended there is no other one.
        """
        if time.monotonic() - self._state_time > STATE_MAX_AGE_SECONDS or self._state != "ready":
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._update, daemon=True)
                    self._begun = time.monotonic()
                    self._thread.start()
                thread, left = self._thread, self._begun + MODELS_TIMEOUT_SECONDS - time.monotonic()
            thread.join(max(0.0, left))
            if thread.is_alive():
                self._state = "down"
        return self._state

    def _update(self) -> None:
        self._state = self._query()
        self._state_time = time.monotonic()

    def _query(self) -> State:
        try:
            answer = fetch("GET", f"{self.base_url}/models", self.key or None, MODELS_TIMEOUT_SECONDS)
        except RequestRefused as refusal:
            return STATE_OF_STATUS.get(refusal.status, "down")
        except TorchServeError:
            return "down"
        listed = [model for model in ModelDescription.all_from_models(answer) if len(model.id) <= LONGEST_NAME]
        if not listed:
            return "not openai"
        self.models = {model.id: model for model in listed[:MOST_MODELS]}
        return "ready"


class OpenAIClient:
    """One model of a server: the chosen one, or else the first that the server lists. Threads may share one client."""

    def __init__(self, models: ModelList, chosen: str = "") -> None:
        self._models = models
        self._chosen = chosen
        self.name = short_name(models.base_url)

    @property
    def model(self) -> str:
        """Its id; empty if none was chosen, and the server has not listed any."""
        return self._chosen or next(iter(self._models.models), "")

    @property
    def context_window(self) -> int | None:
        return self._description.context_window

    @property
    def has_chat_template(self) -> bool:
        return self._description.has_chat_template

    def state(self) -> State:
        """The server's. Raises nothing."""
        return self._models.state()

    def chat(self, messages: list[dict[str, str]], params: SamplingParams) -> CompletionStream:
        return self._stream("chat/completions", {"messages": messages}, params)

    def complete(self, prompt: str, params: SamplingParams) -> CompletionStream:
        return self._stream("completions", {"prompt": prompt}, params)

    def count_tokens(self, text: str) -> None:
        """Unknown: OpenAI's API has no such call."""

    @property
    def _description(self) -> ModelDescription:
        return self._models.models.get(self.model, ModelDescription())

    def _stream(self, path: str, question: dict[str, Any], params: SamplingParams) -> CompletionStream:
        if not self.model:
            self.state()
        body = {**question, **params_for_other_servers(params), "model": self.model or "default"}
        base_url = self._models.base_url
        unreachable = f"No server answers at {base_url}: check the base URL in Server."
        return CompletionStream(f"{base_url}/{path}", body, FixedKey(self._models.key), unreachable=unreachable)


def params_for_other_servers(params: SamplingParams) -> dict[str, object]:
    """The standard parameters, and those others that are not at their default."""
    defaults = SamplingParams().to_request()
    chosen = params.to_request()
    if not chosen["stop"]:
        del chosen["stop"]
    return {name: value for name, value in chosen.items() if name in STANDARD or value != defaults.get(name)}


def full_base_url(text: str) -> str:
    """A base URL as a person may type it, with its scheme and path: `127.0.0.1:8000` is `http://127.0.0.1:8000/v1`.

    Without a scheme, an address with a port or number is http (a server of one's own), and any other name https.
    """
    text = text.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        is_own = parts.port is not None or parts.hostname == "localhost" or _is_number(parts.hostname or "")
    except ValueError:
        return text  # problem_of_base_url() explains it
    scheme = parts.scheme or ("http" if is_own else "https")
    path = "/v1" if parts.path in ("", "/") else parts.path
    return parts._replace(scheme=scheme, path=path.rstrip("/")).geturl() if text else ""


def short_name(base_url: str) -> str:
    """A base URL for people, without what is the same for most: the scheme and `/v1`."""
    return base_url.split("://", 1)[-1].removesuffix("/v1")


def problem_of_base_url(text: str) -> str:
    """What is wrong with a base URL, as a sentence; empty if nothing is."""
    try:
        parts = urlsplit(text)
        labels = (parts.hostname or "").rstrip(".").split(".")
        has_host = ":" in labels[0] or all(0 < len(label) < 64 for label in labels)  # with a colon: an IPv6 address
        is_usable = parts.scheme in ("http", "https") and has_host and parts.port != 0 and _is_plain(text)
    except ValueError:
        is_usable = False
    if is_usable and ("@" in parts.netloc or parts.query or parts.fragment):  # it is stored and shown: no secrets
        return "Leave out what is before @ and after ? or #: the key has its own field."
    return "" if is_usable else "A base URL looks like http://127.0.0.1:8000/v1."


def problem_of_key(key: str) -> str:
    """What is wrong with an API key, as a sentence; empty if nothing is."""
    return "" if _is_plain(key) else "The key contains a character that no key has: copy the key again."


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
