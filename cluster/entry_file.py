"""The file that says where the cluster is, with the key for it: .cluster/entry.json in the home of config.properties.

`python -m cluster` writes it and removes it at its end. For a cluster elsewhere a person writes it by hand. Imports no
ray: the pages read it.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from experiments.json_file import write_json
from torchserve_client.config import TorchServeError

NOT_OWNER = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class ClusterEntry:
    """url: such as http://127.0.0.1:8000, without /v1. Raises ValueError for what no URL or key can be."""

    url: str
    key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"https?://[^/@?#\s]+", self.url):
            raise ValueError(f"url is {self.url!r}, and looks like http://127.0.0.1:8000")
        if not re.fullmatch(r"[!-~]+", self.key):
            raise ValueError("key is empty, or has a character that no key has")


def entry_file(home: Path) -> Path:
    """`home` is the folder of config.properties."""
    return home / ".cluster" / "entry.json"


def write_entry(home: Path, entry: ClusterEntry) -> None:
    """Replaces the file in one step; only its owner can read it. Raises TorchServeError."""
    write_json(entry_file(home), entry)


def read_entry(home: Path) -> ClusterEntry | None:
    """None if there is no file. Raises TorchServeError if it is damaged, or if other accounts can read the key."""
    file = entry_file(home)
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            entry = msgspec.json.decode(opened.read(), type=ClusterEntry)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise TorchServeError(f"{file} cannot be read ({error}): correct it, or start the cluster again.") from error
    if mode & NOT_OWNER:
        raise TorchServeError(f"Other accounts of this machine may read the key in {file}: run `chmod 600 {file}`.")
    return entry


def remove_entry(home: Path, entry: ClusterEntry) -> None:
    """Removes the file, unless it is by now about another cluster. Raises TorchServeError."""
    if read_entry(home) == entry:
        entry_file(home).unlink(missing_ok=True)
