"""Finds a model in Hugging Face's format and checks that it is complete and supported. Reads no weights.

Accepted are a folder with the snapshot's files or links to them (snapshots/<hash> in Hugging Face's cache), and the
model's folder in that cache (models--<organisation>--<name>). The weights are safetensors or PyTorch files.
other_folders.py says what another folder is.
"""

import json
import re
from pathlib import Path
from typing import Any

from package_llama.errors import PackagingError
from package_llama.other_folders import explain
from package_llama.safetensors_head import read_types

ARCHITECTURE = "LlamaForCausalLM"
# The name in the index file's name, and the pattern of the weight files; in the converter's order of preference.
WEIGHTS = {"model.safetensors": "model*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.(\w+)")
SOURCE_SUFFIXES = (".json", ".jinja", ".model", ".safetensors", ".bin")  # of the files that the converter reads
UNQUANTIZED = {"F64", "F32", "F16", "BF16"}  # safetensors' names of the types


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
    named = folder / main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else None
    if named in snapshots:
        return named
    if not snapshots:
        raise PackagingError(f"{path} holds no snapshot: its download has not begun, so download the model again.")
    if len(snapshots) != 1:
        raise PackagingError(f"{path} holds {len(snapshots)} snapshots: give one of the folders in {folder}.")
    return snapshots[0]


def source_files(folder: Path) -> list[Path]:
    """The files from which a GGUF file of the model is made."""
    return [path for path in folder.iterdir() if path.suffix in SOURCE_SUFFIXES and path.is_file()]


def f16_bytes(folder: Path) -> int:
    """The size of the snapshot's weights as f16. Raises PackagingError if it is incomplete or not supported."""
    if not folder.is_dir():
        raise PackagingError(f"{folder} does not exist: give a snapshot folder, a GGUF file or --demo.")
    files = _weight_files(folder)
    if not files or not (folder / "config.json").is_file():
        raise PackagingError(explain(folder, f"weights ({' or '.join(WEIGHTS.values())})" if not files else ""))
    config = _read_json(folder / "config.json")
    _check_quantization(folder, config)
    names = config.get("architectures")
    architectures = ", ".join(map(str, names)) if names and isinstance(names, list) else "none named"
    if architectures != ARCHITECTURE:
        raise PackagingError(f"{folder} has an unsupported architecture, {architectures}: choose a {ARCHITECTURE}.")
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise PackagingError(f"{folder} has no tokenizer.model or tokenizer.json: download the whole snapshot.")
    if missing := [path.name for path in files if not path.is_file()]:
        some = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        are = "is" if len(missing) == 1 else "are"
        raise PackagingError(
            f"{some} {are} missing in {folder} ({len(files)} files): download the rest of the snapshot."
        )
    weights_bytes = sum(_checked_size(path) for path in files)
    return weights_bytes // 2 if "float32" in (config.get("dtype"), config.get("torch_dtype")) else weights_bytes


def _weight_files(folder: Path) -> list[Path]:
    """The weight files: those that the index lists, and those that the folder has or that their numbers promise.

    Safetensors if there are any, else PyTorch's.
    """
    for single, pattern in WEIGHTS.items():
        index, names = folder / f"{single}.index.json", {path.name for path in folder.glob(pattern)}
        if index.is_file():
            places = _read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
                raise PackagingError(f"{index} has no weight_map: download it again.")
            names |= set(places.values())
        for shard in filter(None, map(SHARD.fullmatch, list(names))):
            names |= {f"{shard[1]}-{at + 1:05}-of-{shard[2]}.{shard[3]}" for at in range(int(shard[2]))}
        if names:
            return [folder / name for name in sorted(names)]
    return []


def _check_quantization(folder: Path, config: dict[str, Any]) -> None:
    """Hugging Face's libraries describe the formats in config.json, older ones of GPTQ and AWQ in a separate file."""
    found = config.get("quantization_config") or config.get("quantization")  # the latter is MLX's
    method = ""
    if isinstance(found, dict):
        is_bitsandbytes = found.get("load_in_4bit") or found.get("load_in_8bit")
        method = str(found.get("quant_method") or ("bitsandbytes" if is_bitsandbytes else ""))
        method = method or ("MLX" if "bits" in found and "group_size" in found else "")
    for name, kind in {
        "quantize_config.json": "gptq",
        "quant_config.json": "awq",
        "hf_quant_config.json": "ModelOpt",
    }.items():
        method = method or (kind if (folder / name).is_file() else "")
    if method:
        raise _quantized(folder, method)


def _quantized(folder: Path, method: str) -> PackagingError:
    names = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8"}
    return PackagingError(
        f"{folder} is quantized already ({names.get(method, method)}), and a good GGUF file is made from the original "
        "weights: give the snapshot that it was made from (16 bits), or a GGUF file of the model."
    )


def _checked_size(path: Path) -> int:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version http"):
        raise PackagingError(f"{path} is a Git LFS pointer, not weights: run 'git lfs pull' in its folder.")
    if start.lstrip().startswith(b"<") or not start:
        kind = "a web page, not weights" if start else "empty"
        raise PackagingError(f"{path} is {kind}: download it again.")
    if path.suffix == ".safetensors":
        types = read_types(path)
        if not UNQUANTIZED.issuperset(types):
            raise _quantized(path.parent, ", ".join(sorted(types - UNQUANTIZED)))
    return path.stat().st_size


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PackagingError(f"{path} is not JSON ({error}): download it again.") from error
    if not isinstance(content, dict):
        raise PackagingError(f"{path} is not an object of JSON: download it again.")
    return content
