"""Compiles llama.cpp once for a kind of machine: the wheel is in the user's cache, so a second clone finds it there.

The source and the object files stay in .cache/ until the wheel is made, so a run that was stopped goes on compiling
where it stopped.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from installer import CACHE, PROJECT, USER_CACHE, VENV, VENV_PYTHON, SetUpError
from installer.machine import compiled_for, compiler_problem, n_compile_jobs
from installer.progress import run
from installer.statuses import CompileStatus, PipStatus, PlainStatus

NAME = "llama-cpp-python"
STAMP = ".llama-cpp"  # in .venv
BUILD = CACHE / "llama.cpp-build"
PIP = (str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check")
# llama-cpp-python's own index. It publishes no signatures and no fixed hashes, so only PREBUILT=1 asks it.
PREBUILT_INDEX = "https://abetlen.github.io/llama-cpp-python/whl/" + ("metal" if sys.platform == "darwin" else "cpu")
LOADS = "import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.llama_print_system_info().decode())"


def version() -> str:
    """The version that requirements.txt pins."""
    text = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{NAME}==(\S+)", text, re.MULTILINE)
    assert found
    return found[1]


def key() -> str:
    """Names the version, the kind of machine, and where the wheel is from."""
    return f"{version()}-{compiled_for()}" + ("-prebuilt" if os.environ.get("PREBUILT") else "")


def wheel() -> Path | None:
    """The wheel for this machine, if it is there."""
    return next((USER_CACHE / "wheels" / key()).glob("*.whl"), None)


def make_wheel() -> Path:
    """Compiles it, or with PREBUILT=1 downloads it. Raises SetUpError."""
    made = BUILD / "wheel"
    shutil.rmtree(made, ignore_errors=True)
    if os.environ.get("PREBUILT"):
        _download_prebuilt(made)
    else:
        if problem := compiler_problem():
            raise SetUpError(problem)
        _compile(_unpacked_source(), made)
    folder = USER_CACHE / "wheels" / key()
    folder.mkdir(parents=True, exist_ok=True)
    source = next(made.glob("*.whl"))
    unfinished = folder / f"{source.name}.unfinished"
    shutil.copyfile(source, unfinished)
    shutil.rmtree(BUILD)
    return unfinished.replace(folder / source.name)


def install_wheel(path: Path) -> None:
    """Installs it in place of another one. Its dependencies come with requirements.txt."""
    command = [*PIP, "install", "--no-deps", "--no-index", "--force-reinstall", str(path)]
    run("Installing llama.cpp", command, PipStatus())


def check_wheel() -> None:
    """Loads the installed library. One that does not load is removed from the cache. Raises SetUpError."""
    try:
        run("Loading llama.cpp", [str(VENV_PYTHON), "-c", LOADS], PlainStatus())
    except SetUpError as error:
        for path in (wheel(), VENV / STAMP):
            if path:
                path.unlink()
        sentence = "llama.cpp does not load on this machine: run the same command again, which makes it anew."
        raise SetUpError(sentence, error.lines) from error


def _unpacked_source() -> Path:
    """The folder of the unpacked source archive. pip deletes its own one at the end of each run."""
    name = f"{NAME.replace('-', '_')}-{version()}"
    folder = BUILD / name
    if folder.is_dir():
        return folder
    BUILD.mkdir(parents=True, exist_ok=True)
    if not (BUILD / f"{name}.tar.gz").is_file():
        command = [*PIP, "download", "--progress-bar=raw", "--no-deps", f"--no-binary={NAME}", f"--dest={BUILD}"]
        run("Downloading llama.cpp's source", [*command, f"{NAME}=={version()}"], PipStatus())
    unfinished = BUILD / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    run("Unpacking it", ["tar", "-xzf", str(BUILD / f"{name}.tar.gz"), "-C", str(unfinished)], PlainStatus())
    return (unfinished / name).replace(folder)


def _compile(source: Path, made: Path) -> None:
    objects = BUILD / f"objects-{key()}"
    # pip's cache knows the path of a source folder, but not CMAKE_ARGS.
    command = [*PIP, "wheel", "--verbose", "--no-cache-dir", "--no-deps", f"--wheel-dir={made}"]
    command += [f"--config-settings=build-dir={objects}", str(source)]
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(n_compile_jobs()))
    label = f"Compiling llama.cpp on {jobs} {'core' if jobs == '1' else 'cores'}"
    run(label, command, CompileStatus(), {"CMAKE_BUILD_PARALLEL_LEVEL": jobs})


def _download_prebuilt(made: Path) -> None:
    command = [*PIP, "download", "--progress-bar=raw", "--no-deps", "--only-binary=:all:", f"--dest={made}"]
    command += [f"--index-url={PREBUILT_INDEX}", "--timeout=5", "--retries=1", f"{NAME}=={version()}"]
    try:
        run("Downloading a prebuilt llama.cpp", command, PipStatus())
    except SetUpError as error:
        problem = f"{PREBUILT_INDEX} cannot be reached, or has no wheel of {version()} for this machine"
        raise SetUpError(f"{problem}: run the same command without PREBUILT.", error.lines) from error
