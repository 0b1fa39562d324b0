"""Checks a GGUF file that a person gives, before anything is made of it. Reads its head, and no weights."""

from pathlib import Path

from gguf import GGUFReader

from package_llama.errors import PackagingError
from package_llama.gguf_header import InvalidGguf, part_paths, read_head, value
from package_llama.subprocesses import run

OWN_FILE = "give the model's own GGUF file"
# general.type and general.architecture of files that are no models by themselves (GGUFType in gguf-py's constants.py).
NO_MODELS = {
    "adapter": ("a LoRA adapter", "merge it into its base model first (peft's merge_and_unload, or llama-export-lora)"),
    "mmproj": ("a vision projector, which only adds pictures to a model", OWN_FILE),
    "clip": ("a vision projector, which only adds pictures to a model", OWN_FILE),
    "imatrix": ("a table for quantizing, not a model", OWN_FILE),
    "vocab": ("a vocabulary without weights", OWN_FILE),
}


def check_given(path: Path) -> list[Path]:
    """Returns the files of the model: `path`, and the other parts if it is split. Raises PackagingError and OSError."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise PackagingError(f"The path {path} is not UTF-8, so TorchServe cannot read it: rename it.") from error
    try:
        head = read_head(path)
        parts = part_paths(path, head)
        n_tensors = len(head.tensors) + sum(len(read_head(part).tensors) for part in parts[1:])
    except InvalidGguf as error:
        raise PackagingError(f"{error}: {error.advice}.") from error
    _check_kind(path, head)
    if not n_tensors:
        raise PackagingError(f"{path} has no weights: {OWN_FILE}.")
    try_loading(path, "give another GGUF file, or download this one again, ")
    return parts


def try_loading(path: Path, advice: str) -> None:
    """Raises PackagingError if the worker could not serve the file. Reads no weights."""
    run(
        *("package_llama.probe_gguf", str(path)),
        purpose=f"Loading {path} with llama.cpp",
        advice=advice,
        GGML_NO_BACKTRACE="1",  # where gdb is installed, llama.cpp would run it before it aborts
    )


def _check_kind(path: Path, head: GGUFReader) -> None:
    architecture = value(head, "general.architecture")
    for kind in (value(head, "general.type"), architecture):
        if isinstance(kind, str) and kind in NO_MODELS:
            name, advice = NO_MODELS[kind]
            raise PackagingError(f"{path} is {name}: {advice}.")
    if value(head, f"{architecture}.attention.causal") is False:
        raise PackagingError(f"{path} is an encoder for embeddings ({architecture}), which cannot answer: {OWN_FILE}.")
