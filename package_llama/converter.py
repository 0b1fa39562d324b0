"""llama.cpp's converter: fetched once, together with what it imports, and run on a snapshot.

It comes out of llama-cpp-python's source archive, so that it agrees with the installed library.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

from package_llama.console import say
from package_llama.disk import staging_folder
from package_llama.paths import CACHE, PROJECT
from package_llama.subprocesses import run, run_pip

CONVERTER_BYTES = 700_000_000  # source archive, and what package_llama/requirements.txt brings
SCRIPT = "convert_hf_to_gguf.py"
CONVERTER_PARTS = (SCRIPT, "conversion", "gguf-py")
REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def missing_bytes(version: str) -> int:
    """What fetching takes on the disk while it lasts; 0 once it is done."""
    return 0 if home_of(version).is_dir() and packages_folder().is_dir() else CONVERTER_BYTES


def convert(snapshot: Path, f16: Path, version: str, identity: str) -> None:
    """Hugging Face's `snapshot` to the GGUF `f16`, whose general.uuid becomes `identity`.

    version: that of llama_cpp. Raises PackagingError.
    """
    converter, packages = _fetched_converter(version), _fetched_packages()
    say(f"Converting {snapshot} to f16")
    metadata = f16.with_suffix(".json")
    metadata.write_text(json.dumps({"general.uuid": identity}))
    target = str(f16.relative_to(PROJECT))  # the converter takes braces in a path for a pattern; it runs in PROJECT
    arguments = ["--outtype", "f16", "--outfile", target, "--metadata", str(metadata)]
    run(
        [str(converter / SCRIPT), str(snapshot), *arguments],
        purpose=f"Converting {snapshot}",
        folder=f16.parent,
        label="Converting",
        fraction_of=_written,
        advice="check that the snapshot is complete, ",
        PYTHONPATH=str(packages),
        HF_HUB_OFFLINE="1",
        TQDM_MININTERVAL="0.5",  # seconds between two bars
    )


def _written(line: str) -> float | None:
    """Reads tqdm's bar: `Writing:  45%|████▌     | 6.06G/13.5G [00:25<00:31, 240Mbyte/s]`."""
    found = re.match(r"Writing: *(\d+)%", line)
    return int(found[1]) / 100 if found else None


def home_of(version: str) -> Path:
    """Where the converter of that llama_cpp lies once it is fetched."""
    return CACHE / f"llama.cpp-{version}"


def packages_folder() -> Path:
    """Where what it imports lies once that is fetched: PYTHONPATH for it."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:8]
    return CACHE / f"converter-packages-{sys.implementation.cache_tag}-{digest}"


def _fetched_converter(version: str) -> Path:
    converter = home_of(version)
    with staging_folder(CACHE) as folder:
        if not converter.is_dir():
            run_pip(
                "Fetching llama.cpp's converter (77 MB, once)",
                *("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)),
                f"llama-cpp-python=={version.partition('+')[0]}",
                folder=folder,
            )
            _unpack(next(folder.glob("*.tar.gz")), "vendor/llama.cpp", CONVERTER_PARTS, folder / "converter")
            (folder / "converter").rename(converter)
    return converter


def _fetched_packages() -> Path:
    """What the converter imports besides requirements.txt, in a folder of its own: the environment stays as it is."""
    packages = packages_folder()
    with staging_folder(CACHE) as folder:
        if not packages.is_dir():
            run_pip(
                "Fetching the packages that the converter needs (once)",
                *("install", "--quiet", "--target", str(folder / "packages"), "--requirement", str(REQUIREMENTS)),
                folder=folder,
            )
            (folder / "packages").rename(packages)
    return packages


def _unpack(archive: Path, root: str, parts: tuple[str, ...], target: Path) -> None:
    """Writes the files of `archive` that lie in `parts` of its folder `root`; about 2 of 400 MB."""
    with tarfile.open(archive) as tar:
        for member in tar:
            inside = member.name.partition(f"/{root}/")[2]
            if member.isfile() and inside.split("/")[0] in parts and ".." not in inside:
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                content = tar.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
