"""Fixtures with copies of the project: for test files with `pytest_plugins = ["tests.support.packaging_fixtures"]`."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from package_llama.archives import HANDLER, TORCH, WORKER_PACKAGE
from tests.support.packaged_project import (
    EMPTY_SAFETENSORS,
    FAKE_CHECK,
    FAKE_CONVERTER,
    FAKE_PROBE,
    FAKE_QUANTIZER,
    FAKES,
    PROJECT,
    Project,
    copy_scripts,
    write_executable,
    write_tree,
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The scripts with fake tools, in a folder whose name has special characters of shells and of the archiver."""
    root = copy_scripts(tmp_path / """it's "here"{0} $HOME, *? [x]""")
    worker_files = [f"{WORKER_PACKAGE}/{name}" for name in ("engine.py", "parts/a.txt", TORCH)]
    write_tree(root, dict.fromkeys((HANDLER, *worker_files), "#\n"))
    write_tree(root, {f"{WORKER_PACKAGE}/__pycache__/engine.cpython-311.pyc": "stale"})
    fakes = {"quantize": FAKE_QUANTIZER, "check_gguf": FAKE_CHECK, "probe_gguf": FAKE_PROBE}
    write_tree(root, {f"package_llama/{name}.py": text for name, text in fakes.items()})
    write_tree(tmp_path / "fakes", FAKES)
    tools, environment = tmp_path / "tools", tmp_path / "venv"
    tools.mkdir()
    for tool in ("bash", "zsh", "dirname", "sed", "grep"):
        if path := shutil.which(tool):
            (tools / tool).symlink_to(path)
    (environment / "bin").mkdir(parents=True)
    write_executable(environment / "bin" / "python", f'#!{tools}/bash\nexec "{sys.executable}" "$@"\n')
    return Project(
        root,
        {
            "PATH": str(tools),
            "VIRTUAL_ENV": str(environment),
            "PYTHONPATH": str(tmp_path / "fakes"),
            "FAKE_PIP_LOG": str(tmp_path / "pip.log"),
            "FAKE_CONVERTER": FAKE_CONVERTER,
            "STATES": str(tmp_path),
        },
    )


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A folder with the files of a Llama snapshot, without real weights."""
    folder = tmp_path / "Llama 2's snapshot"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}))
    (folder / "tokenizer.model").write_bytes(b"tokens")
    (folder / "model.safetensors").write_bytes(EMPTY_SAFETENSORS)
    return folder


@pytest.fixture
def real_project(tmp_path: Path) -> Project:
    """A copy of the project with the real tools. It shares the downloaded converter with the project itself."""
    root = copy_scripts(tmp_path / "real project")
    shutil.copy(PROJECT / HANDLER, root)
    shutil.copytree(PROJECT / WORKER_PACKAGE, root / WORKER_PACKAGE)
    (PROJECT / ".cache").mkdir(exist_ok=True)
    (root / ".cache").symlink_to(PROJECT / ".cache")
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "STATES": str(tmp_path)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment.pop("LLAMA2_Q4_MODEL", None)
    return Project(root, environment)


@pytest.fixture
def demo_project(real_project: Project) -> Project:
    """A real_project that also shares the project's models, so that the demo model is downloaded only once."""
    (PROJECT / "models").mkdir(exist_ok=True)
    (real_project.root / "models").symlink_to(PROJECT / "models")
    return real_project
