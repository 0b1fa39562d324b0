"""Requests whose response is read whole: their errors as sentences, and what is sent. Needs no TorchServe."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.support.serving import free_ports
from torchserve_client.http import RequestRefused, ServerUnreachable, fetch, fetch_text, retry_once

TIMEOUT_SECONDS = 10


class Server(ThreadingHTTPServer):
    """Answers every request with `status` and `body`, and stores the request's headers."""

    daemon_threads = True
    status = 200
    body = b"{}"
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.headers = dict(self.headers)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b'{"status": "Healthy"}', {"status": "Healthy"}, id="json"),
        pytest.param(b" ", None, id="empty"),
    ],
)
def test_response_is_json_or_nothing(server: Server, body: bytes, expected: object) -> None:
    server.body = body

    assert fetch("GET", server.url, None, TIMEOUT_SECONDS) == expected


def test_response_that_is_not_json_is_no_torchserve(server: Server) -> None:
    server.body = b"<html>hello</html>"

    with pytest.raises(RequestRefused, match="is not TorchServe") as refused:
        fetch("GET", server.url, None, TIMEOUT_SECONDS)

    assert refused.value.status == 502
    assert fetch_text("GET", server.url, None, TIMEOUT_SECONDS) == "<html>hello</html>"


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
            "TorchServe restarts it",
            "InternalServerException",
            None,
            id="worker-died",
        ),
        pytest.param(502, "<html>Bad gateway</html>", "Bad gateway", "", None, id="not-json"),
        pytest.param(500, "", "status 500 and no reason", "", None, id="empty"),
    ],
)
def test_error_status_becomes_a_sentence(
    server: Server, status: int, body: dict[str, object] | str, message: str, kind: str, param: str | None
) -> None:
    server.status = status
    server.body = (body if isinstance(body, str) else json.dumps(body)).encode()

    with pytest.raises(RequestRefused, match=message) as refused:
        fetch("GET", server.url, None, TIMEOUT_SECONDS)

    assert (refused.value.status, refused.value.type, refused.value.param) == (status, kind, param)


def test_refused_connection_is_unreachable() -> None:
    with pytest.raises(ServerUnreachable, match="press Start Server"):
        fetch("GET", f"http://127.0.0.1:{free_ports(1)[0]}", None, TIMEOUT_SECONDS)


def test_server_that_never_answers_is_unreachable_after_the_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ServerUnreachable, match="press Start Server"),
    ):
        fetch("GET", f"http://127.0.0.1:{silent.getsockname()[1]}", None, timeout_seconds=0.2)


@pytest.mark.parametrize(
    "url",
    [
        "http://a..b/v1",
        "http://*.de/v1",
        "http://127.0.0.1:99999/v1",
        "http://[x/v1",
        f"http://{'é' * 70}/v1",
        "no-url",
    ],
)
def test_address_that_is_none_becomes_a_sentence(url: str) -> None:
    with pytest.raises(ServerUnreachable, match="is not a usable address"):
        fetch("GET", url, None, TIMEOUT_SECONDS)


@pytest.mark.parametrize("key", ["sk-\u200b1", "sk-é", "sk-1\nX-Other: 2"], ids=["zero-width", "accent", "two-lines"])
def test_key_that_no_header_can_carry_is_refused(server: Server, key: str) -> None:
    with pytest.raises(RequestRefused, match="copy the key again") as refused:
        fetch("GET", server.url, key, TIMEOUT_SECONDS)

    assert refused.value.status == 401


def test_login_in_netrc_does_not_replace_the_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    fetch("GET", server.url, "the-key", TIMEOUT_SECONDS)

    assert server.headers["Authorization"] == "Bearer the-key"


def test_retry_sends_once_more_if_the_server_is_unreachable() -> None:
    results: list[Exception | str] = [ServerUnreachable("no"), "yes"]

    def send() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert retry_once(send) == "yes"
