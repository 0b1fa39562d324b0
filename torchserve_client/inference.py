"""Asks the model that TorchServe serves: state, chat, completion. Knows nothing of Streamlit.

InferenceClient uses the inference key only; registering and scaling is in torchserve_client/management.py. Facts about the
server are asked for, not remembered.

Not covered: several models, TorchServe's gRPC interface.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import (
    MODEL_NAME,
    QUICK_SECONDS,
    STATE_SECONDS,
    Keys,
    RequestRefused,
    connection_to,
    fetch,
    refusal_from_handler,
    retry_once,
    send,
    unreachable,
)
from torchserve_client.process import START_SECONDS, age_seconds, find_server

CONNECT_SECONDS = 3.0
PROBE_SECONDS = 30.0  # TorchServe never answers what a model that was unregistered had been asked
ANSWER_SECONDS = 1200.0  # longest silence in an answer: the queue and a long prompt come before the first piece

T = TypeVar("T")


class StreamCut(TorchServeError):
    """The stream ended before its `data: [DONE]`: what has arrived is not the whole answer."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one event of an answer adds. The finish reason, usage and timings come with the last ones.

    progress: how far the prompt is read: `total`, `cache` and `processed` tokens. It comes before the first text, and
    timings come with every text, where the request was sent with `tells_progress`.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None


class _KeySource(Protocol):
    def use(self, request: Callable[[str | None], T]) -> T: ...


class Answer:
    """One answer being streamed: iterate in one thread, close() from any, as often as you like.

    The request is sent by the first step of the iteration, which is also what raises every TorchServeError. close()
    hangs up and so cancels the answer at the server. It returns at once, and the iteration then ends without an error,
    also when it was waiting for the first piece (TorchServe sends no header before that).
    """

    def __init__(
        self,
        keys: _KeySource,
        url: str,
        body: dict[str, Any],
        api_path: str = "",
        see_model: Callable[[str], None] = lambda fingerprint: None,
    ) -> None:
        """see_model: called in the iteration's thread with the answer's first `system_fingerprint`, if it has one."""
        self._keys = keys
        self._url = url
        self._api_path = api_path
        self._body = body
        self._see_model = see_model
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._pieces = self._stream()

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        return next(self._pieces)

    def close(self) -> None:
        self._is_closed = True
        if self._socket:
            with contextlib.suppress(OSError):  # already disconnected
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; its `finally` closes

    def _stream(self) -> Iterator[Piece]:
        connection = connection_to(self._url, CONNECT_SECONDS)
        try:
            response = self._keys.use(lambda key: self._post(connection, key))
            yield from self._read(response)
        except _Closed:
            return
        except (OSError, http.client.HTTPException) as error:
            if not self._is_closed:
                raise unreachable(self._url) from error
        finally:
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, key: str | None) -> http.client.HTTPResponse:
        connection.close()  # after a refused key the second try has a connection of its own
        connection.connect()
        self._socket = connection.sock
        self._socket.settimeout(ANSWER_SECONDS)
        if self._is_closed:  # close() came while connecting and had no socket to shut down
            raise _Closed
        return send(connection, "POST", self._url, key, self._api_path, self._body)

    def _read(self, response: http.client.HTTPResponse) -> Iterator[Piece]:
        fingerprint = ""
        try:
            for line in response:
                data = line.strip()
                if self._is_closed or data == b"data: [DONE]":
                    return
                if data.startswith(b"data:"):
                    event = json.loads(data[len(b"data:") :])
                    if not fingerprint and (fingerprint := event.get("system_fingerprint") or ""):
                        self._see_model(fingerprint)
                    yield _piece(event)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._is_closed:
                raise StreamCut(_CUT) from error
        if not self._is_closed:
            raise StreamCut(_CUT)


class _Closed(Exception):
    """The person who asked no longer wants the answer."""


_CUT = "The answer was cut: the server ended the connection before the end. Ask again; a worker restarts in seconds."


def _piece(event: dict[str, Any]) -> Piece:
    if "error" in event:
        raise refusal_from_handler(event["error"], 500)
    choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
    text = choice.get("text") or choice.get("delta", {}).get("content") or ""
    usage, timings, progress = (event.get(name) for name in ("usage", "timings", "prompt_progress"))
    return Piece(text, choice.get("finish_reason"), usage, timings, progress)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model says about itself; None and True where it says nothing, and then no fingerprint."""

    context_window: int | None = None
    has_chat_template: bool = True
    fingerprint: str = ""


class InferenceClient:
    """Asks the model, with the inference key only. Threads may share one.

    The one thing it keeps is what a worker has answered it since it last saw the model absent; see state().
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "inference")
        self._model_url = f"{config.inference_url}/predictions/{MODEL_NAME}"  # the default version
        self._lock = threading.Lock()
        self._has_answered = False
        self._has_changed = False
        self._facts = ModelFacts()
        self._probe: threading.Thread | None = None

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together, from the model's last word about itself; None before that."""
        return self._facts.context_window

    @property
    def has_chat_template(self) -> bool:
        """False once the model has said that it has none: chats are then sent as `Question: … Answer:`."""
        return self._facts.has_chat_template

    def state(self) -> Literal["down", "starting", "unhealthy", "no model", "loading", "ready"]:
        """As well as the inference key can tell; takes some two seconds at most and raises nothing.

        "unhealthy": it runs but does not answer, or not to us.
        TorchServe tells this key whether the model is registered, but not whether a worker has loaded it. Only a
        request can show that, and it waits in the queue for up to max_batch_delay like any other. So one request is
        left waiting in a thread of its own, never a second one, and until it is answered the model counts as loading.
        An answer of another model than the one known (a version has been switched) has that asked about itself as well.
        """
        obstacle = self._obstacle()
        with self._lock:
            if obstacle:
                self._has_answered, self._probe = False, None
                return obstacle
            if (not self._has_answered or self._has_changed) and self._probe is None:
                self._has_changed = False
                self._probe = threading.Thread(target=self._ask_a_worker, daemon=True)
                self._probe.start()
            probe = self._probe
        if probe and not self._has_answered:
            probe.join(STATE_SECONDS / 2)
        return "ready" if self._has_answered else "loading"

    def _obstacle(self) -> Literal["down", "starting", "unhealthy", "no model"] | None:
        try:
            retry_once(lambda: self._call("OPTIONS", STATE_SECONDS))
            return None
        except RequestRefused as refusal:
            if refusal.status == 502:  # what answers is not TorchServe
                return "down"
            return "no model" if refusal.type == "ModelNotFoundException" else "unhealthy"
        except TorchServeError:
            process = find_server(self._config)
        if process is None:
            return "down"
        return "starting" if age_seconds(process) < START_SECONDS else "unhealthy"

    def _ask_a_worker(self) -> None:
        models = None
        with contextlib.suppress(TorchServeError):  # the next state() tells what there is
            models = self.models(PROBE_SECONDS)
        with self._lock:
            if self._probe is not threading.current_thread():
                return  # the model that it asked has gone meanwhile
            self._probe = None
            if models is not None:
                self._facts, self._has_answered = read_facts(models), True

    def _see_model(self, fingerprint: str) -> None:
        """An older archive says nothing about its fingerprint: there is nothing to compare with."""
        with self._lock:
            self._has_changed = self._has_changed or self._facts.fingerprint not in ("", fingerprint)

    def models(self, seconds: float = QUICK_SECONDS) -> dict[str, Any]:
        """What the model says about itself; a worker answers this, so it waits in the queue like any request."""
        return self._call("GET", seconds, "v1/models")

    def chat(self, messages: list[dict[str, str]], params: SamplingParams, tells_progress: bool = False) -> Answer:
        """The next message of a conversation; a last message of the assistant is continued."""
        return self._answer("chat/completions", {"messages": messages}, params, tells_progress)

    def complete(self, prompt: str, params: SamplingParams, tells_progress: bool = False) -> Answer:
        return self._answer("completions", {"prompt": prompt}, params, tells_progress)

    def _answer(self, path: str, question: dict[str, Any], params: SamplingParams, tells_progress: bool) -> Answer:
        body = {**question, **params.to_request(), "stream": True, "stream_options": {"include_usage": True}}
        if tells_progress:
            body |= {"return_progress": True, "timings_per_token": True}
        return Answer(self._keys, self._model_url, body, f"v1/{path}", self._see_model)

    def _call(self, method: str, seconds: float, api_path: str = "") -> Any:
        return self._keys.use(lambda key: fetch(method, self._model_url, key, seconds, api_path))


def read_facts(models: Any) -> ModelFacts:
    """Out of an answer of `/v1/models`: ours, or llama-server's."""
    entries = models.get("data") if isinstance(models, dict) else None
    meta = entries[0].get("meta") if entries and isinstance(entries[0], dict) else None
    if not isinstance(meta, dict):
        return ModelFacts()
    window = next((meta[name] for name in ("context_window", "n_ctx") if isinstance(meta.get(name), int)), None)
    return ModelFacts(window, meta.get("chat_template") != "raw", str(meta.get("fingerprint") or ""))
