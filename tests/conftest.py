"""Markers that say what each test needs, and two servers that many tests share.

The servers are TorchServe with the packaged demo model, on free ports, each with a home of its own.
"""

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from hypothesis import settings
from playwright.sync_api import Browser

from llama_cpp_worker import torch_stand_in
from tests.support.browser import running_browser
from tests.support.serving import make_home, running_server, write_store
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

# No deadline: a busy machine may delay any example. In CI the examples are always the same.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")

# Importing the handler imports TorchServe's worker and so torch, which `make check` does not install.
if importlib.util.find_spec("torch") is None:
    sys.modules["torch"] = torch_stand_in

# A test gets the marker if the test, one of its fixtures or a function that they call uses one of these names.
MARKERS = {
    "server": {"running_cluster", "running_server", "start_by_hand", "torchserve_process"},
    "browser": {"running_browser"},
    "model": {"demo_store", "DEMO"},
    "slow": {"convert", "llama_2", "llama_3", "llama_cpp_sources", "real_project"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        names = names_used_by(item)
        for marker, needs in MARKERS.items():
            if names & needs:
                item.add_marker(marker)


def names_used_by(item: pytest.Function) -> set[str]:
    """The test's fixtures, and all names in its code, in theirs and in the functions of `tests` that they call."""
    fixtures = item._fixtureinfo.name2fixturedefs
    waiting: list[Callable[..., Any]] = [item.function, *(definitions[-1].func for definitions in fixtures.values())]
    names, seen = set(fixtures), set()
    while waiting:
        function = inspect.unwrap(waiting.pop())
        if function in seen or not function.__module__.startswith("tests."):
            continue
        seen.add(function)
        used = names_in(function.__code__)
        names |= used
        waiting += [value for name in used if inspect.isfunction(value := function.__globals__.get(name))]
    return names


def names_in(code: CodeType) -> set[str]:
    """The global and attribute names that a function uses, nested functions included."""
    return set(code.co_names).union(*(names_in(part) for part in code.co_consts if isinstance(part, CodeType)))


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's archives of the demo model, with a context window of 8,192 tokens: such a prompt takes a while."""
    store = PROJECT / "model_store"
    if not (store / "llamacpp.tar.gz").is_file():
        pytest.skip("model_store/llamacpp.tar.gz is missing: run `make package` first")
    return write_store(store, tmp_path_factory.mktemp("demo") / "store", n_ctx=8192)


@contextmanager
def serving(home: Path, store: Path, settings: ServingSettings) -> Iterator[ServerConfig]:
    """Starts TorchServe in `home` and registers the model of `store`."""
    config = make_home(home, model_store=store)
    with running_server(config):
        ManagementClient(config).register(settings)
        yield config


@pytest.fixture(scope="session")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Continuous batching, batch size 8. Tests that break it must leave it working."""
    settings = ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1)
    with serving(tmp_path_factory.mktemp("continuous"), demo_store, settings) as config:
        yield config


@pytest.fixture(scope="session")
def dynamic_server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Dynamic batching, two workers with batch size 4."""
    settings = ServingSettings(batch_size=4, max_batch_delay_ms=100, workers=2)
    with serving(tmp_path_factory.mktemp("dynamic"), demo_store, settings) as config:
        yield config


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not of the session: while Playwright runs, other modules could not use asyncio.run()."""
    with running_browser() as chromium:
        yield chromium
