"""Locks between programs. Each lock has its own file. The system releases the lock of a killed program."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from torchserve_client.config import TorchServeError


class Locked(TorchServeError):
    """Another program holds the lock."""


@contextmanager
def file_lock(file: Path, timeout_seconds: float, if_locked: TorchServeError | None = None) -> Iterator[None]:
    """Holds the lock on `file`, which is made if it is missing and never removed.

    Raises `if_locked` (None: Locked) if another program holds the lock for longer than the timeout. Raises
    TorchServeError if the file cannot be made.
    """
    lock = FileLock(file, timeout_seconds, mode=0o600, fallback_to_soft=False)
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise if_locked or Locked(f"{file} is locked by another program: wait for its end.") from error
    except OSError as error:
        raise TorchServeError(f"{file} cannot be made ({error.strerror}): make that place writable.") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(file: Path) -> bool:
    """Whether some program holds the lock.

    Shares the lock for an instant, so a program that wants the lock must give file_lock() a timeout above 0. Several
    callers do not see each other.
    """
    try:
        with file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise TorchServeError(f"{file} cannot be read ({error.strerror}): be the user who made it.") from error
    return False
