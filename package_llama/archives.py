"""The archives that TorchServe loads: our modules and settings around the path of a GGUF file, two for each version.

One is for one worker; its twin, `…-dynamic.tar.gz`, for two or more: with them, TorchServe 0.12's continuous batching
freezes. Version 1.0 has no number in the name. All hold the model `llamacpp`, and the manifest names the version.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from package_llama.arguments import DEFAULT_VERSION
from package_llama.console import say
from package_llama.disk import staging_folder
from package_llama.errors import PackagingError
from package_llama.paths import MODEL_STORE, PROJECT
from package_llama.subprocesses import run

MODEL_NAME = "llamacpp"  # as registered in TorchServe, whatever the version
CONFIG = "model-config.yaml"
HANDLER = "llama_cpp_handler.py"
PACKAGE = "llama_cpp_worker"  # all else that runs in the archive; it keeps its name there


def archive_names(version: str) -> tuple[str, str]:
    """For one worker, and for two or more."""
    stem = MODEL_NAME if version == DEFAULT_VERSION else f"{MODEL_NAME}-{version}"
    return f"{stem}.tar.gz", f"{stem}-dynamic.tar.gz"


def require_files() -> None:
    """Raises PackagingError unless all that is packed is there."""
    for name in (HANDLER, PACKAGE, CONFIG):
        if not (PROJECT / name).exists():
            raise PackagingError(f"{PROJECT / name} is missing: bring it back with 'git checkout {name}'.")


def pack(gguf: Path, version: str) -> None:
    """Makes both archives for `gguf`, then puts them in the place of earlier ones of this version."""
    continuous, dynamic = archive_names(version)
    with staging_folder(MODEL_STORE) as folder:
        for name in (continuous, dynamic):
            _pack_one(folder / name, gguf, version, is_dynamic=name == dynamic)
        for name in (continuous, dynamic):
            (folder / name / f"{MODEL_NAME}.tar.gz").replace(MODEL_STORE / name)
    say(f"Packed model_store/{continuous} (one worker) and model_store/{dynamic} (two or more), version {version}")


def _pack_one(folder: Path, gguf: Path, version: str, *, is_dynamic: bool) -> None:
    staged = folder / "staged"
    shutil.copytree(PROJECT / PACKAGE, staged / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    write_config(folder / CONFIG, gguf, is_dynamic=is_dynamic)
    run(
        ["-m", "model_archiver.model_packaging", "--model-name", MODEL_NAME, "--version", version]
        + ["--handler", HANDLER, "--extra-files", str(staged.relative_to(PROJECT)), "--archive-format", "tgz"]
        + ["--config-file", str(folder / CONFIG), "--export-path", str(folder)],
        purpose=f"Packing {folder.name}",
        folder=folder.parent,
        TMPDIR=str(folder),  # the archiver deletes $TMPDIR/llamacpp before it begins
    )


def write_config(target: Path, gguf: Path, *, is_dynamic: bool) -> None:
    """Writes model-config.yaml, with the model's path filled in, as `target`."""
    import yaml

    config = yaml.safe_load((PROJECT / CONFIG).read_text(encoding="utf-8"))
    config["handler"]["model_path"] = str(gguf)
    if is_dynamic:
        config["continuousBatching"] = False
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=float("inf"))
    target.write_text(text, encoding="utf-8")
