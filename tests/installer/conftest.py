"""A project with the real set-up and a .venv whose Python only plays pip: no network, no compiler."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from installer import PROJECT

FILES = ("requirements.txt", "tests/requirements.txt", "package_llama/requirements.txt", "cluster/requirements.txt")
FAKE_PYTHON = f"""#!{sys.executable}
import os, sys, tarfile, time
from pathlib import Path
words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    print(*words, file=calls)
options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
if "download" in words:
    folder = Path(options["--dest"])
    name = words[-1].replace("==", "-").replace("llama-cpp-python", "llama_cpp_python")
    (folder / name).mkdir()
    with tarfile.open(folder / (name + ".tar.gz"), "w:gz") as archive:
        archive.add(folder / name, arcname=name)
    (folder / name).rmdir()
elif "-c" in words and "llama_cpp" in words[-1] and os.environ.get("LIBRARY") == "broken":
    sys.exit("OSError: libllama.so: cannot open shared object file")
elif "wheel" in words:
    print("  [1/2] /usr/bin/g++ -fno-math-errno -o a.o -c a.cpp", flush=True)
    if os.environ.get("COMPILER") == "fails":
        print("  /src/ggml.c:12:10: fatal error: no such header: omp.h")
        print("  ninja: build stopped: subcommand failed.")
        print(*(["  note: and so on"] * 400), "ERROR: Failed building wheel for llama_cpp_python", sep=chr(10))
        sys.exit(1)
    if os.environ.get("COMPILER") == "waits":
        time.sleep(60)
    folder = Path(options["--wheel-dir"])
    folder.mkdir()
    (folder / "llama_cpp_python-py3-none-any.whl").write_text("wheel")
"""


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with the set-up."""

    root: Path
    environment: dict[str, str]

    def start(self, goal: str, *prefix: str, **variables: str) -> subprocess.Popen[str]:
        """prefix: the words of a program that starts the set-up."""
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "installer", goal],
            cwd=self.root,
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, goal: str, **variables: str) -> tuple[int, str]:
        """The exit status, and all that was printed."""
        with self.start(goal, **variables) as process:
            text, _ = process.communicate(timeout=60)
        return process.returncode, text

    def calls(self) -> list[str]:
        """What the Python of .venv was called with since the last look."""
        path = Path(self.environment["CALLS"])
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, root / name)
    shutil.copytree(PROJECT / ".make", root / ".make", ignore=shutil.ignore_patterns("__pycache__"))
    add_venv(root)
    kept = {name: value for name, value in os.environ.items() if name not in ("CMAKE_ARGS", "PREBUILT", "YES")}
    made = {"PYTHONPATH": ".make", "XDG_CACHE_HOME": str(tmp_path / "cache"), "CALLS": str(tmp_path / "calls")}
    return Project(root, kept | made)


def add_venv(root: Path) -> None:
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (root / ".venv" / "lib" / "python3" / "site-packages").mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
