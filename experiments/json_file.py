"""Reads and writes small JSON files. Knows nothing of their content."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torchserve_client.config import TorchServeError

T = TypeVar("T")


def read_json(file: Path, parse: Callable[[Any], T]) -> T | None:
    """Returns what `parse` makes of the file's JSON value, or None if there is no such file.

    Raises TorchServeError if the file cannot be read, or if `parse` raises ValueError, KeyError or TypeError.
    """
    try:
        return parse(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TorchServeError(f"{file} cannot be read ({error}): delete it.") from error


def write_whole(file: Path, text: str) -> None:
    """Replaces the file in one step and makes its folder. Raises TorchServeError if that fails.

    Another program sees the old text or the new one. A killed program leaves the old text.
    """
    try:
        file.parent.mkdir(exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(prefix=f"{file.stem}.", dir=file.parent)  # one for each writer
        with open(descriptor, "w") as opened:
            opened.write(text)
        os.replace(unfinished, file)
    except OSError as error:
        raise TorchServeError(f"{file} cannot be written ({error.strerror}): make its folder writable.") from error
