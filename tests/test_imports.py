"""The import rule of the project, read from the sources: acyclic, and each foreign library at home in one place."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
MODULES = {path.stem: path for path in PROJECT.glob("*.py")}

# Inside the archive: module, and those of ours that it may import, beside sampling_params.
WORKER = {
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
}
# Outside it: families, each with the families it may import beside its own.
FAMILIES = {
    "shared": {"sampling_params"},
    "packaging": {"package_llama"},
    "asking": {"torchserve_process", "torchserve_client"},
    "managing": {
        "model_store",
        "torchserve_logs",
        "torchserve_management",
        "torchserve_metrics",
        "torchserve_status",
        "torchserve_traffic",
    },
    "experiments": {
        "experiment_charts",
        "experiment_guard",
        "experiment_records",
        "experiments",
        "load_test",
        "prompt_sets",
    },
    "autoscaler": {"autoscaler", "autoscaler_policy", "autoscaler_switch"},
    "chat": {
        "answering",
        "chat_context",
        "chat_export",
        "chat_messages",
        "chat_schema",
        "chat_store",
        "chat_turns",
        "markdown_text",
        "openai_client",
    },
    "chat page": {
        "answer_panel",
        "client_app",
        "conversations_panel",
        "copy_panel",
        "parallel_panel",
        "settings_panel",
    },
    "server page": {
        "autoscaler_panel",
        "connect_panel",
        "experiment_results_panel",
        "experiments_panel",
        "logs_panel",
        "metrics_history",
        "metrics_panel",
        "server_actions",
        "serving_costs",
        "serving_panel",
        "status_panel",
        "torchserve_server_app",
    },
    "start": {"run_chatapp"},
}
MAY_IMPORT = {
    "shared": set(),
    "packaging": set(),
    "asking": {"shared"},
    "managing": {"shared", "asking"},
    "experiments": {"shared", "asking", "managing"},
    "autoscaler": {"shared", "asking", "managing", "experiments"},
    "chat": {"shared", "asking"},  # never "managing": the chat holds the inference key only
    "chat page": {"shared", "asking", "chat"},
    "server page": {"shared", "asking", "managing", "experiments", "autoscaler"},
    "start": {"shared", "asking", "managing"},
}
PAGES = FAMILIES["chat page"] | FAMILIES["server page"]
HOMES = {
    "streamlit": {module for module in PAGES if module.endswith(("_app", "_panel"))},
    "altair": {"experiment_charts"},
    "prometheus_client": {"torchserve_metrics"},
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


def allowed_imports() -> dict[str, set[str]]:
    """For every module of ours, those it may import."""
    allowed = {module: others | FAMILIES["shared"] for module, others in WORKER.items()}
    for family, members in FAMILIES.items():
        reachable = set(members).union(*(FAMILIES[other] for other in MAY_IMPORT[family]))
        allowed |= dict.fromkeys(members, reachable)
    return allowed


def test_every_module_has_its_rule() -> None:
    assert set(MODULES) == set(allowed_imports())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_its_rule_allows(module: str) -> None:
    assert imports_of(MODULES[module]) & set(MODULES) <= allowed_imports()[module]


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
