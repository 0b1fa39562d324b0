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


def require_space(purpose: str, folder: Path, n_bytes: int) -> None:
    """Raises PackagingError if the disk of `folder` has less free space. Makes the folder if it does not exist."""
    folder.mkdir(exist_ok=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < n_bytes:
        raise PackagingError(
            f"{purpose} needs {gigabytes(n_bytes)} in {folder}, where {gigabytes(free_bytes)} are free: "
            "make room, or make that folder a link to one on a larger disk."
        )


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is removed at the end, with its files. A second run waits until it is free.

    The system releases the lock of a killed run; the next run then removes the files of that run.
    """
    parent.mkdir(exist_ok=True)
    lock = FileLock(parent / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        report(f"Waiting for another package_llama.sh that uses {parent}")
        lock.acquire()
    folder = parent / UNFINISHED
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)  # it exists if programs of a killed run wrote into it after rmtree
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
