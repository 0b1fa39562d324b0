"""`make doctor`, `make distclean`, and the choice of a Python."""

import fcntl
import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from installer import PROJECT
from tests.installer.conftest import Project

FIND_PYTHON = PROJECT / ".make" / "find_python.sh"


def fake(folder: Path, **programs: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, command in programs.items():
        (folder / name.replace("_", "-")).write_text(f"#!/bin/sh\n{command}\n")
        (folder / name.replace("_", "-")).chmod(0o755)


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ({"uv": ""}, "uv python install 3.13"),
        ({"brew": ""}, "brew install python@3.13"),
        (
            {"apt_cache": "[ $2 = python3.12-venv ] && echo 'Candidate: 3.12.3'", "grep": '/bin/grep "$@"'},
            "sudo apt-get install python3.12-venv",
        ),
        ({}, "uv/install.sh"),
    ],
)
def test_an_old_python_gets_the_one_command_that_brings_a_new_one(
    tmp_path: Path, manager: dict[str, str], command: str
) -> None:
    fake(tmp_path / "bin", python3="exit 1", **manager)
    environment = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)}
    process = subprocess.run(["/bin/sh", FIND_PYTHON], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    (sentence,) = process.stderr.splitlines()
    assert sentence.startswith("Python 3.11, 3.12 or 3.13 is needed.") and command in sentence


def test_a_python_that_was_given_is_taken_or_refused(tmp_path: Path) -> None:
    fake(tmp_path / "a folder", good="exit 0", old="exit 1")
    good, old = (str(tmp_path / "a folder" / name) for name in ("good", "old"))
    assert subprocess.run([FIND_PYTHON, good], capture_output=True, text=True).stdout == f"{good}\n"
    process = subprocess.run([FIND_PYTHON, old], capture_output=True, text=True)
    assert process.returncode == 1 and process.stderr.startswith(f"{old} is not one: ")


def test_doctor_fails_where_make_chat_would(project: Project) -> None:
    status, text = project.run("doctor", CC="/nowhere/cc")
    assert status == 1
    (problem,) = [line for line in text.splitlines() if line.startswith("PROBLEM")]
    assert "build-essential" in problem or "xcode-select" in problem
    assert "will come  packages" in text
    assert project.calls() == [], "it changes nothing"


def test_doctor_says_what_will_come(project: Project) -> None:
    status, text = project.run("doctor")
    assert status == 0, text
    assert text.splitlines()[-1] == "make chat can run."


def test_distclean_says_what_it_removes_and_asks(project: Project) -> None:
    (project.root / "models").mkdir()
    (project.root / "models" / "llama-2-7b-Q4_K_M.gguf").write_bytes(b"x" * 20_000_000)
    (project.root / "conversations.sqlite3").write_text("")
    status, text = project.run("distclean")
    assert status == 1
    assert "llama-2-7b-Q4_K_M.gguf, 0.02 GB" in text and "run it with YES=1" in text
    assert (project.root / "models").exists()

    status, text = project.run("distclean", YES="1")
    assert status == 0 and text.splitlines()[-1] == "Removed."
    assert not (project.root / "models").exists() and not (project.root / ".venv").exists()
    assert (project.root / "conversations.sqlite3").exists()


def test_doctor_names_a_model_that_is_gone(project: Project) -> None:
    archive = project.root / "model_store" / "llamacpp.tar.gz"
    archive.parent.mkdir()
    settings = f"handler:\n  model_path: {project.root}/models/a.gguf\n".encode()
    with tarfile.open(archive, "w:gz") as tar:
        entry = tarfile.TarInfo("llamacpp/model-config.yaml")
        entry.size = len(settings)
        tar.addfile(entry, io.BytesIO(settings))
    status, text = project.run("doctor")
    assert status == 1 and f"{project.root}/models/a.gguf is missing or damaged" in text
    (project.root / "models").mkdir()
    (project.root / "models" / "a.gguf").touch()
    assert project.run("doctor")[0] == 0
    archive.write_text("<html>")
    assert project.run("doctor")[0] == 1


def test_doctor_reads_any_stamp(project: Project) -> None:
    (project.root / ".venv" / ".python").write_bytes(b"\xff")
    assert project.run("doctor")[0] == 0


@pytest.mark.parametrize("answer", ["no", "0", ""])
def test_distclean_removes_only_with_yes_1(project: Project, answer: str) -> None:
    (project.root / "models" / "Llama-2-7b-hf").mkdir(parents=True)
    (project.root / "models" / "dangling.gguf").symlink_to("/nowhere")
    status, text = project.run("distclean", YES=answer)
    assert status == 1 and "Traceback" not in text
    assert "Llama-2-7b-hf" in text and "what you have put there is lost" in text
    assert (project.root / "models" / "Llama-2-7b-hf").is_dir()


def test_distclean_refuses_while_a_model_is_packaged(project: Project) -> None:
    (project.root / "models").mkdir()
    with (project.root / "models" / ".package.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, text = project.run("distclean", YES="1")
    assert status == 1 and "package_llama.sh uses" in text
    assert (project.root / ".venv").exists()


def test_distclean_leaves_the_folder_behind_a_link(project: Project, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (project.root / "models").symlink_to(tmp_path / "large disk")
    assert project.run("distclean", YES="1")[0] == 0
    assert (tmp_path / "large disk").exists() and not os.path.lexists(project.root / "models")


def test_clean_leaves_models_and_conversations(tmp_path: Path) -> None:
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("models/a.gguf", "model_store/llamacpp.tar.gz", "conversations.sqlite3", "logs/a.log"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"Makefile", "models/a.gguf", "model_store/llamacpp.tar.gz", "conversations.sqlite3"}
