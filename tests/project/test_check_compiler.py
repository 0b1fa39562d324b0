""".make/check_compiler.sh with a private PATH: its sentences on machines that cannot compile llama.cpp."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".make" / "check_compiler.sh"
LICENSE = "You have not agreed to the Xcode license agreements. Please run 'sudo xcodebuild -license'."
WORKS = "echo cc 14.2.0"

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Runs the script with fake programs, each made of the given shell commands. Returns its status and output."""

    def run(cmake_args: str = "", **programs: str) -> tuple[int, str]:
        for name, commands in {"python": "echo x86_64", **programs}.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{commands}\n")
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": str(tmp_path)} | ({"CMAKE_ARGS": cmake_args} if cmake_args else {})
        command = [shutil.which("bash") or "bash", str(SCRIPT), str(tmp_path / "python")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
        return process.returncode, (process.stdout + process.stderr).strip()

    return run


def test_nothing_is_printed_if_the_compiler_works(check: Check) -> None:
    assert check(uname="echo Linux", cc=WORKS) == (0, "")
    assert check(uname="echo Darwin", cc=WORKS, sysctl="echo 1", python="echo arm64") == (0, "")
    assert check(uname="echo Darwin", cc=WORKS, sysctl="exit 1") == (0, "")  # an Intel processor


def test_an_unaccepted_apple_license_is_named(check: Check) -> None:
    status, sentence = check(uname="echo Darwin", cc=f'echo "{LICENSE}" >&2; exit 69')
    assert status == 1 and "run 'sudo xcodebuild -license accept'" in sentence


def test_a_missing_apple_compiler_is_named(check: Check) -> None:
    refusal = "xcode-select: note: No developer tools were found, requesting install."
    status, sentence = check(uname="echo Darwin", cc=f'echo "{refusal}" >&2; exit 1')
    assert status == 1 and "run 'xcode-select --install'" in sentence


def test_a_missing_compiler_on_linux_is_named(check: Check) -> None:
    status, sentence = check(uname="echo Linux")
    assert status == 1 and "apt-get install build-essential" in sentence


def test_a_python_for_intel_processors_is_refused_on_apple_processors(check: Check) -> None:
    status, sentence = check(uname="echo Darwin", cc=WORKS, sysctl='[ "$2" = hw.optional.arm64 ] && echo 1')
    assert status == 1 and "is for Intel processors" in sentence


def test_the_cuda_flag_is_printed_if_cudas_compiler_is_installed(check: Check) -> None:
    status, sentence = check(uname="echo Linux", cc=WORKS, nvcc="")
    assert status == 0 and "CMAKE_ARGS=-DGGML_CUDA=on make chat" in sentence
    assert check("-DGGML_CUDA=on", uname="echo Linux", cc=WORKS, nvcc="") == (0, "")


def test_the_script_is_executable() -> None:
    assert os.access(SCRIPT, os.X_OK)
