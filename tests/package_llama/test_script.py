"""package_llama.sh with fake tools: what it makes, executed by bash, and sourced from bash and from zsh.

test_failures.py has its failures and interruptions, test_real_model.py runs it with the real tools.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from package_llama.gguf_source import _model_name
from tests.support.packaged_project import (
    ARCHIVES,
    BASH,
    PROJECT,
    SMALL_GGUF,
    WAYS,
    Project,
    write_executable,
    write_tree,
)

pytest_plugins = ["tests.support.packaging_fixtures"]

F16 = "Llama 2's snapshot-F16.gguf"
Q4_K_M = "Llama 2's snapshot-Q4_K_M.gguf"

# Syntax of bash 4.0 to 5.2, from bash's list of changes. macOS has bash 3.2.
NEWER_SYNTAX = {
    "associative arrays": r"\b(declare|local|typeset)\s+-[a-zA-Z]*[Ang]",
    "case of a parameter": r"\$\{\w+(\[[^]]*\])?(\^|,)",
    "transformations": r"\$\{\w+@",
    "arrays from lines": r"\b(mapfile|readarray)\b",
    "both outputs": r"&>>|\|&",
    "case that falls through": r";;?&",
    "coprocesses": r"\bcoproc\b",
    "test of a variable": r"\[\[?\s+-[vR]\s",
    "negative index": r"\$\{\w+\[-\d",
    "new variables": r"\$\{?(EPOCHSECONDS|EPOCHREALTIME|SRANDOM|BASHPID)\b",
    "new descriptors": r"\{\w+\}[<>]",
    "sequences with a step": r"\{\d+\.\.\d+\.\.",
    "command substitution in this shell": r"\$\{[ |]",
}


@pytest.mark.parametrize("way", WAYS)
def test_a_snapshot_becomes_a_gguf_and_two_archives(project: Project, snapshot: Path, way: str) -> None:
    tracked = (project.root / "model-config.yaml").read_bytes()

    outcome = project.run(way, snapshot)

    assert (outcome.status, outcome.changes) == (0, []), outcome
    gguf = project.root / "models" / Q4_K_M
    assert str(snapshot).encode() in gguf.read_bytes() and gguf.read_bytes().endswith(b"Q4_K_M")
    assert f"LLAMA2_Q4_MODEL={gguf}\n" in outcome.stdout and "Checked: Q4_K_M\n" in outcome.stdout
    assert outcome.model == (None if way == BASH else str(gguf))
    assert project.ggufs() == {gguf.name} and not project.unfinished()
    for archive, is_continuous in zip(ARCHIVES, (True, False), strict=True):
        expected = yaml.safe_load(tracked)
        expected["handler"]["model_path"] = str(gguf)
        expected["continuousBatching"] = is_continuous
        assert project.config(archive) == expected
        assert json.loads(project.read("MAR-INF/MANIFEST.json", archive))["model"]["modelVersion"] == "1.0"
    assert (project.root / "model-config.yaml").read_bytes() == tracked


def test_an_archive_has_the_handler_its_whole_package_and_the_settings(project: Project, tmp_path: Path) -> None:
    (tmp_path / "my.gguf").write_bytes(SMALL_GGUF)
    assert project.run(BASH, tmp_path / "my.gguf").status == 0
    for archive in ARCHIVES:
        assert project.members(archive) == {
            "llama_cpp_handler.py",
            "llama_cpp_worker/engine.py",
            "llama_cpp_worker/parts/a.txt",
            "model-config.yaml",
            "torch.py",
            "MAR-INF/MANIFEST.json",
        }


def test_false_packs_again_without_converting_or_the_snapshot(project: Project, snapshot: Path) -> None:
    project.run(BASH, snapshot)
    gguf = project.root / "models" / Q4_K_M
    made_at = gguf.stat().st_mtime_ns
    shutil.rmtree(snapshot)
    (project.root / "llama_cpp_worker" / "engine.py").write_text("# newer\n")

    outcome = project.run(BASH, snapshot, "false")

    assert outcome.status == 0, outcome
    assert gguf.stat().st_mtime_ns == made_at
    assert project.read("llama_cpp_worker/engine.py") == b"# newer\n"


def test_the_converter_is_downloaded_once_with_llama_cpps_version(project: Project, snapshot: Path) -> None:
    for _ in range(2):
        assert project.run(BASH, snapshot).status == 0
    download, install = Path(project.environment["FAKE_PIP_LOG"]).read_text().splitlines()
    assert "llama-cpp-python==9.8.7" in download and "--no-binary llama-cpp-python" in download
    assert "--target" in install and "package_llama/requirements.txt" in install
    cached = {str(path.relative_to(project.root)) for path in (project.root / ".cache").glob("llama.cpp-*/**/*.py")}
    assert cached == {
        ".cache/llama.cpp-9.8.7/convert_hf_to_gguf.py",
        ".cache/llama.cpp-9.8.7/conversion/llama.py",
        ".cache/llama.cpp-9.8.7/gguf-py/gguf/__init__.py",
    }


# ---- sources of weights ----


def in_hugging_faces_cache(snapshot: Path, *other_hashes: str) -> Path:
    """Moves the snapshot into a cache folder, as links to blobs. Returns the model's folder."""
    model = snapshot.parent / "models--meta-llama--Llama-2-7b-chat-hf"
    folder = model / "snapshots" / "c1b0db93"
    (model / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    for path in snapshot.iterdir():
        path.rename(model / "blobs" / f"blob of {path.name}")
        (folder / path.name).symlink_to(f"../../blobs/blob of {path.name}")
    for name in other_hashes:
        (model / "snapshots" / name).mkdir()
    return model


@pytest.mark.parametrize("inside", [".", "snapshots/c1b0db93"], ids=["repository root", "snapshot"])
def test_a_snapshot_in_hugging_faces_cache_is_named_after_its_model(
    project: Project, snapshot: Path, inside: str
) -> None:
    cached = in_hugging_faces_cache(snapshot) / inside
    assert project.run(BASH, ".", cwd=str(cached)).status == 0
    assert project.ggufs() == {"Llama-2-7b-chat-hf-Q4_K_M.gguf"}
    assert project.run(BASH, cached, "false").status == 0


def test_refs_main_chooses_between_several_snapshots(project: Project, snapshot: Path) -> None:
    model = in_hugging_faces_cache(snapshot, "0ld")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c1b0db93")
    assert project.run(BASH, model).status == 0
    gguf = project.root / "models" / "Llama-2-7b-chat-hf-Q4_K_M.gguf"
    assert b"snapshots/c1b0db93" in gguf.read_bytes()


def test_a_snapshot_in_pytorch_shards_is_accepted(project: Project, snapshot: Path) -> None:
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (snapshot / "model.safetensors").unlink()
    for name in shards.values():
        (snapshot / name).write_bytes(b"weights")
    (snapshot / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    assert project.run(BASH, snapshot).status == 0


def test_a_gguf_file_is_used_where_it_is(project: Project, tmp_path: Path) -> None:
    (tmp_path / "my model.gguf").write_bytes(SMALL_GGUF)
    outcome = project.run(BASH, "my model.gguf")  # relative to the caller's folder
    assert outcome.status == 0, outcome
    assert project.config()["handler"]["model_path"] == str(tmp_path / "my model.gguf")
    assert project.ggufs() == set()


def test_a_gguf_file_is_requantized_if_a_type_is_given(project: Project, tmp_path: Path) -> None:
    source = tmp_path / "my model-f16.gguf"
    source.write_bytes(SMALL_GGUF)
    assert project.run(BASH, source, "--quantization", "q4_0").status == 0
    assert (project.root / "models" / "my model-Q4_0.gguf").read_bytes() == SMALL_GGUF + b"Q4_0"
    assert source.read_bytes() == SMALL_GGUF


def test_two_folders_of_the_same_name_have_two_ggufs_and_each_run_finds_its_own(
    project: Project, snapshot: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / run / "final" for run in ("run-a", "run-b")]
    for folder in folders:
        shutil.copytree(snapshot, folder)
        (folder / "generation_config.json").write_text(json.dumps({"made_by": folder.parent.name}))
    assert project.run(BASH, folders[0]).status == 0
    first = project.config()["handler"]["model_path"]
    content = Path(first).read_bytes()

    outcome = project.run(BASH, folders[1], "--version", "1.1")

    second = project.config("llamacpp-1.1.tar.gz")["handler"]["model_path"]
    assert Path(first).read_bytes() == content and first.endswith("/models/final-Q4_K_M.gguf")
    assert re.fullmatch(r".*/models/final-[0-9a-f]{8}-Q4_K_M\.gguf", second)
    assert f"{first} stays as it is: it was made from {folders[0]}. This model becomes" in outcome.stdout
    moved = folders[1].parent.rename(tmp_path / "run-c") / "final"
    for folder, gguf in ((folders[0], first), (moved, second)):
        assert project.run(BASH, folder, "false", FAKE_FAILS="converting").status == 0
        assert project.config()["handler"]["model_path"] == gguf
    assert project.run(BASH, moved, "--replace").status == 0
    assert project.config()["handler"]["model_path"] == first and Path(first).read_bytes() != content


def test_a_folder_with_any_name_can_be_packaged(project: Project, snapshot: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/-" + b"x" * 200 + b"\xff\n"
    snapshot.rename(os.fsdecode(folder))
    outcome = subprocess.run(
        [*map(os.fsencode, project.command(BASH)), folder], env=project.environment, capture_output=True, timeout=60
    )
    assert outcome.returncode == 0, outcome
    (name,) = project.ggufs()
    assert name == f"-{'x' * 149}-Q4_K_M.gguf"


@pytest.mark.parametrize(
    "file_name",
    [
        "my-model.gguf",
        "my-model-f16.gguf",
        "my-model.Q8_0.gguf",
        "my-model-IQ4_XS.gguf",
        "my-model.GGUF",
        "my-model-Q8_0-00001-of-00003.gguf",
    ],
)
def test_a_models_name_has_no_type(file_name: str) -> None:
    assert _model_name(file_name) == "my-model"


def test_the_demo_model_is_downloaded_and_quantized_once(project: Project) -> None:
    assert project.run(BASH, "--demo").status == 0
    assert project.ggufs() == {"SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-Q8_0.gguf"}
    made_at = {path: path.stat().st_mtime_ns for path in (project.root / "models").glob("*.gguf")}

    assert project.run(BASH, "--demo", FAKE_PIP_FAILS="1", FAKE_FAILS="quantizing").status == 0

    assert {path: path.stat().st_mtime_ns for path in (project.root / "models").glob("*.gguf")} == made_at


def test_an_f16_file_is_made_without_quantizing_and_can_be_requantized(project: Project, snapshot: Path) -> None:
    assert project.run(BASH, snapshot, "--quantization", "F16", FAKE_FAILS="quantizing").status == 0
    assert project.ggufs() == {F16} and project.config()["handler"]["model_path"].endswith(F16)

    f16 = project.root / "models" / F16
    assert project.run(BASH, f16, "--quantization", "Q4_K_M", FAKE_FAILS="converting").status == 0

    assert project.ggufs() == {F16, Q4_K_M}


# ---- other runs ----


def test_files_of_a_killed_run_are_removed(project: Project, snapshot: Path) -> None:
    left = project.root / "models" / ".package-unfinished" / "f16.gguf"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"much")
    assert project.run(BASH, snapshot).status == 0
    assert not project.unfinished() and project.ggufs() == {Q4_K_M}


def test_runs_at_the_same_time_wait_for_each_other(project: Project, snapshot: Path) -> None:
    other = shutil.copytree(snapshot, snapshot.with_name("other"))
    assert project.run(BASH, snapshot).status == 0
    running = [
        subprocess.Popen(project.command(BASH, each), env=project.environment, stdout=-1, stderr=-1)
        for each in (snapshot, other) * 2
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert project.config()["handler"]["model_path"].endswith("-Q4_K_M.gguf")
    assert len(project.ggufs()) == 2 and not project.unfinished()


# ---- versions ----


def test_another_version_is_packed_beside_the_first(project: Project, snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "newer.gguf").write_bytes(SMALL_GGUF)
    assert project.run(BASH, snapshot).status == 0
    first = project.archives()

    outcome = project.run(BASH, tmp_path / "newer.gguf", "--version", "1.1")

    assert outcome.status == 0 and "llamacpp-1.1.tar.gz" in outcome.stdout
    assert project.archives() == first
    for archive, is_continuous in (("llamacpp-1.1.tar.gz", True), ("llamacpp-1.1-dynamic.tar.gz", False)):
        model = json.loads(project.read("MAR-INF/MANIFEST.json", archive))["model"]
        assert (model["modelName"], model["modelVersion"]) == ("llamacpp", "1.1")
        config = project.config(archive)
        assert config["handler"]["model_path"] == str(tmp_path / "newer.gguf")
        assert config["continuousBatching"] == is_continuous


# ---- the script itself ----


@pytest.mark.parametrize("way", WAYS)
def test_help_is_the_header_and_needs_no_python(project: Project, way: str) -> None:
    outcome = project.run(way, "--help", VIRTUAL_ENV="/nowhere")
    assert (outcome.status, outcome.stderr, outcome.changes) == (0, "", [])
    header = (PROJECT / "package_llama.sh").read_text().split("\n\n")[0].splitlines()[1:]
    assert outcome.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in header]


@pytest.mark.parametrize("feature", NEWER_SYNTAX)
def test_the_script_uses_no_known_syntax_newer_than_bash_3_2(feature: str) -> None:
    lines = (PROJECT / "package_llama.sh").read_text().splitlines()
    code = [line for line in lines if not line.lstrip().startswith("#")]
    assert [line for line in code if re.search(NEWER_SYNTAX[feature], line)] == []


def test_modules_in_the_callers_folder_do_not_hide_ours(project: Project, snapshot: Path, tmp_path: Path) -> None:
    broken = "raise SystemExit('a module of the current folder')"
    names = ("yaml", "runpy", "shlex", "package_llama/__init__", "package_llama/__main__", "model_archiver/__init__")
    write_tree(tmp_path / "elsewhere", {f"{name}.py": broken for name in names})
    outcome = project.run(BASH, f"../{snapshot.name}", cwd=str(tmp_path / "elsewhere"))
    assert outcome.status == 0, outcome


def test_a_python_older_than_3_11_is_refused(project: Project) -> None:
    python = Path(project.environment["VIRTUAL_ENV"]) / "bin" / "python"
    write_executable(python, f'#!{project.environment["PATH"]}/bash\n[ "$1" != -c ]\n')
    outcome = project.run(BASH, "--demo")
    assert outcome.status == 1
    assert outcome.stderr.startswith(f"package_llama.sh: {python} is older than Python 3.11: activate the environment")


@pytest.mark.parametrize(
    ("there", "environment", "taken"),
    [
        (["venv", ".venv"], {"VIRTUAL_ENV": "{}/venv"}, "venv"),
        (["conda", ".venv"], {"CONDA_PREFIX": "{}/conda", "CONDA_DEFAULT_ENV": "llama"}, "conda"),
        (["conda", ".venv"], {"CONDA_PREFIX": "{}/conda", "CONDA_DEFAULT_ENV": "base"}, ".venv"),
        (["onpath", "venv"], {"VIRTUAL_ENV": "{}/venv", "PATH": "{}/onpath/bin:{}/tools"}, "onpath"),
        ([".venv"], {}, ".venv"),
        (["onpath"], {"PATH": "{}/onpath/bin:{}/tools"}, "onpath"),
    ],
    ids=["active", "conda", "conda-base", "environment-first-on-path", "make-chat", "only-on-path"],
)
def test_the_active_environments_python_precedes_the_projects(
    project: Project, there: list[str], environment: dict[str, str], taken: str
) -> None:
    home = project.root.parent
    for name in there:
        folder = (project.root if name == ".venv" else home) / name
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        (folder / "pyvenv.cfg").touch()
        for python in ("python", "python3"):
            write_executable(folder / "bin" / python, f"#!{home}/tools/bash\necho taken {name}\n")
    del project.environment["VIRTUAL_ENV"]
    outcome = project.run(BASH, "--demo", **{key: text.replace("{}", str(home)) for key, text in environment.items()})
    assert outcome.stdout == f"taken {taken}\n"
