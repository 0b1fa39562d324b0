"""Servers that many tests share: TorchServe with the real demo model, on free ports, in a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.serving import make_home, running_server
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient, ServingSettings

settings.register_profile("any machine", deadline=None)  # an example that a busy machine holds up is no failure
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def demo_store() -> Path:
    """The project's model store with the packaged demo model."""
    store = PROJECT / "model_store"
    if not (store / "llamacpp.tar.gz").is_file():
        pytest.skip("model_store/llamacpp.tar.gz is missing: run `make package` first")
    return store


@contextmanager
def serving(home: Path, store: Path, settings: ServingSettings) -> Iterator[ServerConfig]:
    """TorchServe in `home` with the model of `store` registered; its keys outlast the tests on any machine."""
    config = make_home(home, model_store=store, token_expiration_min=1440)
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
