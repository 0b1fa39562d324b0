"""Streams one completion of an OpenAI-compatible server, as server-sent events over HTTP.

Knows the wire and the events. Does not know which key is right and which server it is. close() works from any thread,
also before the response's headers have come. `requests` cannot do that, so this class keeps its connection's socket.
"""

import contextlib
import io
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection

from torchserve_client.config import TorchServeError
from torchserve_client.http import (
    CONNECT_TIMEOUT_SECONDS,
    STREAM_TIMEOUT_SECONDS,
    ServerUnreachable,
    decode_json,
    errors_as_sentences,
    openai_refusal,
    refusal,
    request_headers,
)
from torchserve_client.keys import KeySource


class StreamCut(TorchServeError):
    """The stream ended before its `data: [DONE]`: the answer is not complete."""


_CUT = "The answer was cut: the server ended the connection before the end. Continue it, or ask again."


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What one event adds to an answer. The finish reason, usage and timings come with the last events.

    progress: the prefill's progress: `total`, `cache` and `processed` tokens. It comes before the first text, and
    timings come with every text, if the request has `return_progress` and `timings_per_token`.
    thought: what the model thinks before it answers, if the server sends that apart (`reasoning_content`, in newer
    versions of vLLM `reasoning`).
    """

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    progress: dict[str, Any] | None = None
    thought: str = ""


class CompletionStream:
    """One answer while it is generated: iterate in one thread, close() from any thread, as often as you like.

        stream = CompletionStream("http://127.0.0.1:8000/v1/chat/completions", body, FixedKey("sk-..."))
        for event in stream:
            print(event.text, end="")

    The first step of the iteration sends the request. The iteration raises every TorchServeError: ServerUnreachable,
    RequestRefused, StreamCut. close() disconnects, which cancels the answer at the server. It returns at once, also
    while the stream connects or waits for the headers. The iteration then ends without an error.
    """

    def __init__(
        self, url: str, body: dict[str, Any], keys: KeySource, api_path: str = "", unreachable: str = ""
    ) -> None:
        """`body` gets `"stream": true` and the request for usage. `unreachable` is the sentence of ServerUnreachable;
        the default one is about TorchServe. `api_path` is for TorchServe only (see API_PATH_HEADER).
        """
        self._url = url
        self._body = body | {"stream": True, "stream_options": {"include_usage": True}}
        self._keys = keys
        self._api_path = api_path
        self._unreachable = unreachable
        self._connection: HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._is_closed = False
        self._events = self._stream()

    def __iter__(self) -> Iterator[StreamEvent]:
        return self

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def close(self) -> None:
        self._is_closed = True
        if self._socket:
            with contextlib.suppress(OSError):  # already disconnected
                self._socket.shutdown(socket.SHUT_RDWR)  # ends the other thread's read; that thread closes the socket

    def _stream(self) -> Iterator[StreamEvent]:
        if self._is_closed:
            return
        try:
            yield from self._read(self._keys.use(self._send))
        except (ServerUnreachable, StreamCut):
            if not self._is_closed:
                raise
        finally:
            self._disconnect()

    def _send(self, key: str | None) -> urllib3.HTTPResponse:
        """Sends the request on a new connection and returns the response without its body."""
        self._disconnect()  # from the request with a refused key
        headers = request_headers(key, self._api_path) | {"Content-Type": "application/json"}
        with errors_as_sentences(self._url, self._unreachable):
            target = urllib3.util.parse_url(self._url)
            host, port = target.host or "", target.port
            connection = HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_SECONDS)
            if target.scheme == "https":
                connection = HTTPSConnection(
                    host, port, timeout=CONNECT_TIMEOUT_SECONDS, ca_certs=DEFAULT_CA_BUNDLE_PATH
                )
            self._connection = connection
            connection.connect()
            self._socket = connection.sock
            connection.timeout = STREAM_TIMEOUT_SECONDS
            if self._is_closed:  # close() came before there was a socket to shut down
                raise ConnectionAbortedError
            body = json.dumps(self._body).encode()
            connection.request("POST", target.request_uri, body, headers, preload_content=False)
            response = connection.getresponse()
            if response.status >= 400:
                raise refusal(response.status, response.data)
            return response

    def _read(self, response: urllib3.HTTPResponse) -> Iterator[StreamEvent]:
        response.auto_close = False  # else urllib3 closes it at its last byte, before the last lines are out of `lines`
        try:
            lines = io.TextIOWrapper(response, "utf-8", "replace", newline="\n")  # type: ignore[type-var]
            for line in lines:  # each as soon as it has come
                if self._is_closed or line.startswith("data: [DONE]"):
                    return
                if line.startswith("data:"):
                    yield _event(decode_json(line.removeprefix("data:")))
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise StreamCut(_CUT) from error
        raise StreamCut(_CUT)

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()


def _event(event: Any) -> StreamEvent:
    """Raises ValueError for an event of another form than OpenAI's."""
    try:
        if "error" in event:
            raise openai_refusal(event["error"], 500)
        choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        finish_reason = choice.get("finish_reason") or ""
        if not all(isinstance(words, str) for words in (text, thought, finish_reason)):
            raise TypeError
        usage, timings, progress = (event.get(name) for name in ("usage", "timings", "prompt_progress"))
        return StreamEvent(text, finish_reason or None, usage, timings, _progress(progress), thought)
    except (AttributeError, TypeError) as error:
        raise ValueError("an event has another form than OpenAI's") from error


def _progress(progress: Any) -> dict[str, Any] | None:
    """None if these are not the numbers of a prefill; the answer goes on without them."""
    if not isinstance(progress, dict):
        return None
    counts = [progress.get(name) for name in ("total", "cache", "processed")]
    return progress if all(isinstance(count, int) for count in counts) else None
