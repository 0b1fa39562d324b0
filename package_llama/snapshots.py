"""Finds a model in Hugging Face's format and checks that it is complete and supported. Reads no weights.

Accepted are a folder with the snapshot's files or links to them (snapshots/<hash> in Hugging Face's cache), and the
model's folder in that cache (models--<organisation>--<name>). The weights are safetensors or PyTorch files.
"""

import importlib.util
import json
import sys
from pathlib import Path

from package_llama.errors import PackagingError

ARCHITECTURE = "LlamaForCausalLM"
# The name in the index file's name, and the pattern of the weight files; in the converter's order of preference.
WEIGHTS = {"model.safetensors": "model*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}


def model_name(path: Path) -> str:
    """The folder's name, or the model's name in Hugging Face's cache. The folder does not need to exist."""
    if path.parent.name == "snapshots":
        path = path.parent.parent
    return path.name.rpartition("--")[2] if path.name.startswith("models--") else path.name


def locate(path: Path) -> Path:
    """`path`, or the snapshot in it that refs/main names, or its only snapshot. Raises PackagingError for several."""
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


def f16_bytes(folder: Path) -> int:
    """The size of the snapshot's weights as f16. Raises PackagingError if it is incomplete or not supported."""
    if not folder.is_dir():
        raise PackagingError(f"{folder} does not exist: give a snapshot folder, a GGUF file or --demo.")
    if not (folder / "config.json").is_file():
        raise PackagingError(_missing_config_sentence(folder))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise PackagingError(f"{folder / 'config.json'} is not JSON ({error}): download it again.") from error
    architectures = ", ".join(config.get("architectures") or ["none named"])
    if architectures != ARCHITECTURE:
        raise PackagingError(f"{folder} has an unsupported architecture, {architectures}: choose a {ARCHITECTURE}.")
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise PackagingError(f"{folder} has no tokenizer.model or tokenizer.json: download the whole snapshot.")
    if importlib.util.find_spec("torch") is None:
        raise PackagingError(f"torch is missing in {sys.prefix}: install requirements.txt there, then run this again.")
    weights_bytes = sum(_checked_size(path) for path in _weight_files(folder))
    return weights_bytes // 2 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else weights_bytes


def _missing_config_sentence(folder: Path) -> str:
    if any(folder.glob("consolidated.*.pth")) or (folder / "params.json").is_file():
        return (
            f"{folder} is in Meta's own format: download the model in Hugging Face's ('-hf'), or run 'python -m "
            f"transformers.models.llama.convert_llama_weights_to_hf --input_dir {folder} --model_size 7B "
            f"--llama_version 2 --output_dir {folder}-hf' in a separate environment with transformers==4.40.2, "
            "torch, sentencepiece, protobuf, accelerate and numpy<2, and give that folder."
        )
    return f"{folder} has no config.json: download the whole snapshot, or give another folder."


def _weight_files(folder: Path) -> list[Path]:
    """The weight files that the index lists, and those in the folder: safetensors if there are any, else PyTorch's."""
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
            raise PackagingError(f"{path} is a Git LFS pointer, not weights: run 'git lfs pull' in its folder.")
    return path.stat().st_size
