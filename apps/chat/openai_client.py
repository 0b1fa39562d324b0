"""Sends chats to any server that speaks OpenAI's API, by its base URL, so that a person can compare it with TorchServe.

Such a server gets the parameters of OpenAI's reference; the others (top_k, min_p and so on) only if they differ from
their defaults. Knows nothing of TorchServe's keys and states, and nothing of Streamlit.
"""

import time
from typing import Any, Literal
from urllib.parse import urlsplit

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, fetch
from torchserve_client.keys import FixedKey
from torchserve_client.model_description import ModelDescription
from torchserve_client.streaming import CompletionStream

MODELS_TIMEOUT_SECONDS = 2.0
STATE_MAX_AGE_SECONDS = 10.0  # a page queries the state every two seconds; this spares the other server most of it
STANDARD = ("temperature", "top_p", "max_tokens", "seed", "stop")  # parameters that every such server knows

State = Literal["down", "refused", "loading", "not openai", "ready"]
STATE_OF_STATUS: dict[int, State] = {401: "refused", 403: "refused", 502: "not openai", 503: "loading"}


class OpenAIClient:
    """One server, and the first model that it lists. Threads may share one client."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = key
        self._model = ""
        self._state: State = "down"
        self._state_time = float("-inf")
        self.context_window: int | None = None
        self.has_chat_template = True

    def state(self) -> State:
        """From the list of models. A ready server is queried every STATE_MAX_AGE_SECONDS at most; raises nothing."""
        if time.monotonic() - self._state_time > STATE_MAX_AGE_SECONDS or self._state != "ready":
            self._state = self._query_state()
            self._state_time = time.monotonic()
        return self._state

    def chat(self, messages: list[dict[str, str]], params: SamplingParams) -> CompletionStream:
        return self._stream("chat/completions", {"messages": messages}, params)

    def complete(self, prompt: str, params: SamplingParams) -> CompletionStream:
        return self._stream("completions", {"prompt": prompt}, params)

    def _stream(self, path: str, question: dict[str, Any], params: SamplingParams) -> CompletionStream:
        if not self._model:
            self.state()
        body = {**question, **params_for_other_servers(params), "model": self._model or "default"}
        unreachable = f"No server answers at {self._base_url}: check the base URL in Server."
        return CompletionStream(f"{self._base_url}/{path}", body, FixedKey(self._key), unreachable=unreachable)

    def _query_state(self) -> State:
        try:
            models = fetch("GET", f"{self._base_url}/models", self._key or None, MODELS_TIMEOUT_SECONDS)
        except RequestRefused as refusal:
            return STATE_OF_STATUS.get(refusal.status, "down")
        except TorchServeError:
            return "down"
        entries = models.get("data") if isinstance(models, dict) else None
        if not isinstance(entries, list) or not entries or not isinstance(entries[0], dict):
            return "not openai"
        self._model = str(entries[0].get("id") or "")
        description = ModelDescription.from_models(models)
        self.context_window, self.has_chat_template = description.context_window, description.has_chat_template
        return "ready"


def params_for_other_servers(params: SamplingParams) -> dict[str, object]:
    """The standard parameters, and those others that are not at their default."""
    defaults = SamplingParams().to_request()
    chosen = params.to_request()
    if not chosen["stop"]:
        del chosen["stop"]
    return {name: value for name, value in chosen.items() if name in STANDARD or value != defaults.get(name)}


def problem_of_base_url(text: str) -> str:
    """What is wrong with a base URL, as a sentence; empty if nothing is."""
    try:
        parts = urlsplit(text)
        labels = (parts.hostname or "").rstrip(".").split(".")
        has_host = ":" in labels[0] or all(0 < len(label) < 64 for label in labels)  # with a colon: an IPv6 address
        is_usable = parts.scheme in ("http", "https") and has_host and parts.port != 0 and _is_plain(text)
    except ValueError:
        is_usable = False
    return "" if is_usable else "A base URL looks like http://127.0.0.1:8000/v1."


def problem_of_key(key: str) -> str:
    """What is wrong with an API key, as a sentence; empty if nothing is."""
    return "" if _is_plain(key) else "The key contains a character that no key has: copy the key again."


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
