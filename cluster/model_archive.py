"""Brings the packaged model to a node: the archive as bytes, and the GGUF file unless the node has it at its path.

A folder that all machines share needs no copy. Otherwise the node copies the file in pieces from the machine that
deployed it.
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import ray
import yaml
from ray.exceptions import GetTimeoutError, RayError

from torchserve_client.archives import CONTINUOUS_ARCHIVE, read_archive
from torchserve_client.config import ServerConfig, TorchServeError

PIECE_BYTES = 16 * 2**20
PIECE_SECONDS = 300.0
CONFIG_FILE = "model-config.yaml"


class ModelSource:
    """Reads the GGUF file on the machine that deployed it, as an actor of Ray."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, offset: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(PIECE_BYTES)


@dataclass(frozen=True)
class ModelArchive:
    """content: of llamacpp.tar.gz. model_path: of the GGUF on the machine `source_ip`, and changed_ns: its time."""

    content: bytes
    model_path: Path
    model_bytes: int
    model_sha256: str
    changed_ns: int
    source_ip: str = ""

    def install(self, config: ServerConfig) -> bool:
        """Puts the archive into the node's model store; returns whether it was another one.

        Raises TorchServeError if the GGUF cannot be brought.
        """
        config.model_store.mkdir(mode=0o700, exist_ok=True)
        content = self.content
        if not self._is_here():
            content = with_model_path(content, self._copy(config.home / "models"))
        archive = config.model_store / CONTINUOUS_ARCHIVE
        if archive.is_file() and archive.read_bytes() == content:
            return False
        archive.write_bytes(content)
        return True

    def _is_here(self) -> bool:
        """Whether this machine has the same GGUF at the same path. A shared folder's file has the same time as well."""
        if not self.model_path.is_file() or self.model_path.stat().st_size != self.model_bytes:
            return False
        return self.model_path.stat().st_mtime_ns == self.changed_ns or sha256_of(self.model_path) == self.model_sha256

    def _copy(self, folder: Path) -> Path:
        """The path of the copy, which stays for the next start."""
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"{self.model_sha256[:16]}.gguf"
        if path.is_file():
            return path
        here = {f"node:{self.source_ip}": 0.001}  # the resource that Ray gives to each machine
        source = ray.remote(num_cpus=0, resources=here)(ModelSource).remote(self.model_path)
        part, digest = path.with_suffix(".part"), hashlib.sha256()
        with part.open("wb") as file:
            for offset in range(0, self.model_bytes, PIECE_BYTES):
                piece = self._received(source.read.remote(offset))
                digest.update(piece)
                file.write(piece)
        if digest.hexdigest() != self.model_sha256:
            part.unlink()
            raise TorchServeError(f"{self.model_path} changed while it was copied: deploy again.")
        return part.rename(path)

    def _received(self, piece: ray.ObjectRef) -> bytes:
        try:
            return bytes(ray.get(piece, timeout=PIECE_SECONDS))
        except (GetTimeoutError, RayError) as error:
            problem = f"{self.model_path} cannot be copied from {self.source_ip} ({type(error).__name__})"
            raise TorchServeError(f"{problem}: put the file at the same path on this machine.") from error


def packaged(config: ServerConfig) -> ModelArchive:
    """The archive in the model store of `config`. Raises TorchServeError if it is missing or names no GGUF."""
    file = config.model_store / CONTINUOUS_ARCHIVE
    if not file.is_file():
        raise TorchServeError(f"{file} is missing: run `make package` first.")
    path = read_archive(file).model_path
    if path is None or not path.is_file():
        raise TorchServeError(f"The model of {file} is missing ({path}): run `make package` first.")
    facts = path.stat()
    return ModelArchive(file.read_bytes(), path, facts.st_size, sha256_of(path), facts.st_mtime_ns)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_model_path(content: bytes, path: Path) -> bytes:
    """The same archive for a GGUF at another path."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(fileobj=made, mode="w:gz") as new:
        for entry in old.getmembers():
            file = old.extractfile(entry)
            part = file.read() if file else b""
            if Path(entry.name).name == CONFIG_FILE:
                settings = yaml.safe_load(part)
                settings["handler"]["model_path"] = str(path)
                part = yaml.safe_dump(settings, sort_keys=False).encode()
                entry.size = len(part)
            new.addfile(entry, io.BytesIO(part) if file else None)
    return made.getvalue()
