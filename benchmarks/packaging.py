"""Compares package_llama.sh with llama.cpp's convert_hf_to_gguf.py and llama-quantize on the same snapshot.

    python -m tests.support.synthetic_llama /big/disk/llama-2-7b
    python -m benchmarks.packaging /big/disk/llama-2-7b --tool path/to/llama-quantize --quantization Q4_0

Both take turns. Prints the time and the peak memory of each step, the disk space, both totals and their ratio. The time
of package_llama.sh includes its check of the new file and the packing of the archives. The memory is what a program
shares with no other one; mapped files are extra. All files are in models/: 18 GB for Llama 2 7B. The GGUF file stays.
"""

import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import psutil

from benchmarks import argument_parser
from package_llama import converter
from package_llama.paths import MODELS, PROJECT
from package_llama.weight_types import QUANTIZATIONS

POLL_SECONDS = 0.05
STEPS = {  # part of a command line, and the step
    "convert_hf_to_gguf.py": "convert",
    "package_llama.quantize": "quantize",
    "llama-quantize": "quantize",
    "package_llama.check_gguf": "check",  # begins beside the quantizer, with the f16 file
    "model_archiver.model_packaging": "pack",
    "-m package_llama": "the script itself",
}


@dataclass(slots=True)
class Step:
    """When processes of this step ran (seconds), and the peak memory of one of them (bytes)."""

    begin: float
    end: float
    own_bytes: int = 0
    mapped_bytes: int = 0


class ResourceMonitor:
    """Polls this program's descendants and the disk space of models/ until stop()."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.began, self._free_bytes = time.monotonic(), shutil.disk_usage(MODELS).free
        self.disk_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Returns the seconds since the beginning."""
        seconds = time.monotonic() - self.began
        self._is_over.set()
        self._thread.join()
        return seconds

    def _run(self) -> None:
        while not self._is_over.wait(POLL_SECONDS):
            self.disk_bytes = max(self.disk_bytes, self._free_bytes - shutil.disk_usage(MODELS).free)
            for process in psutil.Process().children(recursive=True):
                try:
                    self._record(process)
                except psutil.Error:  # it has just ended
                    continue

    def _record(self, process: psutil.Process) -> None:
        command = " ".join(Path(word).name for word in process.cmdline())
        name = next((name for part, name in STEPS.items() if part in command), None)
        if name is None:
            return
        now = time.monotonic()
        step = self.steps.setdefault(name, Step(now, now))
        memory = process.memory_info()
        mapped_bytes = getattr(memory, "shared", 0)  # Linux only
        step.end = now
        step.own_bytes = max(step.own_bytes, memory.rss - mapped_bytes)
        step.mapped_bytes = max(step.mapped_bytes, mapped_bytes)


def warm_up(snapshot: Path) -> None:
    """Reads and writes as much as a run does: the first access may be slower."""
    for path in snapshot.glob("*.safetensors"):
        shutil.copyfile(path, MODELS / "bench-packaging-copy")
    (MODELS / "bench-packaging-copy").unlink()


def settle(snapshot: Path) -> None:
    """Waits for all writes, and removes the snapshot from the system's cache (on Linux)."""
    os.sync()
    for path in snapshot.iterdir() if hasattr(os, "posix_fadvise") else ():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(name: str, commands: list[list[str]], environment: dict[str, str]) -> float:
    """Runs the commands one after the other, prints their time and memory, and returns the seconds of all."""
    monitor = ResourceMonitor()
    for command in commands:
        subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment}, stdout=sys.stderr, check=True)
    seconds = monitor.stop()
    for step_name, step in monitor.steps.items():
        print(
            f"{name:13} {step_name:17} second {step.begin - monitor.began:5.1f} to {step.end - monitor.began:5.1f}, "
            f"{step.own_bytes / 1e9:4.2f} GB of memory, {step.mapped_bytes / 1e9:5.2f} GB of mapped files"
        )
    print(f"{name:13} {'in all':17} {seconds:.1f} s, {monitor.disk_bytes / 1e9:4.1f} GB of disk", flush=True)
    return seconds


def bench_package_llama(snapshot: Path, quantization: str) -> float:
    environment = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "package_llama.sh", str(snapshot), "--quantization", quantization]
    return measure("package_llama", [command], environment)


def bench_llama_cpp(snapshot: Path, quantization: str, tool: Path) -> float:
    script = converter.converter_folder(llama_cpp.__version__) / converter.SCRIPT
    f16, made = (MODELS / f"bench-packaging-{name}.gguf" for name in ("f16", "made"))
    commands = [
        [sys.executable, str(script), str(snapshot), "--outtype", "f16", "--outfile", str(f16.relative_to(PROJECT))],
        [str(tool), str(f16), str(made), quantization],
    ]
    try:
        return measure("llama.cpp", commands, {"PYTHONPATH": str(converter.packages_folder()), "HF_HUB_OFFLINE": "1"})
    finally:
        for path in (f16, made):
            path.unlink(missing_ok=True)


def main() -> int:
    parser = argument_parser("packaging", __doc__)
    parser.add_argument("snapshot", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="llama-quantize of the same llama.cpp")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="Q4_K_M")
    parser.add_argument("--rounds", type=int, default=2, help="each round in the other order")
    given = parser.parse_args()
    MODELS.mkdir(exist_ok=True)
    ratios = []
    warm_up(given.snapshot)
    for number in range(given.rounds):
        seconds = {}
        for name in ("package_llama", "llama.cpp") if number % 2 == 0 else ("llama.cpp", "package_llama"):
            settle(given.snapshot)
            if name == "package_llama":
                seconds[name] = bench_package_llama(given.snapshot.resolve(), given.quantization)
            else:
                seconds[name] = bench_llama_cpp(given.snapshot.resolve(), given.quantization, given.tool.resolve())
        ratios.append(seconds["package_llama"] / seconds["llama.cpp"])
        print(f"package_llama / llama.cpp {ratios[-1]:.3f}", flush=True)
    print(f"{given.quantization}, median of {given.rounds}: {statistics.median(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
