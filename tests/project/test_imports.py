"""The import rule of the project, read from the sources: acyclic, and each foreign library at home in one place."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = [init.parent.name for init in PROJECT.glob("*/__init__.py")]
MODULES = {path.stem: path for path in PROJECT.glob("*.py")} | {
    package if path.stem == "__init__" else f"{package}.{path.stem}": path
    for package in PACKAGES
    for path in (PROJECT / package).glob("*.py")
}

# Inside the archive: module, and those of ours that it may import, beside sampling_params.
WORKER = {
    "llama_cpp_grammar": set(),
    "llama_cpp_matcher": {"llama_cpp_grammar"},
    "llama_cpp_sampler": {"llama_cpp_grammar", "llama_cpp_matcher"},
    "llama_cpp_devices": set(),
    "llama_cpp_template": set(),
    "llama_cpp_model": {"llama_cpp_devices", "llama_cpp_sampler", "llama_cpp_template"},
    "llama_cpp_text": set(),
    "llama_cpp_cache": set(),
    "llama_cpp_engine": {"llama_cpp_cache", "llama_cpp_model", "llama_cpp_sampler", "llama_cpp_text"},
    "llama_cpp_metrics": {"llama_cpp_engine"},
    "llama_cpp_schema": set(),
    "llama_cpp_api": {"llama_cpp_grammar", "llama_cpp_schema"},
    "llama_cpp_reply": {"llama_cpp_api"},
    "llama_cpp_handler": {
        "llama_cpp_api",
        "llama_cpp_engine",
        "llama_cpp_metrics",
        "llama_cpp_model",
        "llama_cpp_reply",
    },
}
# Outside it: modules, or packages whole, and those of ours that they may import, beside sampling_params.
OUTSIDE = {
    "sampling_params": set(),
    "packing": set(),
    "package_llama": {"packing"},
    "copy_panel": set(),
    "server": set(),
    "prompt_sets": set(),
    "load_test": {"server", "prompt_sets"},
    "experiments": {"server", "load_test", "prompt_sets"},
    "scaling": {"server"},
    "autoscaler": {"server", "scaling", "experiments.guard"},
    "control_room": {"copy_panel", "server", "scaling", "experiments", "load_test", "prompt_sets"},
    "torchserve_server_app": {"server", "scaling", "experiments", "control_room"},
    # The chat holds the inference key only, so of the server it knows what needs no other.
    "chat": {"copy_panel", "server.client", "server.config", "server.connection"},
    "client_app": {"server.client", "server.config", "chat"},
    "run_chatapp": {"server"},
}
PACKING = {"packing.llama_log", "packing.quantizer", "packing.soundness"}
HOMES = {
    "streamlit": {name for name in MODULES if name.endswith(("_app", "_panel"))},
    "altair": {"experiments.charts"},
    "prometheus_client": {"server.metrics"},
    "ts": {"llama_cpp_handler", "llama_cpp_metrics"},
    "llama_cpp": {"llama_cpp_model", "llama_cpp_sampler", *PACKING},
    "jinja2": {"llama_cpp_template"},
    "torch": set(),
}


def imports_of(path: Path) -> set[str]:
    """What a file imports, in full: `from server import logs` and `from server.logs import read` are `server.logs`."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"{path} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inner & set(MODULES)) or {node.module}
    return names


def ours(path: Path) -> set[str]:
    return imports_of(path) & set(MODULES)


def home_of(module: str) -> str:
    """The entry of the rules that a module falls under: its own or its package's."""
    return module if module in WORKER.keys() | OUTSIDE.keys() else module.split(".")[0]


def test_every_module_has_its_rule() -> None:
    assert {home_of(module) for module in MODULES} == WORKER.keys() | OUTSIDE.keys()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_rule_allows(module: str) -> None:
    home = home_of(module)
    allowed = (WORKER | OUTSIDE)[home] | {home, "sampling_params"}
    assert {name for name in ours(MODULES[module]) if not {name, name.split(".")[0]} & allowed} == set()


def test_imports_have_no_cycle() -> None:
    graph = {module: ours(path) for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_foreign_library_is_imported_only_at_home(library: str) -> None:
    users = {module for module, path in MODULES.items() if library in {n.split(".")[0] for n in imports_of(path)}}
    assert users == HOMES[library]


def test_the_handler_defines_exactly_one_class() -> None:
    tree = ast.parse(MODULES["llama_cpp_handler"].read_text())
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == ["LlamaCppHandler"]


def test_sampling_params_needs_the_standard_library_only() -> None:
    assert imports_of(MODULES["sampling_params"]) <= {*sys.stdlib_module_names, "collections.abc"}
