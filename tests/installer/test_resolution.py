"""requirements.txt has a solution on each platform that the README names, with wheels for all but llama.cpp.

uv reads only what the package index says: nothing is installed, no package is downloaded whole.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from installer import PROJECT

# uv's names. macOS 14 and newer on Apple silicon; Linux with glibc 2.31 and newer, which llguidance's wheels need.
# All nine pairs with Python 3.11 to 3.13 were tried; these three have each platform and each version once.
CASES = {"aarch64-apple-darwin": "3.13", "aarch64-manylinux_2_31": "3.12", "x86_64-manylinux_2_31": "3.11"}.items()
UNREACHABLE = ("dns error", "error sending request", "Failed to fetch", "operation timed out")
GPU_PACKAGES = ("nvidia-", "cuda-", "triton", "torch==")
LLAMA_CPP = "llama-cpp-python"  # the only package that is compiled


def resolve(platform: str, python: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python", sys.executable, "--no-config", "--only-binary=:all:", f"--no-binary={LLAMA_CPP}"]
    command += [f"--python-platform={platform}", f"--python-version={python}", str(PROJECT / "requirements.txt")]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("platform", "python"), CASES)
def test_a_platform_gets_wheels_and_no_gpu_packages(platform: str, python: str) -> None:
    process = resolve(platform, python)
    if process.returncode != 0 and any(words in process.stderr for words in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {process.stderr.strip()[-200:]}")
    assert process.returncode == 0, process.stderr
    names = process.stdout.splitlines()
    assert {"torchserve==0.12.0", "llama-cpp-python==0.3.36"} <= set(names)
    assert [name for name in names if name.startswith(GPU_PACKAGES)] == []
