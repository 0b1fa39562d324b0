"""apps/health.py, the health check of containers."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from apps.health import problem


class Statuses(BaseHTTPRequestHandler):
    """Answers /503 with 503."""

    def do_GET(self) -> None:
        self.send_response(int(self.path[1:]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The base class would write to stderr."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Statuses) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [200, 403])
def test_a_program_that_answers_is_healthy(url: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert problem(f"{url}/{status}") == ""


def test_a_server_error_is_named(url: str) -> None:
    assert problem(f"{url}/503") == f"{url}/503 answers with 503."


def test_a_program_that_does_not_answer_is_named() -> None:
    assert problem("http://127.0.0.1:9/ping").startswith("http://127.0.0.1:9/ping does not answer (")
