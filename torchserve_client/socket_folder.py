"""A program's own temporary folder, for its Unix sockets: their paths must be short. Only its owner can open it."""

import hashlib
import os
import tempfile
from pathlib import Path

from torchserve_client.config import TorchServeError

LONGEST = 103  # bytes of a socket's path on macOS; 107 on Linux


def socket_folder(program: str, home: Path, longest_name: str) -> Path:
    """The same for the same `home`, another one for another home and for another account of the machine.

    longest_name: the path of a socket in it. It decides whether the system's temporary folder is short enough; that of
    macOS has 49 characters.
    """
    name = f"{program}-{os.getuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:10]}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if len(os.fsencode(folder / longest_name)) > LONGEST:
        folder = Path("/tmp").resolve() / name  # noqa: S108  # only its owner can open the folder
    return folder


def make_socket_folder(folder: Path) -> None:
    """Raises OSError, and TorchServeError if another account has made it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise TorchServeError(f"{folder} belongs to another user: remove it, or set TMPDIR to another folder.")
    folder.chmod(0o700)
