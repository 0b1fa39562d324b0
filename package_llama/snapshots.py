"""A model as Hugging Face stores it: where it lies, whether it is complete, and which one it is. Reads no weights.

Accepted: any folder with the snapshot's files, as files or as links (snapshots/<hash> in Hugging Face's cache), and the
model's folder in that cache (models--<organisation>--<name>), with weights in safetensors or PyTorch's format.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import uuid
from pathlib import Path

from package_llama.errors import PackagingError

ARCHITECTURE = "LlamaForCausalLM"
# In the order in which the converter looks for them: the name that an index goes by, and the files.
WEIGHTS = {"model.safetensors": "model*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}
META_WEIGHTS = "consolidated.*.pth"


def name_of(path: Path) -> str:
    """The model's name, for which the folder need not be there: the folder's, or that in Hugging Face's cache."""
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return path.name.rpartition("--")[2] if path.name.startswith("models--") else path.name


def locate(path: Path) -> Path:
    """The snapshot itself, where `path` is the folder above several; PackagingError where none is to be preferred."""
    folder = path / "snapshots"
    if not folder.is_dir():
        return path
    snapshots = [each for each in folder.iterdir() if each.is_dir()]
    main = path / "refs" / "main"
    named = folder / main.read_text(encoding="utf-8").strip() if main.is_file() else None
    if named in snapshots:
        return named
    if len(snapshots) != 1:
        raise PackagingError(f"{path} holds {len(snapshots)} snapshots: give one of the folders in {folder}.")
    return snapshots[0]


def check(folder: Path) -> int:
    """The bytes that a complete snapshot of the supported architecture takes as f16; PackagingError for any other."""
    if not folder.is_dir():
        raise PackagingError(f"{folder} does not exist: give a snapshot folder, a GGUF file or --demo.")
    if not (folder / "config.json").is_file():
        raise PackagingError(_without_config(folder))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackagingError(f"{folder / 'config.json'} is not JSON ({error}): download it again.") from error
    architectures = ", ".join(config.get("architectures") or ["none named"])
    if architectures != ARCHITECTURE:
        raise PackagingError(f"{folder} is of an unsupported architecture, {architectures}: choose a {ARCHITECTURE}.")
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise PackagingError(f"{folder} has no tokenizer.model or tokenizer.json: download the whole snapshot.")
    if importlib.util.find_spec("torch") is None:
        raise PackagingError(f"torch is missing in {sys.prefix}: install requirements.txt there, then run this again.")
    weights_bytes = sum(_checked_size(path) for path in _weight_files(folder))
    return weights_bytes // 2 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else weights_bytes


def identity_of(folder: Path, version: str) -> str:
    """A UUID of the files' names, sizes and times and of llama.cpp's version: the same means the same f16 file."""
    states = [(each.name, each.stat()) for each in sorted(folder.iterdir()) if each.is_file()]
    facts = [version, *((name, state.st_size, state.st_mtime_ns) for name, state in states)]
    return str(uuid.UUID(hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]))


def _without_config(folder: Path) -> str:
    if any(folder.glob(META_WEIGHTS)) or (folder / "params.json").is_file():
        return (
            f"{folder} is in Meta's own format: download the model in Hugging Face's ('-hf'), or run 'python -m "
            f"transformers.models.llama.convert_llama_weights_to_hf --input_dir {folder} --model_size 7B "
            f"--llama_version 2 --output_dir {folder}-hf' in an environment of its own, with transformers==4.40.2, "
            "torch, sentencepiece, protobuf, accelerate and numpy<2, and give that folder."
        )
    return f"{folder} has no config.json: download the whole snapshot, or give another folder."


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that an index lists or that are there: safetensors if any, else PyTorch's."""
    for single, pattern in WEIGHTS.items():
        index = folder / f"{single}.index.json"
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
        if names := {*listed, *(path.name for path in folder.glob(pattern))}:
            return [folder / name for name in sorted(names)]
    raise PackagingError(f"{folder} has no weights ({' or '.join(WEIGHTS.values())}): download the whole snapshot.")


def _checked_size(path: Path) -> int:
    if not path.is_file():
        raise PackagingError(f"{path} is missing: download the rest of the snapshot.")
    with path.open("rb") as file:
        if file.read(12) == b"version http":
            raise PackagingError(f"{path} is a pointer of Git LFS, not weights: run 'git lfs pull' in its folder.")
    return path.stat().st_size
