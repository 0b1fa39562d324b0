"""Unusual and hostile HTTP: it is answered rightly or refused, and TorchServe never sees it as it came."""

import socket

import pytest

from tests.front.conftest import Front
from tests.front.upstream import KEY, SSE, Answer

HEAD = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
SMUGGLED = "GET /v1/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def exchange(front: Front, request: str) -> bytes:
    """Sends the bytes and returns all that comes until the front closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", front.port), timeout=60) as connection:
        connection.sendall(request.encode("latin-1"))
        while piece := connection.recv(65536):
            received += piece
    return received


def test_http_1_0_gets_a_body_without_chunks_and_a_closed_connection(front: Front) -> None:
    front.upstream.answer = Answer((b"data: 1\n\n", b"data: 2\n\n"), content_type=SSE, is_chunked=True)
    received = exchange(front, f"POST /v1/completions HTTP/1.0\r\n{HEAD}Content-Length: 2\r\n\r\n{{}}")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"data: 1\n\ndata: 2\n\n"


def test_pipelined_requests_are_answered_in_order(front: Front) -> None:
    first = f"POST /v1/first HTTP/1.1\r\n{HEAD}Content-Length: 2\r\n\r\n{{}}"
    received = exchange(front, f"{first}GET /v1/second HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200") == 2
    sent = [(request.method, request.headers["X-Api-Path"], request.body) for request in front.upstream.received]
    assert sent == [("POST", "v1/first", b"{}"), ("GET", "v1/second", b"")]


def test_a_chunked_body_goes_on_with_its_length(front: Front) -> None:
    chunked = "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\n{\r\n1;a=b\r\n}\r\n0\r\nX-Trailer: 1\r\n\r\n"
    assert exchange(front, f"POST /v1/completions HTTP/1.1\r\n{HEAD}{chunked}").startswith(b"HTTP/1.1 200")
    (received,) = front.upstream.received
    assert (received.body, received.headers["Content-Length"]) == (b"{}", "2")
    assert not {"Transfer-Encoding", "X-Trailer"} & received.headers.keys()


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="both lengths"),
        pytest.param("Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n", id="both lengths, turned"),
        pytest.param("Content-Length: 0\r\nContent-Length: 60\r\n\r\n", id="two lengths"),
        pytest.param("Content-Length: +5\r\n\r\n", id="a length with a sign"),
        pytest.param("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="another coding"),
        pytest.param("Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", id="an unknown coding"),
        pytest.param("Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", id="a space before the colon"),
        pytest.param("Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n0\r\n\r\n", id="a chunk of negative size"),
        pytest.param("X: a\x00b\r\n\r\n", id="a zero byte"),
        pytest.param("X: a\r\n b\r\nContent-Length : 3\r\n\r\n", id="a folded line"),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(front: Front, attack: str) -> None:
    received = exchange(front, f"POST /v1/completions HTTP/1.1\r\n{HEAD}{attack}{SMUGGLED}")
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert received.count(b"HTTP/1.1") == 1, "nothing after it is answered"
    assert not front.upstream.received


@pytest.mark.parametrize("path", ["/v1/a%0d%0aX-Other:%201", "/v1/a%00", "/v1/%c3%a9", "/v1/models%20", "/v1/%20%20"])
def test_a_path_never_adds_a_header(front: Front, path: str) -> None:
    received = exchange(front, f"GET {path} HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 404")
    assert not front.upstream.received


def test_an_upgrade_to_a_websocket_is_an_ordinary_request(front: Front) -> None:
    upgrade = "Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    assert exchange(front, f"GET /v1/models HTTP/1.1\r\n{HEAD}{upgrade}").startswith(b"HTTP/1.1 200")
    (received,) = front.upstream.received
    assert "Upgrade" not in received.headers
