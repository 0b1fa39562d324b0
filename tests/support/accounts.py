"""Other accounts of this machine, for tests of what an account may reach. Only root can become another account."""

import multiprocessing
import os
import select
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import TypeVar

import pytest

T = TypeVar("T")

STRANGER = 61_234  # accounts that exist on no machine: the kernel needs only the number
ANOTHER_STRANGER = 61_235
SECONDS = 60
_fork = multiprocessing.get_context("fork")  # a new Python could not be started: the account may not read its files


def as_account(uid: int, function: Callable[[], T]) -> T:
    """Calls the function in a process of this account, and returns what it returned. The result must be picklable."""
    require_root()
    ours, theirs = _fork.Pipe()
    process = _started(_call, uid, function, theirs)
    try:
        assert ours.poll(SECONDS), "the other account's process did not answer"
        is_good, value = ours.recv()
    finally:
        process.join(SECONDS)
    assert is_good, value
    result: T = value
    return result


@contextmanager
def running_relay(uid: int, port: int) -> Iterator[int]:
    """A relay of this account to a port of this machine, as `ssh -L` makes one; yields its own port."""
    require_root()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = _started(_relay, uid, listener, port)
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            process.join()


def require_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another account")


def _started(function: Callable[..., None], *arguments: object) -> ForkProcess:
    process = _fork.Process(target=function, args=arguments, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: this process has threads; the copy has none
        process.start()
    return process


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _call(uid: int, function: Callable[[], object], result: Connection) -> None:
    _become(uid)
    try:
        result.send((True, function()))
    except Exception as error:  # the test fails with it
        result.send((False, repr(error)))


def _relay(uid: int, listener: socket.socket, port: int) -> None:
    _become(uid)
    while True:
        accepted, _ = listener.accept()
        onward = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=_copy, args=(accepted, onward), daemon=True).start()


def _copy(one: socket.socket, other: socket.socket) -> None:
    with one, other:
        while True:
            for ready in select.select([one, other], [], [])[0]:
                piece = ready.recv(65_536)
                if not piece:
                    return
                (other if ready is one else one).sendall(piece)
