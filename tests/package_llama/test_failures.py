"""package_llama.sh when something goes wrong, or when it is told to stop: one sentence, and nothing half-made."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.packaged_project import ARCHIVES, BASH, SOURCED, SOURCED_BASH, WAYS, Project

pytest_plugins = ["tests.support.packaging_fixtures"]

Q4_K_M = "Llama 2's snapshot-Q4_K_M.gguf"
PASSING_F16 = "Llama 2's snapshot-F16-for-quantizing.gguf"
# The step, and the GGUF files that are whole when it ends in the middle.
STEPS = {
    "converting": set[str](),
    "quantizing": {PASSING_F16},
    "checking": {PASSING_F16},
    "packing": {Q4_K_M},
}


def without(name: str) -> Callable[[Project, Path], None]:
    return lambda project, snapshot: (snapshot / name).unlink()


def with_text(name: str, text: str) -> Callable[[Project, Path], None]:
    def write(project: Project, snapshot: Path) -> None:
        (snapshot / name).write_text(text)

    return write


def with_config(**config: object) -> Callable[[Project, Path], None]:
    return with_text("config.json", json.dumps(config))


def in_metas_format(project: Project, snapshot: Path) -> None:
    (snapshot / "config.json").rename(snapshot / "params.json")
    (snapshot / "model.safetensors").rename(snapshot / "consolidated.00.pth")


def with_snapshots_inside(project: Project, snapshot: Path) -> None:
    for name in ("c1b0db93", "94b07a6e"):
        (snapshot / "snapshots" / name).mkdir(parents=True)


def with_a_shard_missing(project: Project, snapshot: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors").rename(snapshot / shards["a"])
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def with_more_weights_than_disk(project: Project, snapshot: Path) -> None:
    with (snapshot / "model.safetensors").open("wb") as file:
        file.truncate(8 * 2**40)  # sparse: takes no space itself


def with_fake_archiver(project: Project, snapshot: Path) -> None:
    project.has_fake_archiver()


def without_handler(project: Project, snapshot: Path) -> None:
    (project.root / "llama_cpp_handler.py").unlink()


def with_models_a_file(project: Project, snapshot: Path) -> None:
    shutil.rmtree(project.root / "models")
    (project.root / "models").touch()


def nothing(project: Project, snapshot: Path) -> None:
    """Leaves everything as it is: the arguments or the tools are what is wrong."""


SNAPSHOT = "SNAPSHOT"  # stands for the folder's path
FULL = "No space left on device"
FAILURES = {
    "no argument": ([], nothing, {}, "No model is named"),
    "unknown option": ([SNAPSHOT, "--fast"], nothing, {}, "--fast"),
    "unknown second argument": ([SNAPSHOT, "no"], nothing, {}, "'no'"),
    "no value": ([SNAPSHOT, "--quantization"], nothing, {}, "--quantization"),
    "unknown quantization": ([SNAPSHOT, "--quantization", "Q5_9"], nothing, {}, "Q5_9 is unknown: choose one of Q4_0"),
    "no version": ([SNAPSHOT, "--version", "new"], nothing, {}, "--version new is no version: give numbers and dots"),
    "version outside": ([SNAPSHOT, "--version", "1/../2"], nothing, {}, "--version 1/../2 is no version"),
    "missing folder": (["/no/such folder"], nothing, {}, "/no/such folder does not exist"),
    "not a GGUF": ([f"{SNAPSHOT}/config.json"], nothing, {}, "config.json is not a GGUF file"),
    "never converted": ([SNAPSHOT, "false"], nothing, {}, "once without 'false'"),
    "demo never made": (["--demo", "false"], nothing, {}, "once without 'false'"),
    "no config": ([SNAPSHOT], without("config.json"), {}, "has no config.json"),
    "broken config": ([SNAPSHOT], with_text("config.json", "{"), {}, "config.json is not JSON"),
    "Meta's format": (
        [SNAPSHOT],
        in_metas_format,
        {},
        "python -m transformers.models.llama.convert_llama_weights_to_hf",
    ),
    "several snapshots": ([SNAPSHOT], with_snapshots_inside, {}, "holds 2 snapshots: give one of the folders in"),
    "no tokenizer": ([SNAPSHOT], without("tokenizer.model"), {}, "has no tokenizer.model or tokenizer.json"),
    "other architecture": ([SNAPSHOT], with_config(architectures=["BertModel"]), {}, "architecture, BertModel"),
    "no architecture": ([SNAPSHOT], with_config(), {}, "architecture, none named"),
    "no weights": ([SNAPSHOT], without("model.safetensors"), {}, "has no weights"),
    "incomplete weights": ([SNAPSHOT], with_a_shard_missing, {}, "model-00002-of-00002.safetensors is missing"),
    "Git LFS pointer": ([SNAPSHOT], with_text("model.safetensors", "version https://git-lfs"), {}, "git lfs pull"),
    # 8 TiB of f16 weights, 4.85 of 16 bits of them once more, and the converter
    "disk too small": ([SNAPSHOT], with_more_weights_than_disk, {}, "needs 11463.1 GB in "),
    "disk full while converting": ([SNAPSHOT], nothing, {"FAKE_FAILS": "converting"}, FULL),
    "disk full while quantizing": ([SNAPSHOT], nothing, {"FAKE_FAILS": "quantizing"}, FULL),
    "disk full while packing": ([SNAPSHOT], with_fake_archiver, {"FAKE_FAILS": "packing"}, FULL),
    "unsound": ([SNAPSHOT], nothing, {"FAKE_UNSOUND": "1"}, "perplexity is 812.00 times that of f16.gguf"),
    "models not a folder": ([SNAPSHOT], with_models_a_file, {}, "models: File exists"),
    "no network": ([SNAPSHOT], nothing, {"FAKE_PIP_FAILS": "1"}, "(ERROR: No matching distribution found): check the"),
    "no network for the demo": (["--demo"], nothing, {"FAKE_PIP_FAILS": "1"}, "check the network connection"),
    "no pip": (["--demo"], nothing, {"FAKE_MISSING": "pip"}, "-m ensurepip"),
    "no torch": ([SNAPSHOT], nothing, {"FAKE_MISSING": "torch"}, "torch is missing"),
    "no yaml": ([SNAPSHOT], nothing, {"FAKE_MISSING": "yaml"}, "yaml cannot be imported"),
    "no archiver": ([SNAPSHOT], nothing, {"FAKE_MISSING": "model_archiver"}, "pip install -r requirements.txt"),
    "no llama.cpp": ([SNAPSHOT], nothing, {"FAKE_MISSING": "llama_cpp"}, "llama_cpp cannot be imported"),
    "no Python": ([SNAPSHOT], nothing, {"VIRTUAL_ENV": "/nowhere"}, "No Python was found"),
    "no handler": ([SNAPSHOT], without_handler, {}, "llama_cpp_handler.py is missing"),
}
WHOLE = {  # what is finished before the failure
    "disk full while quantizing": {PASSING_F16},
    "unsound": {PASSING_F16},
    "disk full while packing": {Q4_K_M},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_sentence_and_leaves_everything_as_it_was(
    project: Project, snapshot: Path, way: str, case: str
) -> None:
    arguments, spoil, environment, words = FAILURES[case]
    for folder in ("models", "model_store"):
        (project.root / folder).mkdir()
    for name in ARCHIVES:
        (project.root / "model_store" / name).write_text("good")
    spoil(project, snapshot)

    arguments = [word.replace(SNAPSHOT, str(snapshot)) for word in arguments]
    outcome = project.run(way, *arguments, **environment, LLAMA2_Q4_MODEL="/earlier.gguf")

    assert outcome.status == 1
    *progress, sentence = outcome.stderr.splitlines()
    assert sentence.startswith("package_llama.sh: ") and words in sentence, outcome
    assert set(progress) <= {"Converting: 100 %", "Quantizing to Q4_K_M: 100 %"}
    assert "LLAMA2_Q4_MODEL" not in outcome.stdout
    assert outcome.changes == [] and outcome.model in (None, "/earlier.gguf")
    assert project.archives() == dict.fromkeys(ARCHIVES, b"good")
    assert project.unfinished() == []
    assert project.ggufs() == WHOLE.get(case, set())


@pytest.mark.parametrize("step", ["converting", "quantizing", "checking"])
def test_a_failed_conversion_leaves_an_earlier_gguf_as_it_was(project: Project, snapshot: Path, step: str) -> None:
    project.run(BASH, snapshot)
    gguf = project.root / "models" / Q4_K_M
    good = gguf.read_bytes()
    (snapshot / "tokenizer.json").touch()
    assert project.run(BASH, snapshot, FAKE_FAILS=step).status == 1
    assert gguf.read_bytes() == good


def test_what_it_will_take_of_the_disk_is_said_before_it_begins(project: Project, snapshot: Path) -> None:
    with (snapshot / "model.safetensors").open("wb") as file:
        file.truncate(13_476_839_424)
    outcome = project.run(BASH, snapshot, FAKE_PIP_FAILS="1")
    assert outcome.stdout.splitlines()[0] == f"{snapshot} takes up to 18.3 GB of disk while it is packaged"


# ---- being told to stop ----


@pytest.fixture
def started(tmp_path: Path, project: Project) -> Path:
    """A pipe that gives the process id of the step that FAKE_HANGS names, when it is in the middle."""
    path = tmp_path / "started"
    os.mkfifo(path)
    project.environment["FAKE_STARTED"] = str(path)
    return path


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupt(project: Project, snapshot: Path, started: Path, step: str, number: signal.Signals) -> int:
    """Runs until the middle of `step`, sends the signal, and returns the status."""
    environment = project.environment | {"FAKE_HANGS": step}
    process = subprocess.Popen(project.command(BASH, snapshot), env=environment, stdout=-1, stderr=-1)
    at_work = int(started.read_text())
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not is_running(at_work))
    return process.returncode


@pytest.mark.timeout(60)  # a script that fails before the step would leave `started` without a writer
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("step", STEPS)
def test_a_signal_ends_it_at_once_and_leaves_nothing_unfinished(
    project: Project, snapshot: Path, started: Path, step: str, number: signal.Signals
) -> None:
    if step == "packing":
        project.has_fake_archiver()
    assert interrupt(project, snapshot, started, step, number) == 128 + number
    assert not project.unfinished() and project.ggufs() == STEPS[step]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("step", STEPS)
def test_after_kill_9_nothing_runs_on_and_the_next_run_begins_cleanly(
    project: Project, snapshot: Path, started: Path, step: str
) -> None:
    if step == "packing":
        project.has_fake_archiver()
    assert interrupt(project, snapshot, started, step, signal.SIGKILL) == -signal.SIGKILL
    assert project.ggufs() == STEPS[step]
    shutil.rmtree(Path(project.environment["PYTHONPATH"]) / "model_archiver", ignore_errors=True)

    outcome = project.run(BASH, snapshot)

    assert outcome.status == 0, outcome
    assert ("converted before" in outcome.stdout) == (STEPS[step] == {PASSING_F16})
    assert project.ggufs() == {Q4_K_M} and not project.unfinished()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", SOURCED)
def test_ctrl_c_in_an_interactive_shell_ends_the_script_and_not_the_shell(
    project: Project, snapshot: Path, started: Path, way: str
) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"] if way == SOURCED_BASH else ["zsh", "-f", "-i"]
    settings = {"SNAPSHOT": str(snapshot), "TERM": "dumb", "PS1": "READY> ", "FAKE_HANGS": "converting"}
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(project.root)
        os.execvpe(shell[0], shell, project.environment | settings)

    def read_until(text: bytes) -> bytes:
        screen = b""
        while text not in screen:
            screen += os.read(terminal, 1)
        return screen

    try:
        read_until(b"READY> ")
        os.write(terminal, b'source ./package_llama.sh "$SNAPSHOT"\n')
        converter = int(started.read_text())
        os.write(terminal, b"\x03")
        read_until(b"READY> ")
        os.write(terminal, b"echo status=$? model=${LLAMA2_Q4_MODEL-unset} e''nd\n")
        # zsh does not wait for the script when the signal reaches it first, and reports 1 then
        assert re.search(rb"status=(130|1) model=unset end", read_until(b" end"))
        wait_until(lambda: not is_running(converter) and not project.unfinished())
        assert not project.ggufs()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
