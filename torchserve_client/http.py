"""One request to TorchServe over HTTP: its key, its connection, its errors as sentences.

The key is read from the server's key file for each request. What is asked, and what an answer means, is in
torchserve_client/inference.py and torchserve_client/management.py.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.process import find_server, key_file

MODEL_NAME = "llamacpp"
MODEL_VERSION = "1.0"
# Without a version in the URL a request goes to the default one, but TorchServe 0.12 then passes no further path on
# (tried: an empty version, `default`, a query and a header `url_path`, too). The handler takes it from this header.
API_PATH_HEADER = "X-Api-Path"

STATE_SECONDS = 1.0  # an app's page asks for the state every two seconds
QUICK_SECONDS = 10.0  # what TorchServe answers by itself, without a worker
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


def parse_instant(text: str) -> datetime | None:
    """Java writes up to nine decimals of a second, more than Python 3.10 reads."""
    try:
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


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
        file = key_file(self._config)
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
            raise unreachable(self._config.management_url)
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
    connection = connection_to(url, seconds)
    try:
        return send(connection, method, url, key, api_path).read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url) from error
    finally:
        connection.close()


def retry_once(ask: Callable[[], T]) -> T:
    """What `ask()` returns; called again where nobody answers: a thread of TorchServe that is loading a model does not
    answer its other connections, and the next connection gets another thread.
    """
    try:
        return ask()
    except ServerUnreachable:
        return ask()


def connection_to(url: str, seconds: float) -> http.client.HTTPConnection:
    """Not connected yet; seconds: for connecting, and for each silence afterwards."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=seconds)


def send(
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


def unreachable(url: str) -> ServerUnreachable:
    """To be raised where nobody answers at `url`."""
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
        return refusal_from_handler(answer["error"], status)
    kind, message = str(answer.get("type", "")), str(answer.get("message", ""))
    if message.startswith("Worker died"):
        message = "The worker ended before it could answer: it restarts by itself, try again in some seconds."
    plain = _PLAIN.get(kind) or message or f"The server answered with status {status} and no reason."
    if kind == "ModelNotFoundException" and "not found at" in message:
        plain = f"{message}: package the model with package_llama.sh first."
    return RequestRefused(plain, status, kind)


def refusal_from_handler(error: dict[str, Any], status: int) -> RequestRefused:
    """OpenAI's error object; in a stream it is the only place where a status can be."""
    code = error.get("code")
    return RequestRefused(
        str(error.get("message") or "The server gave no reason."),
        code if isinstance(code, int) else status,
        str(error.get("type") or ""),
        error.get("param"),
        code if isinstance(code, str) else "",
    )
