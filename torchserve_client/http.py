"""Sends one HTTP request whose response is read whole, and turns every error of a request into a sentence.

Knows the wire and the shape of error responses. Does not know which key a request needs (torchserve_client/keys.py) or
what a response means. Streamed responses are in torchserve_client/streaming.py.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from torchserve_client.config import TorchServeError

MODEL_NAME = "llamacpp"
MODEL_VERSION = "1.0"
# A request without a version in its URL goes to the default version. TorchServe then drops the rest of the URL's path,
# so the handler takes the API's path from this header (docs/torchserve-facts.md).
API_PATH_HEADER = "X-Api-Path"

# The timeouts of all requests. Each one limits the connecting, and then every silence of the server.
STATE_TIMEOUT_SECONDS = 1.0  # a page queries the state every two seconds
METRICS_TIMEOUT_SECONDS = 5.0
REQUEST_TIMEOUT_SECONDS = 10.0  # requests that TorchServe answers without a worker
DESCRIPTION_TIMEOUT_SECONDS = 60.0  # a worker answers these; TorchServe never answers those of an unregistered model
CONNECT_TIMEOUT_SECONDS = 3.0  # of a stream
STREAM_TIMEOUT_SECONDS = 1200.0  # of a stream: the queue and a long prompt come before the first event
UNLOAD_TIMEOUT_SECONDS = 150.0  # TorchServe's unregister_model_timeout, and a little more
LOAD_TIMEOUT_SECONDS = 660.0  # startupTimeout in model-config.yaml, and a little more
LARGEST_RESPONSE = 64_000_000  # bytes
LONGEST_REASON = 1000  # characters of what a server says about an error

T = TypeVar("T")


class ServerUnreachable(TorchServeError):
    """No server listens at the address, or the server does not respond in time, or the address is no address."""


class RequestRefused(TorchServeError):
    """The server responded with an error. `param` names the parameter of the request that the error is about.

    `code` is the word that OpenAI's error objects have for some problems, such as "context_length_exceeded".
    """

    def __init__(self, message: str, status: int, type: str = "", param: str | None = None, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code


def fetch(
    method: str,
    url: str,
    key: str | None,
    timeout_seconds: float,
    api_path: str = "",
    body: Mapping[str, Any] | None = None,
) -> Any:
    """Sends a request and returns the JSON of its response, None if the response is empty.

    body: is sent as JSON, unless it is None.

    Raises ServerUnreachable and RequestRefused; a response that is not JSON is a refusal with status 502.
    """
    text = fetch_text(method, url, key, timeout_seconds, api_path, body)
    try:
        return decode_json(text) if text.strip() else None
    except ValueError as error:
        message = f"The server at {_origin(url)} is not TorchServe: correct the addresses in config.properties."
        raise RequestRefused(message, 502) from error


def fetch_text(
    method: str,
    url: str,
    key: str | None,
    timeout_seconds: float,
    api_path: str = "",
    body: Mapping[str, Any] | None = None,
) -> str:
    """Sends a request and returns the text of its response. Raises like fetch()."""
    headers = request_headers(key, api_path)
    with errors_as_sentences(url), requests.Session() as session:  # a new connection each time: see retry_once()
        session.trust_env = False  # else ~/.netrc replaces the Authorization header
        response = session.request(
            method, url, headers=headers, json=body, timeout=timeout_seconds, allow_redirects=False, stream=True
        )
        content = bytearray()
        for piece in response.iter_content(65_536):
            content += piece
            if len(content) > LARGEST_RESPONSE:
                raise RequestRefused(f"The response of {_origin(url)} is too large.", 502)
    if response.status_code >= 400:
        raise refusal(response.status_code, bytes(content))
    return content.decode("utf-8", "replace")


def decode_json(text: str) -> Any:
    """What a server's JSON says, with `?` for halves of surrogate pairs: no file and no page can have those.

    Raises ValueError, also if it is nested too deeply.
    """
    try:
        decoded = json.loads(text)
        if "\\ud" in text.lower():
            return json.loads(json.dumps(decoded, ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return decoded


def retry_once(send: Callable[[], T]) -> T:
    """Calls `send()`, and once more if the server is unreachable.

    TorchServe blocks one of its I/O threads while it loads a model. A new connection gets another thread.
    """
    try:
        return send()
    except ServerUnreachable:
        return send()


def request_headers(key: str | None, api_path: str = "") -> dict[str, str]:
    """The headers for the key and for the API's path. Raises RequestRefused for a key that no header can carry."""
    headers = {}
    if key:
        if not (key.isascii() and key.isprintable()):
            raise RequestRefused("The key contains a character that no key has: copy the key again.", 401)
        headers["Authorization"] = f"Bearer {key}"
    if api_path:
        headers[API_PATH_HEADER] = api_path
    return headers


@contextmanager
def errors_as_sentences(url: str, unreachable: str = "") -> Iterator[None]:
    """Turns every error of the network and of the address into ServerUnreachable, with `unreachable` as its sentence.

    The default sentence is about TorchServe.
    """
    try:
        yield
    except ValueError as error:  # requests and urllib3 refuse a wrong address with subclasses of it
        raise ServerUnreachable(f"{url} is not a usable address: correct it.") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError) as error:
        raise ServerUnreachable(unreachable or torchserve_unreachable(url)) from error


def torchserve_unreachable(url: str) -> str:
    """The sentence for a TorchServe that does not respond at `url`."""
    return f"TorchServe does not answer at {_origin(url)}: press Start Server in the server app."


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


_SENTENCES = {
    "InvalidKeyException": "TorchServe refused the key in key_file.json: "
    "it was started in another folder, or has been restarted. Stop it and start it again in the server app.",
    "ModelNotFoundException": "The model is not registered: press Register Llama2 in the server app.",
    "ServiceUnavailableException": "The model has no worker, or its queue is full: try again in a moment.",
}


def refusal(status: int, body: bytes) -> RequestRefused:
    """The error of a response: TorchServe's own {"code", "type", "message"}, or the handler's {"error": {...}}."""
    try:
        answer = decode_json(body.decode("utf-8", "replace"))
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        answer = {"message": body.decode("utf-8", "replace").strip()[:200]}
    if answer.get("error"):
        return openai_refusal(answer["error"], status)
    kind, message = str(answer.get("type", "")), str(answer.get("message", ""))
    if message.startswith("Worker died"):
        message = "The worker ended before it could answer. TorchServe restarts it: try again in some seconds."
    sentence = (
        _SENTENCES.get(kind) or message[:LONGEST_REASON] or f"The server answered with status {status} and no reason."
    )
    if kind == "ModelNotFoundException" and "not found at" in message:
        sentence = f"{message}: package the model with package_llama.sh first."
    return RequestRefused(sentence, status, kind)


def openai_refusal(error: Any, status: int) -> RequestRefused:
    """The error in an error object of OpenAI's API. In a stream this object is the only place for a status."""
    if not isinstance(error, dict):
        return RequestRefused(str(error)[:LONGEST_REASON], status)
    code = error.get("code")
    return RequestRefused(
        str(error.get("message") or "The server gave no reason.")[:LONGEST_REASON],
        code if isinstance(code, int) else status,
        str(error.get("type") or ""),
        error.get("param"),
        code if isinstance(code, str) else "",
    )
