"""Asks any server that speaks OpenAI's API, by its base URL: so the chat can be compared on another server.

Sends such a server what OpenAI's reference has; the parameters beyond that (top_k, min_p and so on) only where they
differ from their defaults. Knows nothing of TorchServe's keys and states, and nothing of Streamlit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable, fetch
from torchserve_client.inference import Answer, read_facts

STATE_SECONDS = 2.0  # longest wait for the list of models
STATE_IS_FRESH_SECONDS = 10.0  # a page looks every two seconds; somebody else's server is asked less often
STANDARD = ("temperature", "top_p", "max_tokens", "seed", "stop")  # what every such server understands

T = TypeVar("T")
State = Literal["down", "refused", "loading", "ready"]


@dataclass(frozen=True, slots=True)
class _GivenKey:
    """The key a person typed; never renewed. An unreachable server is told of by its own address."""

    key: str
    base_url: str

    def use(self, request: Callable[[str | None], T]) -> T:
        try:
            return request(self.key or None)
        except (ServerUnreachable, OSError) as error:
            raise ServerUnreachable(f"No server answers at {self.base_url}: check the base URL in Server.") from error


class OpenAIClient:
    """One server, with the model it names first. Threads may share one."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._key = _GivenKey(key, self._base_url)
        self._model = ""
        self._state: State = "down"
        self._looked_at = float("-inf")
        self.context_window: int | None = None
        self.has_chat_template = True

    def state(self) -> State:
        """From the list of models, which is asked for at most every STATE_IS_FRESH_SECONDS; raises nothing."""
        if time.monotonic() - self._looked_at > STATE_IS_FRESH_SECONDS or self._state != "ready":
            self._state = self._look()
            self._looked_at = time.monotonic()
        return self._state

    def chat(self, messages: list[dict[str, str]], params: SamplingParams, tells_progress: bool = False) -> Answer:
        """`tells_progress` is ours and llama-server's: another server might refuse it, so it is not sent."""
        return self._answer("chat/completions", {"messages": messages}, params)

    def complete(self, prompt: str, params: SamplingParams, tells_progress: bool = False) -> Answer:
        return self._answer("completions", {"prompt": prompt}, params)

    def _answer(self, path: str, question: dict[str, Any], params: SamplingParams) -> Answer:
        if not self._model:
            self.state()
        body = {**question, **wire_params(params), "stream": True, "stream_options": {"include_usage": True}}
        return Answer(self._key, f"{self._base_url}/{path}", body | {"model": self._model or "default"})

    def _look(self) -> State:
        try:
            models = self._key.use(lambda key: fetch("GET", f"{self._base_url}/models", key, STATE_SECONDS))
        except RequestRefused as refusal:
            return {401: "refused", 403: "refused", 503: "loading"}.get(refusal.status, "down")  # type: ignore[return-value]
        except TorchServeError:
            return "down"
        entries = models.get("data") if isinstance(models, dict) else None
        if not entries:
            return "down"
        self._model = str(entries[0].get("id") or "")
        facts = read_facts(models)
        self.context_window, self.has_chat_template = facts.context_window, facts.has_chat_template
        return "ready"


def wire_params(params: SamplingParams) -> dict[str, object]:
    """The standard parameters, and those others that are not at their default."""
    defaults = SamplingParams().to_request()
    chosen = params.to_request()
    if not chosen["stop"]:
        del chosen["stop"]
    return {name: value for name, value in chosen.items() if name in STANDARD or value != defaults.get(name)}


def check_base_url(text: str) -> str:
    """What is wrong with a base URL, as a sentence; empty if nothing is."""
    try:
        parts = urlsplit(text)
        is_fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_fine = False
    return "" if is_fine else "A base URL looks like http://127.0.0.1:8000/v1."
