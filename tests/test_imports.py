"""The import rule of the project, read from the sources: acyclic, and each foreign library at home in one place."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
MODULES = {path.stem: path for path in PROJECT.glob("*.py")}

# module: those of ours that it may import, beside sampling_params
ALLOWED = {
    "sampling_params": set(),
    "llama_cpp_grammar": set(),
    "llama_cpp_matcher": {"llama_cpp_grammar"},
    "llama_cpp_sampler": {"llama_cpp_grammar", "llama_cpp_matcher"},
    "llama_cpp_model": {"llama_cpp_sampler"},
    "llama_cpp_cache": set(),
    "llama_cpp_engine": {"llama_cpp_cache", "llama_cpp_model", "llama_cpp_sampler"},
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
    "torchserve_process": set(),
    "torchserve_client": {"torchserve_process"},
    "torchserve_management": {"torchserve_client", "torchserve_process"},
    "torchserve_server_app": {"torchserve_client", "torchserve_management", "torchserve_process"},
    "client_app": {"torchserve_client"},
    "load_test": {"torchserve_client", "torchserve_process"},
    "package_llama": set(),
    "run_chatapp": {"torchserve_client", "torchserve_management", "torchserve_process"},
}
HOMES = {
    "streamlit": {"client_app", "torchserve_server_app"},
    "ts": {"llama_cpp_handler", "llama_cpp_metrics"},
    "llama_cpp": {"llama_cpp_model", "llama_cpp_sampler"},
    "jinja2": {"llama_cpp_model"},
    "torch": set(),
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


def test_every_module_has_its_rule() -> None:
    assert set(MODULES) == set(ALLOWED)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_rule_allows(module: str) -> None:
    assert imports_of(MODULES[module]) & set(MODULES) <= ALLOWED[module] | {"sampling_params"}


def test_imports_have_no_cycle() -> None:
    graph = {module: imports_of(path) & set(MODULES) for module, path in MODULES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_foreign_library_is_imported_only_at_home(library: str) -> None:
    assert {module for module, path in MODULES.items() if library in imports_of(path)} == HOMES[library]


def test_the_handler_defines_exactly_one_class() -> None:
    tree = ast.parse(MODULES["llama_cpp_handler"].read_text())
    assert [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)] == ["LlamaCppHandler"]


def test_sampling_params_needs_the_standard_library_only() -> None:
    import sys

    assert imports_of(MODULES["sampling_params"]) <= sys.stdlib_module_names
