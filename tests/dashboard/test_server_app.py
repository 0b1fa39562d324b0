"""The server app's logic, run without a browser against a real TorchServe whose workers need no model.

What needs a browser (timers, tabs, dialogs, the clipboard) is in test_server_browser.py.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import LIGHT_SETTINGS
from tests.support.serving import free_ports, make_home, running_server, wait_until, write_echo_archives
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import key_file
from torchserve_client.status import DEFAULT_SETTINGS, SERVING_BOUNDS, ServingSettings

WAIT_SECONDS = 120
PAGE = PROJECT / "apps" / "dashboard" / "page.py"

OpenPage = Callable[[ServerConfig], AppTest]


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> OpenPage:
    def open_page(config: ServerConfig) -> AppTest:
        monkeypatch.setenv("TS_CONFIG_FILE", str(config.path))
        page = AppTest.from_file(str(PAGE), default_timeout=WAIT_SECONDS).run()
        assert not page.exception
        return page

    return open_page


@pytest.fixture
def page(open_page: OpenPage, light_server: ServerConfig, management: ManagementClient) -> AppTest:
    """The page of a server that serves with LIGHT_SETTINGS."""
    return open_page(light_server)


@pytest.fixture
def stopped(tmp_path: Path) -> ServerConfig:
    config = make_home(tmp_path)
    write_echo_archives(config)
    return config


def press(page: AppTest, key: str) -> AppTest:
    """Presses a button and waits until the action that it began, if any, has ended."""
    page.button(key=key).click().run()
    wait_until(lambda: not is_busy(page.run()), WAIT_SECONDS, f"the end of {key}")
    assert not page.exception
    return page


def is_busy(page: AppTest) -> bool:
    """TorchServe can be started or stopped whenever no action runs."""
    return page.button(key="start").disabled and page.button(key="stop").disabled


def shown(page: AppTest) -> str:
    """Every text on the page."""
    headings, states = (page.title, page.header, page.subheader), (page.success, page.info, page.warning, page.error)
    kinds = (*headings, *states, page.caption, page.markdown)
    return "\n".join(element.value for kind in kinds for element in kind)


def wanted(page: AppTest) -> ServingSettings:
    sliders: dict[str, Any] = {name: page.slider(key=name).value for name in SERVING_BOUNDS}
    return ServingSettings(**sliders)


def test_labels_are_the_users_own(open_page: OpenPage, stopped: ServerConfig) -> None:
    page = open_page(stopped)

    assert [title.value for title in page.title] == ["TorchServe Status", "🦙💬 Llama 2 TorchServe Server"]
    assert [header.value for header in page.header] == ["Server status:", "Model Status"]
    assert {"Start Server", "Stop Server", "Register Llama2", "Model Status", "Apply"} <= {b.label for b in page.button}
    assert [(s.label, s.min, s.max) for s in page.slider] == [
        ("Num Workers", 1, 4),
        ("Batch Size", 1, 128),
        ("Max Batch Delay", 0, 10_000),
    ]


def test_page_of_a_stopped_server_says_what_to_do(open_page: OpenPage, stopped: ServerConfig) -> None:
    page = open_page(stopped)

    sentence = "**TorchServe: down** · TorchServe is not running. Press Start Server in the sidebar."
    assert [info.value for info in page.info] == [sentence]
    assert wanted(page) == DEFAULT_SETTINGS
    assert page.button(key="stop").help == "TorchServe is not running."
    assert page.button(key="register").help == page.button(key="apply").help == "Press Start Server first."


def test_another_archive_is_chosen_and_served(
    page: AppTest, light_server: ServerConfig, management: ManagementClient
) -> None:
    mine = light_server.model_store / "mine.tar.gz"
    shutil.copy(light_server.model_store / "llamacpp.tar.gz", mine)
    page.run()

    page.selectbox(key="archive").set_value("mine.tar.gz").run()
    assert page.selectbox(key="archive").value == "mine.tar.gz"
    assert "The model serves from llamacpp.tar.gz: press Apply to serve from mine.tar.gz." in shown(page)
    press(page, "apply")

    model = management.describe()
    assert model
    assert model.archive == "mine.tar.gz"
    management.apply(replace(LIGHT_SETTINGS, batch_size=3), "llamacpp.tar.gz")  # as the command line does
    mine.unlink()
    page.run()
    assert (page.selectbox(key="archive").value, wanted(page).batch_size) == ("llamacpp.tar.gz", 3)


def test_open_page_sees_what_another_program_does(page: AppTest, management: ManagementClient) -> None:
    management.unregister()
    page.run()

    assert "TorchServe is running without a model" in shown(page)
    assert page.button(key="unregister").disabled


def test_only_the_next_sensible_steps_can_be_pressed(page: AppTest) -> None:
    reasons = {key: page.button(key=key).help for key in ("start", "stop", "register", "unregister", "apply")}

    assert reasons == {
        "start": "TorchServe is running already.",
        "stop": "",
        "register": "The model is registered already: Apply changes how it is served.",
        "unregister": "",
        "apply": "The model serves with these settings already.",
    }


def test_model_status_shows_and_hides_the_servers_json(page: AppTest, light_server: ServerConfig) -> None:
    keys = [entry["key"] for entry in json.loads(key_file(light_server).read_text()).values()]
    assert not page.json

    press(page, "model_status")
    assert '"modelName": "llamacpp"' in page.json[0].value.replace('":"', '": "')
    assert not [key for key in keys if key in shown(page) + page.json[0].value]

    press(page, "model_status")
    assert not page.json


def test_taken_port_is_explained(open_page: OpenPage, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as listener:
        port = listener.getsockname()[1]
        config = make_home(tmp_path, metrics_address=f"http://127.0.0.1:{port}")

        page = press(open_page(config), "start")

    assert f"Port {port} (metrics) is taken by" in page.error[0].value
    assert f"(process {os.getpid()})" in page.error[0].value
    assert "TorchServe is not running" in shown(page)


def test_failed_start_shows_the_end_of_the_log(open_page: OpenPage, tmp_path: Path) -> None:
    page = press(open_page(make_home(tmp_path, vmargs="-Xmx1nonsense")), "start")

    assert "Invalid maximum heap size" in page.error[0].value
    assert "Invalid maximum heap size" in page.code[0].value


@pytest.mark.usefixtures("demo_store")
def test_missing_archive_is_explained_and_the_demo_model_packaged(open_page: OpenPage, tmp_path: Path) -> None:
    config = make_home(tmp_path)
    with running_server(config):
        page = open_page(config)
        assert "No archive in" in shown(page)

        assert page.button(key="register").disabled
        press(page, "package")

        assert "The demo model is packaged in" in shown(page)
        assert (config.model_store / "llamacpp.tar.gz").is_file()
        assert page.selectbox(key="archive").value == "llamacpp.tar.gz"


def test_unusable_config_is_explained(open_page: OpenPage, stopped: ServerConfig) -> None:
    stopped.path.write_text("inference_address=localhost\n")

    page = open_page(stopped)

    assert "write it like http://127.0.0.1:8080" in page.error[0].value
