"""Packs the archives that TorchServe loads: the handler, its package and its settings. Packs the path of the weights.

Each version has two archives. One is for one worker. The other one, `…-dynamic.tar.gz`, is for two or more workers:
TorchServe 0.12's continuous batching freezes with them. Version 1.0 has no number in the file names.
"""

import shutil
from pathlib import Path

from package_llama.arguments import DEFAULT_VERSION
from package_llama.console import report
from package_llama.disk import require_space, staging_folder
from package_llama.paths import MODEL_STORE, PROJECT
from package_llama.subprocesses import run

ARCHIVES_BYTES = 5_000_000  # both, and the files in them
MODEL_NAME = "llamacpp"  # the model's name in TorchServe; all versions have it
CONFIG = "model-config.yaml"
HANDLER = "llama_cpp_handler.py"
WORKER_PACKAGE = "llama_cpp_worker"  # a folder of this name in the archive, beside the handler
TORCH = "torch_stand_in.py"  # of WORKER_PACKAGE; torch.py in the archive


def archive_names(version: str) -> tuple[str, str]:
    """The archive for one worker, and the archive for two or more workers."""
    stem = MODEL_NAME if version == DEFAULT_VERSION else f"{MODEL_NAME}-{version}"
    return f"{stem}.tar.gz", f"{stem}-dynamic.tar.gz"


def pack(gguf: Path, version: str) -> None:
    """Makes both archives for `gguf`, then replaces earlier archives of this version."""
    continuous, dynamic = archive_names(version)
    require_space("Packing", MODEL_STORE, ARCHIVES_BYTES)
    with staging_folder(MODEL_STORE) as folder:
        extra_files = folder / "extra-files"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / WORKER_PACKAGE, extra_files / WORKER_PACKAGE, ignore=ignored)
        (extra_files / WORKER_PACKAGE / TORCH).rename(extra_files / "torch.py")
        for name in (continuous, dynamic):
            (folder / name).mkdir()
            write_config(folder / name / CONFIG, gguf, is_dynamic=name == dynamic)
            _run_archiver(folder / name, extra_files, version)
        for name in (continuous, dynamic):
            (folder / name / f"{MODEL_NAME}.tar.gz").replace(MODEL_STORE / name)
    report(f"Packed model_store/{continuous} (one worker) and model_store/{dynamic} (two or more), version {version}")


def _run_archiver(folder: Path, extra_files: Path, version: str) -> None:
    """Makes `llamacpp.tar.gz` in `folder`, with the settings that are there.

    The archiver copies the items of `extra_files`, so sub-folders keep their names. It splits this path at commas and
    expands `*`, `?` and `[…]` in it (model_packaging_utils.py), so it gets the path from PROJECT, which has none.
    """
    run(
        "model_archiver.model_packaging",
        f"--model-name={MODEL_NAME}",
        f"--version={version}",
        f"--handler={HANDLER}",
        f"--extra-files={extra_files.relative_to(PROJECT)}",
        f"--config-file={folder / CONFIG}",
        f"--export-path={folder}",
        "--archive-format=tgz",
        purpose=f"Packing {folder.name}",
        written_folder=folder.parent,
        TMPDIR=str(folder),  # the archiver first deletes $TMPDIR/llamacpp
    )


def write_config(target: Path, gguf: Path, *, is_dynamic: bool) -> None:
    """Writes model-config.yaml, with the path of `gguf`, to `target`."""
    import yaml

    config = yaml.safe_load((PROJECT / CONFIG).read_text(encoding="utf-8"))
    config["handler"]["model_path"] = str(gguf)
    if is_dynamic:
        config["continuousBatching"] = False
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=float("inf"))
    target.write_text(text, encoding="utf-8")
