"""The rules of a streamed answer, against a small real HTTP server that can be slow, rude or broken."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.serving import free_ports, make_home, wait_until
from torchserve_client.http import RequestRefused, ServerUnreachable
from torchserve_client.inference import InferenceClient
from torchserve_client.streaming import StreamCut, StreamEvent

PARAMS = SamplingParams(max_tokens=5, seed=1, stop=("END",))
DONE = b"data: [DONE]\n\n"


def event(**content: object) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def word(text: str, finish_reason: str | None = None) -> bytes:
    return event(choices=[{"text": text, "finish_reason": finish_reason}])


class ScriptedServer(ThreadingHTTPServer):
    """Answers every request with `script`: chunks to send, and steps to take in between.

    `requests` are the paths of the API and the bodies received; `hang_ups` counts the clients that left before the end.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.status = 200
        self.script: list[bytes | Callable[[], object]] = []
        self.is_truncated = False
        self.requests: list[tuple[str, dict]] = []
        self.hang_ups = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((f"{self.path} {self.headers['X-Api-Path']}", body))
        try:
            self._send()
        except OSError:
            self.server.hang_ups += 1
        self.close_connection = True

    def _send(self) -> None:
        """Like TorchServe, the status line goes out with the first chunk."""
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


@pytest.fixture
def client(server: ScriptedServer, tmp_path: Path) -> InferenceClient:
    address = f"http://127.0.0.1:{server.server_port}"
    return InferenceClient(make_home(tmp_path, inference_address=address, disable_token_authorization="true"))


def test_piece_is_there_before_the_next_one_is_sent(server: ScriptedServer, client: InferenceClient) -> None:
    gate = threading.Event()
    server.script = [word("one"), gate.wait, word("two"), DONE]
    answer = client.complete("q", PARAMS)

    first = next(answer)
    gate.set()

    assert [first.text, *(piece.text for piece in answer)] == ["one", "two"]


@pytest.mark.parametrize(
    "cut_at",
    [
        pytest.param(range(1, 200), id="byte-by-byte"),
        pytest.param([17], id="within-a-character"),
        pytest.param([], id="at-once"),
    ],
)
def test_chunks_may_cut_events_anywhere(server: ScriptedServer, client: InferenceClient, cut_at: list[int]) -> None:
    stream = b'data: {"choices": [{"text": "\xc3\xa9t\xc3\xa9 \xf0\x9f\xa6\x99"}]}\r\n\r\n: a comment\n\n' + DONE
    edges = [0, *(edge for edge in cut_at if edge < len(stream)), len(stream)]
    server.script = [stream[start:end] for start, end in zip(edges, edges[1:], strict=False)]

    assert [piece.text for piece in client.complete("q", PARAMS)] == ["été 🦙"]


def test_last_pieces_carry_reason_usage_and_timings(server: ScriptedServer, client: InferenceClient) -> None:
    server.script = [
        event(choices=[{"delta": {"role": "assistant"}}]),
        event(choices=[{"delta": {"content": "hi"}, "finish_reason": "length"}]),
        event(choices=[], usage={"completion_tokens": 1}, timings={"queue_ms": 2}),
        DONE,
    ]

    pieces = list(client.chat([{"role": "user", "content": "q"}], PARAMS))

    assert pieces == [
        StreamEvent(),
        StreamEvent("hi", "length"),
        StreamEvent(usage={"completion_tokens": 1}, timings={"queue_ms": 2}),
    ]


@pytest.mark.parametrize(
    ("ask", "path", "question"),
    [
        pytest.param(
            lambda client: client.chat([{"role": "user", "content": "q"}], PARAMS),
            "chat/completions",
            {"messages": [{"role": "user", "content": "q"}]},
            id="chat",
        ),
        pytest.param(lambda client: client.complete("q", PARAMS), "completions", {"prompt": "q"}, id="complete"),
    ],
)
def test_request_has_question_parameters_and_asks_for_usage(
    server: ScriptedServer,
    client: InferenceClient,
    ask: Callable[[InferenceClient], Iterator[StreamEvent]],
    path: str,
    question: dict,
) -> None:
    server.script = [DONE]

    list(ask(client))

    expected = {**question, **PARAMS.to_request(), "stream": True, "stream_options": {"include_usage": True}}
    assert server.requests == [(f"/predictions/llamacpp v1/{path}", expected)]


def test_progress_of_the_prompt_and_running_counts_come_when_asked_for(
    server: ScriptedServer, client: InferenceClient
) -> None:
    progress = {"total": 10, "cache": 0, "processed": 4, "time_ms": 1.0}
    server.script = [
        event(choices=[{"delta": {}}], prompt_progress=progress),
        event(choices=[{"delta": {"content": "hi"}}], timings={"predicted_n": 1}),
        DONE,
    ]

    pieces = list(client.chat([{"role": "user", "content": "q"}], PARAMS))

    assert pieces == [StreamEvent(progress=progress), StreamEvent("hi", timings={"predicted_n": 1})]
    _, body = server.requests[0]
    assert (body["return_progress"], body["timings_per_token"]) == (True, True)


@pytest.mark.parametrize("is_truncated", [pytest.param(False, id="ended-properly"), pytest.param(True, id="hung-up")])
def test_stream_without_done_was_cut(server: ScriptedServer, client: InferenceClient, is_truncated: bool) -> None:
    server.script = [word("half")]
    server.is_truncated = is_truncated
    answer = client.complete("q", PARAMS)

    assert next(answer).text == "half"
    with pytest.raises(StreamCut, match="was cut"):
        next(answer)


def test_error_event_in_a_stream_is_a_refusal(server: ScriptedServer, client: InferenceClient) -> None:
    error = {"message": "The context is full.", "type": "server_error", "param": None, "code": 503}
    server.script = [word("half"), event(error=error), DONE]
    answer = client.complete("q", PARAMS)
    next(answer)

    with pytest.raises(RequestRefused, match="The context is full") as refused:
        next(answer)

    assert (refused.value.status, refused.value.type) == (503, "server_error")


@pytest.mark.parametrize(
    ("status", "body", "message", "kind", "param"),
    [
        pytest.param(
            400,
            {"error": {"message": "top_p: must be a number", "type": "invalid_request_error", "param": "top_p"}},
            "top_p: must be a number",
            "invalid_request_error",
            "top_p",
            id="handler",
        ),
        pytest.param(
            404,
            {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: llamacpp"},
            "press Register Llama2",
            "ModelNotFoundException",
            None,
            id="no-model",
        ),
        pytest.param(
            503,
            {"code": 503, "type": "ServiceUnavailableException", "message": "Model has no worker"},
            "try again in a moment",
            "ServiceUnavailableException",
            None,
            id="no-worker-or-full-queue",
        ),
        pytest.param(
            500,
            {"code": 500, "type": "InternalServerException", "message": "Worker died."},
            "restarts by itself",
            "InternalServerException",
            None,
            id="worker-died",
        ),
        pytest.param(502, "<html>Bad gateway</html>", "Bad gateway", "", None, id="not-json"),
        pytest.param(500, "", "status 500 and no reason", "", None, id="empty"),
    ],
)
def test_error_status_becomes_a_sentence(
    server: ScriptedServer,
    client: InferenceClient,
    status: int,
    body: dict | str,
    message: str,
    kind: str,
    param: str | None,
) -> None:
    server.status = status
    server.script = [(body if isinstance(body, str) else json.dumps(body)).encode()]
    if not body:
        server.script = [b" "]

    with pytest.raises(RequestRefused, match=message) as refused:
        next(client.complete("q", PARAMS))

    assert (refused.value.status, refused.value.type, refused.value.param) == (status, kind, param)


def test_nobody_listening_is_unreachable(tmp_path: Path) -> None:
    client = InferenceClient(make_home(tmp_path, disable_token_authorization="true"))

    with pytest.raises(ServerUnreachable, match="press Start Server"):
        next(client.complete("q", PARAMS))
    assert client.state() == "down"


def test_silent_server_is_unreachable_after_the_time_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        client = InferenceClient(make_home(tmp_path, inference_address=address, disable_token_authorization="true"))

        with pytest.raises(ServerUnreachable):
            client.models(seconds=0.2)


# Closing.


def test_close_before_the_first_step_sends_nothing(server: ScriptedServer, client: InferenceClient) -> None:
    answer = client.complete("q", PARAMS)

    answer.close()

    assert (list(answer), server.requests) == ([], [])


def test_close_while_streaming_hangs_up(server: ScriptedServer, client: InferenceClient) -> None:
    gate = threading.Event()
    server.script = [word("one"), gate.wait, *[word("more")] * 10_000, DONE]

    with closing(client.complete("q", PARAMS)) as answer:
        next(answer)

    gate.set()
    assert list(answer) == []
    wait_until(lambda: server.hang_ups == 1, what="the server sees the hang-up")


@pytest.mark.parametrize(
    "before", [pytest.param([], id="before-the-headers"), pytest.param([word("one")], id="streaming")]
)
def test_close_from_another_thread_ends_a_blocked_read(
    server: ScriptedServer, client: InferenceClient, before: list[bytes]
) -> None:
    gate = threading.Event()
    server.script = [*before, gate.wait, *[word("more")] * 10_000, DONE]
    answer = client.complete("q", PARAMS)
    pieces: list[StreamEvent] = []
    reader = threading.Thread(target=lambda: pieces.extend(answer))
    reader.start()
    wait_until(lambda: server.requests and len(pieces) == len(before), what="the reader is blocked")

    answer.close()
    answer.close()

    reader.join(timeout=5)
    assert not reader.is_alive() and len(pieces) == len(before)
    gate.set()
    wait_until(lambda: server.hang_ups == 1, what="the server sees the hang-up")


def test_close_after_the_end_is_fine(server: ScriptedServer, client: InferenceClient) -> None:
    server.script = [word("one"), DONE]
    answer = client.complete("q", PARAMS)
    pieces = list(answer)

    answer.close()

    assert [piece.text for piece in pieces] == ["one"]
