"""Models by their Hugging Face id, from a local hub, with the real huggingface_hub and the packaging's fake tools."""

import json
import os
import re
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from package_llama.errors import PackagingError
from package_llama.hub import HubModel, needed_files, parse
from tests.support.fake_hub import COMMIT, Hub, running_hub
from tests.support.packaged_project import BASH, SMALL_GGUF, Outcome, Project

pytest_plugins = ["tests.support.packaging_fixtures"]

LLAMA = "meta-llama/Llama-2-7b-chat-hf"
TOKEN = "hf_secretsecretsecret"
CHUNK = 10 * 2**20  # huggingface_hub writes so many bytes at a time
N_WEIGHTS = CHUNK // 2 + 500_000
HEAD = json.dumps({"w": {"dtype": "F16", "shape": [N_WEIGHTS], "data_offsets": [0, 2 * N_WEIGHTS]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEAD)) + HEAD + bytes(2 * N_WEIGHTS)
CUT = CHUNK + 1000
SNAPSHOT = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}).encode(),
    "model.safetensors": WEIGHTS,
    "tokenizer.model": b"tokens",
    "pytorch_model.bin": b"the same weights",
    "original/consolidated.00.pth": b"the same weights",
    "README.md": b"A model",
}
GGUFS = {f"tiny.{each}.gguf": SMALL_GGUF for each in ("Q2_K", "Q4_K_M", "Q4_K_S")}
REPOSITORIES = {
    LLAMA: SNAPSHOT,
    "org/tiny-GGUF": {"config.json": b"{}", "mmproj-F16.gguf": b"", **GGUFS},
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub(Hub({repo: dict(files) for repo, files in REPOSITORIES.items()})) as hub:
        yield hub


@pytest.fixture
def connected(project: Project, hub: Hub, tmp_path: Path) -> Project:
    """The project, with this hub and a cache of its own."""
    project.environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "30"}
    return project


def sentence(outcome: Outcome) -> str:
    """The only line of a failure beside progress bars. No token is ever printed."""
    assert outcome.status == 1, outcome
    assert TOKEN not in outcome.stdout + outcome.stderr
    return outcome.stderr.splitlines()[-1].removeprefix("package_llama.sh: ")


# ---- which argument is an id, and which files it needs ----


@pytest.mark.parametrize(
    ("argument", "model"),
    [
        (LLAMA, HubModel(LLAMA)),
        ("org/repo:Q4_K_M", HubModel("org/repo", gguf_type="Q4_K_M")),
        ("org/repo/folder/a.Q8_0.gguf", HubModel("org/repo", gguf_file="folder/a.Q8_0.gguf")),
    ],
)
def test_an_id_names_a_repository_and_maybe_a_gguf_file(argument: str, model: HubModel) -> None:
    assert parse(argument) == model


@pytest.mark.parametrize(
    "argument", ["--demo", "snapshot", "/org/repo", "./org/repo", "../org/repo", "a/b.gguf", "a/b/c"]
)
def test_a_path_is_no_id(argument: str) -> None:
    assert parse(argument) is None


def test_a_path_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse("org/missing") is None, "a folder org is here, so this is a path with a typing error"


def test_of_a_snapshot_only_one_format_of_the_weights_is_needed() -> None:
    needed = needed_files(HubModel(LLAMA), SNAPSHOT)
    assert sorted(needed) == ["config.json", "model.safetensors", "tokenizer.model"]


@pytest.mark.parametrize("chosen", [HubModel("o/r", gguf_type="q4_k_m"), HubModel("o/r", gguf_file="a-Q4_K_M.gguf")])
def test_all_parts_of_a_gguf_file_are_needed_and_the_first_comes_first(chosen: HubModel) -> None:
    parts = [f"a-Q4_K_M-0000{number}-of-00003.gguf" for number in (3, 1, 2)]
    assert needed_files(chosen, [*parts, "a-Q8_0.gguf"]) == sorted(parts)


CHOICES = {
    "none": (HubModel("o/r"), "o/r has these GGUF files, choose one as o/r/FILE: a-Q4_K_M.gguf, a-Q8_0.gguf."),
    "unknown": (HubModel("o/r", gguf_type="Q4_0"), "'Q4_0' is none of them: choose one as"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_without_a_right_choice_the_gguf_files_are_listed(case: str) -> None:
    model, words = CHOICES[case]
    with pytest.raises(PackagingError, match=re.escape(words)):
        needed_files(model, ["a-Q8_0.gguf", "a-Q4_K_M.gguf", "mmproj-a.gguf"])


def test_one_gguf_file_needs_no_choice() -> None:
    assert needed_files(HubModel("o/r"), ["config.json", "a.gguf", "mmproj-a.gguf"]) == ["a.gguf"]


@pytest.mark.parametrize("names", [["README.md"], ["adapter_model.safetensors"], ["mmproj-a.gguf"]])
def test_a_repository_without_usable_files_is_refused(names: list[str]) -> None:
    with pytest.raises(PackagingError, match=r"o/r has no usable files: choose a repository with"):
        needed_files(HubModel("o/r"), names)


# ---- with a hub ----


def test_a_snapshot_is_fetched_converted_and_packed(connected: Project, hub: Hub) -> None:
    hub.gated[LLAMA] = TOKEN
    outcome = connected.run(BASH, LLAMA, HF_TOKEN=TOKEN)
    assert outcome.status == 0, outcome
    assert {name for name, _, _ in hub.served} == {"config.json", "model.safetensors", "tokenizer.model"}
    assert TOKEN not in outcome.stdout + outcome.stderr
    (gguf,) = connected.ggufs()
    assert "Llama-2-7b-chat-hf" in gguf
    snapshot = Path(connected.environment["HF_HOME"], f"hub/models--{LLAMA.replace('/', '--')}/snapshots/{COMMIT}")
    assert (snapshot / "model.safetensors").read_bytes() == WEIGHTS


def test_a_gguf_file_is_fetched_once_and_packs_again_without_the_hub(connected: Project, hub: Hub) -> None:
    first = connected.run(BASH, "org/tiny-GGUF:Q4_K_M")
    assert first.status == 0, first
    assert [name for name, _, _ in hub.served] == ["tiny.Q4_K_M.gguf"]
    hub.is_broken = True
    assert connected.run(BASH, "org/tiny-GGUF:Q4_K_M", "false").status == 0
    assert connected.run(BASH, "org/tiny-GGUF:Q4_K_M", HF_HUB_OFFLINE="1").status == 0
    assert len(hub.served) == 1
    assert str(connected.config()["handler"]["model_path"]).endswith(f"snapshots/{COMMIT}/tiny.Q4_K_M.gguf")


def test_a_broken_connection_continues_by_itself(connected: Project, hub: Hub) -> None:
    hub.cut_after["model.safetensors"] = CUT
    assert connected.run(BASH, LLAMA).status == 0
    weights = [each for each in hub.served if each[0] == "model.safetensors"]
    assert weights == [("model.safetensors", 0, CUT), ("model.safetensors", CHUNK, len(WEIGHTS) - CHUNK)]


def test_a_run_that_was_stopped_continues_where_it_was(connected: Project, hub: Hub) -> None:
    hub.stalled_after["model.safetensors"] = CUT
    process = subprocess.Popen(connected.command(BASH, LLAMA), env=connected.environment, stdout=-1, stderr=-1)
    assert hub.stalled.wait(60)
    blobs = Path(connected.environment["HF_HOME"], f"hub/models--{LLAMA.replace('/', '--')}/blobs")
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in blobs.glob("*.package-llama")) < CHUNK:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    hub.served.clear()

    outcome = connected.run(BASH, LLAMA)

    assert outcome.status == 0, outcome
    assert hub.served == [("model.safetensors", CHUNK, len(WEIGHTS) - CHUNK)], "not one byte twice"
    assert not [*blobs.glob("*.package-llama")]


def test_a_gated_repository_names_the_licence_and_the_login(connected: Project, hub: Hub) -> None:
    hub.gated[LLAMA] = TOKEN
    without = sentence(connected.run(BASH, LLAMA))
    assert f"is gated: accept its licence at {hub.url}/{LLAMA}, run 'hf auth login' (or set HF_TOKEN), then" in without
    other = f"{TOKEN}x"
    assert "wait until access is granted" in sentence(connected.run(BASH, LLAMA, HF_TOKEN=other))


FAILURES = {
    "unknown": ("org/unknown", {}, "org/unknown is neither a path here nor a model at"),
    "unknown to an account": ("org/unknown", {"HF_TOKEN": TOKEN}, "org/unknown is neither a path here nor a model at"),
    "no valid id": ("org/un--known", {}, "org/un--known is neither a path here nor a valid id"),
    "offline mode": (LLAMA, {"HF_HUB_OFFLINE": "1"}, "unset HF_HUB_OFFLINE, or give the path"),
    "no network": (LLAMA, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached ("),
    "no packages": (LLAMA, {"FAKE_PIP_FAILS": "1"}, "check the network connection"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_sentence_with_the_next_step(connected: Project, hub: Hub, case: str) -> None:
    model, environment, words = FAILURES[case]
    assert words in sentence(connected.run(BASH, model, **environment))
    assert connected.ggufs() == set() and hub.served == []


def test_a_model_that_the_disk_cannot_take_is_not_fetched(connected: Project, hub: Hub) -> None:
    hub.claimed_sizes["model.safetensors"] = 8 * 2**40
    assert "needs 8796.1 GB in" in sentence(connected.run(BASH, LLAMA))
    assert hub.served == []


def test_a_model_that_was_never_fetched_does_not_pack_again(connected: Project) -> None:
    assert "has not been fetched yet" in sentence(connected.run(BASH, LLAMA, "false"))
    assert os.listdir(connected.root / "models") == [] if (connected.root / "models").exists() else True
