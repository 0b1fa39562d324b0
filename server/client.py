"""Asks the model that TorchServe serves: state, chat, completion. Knows nothing of Streamlit.

InferenceClient uses the inference key only; registering and scaling is in server/management.py. Facts about the
server are asked for, not remembered, and the key is read from the server's key file for each request.

Not covered: several models, TorchServe's gRPC interface.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from sampling_params import SamplingParams
from server.process import START_SECONDS, ServerConfig, TorchServeError, age_seconds, find_server

MODEL_NAME = "llamacpp"
MODEL_VERSION = "1.0"
# Without a version in the URL a request goes to the default one, but TorchServe 0.12 then passes no further path on
# (tried: an empty version, `default`, a query and a header `url_path`, too). The handler takes it from this header.
API_PATH_HEADER = "X-Api-Path"

CONNECT_SECONDS = 3.0
STATE_SECONDS = 1.0  # an app's page asks for the state every two seconds
QUICK_SECONDS = 10.0  # what TorchServe answers by itself, without a worker
PROBE_SECONDS = 30.0  # TorchServe never answers what a model that was unregistered had been asked
ANSWER_SECONDS = 1200.0  # longest silence in an answer: the queue and a long prompt come before the first piece
RENEW_BEFORE = timedelta(seconds=30)

T = TypeVar("T")
Kind = Literal["inference", "management"]


class ServerUnreachable(TorchServeError):
    """Nobody listens, or nobody answers in time."""


class RequestRefused(TorchServeError):
    """The server answered with an error. `param` names the request's parameter, where it is about one.

    `code` is the word that OpenAI's error objects have for some problems, such as "context_length_exceeded".
    """

    def __init__(self, message: str, status: int, type: str = "", param: str | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code


class AnswerCut(TorchServeError):
    """The stream ended before its `data: [DONE]`: what has arrived is not the whole answer."""


def parse_instant(text: str) -> datetime | None:
    """Java writes up to nine decimals of a second, more than Python 3.10 reads."""
    try:
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


# One request: its key, its connection, its errors as sentences.


class Keys:
    """The bearer key of one of TorchServe's addresses.

    Read for each request and renewed when about to expire. Renewing makes the old key invalid at once for everybody, so
    after a refusal the file is read again first: another program may have renewed it.
    """

    def __init__(self, config: ServerConfig, kind: Kind) -> None:
        self._config = config
        self._kind = kind

    def use(self, request: Callable[[str | None], T]) -> T:
        """What `request(key)` returns; called again with a newer key when the first one is refused."""
        key = self._current()
        try:
            return request(key)
        except RequestRefused as refusal:
            if key is None or refusal.type != "InvalidKeyException":
                raise
        newer = self._read(self._kind)["key"]
        return request(newer if newer != key else self._renewed())

    def _current(self) -> str | None:
        if not self._config.needs_token:
            return None
        entry = self._read(self._kind)
        expires = parse_instant(entry.get("expiration time", ""))
        if expires and expires - datetime.now(timezone.utc) < RENEW_BEFORE:
            return self._renewed()
        return entry["key"]

    def _renewed(self) -> str:
        url = f"{self._config.management_url}/token?type={self._kind}"
        fetch("GET", url, self._read("API")["key"], QUICK_SECONDS)
        return self._read(self._kind)["key"]

    def _read(self, entry: str) -> dict[str, str]:
        """One entry of the key file; read again when incomplete, because TorchServe writes it in place."""
        file = self._config.key_file
        for attempt in range(10):
            try:
                return json.loads(file.read_text())[entry]
            except FileNotFoundError:
                break
            except OSError as error:
                raise TorchServeError(
                    f"{file} cannot be read ({error.strerror}): be the user who started it."
                ) from error
            except (ValueError, KeyError, TypeError):
                time.sleep(0.01 * attempt)
        if find_server(self._config) is None:
            raise _unreachable(self._config.management_url)
        raise TorchServeError(f"{file} has no {entry} key: stop TorchServe, and start it in that folder.")


def fetch(method: str, url: str, key: str | None, seconds: float, api_path: str = "") -> Any:
    """The JSON of an answer that is read as a whole, None where it is empty."""
    body = fetch_text(method, url, key, seconds, api_path)
    try:
        return json.loads(body) if body.strip() else None
    except ValueError as error:
        raise RequestRefused(f"{_origin(url)} is not TorchServe: look at config.properties.", 502) from error


def fetch_text(method: str, url: str, key: str | None, seconds: float, api_path: str = "") -> str:
    """An answer that is read as a whole, whatever it is."""
    connection = _connection(url, seconds)
    try:
        return _send(connection, method, url, key, api_path).read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url) from error
    finally:
        connection.close()


def _connection(url: str, seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=seconds)


def _send(
    connection: http.client.HTTPConnection, method: str, url: str, key: str | None, api_path: str, body: object = None
) -> http.client.HTTPResponse:
    """Sends a request and returns its answer, still to be read; an error status becomes a RequestRefused."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if api_path:
        headers[API_PATH_HEADER] = api_path
    if body is not None:
        headers["Content-Type"] = "application/json"
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection.request(method, target, json.dumps(body) if body is not None else None, headers)
    response = connection.getresponse()
    if response.status >= 400:
        raise _refusal(response.status, response.read())
    return response


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _unreachable(url: str) -> ServerUnreachable:
    return ServerUnreachable(f"TorchServe does not answer at {_origin(url)}: press Start Server in the server app.")


_PLAIN = {
    "InvalidKeyException": "TorchServe refused the key in key_file.json: "
    "it was started in another folder, or has been restarted. Stop it and start it again in the server app.",
    "ModelNotFoundException": "The model is not registered: press Register Llama2 in the server app.",
    "ServiceUnavailableException": "The model has no worker, or its queue is full: try again in a moment.",
}


def _refusal(status: int, body: bytes) -> RequestRefused:
    """From TorchServe's own {"code", "type", "message"} or the handler's {"error": {"message", "type", "param"}}."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {"message": body.decode("utf-8", "replace").strip()[:200]}
    if isinstance(answer.get("error"), dict):
        return _refusal_from_handler(answer["error"], status)
    kind, message = str(answer.get("type", "")), str(answer.get("message", ""))
    if message.startswith("Worker died"):
        message = "The worker ended before it could answer: it restarts by itself, try again in some seconds."
    plain = _PLAIN.get(kind) or message or f"The server answered with status {status} and no reason."
    if kind == "ModelNotFoundException" and "not found at" in message:
        plain = f"{message}: package the model with package_llama.sh first."
    return RequestRefused(plain, status, kind)


def _refusal_from_handler(error: dict[str, Any], status: int) -> RequestRefused:
    """OpenAI's error object; in a stream it is the only place where a status can be."""
    code = error.get("code")
    return RequestRefused(
        str(error.get("message") or "The server gave no reason."),
        code if isinstance(code, int) else status,
        str(error.get("type") or ""),
        error.get("param"),
        code if isinstance(code, str) else "",
    )


# Asking the model.


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
        connection = _connection(self._url, CONNECT_SECONDS)
        try:
            response = self._keys.use(lambda key: self._post(connection, key))
            yield from self._read(response)
        except _Closed:
            return
        except (OSError, http.client.HTTPException) as error:
            if not self._is_closed:
                raise _unreachable(self._url) from error
        finally:
            connection.close()

    def _post(self, connection: http.client.HTTPConnection, key: str | None) -> http.client.HTTPResponse:
        connection.close()  # after a refused key the second try has a connection of its own
        connection.connect()
        self._socket = connection.sock
        self._socket.settimeout(ANSWER_SECONDS)
        if self._is_closed:  # close() came while connecting and had no socket to shut down
            raise _Closed
        return _send(connection, "POST", self._url, key, self._api_path, self._body)

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
                raise AnswerCut(_CUT) from error
        if not self._is_closed:
            raise AnswerCut(_CUT)


class _Closed(Exception):
    """The person who asked no longer wants the answer."""


_CUT = "The answer was cut: the server ended the connection before the end. Ask again; a worker restarts in seconds."


def _piece(event: dict[str, Any]) -> Piece:
    if "error" in event:
        raise _refusal_from_handler(event["error"], 500)
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
        """As well as the inference key can tell; takes about a second at most and raises nothing.

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
                self._probe = threading.Thread(target=self._ask_a_worker, daemon=True)
                self._probe.start()
            probe = self._probe
        if probe and not self._has_answered:
            probe.join(STATE_SECONDS / 2)
        return "ready" if self._has_answered else "loading"

    def _obstacle(self) -> Literal["down", "starting", "unhealthy", "no model"] | None:
        try:
            self._call("OPTIONS", STATE_SECONDS)
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
                self._facts, self._has_answered, self._has_changed = read_facts(models), True, False

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
