"""The rules of a streamed answer, against a small real HTTP server that can be slow or broken."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest

from tests.support.serving import free_ports, wait_until
from torchserve_client import streaming
from torchserve_client.http import LONGEST_REASON, RequestRefused, ServerUnreachable
from torchserve_client.keys import NO_KEY, FixedKey
from torchserve_client.streaming import CompletionStream, StreamCut, StreamEvent

BODY = {"prompt": "q", "max_tokens": 5}
DONE = b"data: [DONE]\n\n"


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def word(text: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"text": text, "finish_reason": finish_reason}])


class ScriptedServer(ThreadingHTTPServer):
    """Answers every request with `script`: chunks to send, and steps to take in between.

    `requests` are the received headers and bodies; `n_disconnected` counts the clients that disconnected too early.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = 200
        self.script: list[bytes | Callable[[], object]] = []
        self.is_chunked = True
        self.is_truncated = False
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.n_disconnected = 0

    def stream(self, key: str = "", api_path: str = "") -> CompletionStream:
        return CompletionStream(f"http://127.0.0.1:{self.server_port}/v1", BODY, FixedKey(key), api_path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        try:
            self._send()
        except OSError:
            self.server.n_disconnected += 1
        self.close_connection = True

    def _send(self) -> None:
        """Sends the status line with the first chunk, like TorchServe."""
        if not self.server.is_chunked:
            body = b"".join(step for step in self.server.script if isinstance(step, bytes))
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        has_begun = False
        for step in self.server.script:
            if callable(step):
                step()
                continue
            if not has_begun:
                self.send_response(self.server.status)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                has_begun = True
            self.wfile.write(f"{len(step):x}\r\n".encode() + step + b"\r\n")
        if not self.server.is_truncated:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(free_ports(1)[0]) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_event_arrives_before_the_next_one_is_sent(server: ScriptedServer) -> None:
    gate = threading.Event()
    server.script = [word("one"), gate.wait, word("two"), DONE]
    stream = server.stream()

    first = next(stream)
    gate.set()

    assert [first.text, *(event.text for event in stream)] == ["one", "two"]


@pytest.mark.parametrize(
    "cut_at",
    [
        pytest.param(range(1, 200), id="byte-by-byte"),
        pytest.param([17], id="within-a-character"),
        pytest.param([], id="at-once"),
    ],
)
def test_chunks_may_cut_events_anywhere(server: ScriptedServer, cut_at: list[int]) -> None:
    stream = b'data: {"choices": [{"text": "\xc3\xa9t\xc3\xa9 \xf0\x9f\xa6\x99"}]}\r\n\r\n: a comment\n\n' + DONE
    edges = [0, *(edge for edge in cut_at if edge < len(stream)), len(stream)]
    server.script = [stream[start:end] for start, end in pairwise(edges)]

    assert [event.text for event in server.stream()] == ["été 🦙"]


def test_answer_may_come_as_a_whole(server: ScriptedServer) -> None:
    """TorchServe sends it so if the handler returns the whole answer at once."""
    server.is_chunked = False
    server.script = [word("one"), word("two"), DONE]

    assert [event.text for event in server.stream()] == ["one", "two"]


def test_events_carry_text_progress_reason_usage_and_timings(server: ScriptedServer) -> None:
    progress = {"total": 10, "cache": 0, "processed": 4, "time_ms": 1.0}
    server.script = [
        event(choices=[{"delta": {"role": "assistant"}}], prompt_progress=progress),
        event(choices=[{"delta": {"content": "hi"}, "finish_reason": "length"}]),
        event(choices=[{"delta": None}]),
        event(choices=[], usage={"completion_tokens": 1}, timings={"queue_ms": 2}),
        DONE,
    ]

    assert list(server.stream()) == [
        StreamEvent(progress=progress),
        StreamEvent("hi", "length"),
        StreamEvent(),
        StreamEvent(usage={"completion_tokens": 1}, timings={"queue_ms": 2}),
    ]


def test_request_has_body_key_and_api_path(server: ScriptedServer) -> None:
    server.script = [DONE]

    assert list(server.stream(key="secret", api_path="v1/completions")) == []

    (path, headers, body) = server.requests[0]
    assert (path, body) == ("/v1", BODY | {"stream": True, "stream_options": {"include_usage": True}})
    assert (headers["Authorization"], headers["X-Api-Path"]) == ("Bearer secret", "v1/completions")


@pytest.mark.parametrize("is_truncated", [pytest.param(False, id="ended"), pytest.param(True, id="disconnected")])
def test_stream_without_done_was_cut(server: ScriptedServer, is_truncated: bool) -> None:
    server.script = [word("half")]
    server.is_truncated = is_truncated
    stream = server.stream()

    assert next(stream).text == "half"
    with pytest.raises(StreamCut, match="was cut"):
        next(stream)


@pytest.mark.parametrize(
    "content",
    [
        b'"x"',
        b"[1]",
        b"{",
        b'{"choices": ["x"]}',
        b'{"choices": 5}',
        b'{"choices": [{"delta": "x"}]}',
        b'{"choices": [{"delta": {"content": 5}}]}',
        b'{"choices": [{"delta": {"reasoning_content": ["x"]}}]}',
        b'{"choices": [{"text": "x", "finish_reason": {"a": 1}}]}',
        b"[" * 100_000,
    ],
    ids=["string", "list", "no json", "choice", "choices", "delta", "text", "thought", "reason", "depth"],
)
def test_event_of_another_form_cuts_the_stream(server: ScriptedServer, content: bytes) -> None:
    server.script = [b"data: " + content + b"\n\n", DONE]

    with pytest.raises(StreamCut, match="was cut"):
        next(server.stream())


@pytest.mark.parametrize("progress", [True, [1], {}, {"total": 1e308, "cache": 0, "processed": 5}, {"total": None}])
def test_progress_that_is_no_progress_is_ignored(server: ScriptedServer, progress: object) -> None:
    server.script = [event(choices=[{"text": "x"}], prompt_progress=progress), DONE]
    assert list(server.stream()) == [StreamEvent("x")]


def test_half_of_a_surrogate_pair_becomes_a_question_mark(server: ScriptedServer) -> None:
    server.script = [event(choices=[{"text": "a\ud83db 😀"}]), DONE]
    assert next(server.stream()).text == "a?b 😀"


def test_long_error_is_shortened(server: ScriptedServer) -> None:
    server.script = [event(error={"message": "no" * 100_000}), DONE]
    with pytest.raises(RequestRefused) as refused:
        next(server.stream())
    assert str(refused.value) == "no" * (LONGEST_REASON // 2)


def test_error_event_in_a_stream_is_a_refusal(server: ScriptedServer) -> None:
    error = {"message": "The context is full.", "type": "server_error", "param": None, "code": 503}
    server.script = [word("half"), event(error=error), DONE]
    stream = server.stream()
    next(stream)

    with pytest.raises(RequestRefused, match="The context is full") as refused:
        next(stream)

    assert (refused.value.status, refused.value.type) == (503, "server_error")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param({"error": {"message": "top_p: must be a number", "param": "top_p"}}, "top_p: must", id="handler"),
        pytest.param({"error": "no such model"}, "no such model", id="plain-text"),
    ],
)
def test_error_status_is_a_refusal(server: ScriptedServer, body: dict[str, Any], message: str) -> None:
    server.status = 400
    server.script = [json.dumps(body).encode()]

    with pytest.raises(RequestRefused, match=message) as refused:
        next(server.stream())

    assert refused.value.status == 400


def test_refused_connection_has_the_sentence_of_its_server() -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}/v1"

    with pytest.raises(ServerUnreachable, match="press Start Server"):
        next(CompletionStream(url, BODY, NO_KEY))
    with pytest.raises(ServerUnreachable, match="The other server is off"):
        next(CompletionStream(url, BODY, NO_KEY, unreachable="The other server is off."))


@pytest.mark.parametrize(
    "url", ["http://a..b/v1", "http://127.0.0.1:99999/v1", "http://[x/v1", f"http://{'é' * 70}/v1"]
)
def test_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="is not a usable address"):
        next(CompletionStream(url, BODY, NO_KEY))


def test_key_that_no_header_can_carry_is_refused(server: ScriptedServer) -> None:
    with pytest.raises(RequestRefused, match="copy the key again"):
        next(server.stream(key="sk-\u200b1"))

    assert server.requests == []


# Closing.


def test_close_before_the_first_step_sends_nothing(server: ScriptedServer) -> None:
    stream = server.stream()

    stream.close()

    assert (list(stream), server.requests) == ([], [])


def test_close_while_streaming_disconnects(server: ScriptedServer) -> None:
    gate = threading.Event()
    server.script = [word("one"), gate.wait, *[word("more")] * 10_000, DONE]

    with closing(server.stream()) as stream:
        next(stream)

    gate.set()
    assert list(stream) == []
    wait_until(lambda: server.n_disconnected == 1, what="the server sees the end of the connection")


@pytest.mark.parametrize(
    "before", [pytest.param([], id="before-the-headers"), pytest.param([word("one")], id="streaming")]
)
def test_close_from_another_thread_ends_a_blocked_read(server: ScriptedServer, before: list[bytes]) -> None:
    gate = threading.Event()
    server.script = [*before, gate.wait, *[word("more")] * 10_000, DONE]
    stream = server.stream()
    events: list[StreamEvent] = []
    reader = threading.Thread(target=lambda: events.extend(stream))
    reader.start()
    wait_until(lambda: server.requests and len(events) == len(before), what="the reader is blocked")

    stream.close()
    stream.close()

    reader.join(timeout=5)
    assert not reader.is_alive()
    assert len(events) == len(before)
    gate.set()
    wait_until(lambda: server.n_disconnected == 1, what="the server sees the end of the connection")


def test_close_while_connecting_returns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of the listening socket is full, so the system does not answer the connection."""
    monkeypatch.setattr(streaming, "CONNECT_TIMEOUT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        stream = CompletionStream(f"http://127.0.0.1:{full.getsockname()[1]}", BODY, NO_KEY)
        failures: list[Exception] = []

        def read() -> None:
            try:
                list(stream)
            except ServerUnreachable as error:
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        started = time.monotonic()
        stream.close()
        closed_after = time.monotonic() - started
        reader.join(timeout=30)

    assert closed_after < 0.5
    assert not reader.is_alive()
    assert failures == []


def test_close_after_the_end_is_fine(server: ScriptedServer) -> None:
    server.script = [word("one"), DONE]
    stream = server.stream()
    events = list(stream)

    stream.close()

    assert [event.text for event in events] == ["one"]
