"""How each app finds the other one: a running app writes its address, without the token, into a file.

The file is beside the file with the token (apps/shared/token_file.py). A killed app leaves its file, so the address is
checked before it is returned.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from apps.shared.token_file import FOLDER, OWNER_ONLY

PROBE_SECONDS = 0.5
AppName = Literal["server", "chat"]


def running_address(folder: Path, app: AppName) -> str | None:
    """The address of the app that was started last and still listens; None if there is none."""
    try:
        address = _file(folder, app).read_text(encoding="utf-8").strip()
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.port:
            return None
        socket.create_connection((parts.hostname, parts.port), PROBE_SECONDS).close()
    except (OSError, ValueError):  # no file, no port, or nothing listens
        return None
    return address


@contextmanager
def published_address(folder: Path, app: AppName, address: str) -> Iterator[None]:
    """The address is in its file as long as the context lasts. Without a writable folder there is no link."""
    file = _file(folder, app)
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, OWNER_ONLY)
        with open(descriptor, "w", encoding="utf-8") as output:
            output.write(f"{address}\n")
    except OSError:
        yield
        return
    try:
        yield
    finally:
        if _is_written_by(file, address):
            file.unlink(missing_ok=True)


def _is_written_by(file: Path, address: str) -> bool:
    """Whether no other app has written the file meanwhile."""
    try:
        return file.read_text(encoding="utf-8").strip() == address
    except OSError:
        return False


def _file(folder: Path, app: AppName) -> Path:
    return folder / FOLDER / f"{app}_app.txt"
