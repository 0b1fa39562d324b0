"""What this machine is: processors, memory, disk, compiler, GPU. Installs nothing."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

GET_COMPILER = "install one (Debian, Ubuntu: sudo apt-get install build-essential; Fedora: sudo dnf install gcc-c++)"
GPU_FOLDER = Path("/proc/driver/nvidia/gpus")  # NVIDIA's driver for Linux


def n_cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def n_compile_jobs() -> int:
    """All processors, but one compiler for each gigabyte: llama.cpp's largest files need that much."""
    return max(1, min(n_cores(), memory_bytes() // 2**30))


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def compiler_problem() -> str:
    """A sentence if no C++ compiler works, else ""."""
    try:
        for compiler in (os.environ.get("CC", "cc"), os.environ.get("CXX", "c++")):
            subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True, check=True)
    except OSError:
        if sys.platform == "darwin":
            return "Apple's compiler is missing: run 'xcode-select --install'."
        return f"There is no C++ compiler: {GET_COMPILER}."
    except subprocess.CalledProcessError as error:
        if "license" in error.stderr:
            return "Apple's compiler needs a license: run 'sudo xcodebuild -license accept'."
        if sys.platform == "darwin":
            return "Apple's compiler is missing: run 'xcode-select --install'."
        return f"The C++ compiler does not work ({error.stderr.strip()[-200:]}): {GET_COMPILER}."
    return ""


def python_problem() -> str:
    """A sentence if llama.cpp would be slow with this Python, or if the Mac is too old; else ""."""
    if sys.platform != "darwin":
        return ""
    if platform.machine() != "arm64" and _output("sysctl", "-n", "hw.optional.arm64").strip() == "1":
        return f"{sys.executable} is for Intel processors: use one for Apple's (make PYTHON=/path/to/python3)."
    return ""


def nvidia_gpu() -> str:
    """The name of an NVIDIA GPU of this machine, else "". CUDA's compiler alone is no GPU."""
    lines = _output("nvidia-smi", "-L").splitlines()  # GPU 0: NVIDIA H100 80GB HBM3 (UUID: …)
    if gpu := next((line for line in lines if line.startswith("GPU ")), ""):
        return gpu.partition(": ")[2].partition(" (UUID")[0]
    return "an NVIDIA GPU" if GPU_FOLDER.is_dir() and any(GPU_FOLDER.iterdir()) else ""


def cuda_advice() -> str:
    """How to compile for a GPU that is there, else ""."""
    gpu = "" if "GGML_CUDA" in os.environ.get("CMAKE_ARGS", "") else nvidia_gpu()
    if not gpu:
        return ""
    compiler = "" if shutil.which("nvcc") else " (after NVIDIA's CUDA toolkit: nvcc is not on the PATH)"
    return f"This machine has {gpu}. To compile llama.cpp for it{compiler}: CMAKE_ARGS=-DGGML_CUDA=on make chat"


def compiled_for() -> str:
    """Names the kind of machine that a compiled llama.cpp runs on: it uses all instructions of this processor."""
    processor = platform.machine()
    if sys.platform == "darwin":
        processor = _output("sysctl", "-n", "machdep.cpu.brand_string")
    elif (cpuinfo := Path("/proc/cpuinfo")).is_file():
        kinds = ("flags", "Features", "CPU part")  # x86's name, and Arm's
        processor = "\n".join(sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(kinds)}))
    settings = [os.environ.get(name, "") for name in ("CMAKE_ARGS", "CC", "CXX", "CFLAGS", "CXXFLAGS")]
    text = "\n".join([sys.platform, platform.machine(), processor, *platform.libc_ver(), *settings])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
