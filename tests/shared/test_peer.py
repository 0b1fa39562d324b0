"""Whose connection it is: real sockets of this and of another account."""

import os
import socket
from collections.abc import Iterator

import pytest

from apps.shared.peer import Address, Peers, connections_of
from tests.support.accounts import STRANGER, require_root, running_relay


@pytest.fixture(params=["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client and server of a connection; the last kind is one over IPv4 to a server for both."""
    host = request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_dual = "ffff" in host
    try:
        listener = socket.create_server(("::" if is_dual else host, 0), family=family, dualstack_ipv6=is_dual)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1" if is_dual else host, port)) as client:
            server, _ = listener.accept()
            with server:
                yield client, server


def peer_of(server: socket.socket) -> tuple[Address, Address]:
    return server.getpeername()[:2], server.getsockname()[:2]


def test_own_connection_has_the_own_account(ends: tuple[socket.socket, socket.socket]) -> None:
    _, server = ends
    assert Peers().account(*peer_of(server)) == os.geteuid()


def test_end_that_does_not_exist_has_no_account(ends: tuple[socket.socket, socket.socket]) -> None:
    _, server = ends
    (host, port), own = peer_of(server)
    assert Peers().account((host, port ^ 1), own) is None
    assert Peers().account(("203.0.113.7", port), own) is None
    assert Peers().account(("no address", port), own) is None


def test_closed_end_has_no_account_although_the_kernel_says_root(ends: tuple[socket.socket, socket.socket]) -> None:
    client, server = ends
    addresses = peer_of(server)
    client.close()
    assert Peers().account(*addresses) is None


def test_connection_of_another_account_has_that_account() -> None:
    require_root()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with running_relay(STRANGER, port) as relay, socket.create_connection(("127.0.0.1", relay)):
            server, _ = listener.accept()
            with server:
                assert Peers().account(*peer_of(server)) == STRANGER


def test_macos_finds_own_connections_among_the_own_processes(ends: tuple[socket.socket, socket.socket]) -> None:
    """The way that needs no root there; psutil is the same on Linux."""
    _, server = ends
    (host, port), own = ((address[0].removeprefix("::ffff:"), address[1]) for address in peer_of(server))
    peers = Peers()
    assert peers._is_own((host, port), own)
    assert peers._last is not None
    assert peers._last.pid == os.getpid()
    assert ((host, port), own) in connections_of(peers._last)
    assert not peers._is_own((host, port ^ 1), own)
