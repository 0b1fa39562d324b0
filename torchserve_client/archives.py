"""The archives that TorchServe can load: lists them, reads their contents, and makes the archives of the demo model.

An archive for one worker uses continuous batching. TorchServe 0.12's continuous batching freezes with more workers, so
package_llama.sh also makes a twin for dynamic batching: `name-dynamic.tar.gz` beside `name.tar.gz`. `--version 1.1`
makes `llamacpp-1.1.tar.gz` and its twin; the version is also in the archive's manifest.

Not covered: archives in TorchServe's other format, .mar.
"""

import contextlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from torchserve_client.config import PROJECT, ServerConfig, TorchServeError

CONTINUOUS_ARCHIVE = "llamacpp.tar.gz"
ENDING = ".tar.gz"


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive contains. model_path: its GGUF file; None if the worker's environment names the file."""

    name: str
    version: str
    is_continuous: bool
    model_path: Path | None

    @property
    def model_bytes(self) -> int | None:
        """The size of the GGUF file; None if there is none."""
        with contextlib.suppress(OSError):
            return self.model_path.stat().st_size if self.model_path else None
        return None


def dynamic_archive_name(name: str) -> str:
    """The twin of an archive: this model for two or more workers."""
    return f"{name.removesuffix(ENDING)}-dynamic{ENDING}"


def archive_for(workers: int, chosen: str = CONTINUOUS_ARCHIVE, store: Path | None = None) -> str:
    """`chosen` for one worker, its twin for more workers; `chosen` if the twin is not in `store`."""
    twin = dynamic_archive_name(chosen)
    return chosen if workers == 1 or (store and not (store / twin).is_file()) else twin


def list_archives(store: Path) -> list[str]:
    """The archives to choose from, by name. The twins are not among them: the number of workers chooses them."""
    names = sorted(path.name for path in store.glob(f"*{ENDING}"))
    return [name for name in names if name not in map(dynamic_archive_name, names)]


def read_archive(path: Path) -> Archive:
    """Raises TorchServeError if the file is no archive with a manifest and a model-config.yaml."""
    texts: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in ("MANIFEST.json", "model-config.yaml") and (file := tar.extractfile(member)):
                    texts[name] = file.read()
        version = json.loads(texts["MANIFEST.json"])["model"]["modelVersion"]
        config = yaml.safe_load(texts["model-config.yaml"])
    except (OSError, tarfile.TarError, KeyError, ValueError, yaml.YAMLError) as error:
        raise TorchServeError(f"{path} is not a usable archive: make it again with package_llama.sh.") from error
    model_path = (config.get("handler") or {}).get("model_path")
    return Archive(path.name, version, bool(config.get("continuousBatching")), Path(model_path) if model_path else None)


def package_demo(config: ServerConfig, on_progress: Callable[[str], None]) -> str:
    """Runs `package_llama.sh --demo` and copies both archives into the server's model store. Returns a sentence.

    on_progress gets every line that the script prints. The first run downloads the model (93 MB). Raises
    TorchServeError with the script's reason.
    """
    command = ["bash", str(PROJECT / "package_llama.sh"), "--demo"]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                on_progress(line.strip())
        if process.returncode != 0:
            errors.seek(0)
            reason = errors.read().strip().splitlines()[-1:] or [f"it ended with status {process.returncode}"]
            raise TorchServeError(f"The demo model could not be packaged: {reason[0]}")
    store = config.model_store
    store.mkdir(parents=True, exist_ok=True)
    for name in (CONTINUOUS_ARCHIVE, dynamic_archive_name(CONTINUOUS_ARCHIVE)):
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(PROJECT / "model_store" / name, store / name)
    return f"The demo model is packaged in {store}. Press Register Llama2."
