"""Room on the disk, asked for before a step begins; and the folder in which a step leaves what is unfinished.

Not covered: other programs that fill the disk meanwhile. The step fails then, and leaves nothing half-made.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from package_llama.console import gigabytes, say
from package_llama.errors import PackagingError

UNFINISHED, LOCK = ".package-unfinished", ".package.lock"


def require_space(purpose: str, needs: dict[Path, int]) -> None:
    """Raises PackagingError unless the disks of these folders have so many bytes free; those that exist must be there.

    Folders on one disk are taken together.
    """
    by_disk: dict[int, list[Path]] = {}
    for folder in needs:
        folder.mkdir(exist_ok=True)
        by_disk.setdefault(folder.stat().st_dev, []).append(folder)
    for folders in by_disk.values():
        needed_bytes, free_bytes = sum(needs[folder] for folder in folders), shutil.disk_usage(folders[0]).free
        if free_bytes < needed_bytes:
            raise PackagingError(
                f"{purpose} needs {gigabytes(needed_bytes)} in {folders[0]}, where {gigabytes(free_bytes)} are free: "
                "make room, or make that folder a link to one on a larger disk."
            )


def remove(path: Path) -> None:
    """Removes a large file. Its name is gone at once; freeing 13 GB takes seconds, those of a process of its own."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        path.unlink()
        subprocess.Popen(
            [sys.executable, "-c", ""],  # ends at once, and is the last one to let go of the file
            stdin=file,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


@contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is gone afterwards, with all in it. One run has it at a time; others wait.

    The system lets go of the lock of a run that is killed, and the next one removes what that has left.
    """
    parent.mkdir(exist_ok=True)
    with (parent / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Waiting for another package_llama.sh that is at work in {parent}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder = parent / UNFINISHED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)  # the programs of a run that was killed may still be ending in there
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
