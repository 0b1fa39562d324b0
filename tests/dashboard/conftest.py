"""What the dashboard's tests share: a browser, a TorchServe without a model, and the app in front of each server."""

from collections.abc import Iterator

import pytest

from autoscaler.control import switch_off
from tests.support.browser import running_app
from tests.support.chatting_handler import write_chatting_archives
from tests.support.serving import make_home, running_server
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

APP = "torchserve_server_app.py"
LIGHT_SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=0, workers=1)


@pytest.fixture(scope="package")
def light_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """TorchServe with workers that answer without a model. Each test registers what it needs."""
    config = make_home(tmp_path_factory.mktemp("light") / "home")
    write_chatting_archives(config)
    with running_server(config):
        yield config
        switch_off(config)


@pytest.fixture(scope="package")
def light_url(light_server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server app of `light_server`."""
    with running_app(APP, light_server, tmp_path_factory.mktemp("app") / "app.log") as url:
        yield url


@pytest.fixture
def management(light_server: ServerConfig) -> Iterator[ManagementClient]:
    """Of `light_server`, which serves with LIGHT_SETTINGS when a test begins."""
    client = ManagementClient(light_server)
    if client.describe():
        client.apply(LIGHT_SETTINGS)
    else:
        client.register(LIGHT_SETTINGS)
    yield client
    (light_server.home / "refuse_batch_size").unlink(missing_ok=True)


@pytest.fixture(scope="package")
def panels_url(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The metrics and experiments of the server with the demo model."""
    with running_app("tests/support/panels_page.py", server, tmp_path_factory.mktemp("app") / "panels.log") as url:
        yield url
