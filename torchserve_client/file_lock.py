"""Locks between programs, on a file: the system lets go for a program that is killed."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


class Locked(Exception):
    """Another program holds the lock."""


@contextmanager
def held(file: Path, seconds: float) -> Iterator[None]:
    """Holds the lock on `file`, which must be there; raises Locked if another program keeps it for `seconds`."""
    deadline = time.monotonic() + seconds
    with file.open() as opened:
        while not _take(opened, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise Locked(f"{file} is locked by another program")
            time.sleep(0.02)
        yield


def is_held(file: Path) -> bool:
    """Whether some program holds the lock. While this asks, nobody else gets it, so who wants it tries for a moment."""
    try:
        with file.open() as opened:
            return not _take(opened, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _take(opened: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(opened, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
