"""package_llama.sh with fake tools that fail, hang or are killed: it prints one sentence and leaves no partial file."""

import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.packaged_project import ARCHIVES, BASH, SMALL_GGUF, SOURCED, SOURCED_BASH, Project

pytest_plugins = ["tests.support.packaging_fixtures"]

Q4_K_M = "Llama 2's snapshot-Q4_K_M.gguf"
# The steps, and the GGUF files that exist if a run ends in the middle of the step.
STEPS = {"converting": set[str](), "quantizing": set[str](), "checking": set[str](), "packing": {Q4_K_M}}


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


def as_a_file(folder: str, name: str, content: bytes) -> Callable[[Project, Path], None]:
    """Without the model's own files; only `name` in `folder` of the snapshot."""

    def write(project: Project, snapshot: Path) -> None:
        shutil.rmtree(snapshot)
        (snapshot / folder).mkdir(parents=True)
        (snapshot / folder / name).write_bytes(content)

    return write


def with_quantization(**quantization: object) -> Callable[[Project, Path], None]:
    return with_config(architectures=["LlamaForCausalLM"], quantization_config=quantization)


def with_packed_weights(project: Project, snapshot: Path) -> None:
    head = json.dumps({"a.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (snapshot / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"1")


def with_cut_weights(project: Project, snapshot: Path) -> None:
    head = json.dumps({"a.weight": {"dtype": "F16", "shape": [9], "data_offsets": [0, 18]}}).encode()
    (snapshot / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"1")


def with_more_weights_than_disk(project: Project, snapshot: Path) -> None:
    with (snapshot / "model.safetensors").open("rb+") as file:
        file.truncate(8 * 2**40)  # sparse: takes no space itself


def with_fake_archiver(project: Project, snapshot: Path) -> None:
    project.add_fake_archiver()


def with_a_cut_gguf(project: Project, snapshot: Path) -> None:
    (snapshot / "cut.gguf").write_bytes(SMALL_GGUF[:-1])


def with_a_gguf(project: Project, snapshot: Path) -> None:
    (snapshot / "small.gguf").write_bytes(SMALL_GGUF)


def without_worker_package(project: Project, snapshot: Path) -> None:
    shutil.rmtree(project.root / "llama_cpp_worker")


def with_models_a_file(project: Project, snapshot: Path) -> None:
    shutil.rmtree(project.root / "models")
    (project.root / "models").touch()


def nothing(project: Project, snapshot: Path) -> None:
    """For wrong arguments and failing tools."""


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
    "damaged GGUF": ([f"{SNAPSHOT}/cut.gguf"], with_a_cut_gguf, {}, "cut.gguf is damaged or incomplete (it has "),
    "never converted": ([SNAPSHOT, "false"], nothing, {}, "without 'false'"),
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
    "no map in the index": ([SNAPSHOT], with_text("model.safetensors.index.json", "{}"), {}, "has no weight_map"),
    "cut weights": ([SNAPSHOT], with_cut_weights, {}, "is damaged or incomplete (it has 78 bytes of 95): download it"),
    "8-bit weights": ([SNAPSHOT], with_packed_weights, {}, "is quantized already (U8), and a good GGUF file is made"),
    "bitsandbytes": ([SNAPSHOT], with_quantization(load_in_4bit=True), {}, "is quantized already (bitsandbytes)"),
    "GPTQ": ([SNAPSHOT], with_quantization(quant_method="gptq"), {}, "is quantized already (GPTQ), and a good"),
    "old AWQ": ([SNAPSHOT], with_text("quant_config.json", "{}"), {}, "is quantized already (AWQ)"),
    "LoRA": (
        [SNAPSHOT],
        as_a_file(".", "adapter_config.json", b'{"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"}'),
        {},
        "is an adapter (LoRA) for meta-llama/Llama-2-7b-hf, not a model: merge it into its base model (peft: Auto",
    ),
    "GGUFs": ([SNAPSHOT], as_a_file(".", "a.GGUF", b""), {}, "holds GGUF files: give one of them (a.GGUF)."),
    "models inside": ([SNAPSHOT], as_a_file("final", "config.json", b"{}"), {}, "give one of these (final)."),
    "nothing downloaded": ([SNAPSHOT], as_a_file("snapshots", ".keep", b""), {}, "holds no snapshot"),
    "config is a list": ([SNAPSHOT], with_text("config.json", "[]"), {}, "config.json is not an object of JSON"),
    "llama.cpp refuses": ([f"{SNAPSHOT}/small.gguf"], with_a_gguf, {"FAKE_PROBE_FAILS": "1"}, "architecture: 'llama9'"),
    "Git LFS pointer": ([SNAPSHOT], with_text("model.safetensors", "version https://git-lfs"), {}, "git lfs pull"),
    # 8 TiB of f16 weights, 4.85 / 16 of that for the quantized file, and the converter
    "disk too small": ([SNAPSHOT], with_more_weights_than_disk, {}, "needs 11463.1 GB in "),
    "disk full while converting": ([SNAPSHOT], nothing, {"FAKE_FAILS": "converting"}, FULL),
    "disk full while quantizing": ([SNAPSHOT], nothing, {"FAKE_FAILS": "quantizing"}, FULL),
    "disk full while packing": ([SNAPSHOT], with_fake_archiver, {"FAKE_FAILS": "packing"}, FULL),
    "check fails": ([SNAPSHOT], nothing, {"FAKE_CHECK_FAILS": "1"}, "perplexity is 812.00 times that of f16.gguf"),
    "models not a folder": ([SNAPSHOT], with_models_a_file, {}, "models: File exists"),
    "no network": ([SNAPSHOT], nothing, {"FAKE_PIP_FAILS": "1"}, "(ERROR: No matching distribution found): check the"),
    "no network for the demo": (["--demo"], nothing, {"FAKE_PIP_FAILS": "1"}, "check the network connection"),
    "no pip": (["--demo"], nothing, {"FAKE_MISSING": "pip"}, "-m ensurepip"),
    "no CPU build of torch": ([SNAPSHOT], nothing, {"FAKE_MISSING": "torch"}, "brings 3.0 GB of GPU packages"),
    "no yaml": ([SNAPSHOT], nothing, {"FAKE_MISSING": "yaml"}, "yaml cannot be imported"),
    "no archiver": ([SNAPSHOT], nothing, {"FAKE_MISSING": "model_archiver"}, "pip install -r requirements.txt"),
    "no llama.cpp": ([SNAPSHOT], nothing, {"FAKE_MISSING": "llama_cpp"}, "llama_cpp cannot be imported"),
    "no Python": ([SNAPSHOT], nothing, {"VIRTUAL_ENV": "/nowhere"}, "No Python was found"),
    "no tqdm": ([SNAPSHOT], nothing, {"FAKE_MISSING": "tqdm"}, "tqdm cannot be imported"),
    "no worker package": (["--demo"], without_worker_package, {}, "llama_cpp_worker: No such file or directory"),
}
FINISHED = {  # GGUF files that are finished before the failure
    "disk full while packing": {Q4_K_M},
    "no worker package": {"SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-Q8_0.gguf"},
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_prints_one_sentence_and_changes_no_file(project: Project, snapshot: Path, case: str) -> None:
    arguments, spoil, environment, words = FAILURES[case]
    for folder in ("models", "model_store"):
        (project.root / folder).mkdir()
    for name in ARCHIVES:
        (project.root / "model_store" / name).write_text("good")
    spoil(project, snapshot)

    outcome = project.run(BASH, *(word.replace(SNAPSHOT, str(snapshot)) for word in arguments), **environment)

    assert outcome.status == 1
    assert len(outcome.stderr.splitlines()) == 1, outcome
    assert outcome.stderr.startswith("package_llama.sh: ") and words in outcome.stderr, outcome
    assert "LLAMA2_Q4_MODEL" not in outcome.stdout
    assert project.archives() == dict.fromkeys(ARCHIVES, b"good")
    assert project.unfinished() == []
    assert project.ggufs() == FINISHED.get(case, set())


@pytest.mark.parametrize("way", SOURCED)
def test_a_failure_leaves_the_sourcing_shell_unchanged(project: Project, snapshot: Path, way: str) -> None:
    outcome = project.run(way, snapshot, FAKE_FAILS="converting", LLAMA2_Q4_MODEL="/earlier.gguf")
    assert outcome.status == 1 and FULL in outcome.stderr
    assert outcome.changes == [] and outcome.model == "/earlier.gguf"


@pytest.mark.parametrize("step", ["converting", "quantizing", "checking"])
def test_a_failed_step_leaves_the_gguf_of_an_earlier_run_unchanged(project: Project, snapshot: Path, step: str) -> None:
    project.run(BASH, snapshot)
    gguf = project.root / "models" / Q4_K_M
    good = gguf.read_bytes()
    assert project.run(BASH, snapshot, FAKE_FAILS=step).status == 1
    assert gguf.read_bytes() == good


def test_the_needed_disk_space_is_printed_first(project: Project, snapshot: Path) -> None:
    with (snapshot / "model.safetensors").open("rb+") as file:
        file.truncate(13_476_839_424)
    outcome = project.run(BASH, snapshot, FAKE_PIP_FAILS="1")
    assert outcome.stdout.splitlines()[0] == f"{snapshot} takes up to 18.3 GB of disk while it is packaged"


# ---- signals ----


@pytest.fixture
def started(tmp_path: Path, project: Project) -> Path:
    """A pipe. The step named FAKE_HANGS writes its process id to it, in its middle."""
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
    """Runs until the middle of `step`, sends the signal, waits for the step's end, and returns the status."""
    environment = project.environment | {"FAKE_HANGS": step}
    process = subprocess.Popen(project.command(BASH, snapshot), env=environment, stdout=-1, stderr=-1)
    step_id = int(started.read_text())
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: not is_running(step_id))
    return process.returncode


@pytest.mark.timeout(60)  # if the script fails before the step, nothing opens the pipe `started` for writing
@pytest.mark.parametrize(
    ("step", "number"),
    [*((step, signal.SIGTERM) for step in STEPS), ("converting", signal.SIGINT), ("converting", signal.SIGHUP)],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_signal_ends_the_run_at_once_without_partial_files(
    project: Project, snapshot: Path, started: Path, step: str, number: signal.Signals
) -> None:
    if step == "packing":
        project.add_fake_archiver()
    assert interrupt(project, snapshot, started, step, number) == 128 + number
    assert not project.unfinished() and project.ggufs() == STEPS[step]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("step", ["converting", "packing"])  # every step is a program that the same function runs
def test_kill_9_ends_the_step_too_and_the_next_run_succeeds(
    project: Project, snapshot: Path, started: Path, step: str
) -> None:
    if step == "packing":
        project.add_fake_archiver()
    assert interrupt(project, snapshot, started, step, signal.SIGKILL) == -signal.SIGKILL
    assert project.ggufs() == STEPS[step]
    shutil.rmtree(Path(project.environment["PYTHONPATH"]) / "model_archiver", ignore_errors=True)

    outcome = project.run(BASH, snapshot)

    assert outcome.status == 0, outcome
    assert project.ggufs() == {Q4_K_M} and not project.unfinished()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", SOURCED)
def test_ctrl_c_in_an_interactive_shell_ends_only_the_script(
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
        # zsh reports 1 if the signal reaches it first: it then does not wait for the script
        assert re.search(rb"status=(130|1) model=unset end", read_until(b" end"))
        wait_until(lambda: not is_running(converter) and not project.unfinished())
        assert not project.ggufs()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
