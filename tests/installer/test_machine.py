"""What the set-up finds out about a machine, with a PATH that has only fake programs."""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from installer import machine

LICENSE = "You have not agreed to the Xcode license agreements. Please run 'sudo xcodebuild -license'."
WORKS = "echo cc 14.2.0"

Programs = Callable[..., None]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Makes fake programs of shell commands, the only ones on the PATH. platform: the value of sys.platform."""

    def make(platform: str = "linux", **commands: str) -> None:
        for name, command in commands.items():
            path = tmp_path / name.replace("cxx", "c++").replace("_", "-")
            path.write_text(f"#!/bin/sh\n{command}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "platform", platform)

    for name in ("CC", "CXX", "CMAKE_ARGS"):
        monkeypatch.delenv(name, raising=False)
    return make


def test_a_working_compiler_is_no_problem(programs: Programs) -> None:
    programs(cc=WORKS, cxx=WORKS)
    assert machine.compiler_problem() == ""


def test_a_missing_cxx_compiler_is_named(programs: Programs) -> None:
    programs(cc=WORKS)
    assert "sudo apt-get install build-essential" in machine.compiler_problem()


def test_an_unaccepted_apple_license_is_named(programs: Programs) -> None:
    programs("darwin", cc=f'echo "{LICENSE}" >&2; exit 69')
    assert "run 'sudo xcodebuild -license accept'" in machine.compiler_problem()


def test_a_missing_apple_compiler_is_named(programs: Programs) -> None:
    programs("darwin", cc='echo "xcode-select: note: No developer tools were found." >&2; exit 1')
    assert "run 'xcode-select --install'" in machine.compiler_problem()


def test_a_python_for_intel_processors_is_refused_on_apple_processors(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs("darwin", sysctl='[ "$2" = hw.optional.arm64 ] && echo 1')
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert "is for Intel processors" in machine.python_problem()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert machine.python_problem() == ""


def test_the_cuda_advice_needs_a_gpu(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GPU_FOLDER", Path("/nowhere"))
    programs(nvcc="")
    assert machine.cuda_advice() == ""
    programs(nvidia_smi='echo "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."; exit 9')
    assert machine.cuda_advice() == ""
    programs(nvidia_smi='echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"')
    assert machine.cuda_advice() == (
        "This machine has NVIDIA H100 80GB HBM3. To compile llama.cpp for it: CMAKE_ARGS=-DGGML_CUDA=on make chat"
    )
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    assert machine.cuda_advice() == ""


def test_a_library_for_other_settings_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine.compiled_for()
    assert machine.compiled_for() == before
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_NATIVE=off")
    assert machine.compiled_for() != before
