"""Saves dataclasses as small JSON files and loads them. Knows nothing of their content."""

import os
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

from torchserve_client.config import TorchServeError

T = TypeVar("T")


def read_json(file: Path, kind: type[T]) -> T | None:
    """Returns the file's value as the dataclass `kind`, or None if there is no such file.

    Raises TorchServeError if the file cannot be read, or if its fields or their types differ from those of `kind`.
    """
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> TorchServeError:
    return TorchServeError(f"{file} cannot be read ({error}): delete it.")


def to_json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def write_json(file: Path, value: object) -> None:
    """Replaces the file in one step and makes its folder. Raises TorchServeError if that fails.

    Another program sees the old value or the new one. A killed program leaves the old value.
    """
    try:
        file.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(prefix=f"{file.stem}.", dir=file.parent)  # one for each writer
        with open(descriptor, "wb") as opened:
            opened.write(to_json(value))
        os.replace(unfinished, file)
    except OSError as error:
        raise TorchServeError(f"{file} cannot be written ({error.strerror}): make its folder writable.") from error
