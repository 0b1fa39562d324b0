"""The set-up from its first line to its last, with a pip that only says what it was asked for."""

import shutil
import signal
from pathlib import Path

from tests.installer.conftest import Project, add_venv
from tests.support.serving import wait_until


def pip_words(calls: list[str]) -> list[str]:
    return [words[words.index("pip") + 2] for line in calls if "pip" in (words := line.split()) and "-V" not in words]


def test_costs_are_said_before_anything_is_fetched(project: Project) -> None:
    status, text = project.run("chat")
    assert status == 0, text
    first, *others = text.splitlines()
    assert first.startswith("Needs about 0.3 GB of download, 1.4 GB of disk (")
    assert "min of them to compile llama.cpp (once)." in first
    assert [line for line in others if "done in" not in line][-1] == "The environment .venv is ready."
    assert pip_words(project.calls()) == ["install", "download", "wheel", "install", "install"]


def test_the_second_run_does_nothing(project: Project) -> None:
    project.run("chat")
    stamp = project.root / ".venv" / ".installed"
    before = stamp.stat().st_mtime_ns
    project.calls()
    assert project.run("chat") == (0, "")
    assert project.calls() == []
    assert stamp.stat().st_mtime_ns == before, "make would package the model again"


def test_ray_is_installed_for_a_cluster_only(project: Project) -> None:
    project.run("chat")
    assert not any("cluster" in line for line in project.calls())
    assert project.run("cluster")[0] == 0
    (call,) = project.calls()
    assert "/requirements.txt" in call and "/cluster/requirements.txt" in call, "the other versions stay as they are"
    assert project.run("cluster") == (0, "")


def test_a_changed_requirement_installs_the_packages_only(project: Project) -> None:
    project.run("chat")
    project.calls()
    with (project.root / "requirements.txt").open("a") as file:
        file.write("idna==3.20\n")
    assert project.run("chat")[0] == 0
    assert pip_words(project.calls()) == ["install"]


def test_a_failed_compilation_ends_with_the_compilers_reason(project: Project) -> None:
    status, text = project.run("chat", COMPILER="fails")
    assert status == 1
    *_, failed, reason, sentence = text.splitlines()
    assert failed.startswith("Compiling llama.cpp on ") and "failed after" in failed
    assert reason.strip() == "/src/ggml.c:12:10: fatal error: no such header: omp.h"
    log = project.root / ".cache" / "set-up.log"
    assert str(log) in sentence
    assert log.read_text().count("note: and so on") == 400
    assert len(text.splitlines()) < 20


def test_the_run_after_a_failure_goes_on_with_the_compilation(project: Project) -> None:
    project.run("chat", COMPILER="fails")
    project.calls()
    status, text = project.run("chat")
    assert status == 0, text
    assert pip_words(project.calls()) == ["wheel", "install", "install"]


# A shell without job control starts a program in the background so. pytest itself may run there.
IN_BACKGROUND = ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")


def test_a_stopped_compilation_leaves_no_program_and_goes_on_later(project: Project) -> None:
    with project.start("chat", *IN_BACKGROUND, COMPILER="waits") as process:
        calls = Path(project.environment["CALLS"])
        wait_until(lambda: calls.exists() and " wheel " in calls.read_text(), timeout=120, what="the compilation")
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=120)  # ends only when no program has the output open
    assert process.returncode == 130
    assert text.splitlines()[-1] == "Stopped. The same command goes on where this one stopped."
    project.calls()
    assert project.run("chat")[0] == 0
    assert pip_words(project.calls())[0] == "wheel"


def test_a_second_clone_does_not_compile(project: Project) -> None:
    project.run("chat")
    shutil.rmtree(project.root / ".venv")
    shutil.rmtree(project.root / ".cache")
    add_venv(project.root)
    project.calls()
    status, text = project.run("chat")
    assert status == 0, text
    assert "compile" not in text
    assert pip_words(project.calls()) == ["install", "install", "install"]


def test_other_cmake_arguments_compile_again_and_replace_the_library(project: Project) -> None:
    project.run("chat")
    project.calls()
    assert project.run("chat", CMAKE_ARGS="-DGGML_CUDA=on")[0] == 0
    calls = project.calls()
    assert pip_words(calls) == ["download", "wheel", "install"]
    assert any("--force-reinstall" in line for line in calls)


def test_a_missing_compiler_is_said_before_the_source_is_downloaded(project: Project) -> None:
    status, text = project.run("chat", CC="/nowhere/cc")
    assert status == 1
    assert "There is no C++ compiler" in text or "xcode-select --install" in text
    assert "download" not in pip_words(project.calls())


def test_a_library_that_does_not_load_is_compiled_again(project: Project) -> None:
    status, text = project.run("chat", LIBRARY="broken")
    assert status == 1
    assert "    OSError: libllama.so: cannot open shared object file" in text.splitlines()
    assert "does not load on this machine" in text.splitlines()[-1]
    project.calls()
    assert project.run("chat")[0] == 0
    assert pip_words(project.calls()) == ["download", "wheel", "install"]
