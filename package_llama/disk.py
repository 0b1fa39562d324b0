"""Checks free disk space before a step, and gives each step a staging folder for unfinished files.

Not covered: other programs that fill the disk during a step. The step then fails and leaves no partial file.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from package_llama.console import gigabytes, report
from package_llama.errors import PackagingError

UNFINISHED, LOCK = ".package-unfinished", ".package.lock"


def make_folder(folder: Path) -> None:
    """Makes it if it does not exist. Raises PackagingError if it is a link to a folder that is not there."""
    if folder.is_symlink() and not folder.exists():
        raise PackagingError(f"{folder} is a link to {folder.readlink()}, which is not there: mount that disk.")
    folder.mkdir(exist_ok=True)


def require_space(purpose: str, folder: Path, n_bytes: int) -> None:
    """Raises PackagingError if the disk of `folder` has less free space. Makes the folder if it does not exist."""
    make_folder(folder)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < n_bytes:
        raise PackagingError(
            f"{purpose} needs {gigabytes(n_bytes)} in {folder}, where {gigabytes(free_bytes)} are free: "
            "make room, or make that folder a link to one on a larger disk."
        )


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """A second run waits until the context ends. The system releases the lock of a killed run."""
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report(f"Waiting for another package_llama.sh that uses {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is removed at the end, with its files, and at the beginning if a killed run left it."""
    folder = parent / UNFINISHED
    with locked_folder(parent):
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)  # it exists if programs of a killed run wrote into it after rmtree
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
