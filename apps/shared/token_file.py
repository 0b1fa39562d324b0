"""The file with an app's address and token, for its owner only: one for each port, and only while the app runs."""

import os
import secrets
from pathlib import Path

FOLDER = "access_tokens"
OWNER_ONLY = 0o600


def token_file(folder: Path, port: int) -> Path:
    return folder / FOLDER / f"port_{port}.txt"


def write_token_file(file: Path, address: str) -> str:
    """Writes the address. Returns a sentence if that is not possible, since the terminal shows the address as well.

    The file gets its name when it is complete; its mode does not depend on the umask.
    """
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.parent.chmod(0o700)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, OWNER_ONLY)
        with open(descriptor, "w", encoding="utf-8") as output:
            os.fchmod(descriptor, OWNER_ONLY)
            output.write(f"{address}\n")
        new.replace(file)
    except OSError as error:
        return f"The address with the token was not written into a file ({error}): copy it from here."
    return ""


def remove_token_file(file: Path, address: str) -> None:
    """Removes the file, unless another app has written it meanwhile."""
    try:
        if file.read_text(encoding="utf-8").strip() == address:
            file.unlink()
    except OSError:
        return
