"""Models by their Hugging Face id: which argument is one, which of its files are needed, and where they lie afterwards.

    org/name                a repository with a snapshot, or with one GGUF file
    org/name:Q4_K_M         the GGUF file of this type, as in llama.cpp's -hf
    org/name/file.gguf      this GGUF file

A path that exists is no id. package_llama/hub_download.py fetches the files. Only that module imports huggingface_hub,
which is downloaded into a folder of its own when it is first needed: TorchServe's environment does not change.
"""

import re
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from package_llama.arguments import Options
from package_llama.disk import staging_folder
from package_llama.errors import PackagingError
from package_llama.paths import CACHE
from package_llama.subprocesses import run_pip

LIBRARY = "huggingface-hub==2.4.0"  # the version that transformers brings into the tests' environment
PACKAGES = CACHE / f"{LIBRARY.replace('==', '-')}-{sys.implementation.cache_tag}"

NAME = r"[A-Za-z0-9_][\w.-]*"
ID = re.compile(rf"(?P<repo>{NAME}/{NAME})(?::(?P<type>[\w.-]+)|/(?P<file>[\w./-]+\.gguf))?", re.ASCII)
PART = re.compile(r"-(\d{5})-of-\d{5}(?=\.gguf$)")
# In the order of snapshots.WEIGHTS. Folders of a repository repeat the weights in other formats.
WEIGHTS = (r"model[^/]*\.safetensors", r"pytorch_model[^/]*\.bin")
BESIDE_WEIGHTS = re.compile(r"[^/]+\.json|tokenizer\.model|[^/]+\.jinja")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository, and the type or the file that is chosen of its GGUF files; "" if none is."""

    repo: str
    gguf_type: str = ""
    gguf_file: str = ""


def with_path(options: Options) -> Options:
    """The options with a path instead of an id; fetches the files of an id. Raises PackagingError."""
    model = parse(options.model)
    if model is None:
        return options
    _install_library()
    sys.path.append(str(PACKAGES))
    from package_llama import hub_download  # it imports a package of that folder

    path = hub_download.fetch(model.repo, partial(needed_files, model), is_offline=options.is_repacking)
    return replace(options, model=str(path))


def _install_library() -> None:
    with staging_folder(CACHE) as folder:
        if PACKAGES.is_dir():
            return
        run_pip(
            "Downloading huggingface_hub (7 MB, once)",
            *("install", "--quiet", "--target", str(folder / "packages"), LIBRARY),
            written_folder=folder,
        )
        (folder / "packages").rename(PACKAGES)


def parse(argument: str) -> HubModel | None:
    """None for a path: it exists, its first folder exists, or it names a GGUF file in a folder."""
    found = ID.fullmatch(argument)
    if not found or Path(argument).exists() or Path(argument.partition("/")[0]).is_dir():
        return None
    if found["repo"].endswith(".gguf"):
        return None
    return HubModel(found["repo"], found["type"] or "", found["file"] or "")


def needed_files(model: HubModel, names: Collection[str]) -> list[str]:
    """The files to fetch; the first one of a GGUF model is the one to give on. Raises PackagingError."""
    ggufs = sorted(
        name for name in names if name.endswith(".gguf") and not name.rpartition("/")[2].startswith("mmproj")
    )
    weights = next((found for each in WEIGHTS if (found := _matching(each, names))), [])
    if model.gguf_type or model.gguf_file or not weights:
        return _chosen_gguf(model, ggufs)
    if "config.json" not in names:
        raise PackagingError(f"{model.repo} has no config.json beside its weights: choose another repository.")
    return [*(name for name in names if BESIDE_WEIGHTS.fullmatch(name)), *weights]


def _matching(pattern: str, names: Collection[str]) -> list[str]:
    return [name for name in names if re.fullmatch(pattern, name)]


def _chosen_gguf(model: HubModel, ggufs: list[str]) -> list[str]:
    """All parts of one GGUF file."""
    if not ggufs:
        problem = "has no .gguf files" if model.gguf_type or model.gguf_file else "has no usable files"
        needed = "model*.safetensors or pytorch_model*.bin with config.json, or .gguf"
        raise PackagingError(f"{model.repo} {problem}: choose a repository with {needed}.")
    wanted = [name for name in ggufs if _is_chosen(model, name)]
    whole = {PART.sub("", name) for name in wanted}
    if len(whole) == 1:
        return wanted
    choices = ", ".join(sorted({PART.sub("", name) for name in ggufs}))
    asked = f"'{model.gguf_file or model.gguf_type}' is {'several' if whole else 'none'} of them: "
    asked = asked if model.gguf_file or model.gguf_type else ""
    raise PackagingError(f"{model.repo} has these GGUF files, {asked}choose one as {model.repo}/FILE: {choices}.")


def _is_chosen(model: HubModel, name: str) -> bool:
    if model.gguf_file:
        return PART.sub("", name) == PART.sub("", model.gguf_file)
    stem = PART.sub("", name).removesuffix(".gguf")
    return bool(re.search(rf"(^|[-._/]){re.escape(model.gguf_type)}$", stem, re.IGNORECASE)) or not model.gguf_type
