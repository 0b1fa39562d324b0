"""A client that disconnects, an upstream that is away, and the end of the front: no request stays open."""

import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.front.conftest import Front, running_front
from tests.front.upstream import KEY, SSE, Answer
from tests.support.scripted_server import write_keys
from tests.support.serving import free_ports, wait_until
from torchserve_client.config import ServerConfig

REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"
    b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}" % KEY.encode()
)
PIECES: tuple[bytes | None, ...] = (b"data: 1\n\n", None, b"data: 2\n\n")


def connect(front: Front) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", front.port), timeout=60)
    connection.sendall(REQUEST)
    return connection


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer((None, b"{}")), id="whole answer"),
        pytest.param(Answer((None, *PIECES), content_type=SSE, is_chunked=True), id="stream"),
    ],
)
def test_a_hang_up_before_the_first_byte_closes_the_upstream_request(front: Front, answer: Answer) -> None:
    front.upstream.answer = answer
    with connect(front):
        wait_until(lambda: front.upstream.n_waiting == 1)
        assert front.upstream.n_hung_up == 0
    wait_until(lambda: front.upstream.n_hung_up == 1, 10)


def test_a_hang_up_during_a_stream_closes_the_upstream_request(front: Front) -> None:
    front.upstream.answer = Answer(PIECES, content_type=SSE, is_chunked=True)
    with connect(front) as connection:
        received = b""
        while b"data: 1" not in received:
            received += connection.recv(1000)
    wait_until(lambda: front.upstream.n_hung_up == 1, 10)


def test_a_hang_up_within_the_body_sends_nothing(front: Front) -> None:
    with socket.create_connection(("127.0.0.1", front.port), timeout=60) as connection:
        connection.sendall(REQUEST[:-1])
    assert front.client.get("/v1/models").status_code == 200
    assert [request.method for request in front.upstream.received] == ["GET"]


def test_a_hang_up_leaves_the_other_requests_alone(front: Front) -> None:
    front.upstream.answer = Answer(PIECES, content_type=SSE, is_chunked=True)
    with front.client.stream("POST", "/v1/completions", content=b"{}") as response:
        pieces = response.iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        with connect(front):
            wait_until(lambda: front.upstream.n_waiting == 2)
        wait_until(lambda: front.upstream.n_hung_up == 1, 10)
        front.upstream.goes_on.set()
        assert b"".join(pieces) == b"data: 2\n\n"


def test_more_requests_than_kept_connections_wait_at_the_same_time(front: Front) -> None:
    front.upstream.answer = Answer((None, b"{}"))
    with ExitStack() as open_connections:
        connections = [open_connections.enter_context(connect(front)) for _ in range(150)]
        wait_until(lambda: front.upstream.n_waiting == 150)
        front.upstream.goes_on.set()
        assert [connection.recv(12) for connection in connections] == [b"HTTP/1.1 200"] * 150


def make_config(home: Path) -> ServerConfig:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
    file = home / "config.properties"
    file.write_text(f"inference_address={address}\nmanagement_address={address}\n")
    write_keys(home / "key_file.json", KEY)
    return ServerConfig.load(file)


def test_without_torchserve_every_request_is_503_in_words(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with running_front(config) as port:
        address = f"http://127.0.0.1:{port}"
        response = httpx.post(f"{address}/v1/completions", content=b"{}", headers={"x-api-key": KEY})
        health = httpx.get(f"{address}/health", timeout=60)
    assert (response.status_code, response.headers["Retry-After"], health.status_code) == (503, "1", 503)
    sentence = f"TorchServe does not answer at {config.inference_url}: press Start Server in the server app."
    assert response.json()["error"]["message"] == sentence
    assert health.json()["error"]["message"] == sentence


def test_an_open_answer_may_end_before_the_front_stops(front: Front) -> None:
    front.upstream.answer = Answer(PIECES, content_type=SSE, is_chunked=True)
    file = front.home / "config.properties"
    with httpx.Client(headers={"x-api-key": KEY}, timeout=60) as client:
        with running_front(ServerConfig.load(file)) as port:
            response = client.send(client.build_request("POST", f"http://127.0.0.1:{port}/v1/completions"), stream=True)
            pieces = response.iter_raw()
            assert next(pieces) == b"data: 1\n\n"
            ending = threading.Timer(0.3, front.upstream.goes_on.set)  # after the front has begun to stop
            ending.start()
        assert b"".join(pieces) == b"data: 2\n\n"
