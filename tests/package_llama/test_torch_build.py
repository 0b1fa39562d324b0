"""Which torch pip is asked for, with a Python whose pip only lists versions."""

import sys
from pathlib import Path

import pytest

from package_llama.errors import PackagingError
from package_llama.torch_build import ASK_VARIABLE, CPU_INDEX, VERSION, pip_arguments


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with what `pip index versions` prints on a Linux machine."""
    python, versions = tmp_path / "python", tmp_path / "versions"
    python.write_text(f'#!/bin/sh\n[ "$*" != "${{*#*index versions torch}}" ] && cat "{versions}"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv(ASK_VARIABLE, raising=False)
    return versions


def test_linux_gets_the_cpu_build(listed: Path) -> None:
    listed.write_text(f"torch ({VERSION}+cpu)\nAvailable versions: 2.14.0+cpu, {VERSION}+cpu\n")
    assert pip_arguments() == [f"torch=={VERSION}+cpu", "--extra-index-url", CPU_INDEX]


def test_gpu_packages_are_fetched_only_if_somebody_asks_for_them(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed.write_text(f"torch ({VERSION})\nAvailable versions: 2.14.0, {VERSION}\n")
    with pytest.raises(PackagingError, match=f"ask for them with {ASK_VARIABLE}=1"):
        pip_arguments()
    monkeypatch.setenv(ASK_VARIABLE, "1")
    assert pip_arguments() == [f"torch=={VERSION}"]


def test_macos_has_one_build(listed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert pip_arguments() == [f"torch=={VERSION}"]
