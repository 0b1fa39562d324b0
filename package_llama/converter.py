"""Runs llama.cpp's converter on a snapshot. Downloads the converter and the packages that it imports, once.

The converter is taken from llama-cpp-python's source archive, so that its version is that of the installed library.
"""

import hashlib
import importlib.util
import os
import sys
import tarfile
from pathlib import Path

from package_llama.console import report
from package_llama.disk import staging_folder
from package_llama.paths import CACHE, PROJECT
from package_llama.subprocesses import run, run_pip
from package_llama.torch_build import pip_arguments

DOWNLOAD_BYTES = 700_000_000  # the source archive, and the packages of package_llama/requirements.txt
TORCH_BYTES = 800_000_000
SCRIPT = "convert_hf_to_gguf.py"
CONVERTER_FILES = (SCRIPT, "conversion/", "gguf-py/")  # the beginnings of their paths
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def download_bytes(version: str) -> int:
    """The disk space that the download needs; 0 if the converter is there already."""
    if converter_folder(version).is_dir() and packages_folder().is_dir():
        return 0
    return DOWNLOAD_BYTES + (0 if _environment_has_torch() else TORCH_BYTES)


def convert(snapshot: Path, f16: Path, version: str) -> None:
    """Converts Hugging Face's `snapshot` to the GGUF file `f16`. version: of llama_cpp. Raises PackagingError."""
    _download(version)
    report(f"Converting {snapshot} to f16")
    target = str(f16.relative_to(PROJECT))  # run() starts the converter in PROJECT; it expands braces in this path
    run(
        *(SCRIPT.removesuffix(".py"), str(snapshot), "--outtype", "f16", "--outfile", target),
        purpose=f"Converting {snapshot}",
        written_folder=f16.parent,
        label="Converting",
        percent_pattern=r"Writing: *(\d+)%",  # tqdm's bar, `Writing:  45%|████▌     | 6.06G/13.5G [00:25<00:31, …]`
        advice="check that the snapshot is complete, ",
        PYTHONPATH=os.pathsep.join(map(str, (converter_folder(version), packages_folder(), PROJECT))),
        HF_HUB_OFFLINE="1",
        TQDM_MININTERVAL="0.5",  # seconds between two bars
    )


def converter_folder(version: str) -> Path:
    """Contains the converter of this version of llama_cpp after the download."""
    return CACHE / f"llama.cpp-{version}"


def packages_folder() -> Path:
    """Contains the packages that the converter imports after the download. It belongs on the converter's PYTHONPATH.

    torch is among them unless the environment has it.
    """
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    torch = "" if _environment_has_torch() else "-torch"
    return CACHE / f"converter-packages-{sys.implementation.cache_tag}-{digest}{torch}"


def _environment_has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _download(version: str) -> None:
    """Downloads what is missing. The packages lie in a separate folder: TorchServe's environment does not change."""
    converter, packages = converter_folder(version), packages_folder()
    with staging_folder(CACHE) as folder:
        if not converter.is_dir():
            run_pip(
                "Downloading llama.cpp's converter (77 MB, once)",
                *("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)),
                f"llama-cpp-python=={version.partition('+')[0]}",
                written_folder=folder,
            )
            _unpack(next(folder.glob("*.tar.gz")), folder / "converter")
            (folder / "converter").rename(converter)
        if not packages.is_dir():
            torch = [] if _environment_has_torch() else pip_arguments()
            run_pip(
                "Downloading the packages that the converter imports (once)",
                *("install", "--quiet", "--target", str(folder / "packages"), "--requirement", str(REQUIREMENTS)),
                *torch,
                written_folder=folder,
            )
            (folder / "packages").rename(packages)


def _unpack(archive: Path, target: Path) -> None:
    """Writes the converter's files, about 2 of 400 MB, to `target`."""
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and newer have this filter
        for member in tar:
            member.name = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and member.name.startswith(CONVERTER_FILES):
                tar.extract(member, target)
