"""The steps that make .venv. Each writes a stamp when it has ended, and is left out while its stamp is right."""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from installer import CACHE, PROJECT, VENV, VENV_PYTHON, SetUpError, llama_cpp
from installer.machine import cuda_advice, free_bytes, n_compile_jobs, n_cores, python_problem
from installer.progress import run
from installer.statuses import PipStatus, PlainStatus

PIP_VERSION = "25.3"  # --progress-bar=raw needs 24.1; a system's pip is often older
COMPILE_CORE_SECONDS = 600  # measured: x86-64 at 3 GHz; the time on one core
REQUIREMENTS, TEST_REQUIREMENTS = PROJECT / "requirements.txt", PROJECT / "tests" / "requirements.txt"
CONVERTER_REQUIREMENTS = PROJECT / "package_llama" / "requirements.txt"  # which tests/requirements.txt includes
CLUSTER_REQUIREMENTS = PROJECT / "cluster" / "requirements.txt"
TORCH_BUILD = PROJECT / "package_llama" / "torch_build.py"


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the environment. stamp: the file in .venv; fingerprint: its right content. Costs are estimates."""

    stamp: str
    fingerprint: Callable[[], str]
    make: Callable[[], None]
    download_mb: int = 0
    disk_mb: int = 0
    seconds: int = 0

    def is_done(self) -> bool:
        stamp = VENV / self.stamp
        return VENV_PYTHON.exists() and stamp.is_file() and stamp.read_bytes() == self.fingerprint().encode()

    def finish(self) -> None:
        (VENV / self.stamp).write_text(self.fingerprint(), encoding="utf-8")


def install(goal: str) -> None:
    """Makes what `goal` ("chat", "check" or "test") needs. Raises SetUpError."""
    if problem := python_problem():
        raise SetUpError(problem)
    if not remaining(goal):
        return
    with _only_one():
        steps = remaining(goal)
        if steps:
            announce(steps, goal)
        for step in steps:
            step.make()
            step.finish()
        print("The environment .venv is ready.", flush=True)


def remaining(goal: str) -> list[Step]:
    """The steps that have to be made: all of them if .venv itself is."""
    steps = STEPS[goal]
    return [step for step in steps if not (VENV_STEP.is_done() and step.is_done())]


def announce(steps: list[Step], goal: str) -> None:
    """Says what the steps cost. Raises SetUpError if the disk has too little space."""
    download_mb, disk_mb = sum(step.download_mb for step in steps), sum(step.disk_mb for step in steps)
    seconds = sum(step.seconds for step in steps)
    must_compile = LLAMA_CPP in steps and not llama_cpp.wheel() and not os.environ.get("PREBUILT")
    compile_seconds = COMPILE_CORE_SECONDS / n_compile_jobs() if must_compile else 0
    if must_compile:
        download_mb, disk_mb = download_mb + SOURCE_MB, disk_mb + BUILD_MB
    if goal == "chat" and os.environ.get("MODEL") == "--demo" and not any((PROJECT / "models").glob("SmolLM2*")):
        download_mb, disk_mb, seconds = download_mb + 93, disk_mb + 240, seconds + 20
    free_mb = free_bytes(PROJECT) / 1e6
    print(
        f"Needs about {_gb(download_mb)} of download, {_gb(disk_mb)} of disk ({_gb(free_mb)} are free) and "
        f"{_minutes(seconds + compile_seconds)} on {n_cores()} cores"
        + (f", {_minutes(compile_seconds)} of them to compile llama.cpp (once)." if must_compile else "."),
        flush=True,
    )
    if advice := cuda_advice():
        print(advice, flush=True)
    if free_mb < disk_mb:
        raise SetUpError(f"{PROJECT} has too little free disk space: make room for {_gb(disk_mb)}.")


def _make_venv() -> None:
    has_this_version = f"import sys; sys.exit(sys.version_info[:3] != {sys.version_info[:3]})"
    if _runs("-c", has_this_version) and _runs("-m", "pip", "-V"):
        return
    try:
        import ensurepip  # noqa: F401 - Debian puts it into a package of its own
    except ImportError as error:
        name = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetUpError(f"{sys.executable} has no ensurepip: run 'sudo apt-get install {name}'.") from error
    base = getattr(sys, "_base_executable", sys.executable)  # this program may run in the .venv that is made anew
    run(f"Making .venv with Python {sys.version.split()[0]}", [base, "-m", "venv", "--clear", str(VENV)], PlainStatus())


def _runs(*arguments: str) -> bool:
    try:
        return subprocess.run([str(VENV_PYTHON), *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _make_pip() -> None:
    run("Installing pip", [*llama_cpp.PIP, "install", f"pip=={PIP_VERSION}"], PlainStatus())


def _make_llama_cpp() -> None:
    llama_cpp.install_wheel(llama_cpp.wheel() or llama_cpp.make_wheel())


def _make_packages() -> None:
    _pip_install("Installing the packages", "--requirement", str(REQUIREMENTS))


def _make_tests() -> None:
    _pip_install("Installing the tools of the tests", "--requirement", str(TEST_REQUIREMENTS))


def _make_cluster() -> None:
    _pip_install("Installing Ray", "--requirement", str(REQUIREMENTS), "--requirement", str(CLUSTER_REQUIREMENTS))


def _make_torch() -> None:
    """For the tests that make and convert snapshots."""
    query = [str(VENV_PYTHON), "-m", "package_llama.torch_build"]
    torch = subprocess.run(query, cwd=PROJECT, capture_output=True, text=True, check=False)
    if torch.returncode != 0:
        raise SetUpError(torch.stderr.strip())
    _pip_install("Installing torch", *torch.stdout.split())


def _pip_install(label: str, *arguments: str) -> None:
    site_packages = next((VENV / "lib").glob("python3*")) / "site-packages"
    status = PipStatus(lambda: len(list(site_packages.glob("*.dist-info/RECORD"))))
    run(label, [*llama_cpp.PIP, "install", "--progress-bar=raw", *arguments], status)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Waits while another set-up uses .venv. The system frees the lock of a killed one."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "set-up.lock").open("w") as file:
        os.set_inheritable(
            file.fileno(), True
        )  # pip has the lock as well, and so still has it if this program is killed
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up in this folder …", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(*paths: Path) -> Callable[[], str]:
    return lambda: hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _gb(megabytes: float) -> str:
    return f"{megabytes / 1000:.1f} GB"


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


SOURCE_MB, BUILD_MB = 77, 600
VENV_STEP = Step(".python", lambda: sys.version, _make_venv, disk_mb=30, seconds=8)
PIP_STEP = Step(".pip", lambda: PIP_VERSION, _make_pip, download_mb=2, seconds=5)
LLAMA_CPP = Step(llama_cpp.STAMP, llama_cpp.key, _make_llama_cpp, disk_mb=80, seconds=5)
PACKAGES = Step(".installed", _digest(REQUIREMENTS), _make_packages, download_mb=220, disk_mb=700, seconds=70)
CHECK = Step(".loads", llama_cpp.key, llama_cpp.check_wheel, seconds=1)
TESTS = Step(
    ".tests-installed",
    _digest(TEST_REQUIREMENTS, CONVERTER_REQUIREMENTS),
    _make_tests,
    download_mb=150,
    disk_mb=450,
    seconds=60,
)
TORCH = Step(".torch-installed", _digest(TORCH_BUILD), _make_torch, download_mb=210, disk_mb=800, seconds=30)
CLUSTER = Step(
    ".cluster-installed", _digest(CLUSTER_REQUIREMENTS), _make_cluster, download_mb=130, disk_mb=400, seconds=60
)
BASE = (VENV_STEP, PIP_STEP, LLAMA_CPP, PACKAGES, CHECK)
STEPS = {
    "chat": BASE,
    "check": (*BASE, TESTS),
    "test": (*BASE, TESTS, TORCH),
    "cluster": (*BASE, CLUSTER),
}
