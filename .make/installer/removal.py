"""`make distclean`: says what it removes and how large that is, asks, and removes it.

Conversations, experiments and keys stay, and so does llama.cpp's wheel in the user's cache.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from installer import PROJECT, SetUpError

REMOVED = {  # a folder, and what the next `make chat` does about it
    ".venv": "the environment; it is made again in minutes",
    ".cache": "downloads and tools; they are downloaded again",
    "models": "models: what you have put there is lost, and what was converted must be converted again",
    "model_store": "archives: those of package_llama.sh are packed again",
}
LISTED = ("models", "model_store")  # by their entries: what is in them may be a person's own


def remove() -> None:
    """Raises SetUpError if nobody can be asked and YES=1 is not set."""
    there = {PROJECT / name: what for name, what in REMOVED.items() if os.path.lexists(PROJECT / name)}
    if not there:
        print("There is nothing to remove.")
        return
    print("This removes:")
    for path, what in there.items():
        print(f"  {path.name:12} {_size(path) / 1e9:6.2f} GB  {what}")
        for entry in sorted(path.iterdir()) if path.name in LISTED and not path.is_symlink() else []:
            if not entry.name.startswith("."):
                print(f"    {entry.name}, {_size(entry) / 1e9:.2f} GB")
    print("Conversations and experiments stay.", flush=True)
    with contextlib.ExitStack() as locks:
        for path in there:
            locks.enter_context(_not_in_use(path))
        if os.environ.get("YES") != "1" and not _agrees():
            raise SetUpError("Nothing was removed.")
        for path in there:
            _remove(path)
    print("Removed.")


def _remove(path: Path) -> None:
    try:
        if path.is_symlink() or path.is_file():
            path.unlink()  # the folder behind a link may belong to another project
        elif path.is_mount():
            for entry in path.iterdir():
                _remove(entry)
        else:
            shutil.rmtree(path)
    except OSError as error:
        raise SetUpError(f"{error.filename} cannot be removed ({error.strerror}): remove it by hand.") from error


@contextlib.contextmanager
def _not_in_use(folder: Path) -> Iterator[None]:
    """Takes the lock of package_llama.sh (package_llama/disk.py), if the folder has one. Raises SetUpError."""
    lock = folder / ".package.lock"
    if not lock.is_file():
        yield
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetUpError(
                f"Nothing was removed: package_llama.sh uses {folder}. Wait until it has ended."
            ) from error
        yield


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise SetUpError("Nothing was removed: nobody can answer here, so run it with YES=1.")
    try:
        return input("Remove all of this? Type yes: ").strip().lower() == "yes"
    except EOFError:
        return False


def _size(path: Path) -> int:
    if path.is_symlink() or path.is_file():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
