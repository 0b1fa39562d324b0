"""The server app's logic, run without a browser, against a real TorchServe with a handler that needs no model.

What needs a browser (timers, tabs, dialogs, the clipboard) is in test_server_browser.py.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.serving import free_ports, make_home, running_server, wait_until, write_echo_archives
from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import DEFAULT_SETTINGS, SERVING_BOUNDS, ManagementClient, ServingSettings
from torchserve_client.process import find_server, key_file

WAIT_SECONDS = 120


def open_page(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """A page of its own: what another page did is known to it only through the server."""
    monkeypatch.setenv("TS_CONFIG_FILE", str(config.path))
    page = AppTest.from_file(str(PROJECT / "torchserve_server_app.py"), default_timeout=WAIT_SECONDS).run()
    assert not page.exception
    return page


def press(page: AppTest, key: str) -> AppTest:
    """Presses a button and waits until the action that it began, if any, has ended."""
    page.button(key=key).click().run()
    wait_until(lambda: not page.run().button(key="start").disabled, WAIT_SECONDS, f"the end of {key}")
    assert not page.exception
    return page


def shown(page: AppTest) -> str:
    """Every text on the page."""
    kinds = (page.title, page.subheader, page.success, page.info, page.warning, page.error, page.caption, page.markdown)
    return "\n".join(element.value for kind in kinds for element in kind)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("app"))
    write_echo_archives(config)
    with running_server(config):
        yield config


@pytest.fixture
def down(tmp_path: Path) -> Iterator[ServerConfig]:
    config = make_home(tmp_path)
    write_echo_archives(config)
    yield config
    torchserve_process.stop(config)


def wanted(page: AppTest) -> ServingSettings:
    sliders: dict[str, Any] = {name: page.slider(key=name).value for name in SERVING_BOUNDS}
    return ServingSettings(**sliders)


def registered_page(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    if ManagementClient(config).describe() is None:
        ManagementClient(config).register(DEFAULT_SETTINGS)
    return open_page(config, monkeypatch)


def test_labels_are_the_users_own(down: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(down, monkeypatch)

    assert [title.value for title in page.title] == ["TorchServe Status", "🦙💬 Llama 2 TorchServe Server"]
    assert [header.value for header in page.subheader] == ["Server status:", "Model Status"]
    assert {"Start Server", "Stop Server", "Register Llama2", "Model Status", "Apply"} <= {b.label for b in page.button}
    assert [(s.label, s.min, s.max) for s in page.slider] == [
        ("Num Workers", 1, 4),
        ("Batch Size", 1, 128),
        ("Max Batch Delay", 0, 10_000),
    ]


def test_page_of_a_stopped_server_says_what_to_do(down: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(down, monkeypatch)

    assert [info.value for info in page.info] == ["TorchServe is not running. Press Start Server in the sidebar."]
    assert wanted(page) == DEFAULT_SETTINGS


def test_start_register_and_stop(down: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(down, monkeypatch)

    press(page, "start")
    assert "TorchServe is running with Java" in shown(page)
    assert "running without a model. Press Register Llama2" in shown(page)

    press(page, "register")
    assert [box.value for box in page.success] == ["Registered model", "Registered model"]  # the page and the sidebar
    assert "1 of 1 workers ready" in shown(page) and "continuous batching" in shown(page)

    press(page, "stop")
    assert "TorchServe is not running" in shown(page)
    assert find_server(down) is None


def test_apply_serves_with_what_the_sliders_say(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = registered_page(up, monkeypatch)
    page.slider(key="workers").set_value(2)
    page.slider(key="batch_size").set_value(3)
    page.slider(key="max_batch_delay_ms").set_value(5000).run()
    assert "press Apply to serve like that" in shown(page)
    assert "Two or more workers use dynamic batching, because" in shown(page)

    press(page, "apply")

    for text in ("2 of 2 workers ready", "dynamic batching", "batch size 3", "max batch delay 5000 ms"):
        assert text in shown(page)
    assert "press Apply" not in shown(page)
    assert len(page.table[0].value) == 2


def test_another_archive_is_chosen_and_served(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = up.model_store / "mine.tar.gz"
    shutil.copy(up.model_store / "llamacpp.tar.gz", mine)
    management = ManagementClient(up)
    management.unregister()
    management.register(DEFAULT_SETTINGS)
    page = open_page(up, monkeypatch)

    page.selectbox(key="archive").set_value("mine.tar.gz").run()
    assert page.selectbox(key="archive").value == "mine.tar.gz"
    assert "The model serves from llamacpp.tar.gz: press Apply to serve from mine.tar.gz." in shown(page)
    press(page, "apply")

    model = management.describe()
    assert model and model.archive == "mine.tar.gz"
    management.apply(replace(DEFAULT_SETTINGS, batch_size=3), "llamacpp.tar.gz")  # somebody else, since then
    mine.unlink()
    page.run()
    assert (page.selectbox(key="archive").value, wanted(page).batch_size) == ("llamacpp.tar.gz", 3)


def test_new_page_shows_the_servers_settings(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServingSettings(batch_size=5, max_batch_delay_ms=40, workers=1)
    management = ManagementClient(up)
    management.unregister()
    management.register(settings)

    page = open_page(up, monkeypatch)

    assert wanted(page) == settings
    assert "1 of 1 workers ready" in shown(page)


def test_open_page_sees_what_others_do(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = registered_page(up, monkeypatch)

    ManagementClient(up).unregister()
    page.run()

    assert "TorchServe is running without a model" in shown(page)


def test_register_of_a_registered_model_changes_nothing(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = registered_page(up, monkeypatch)
    before = ManagementClient(up).describe()

    press(page, "register")

    after = ManagementClient(up).describe()
    assert before and after and before.workers[0].pid == after.workers[0].pid
    assert "it already serves with" in shown(page)


def test_failed_apply_is_explained_and_the_old_settings_are_shown(
    up: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = registered_page(up, monkeypatch)
    before = ManagementClient(up).describe()
    refuse = write_echo_archives(up)
    refuse.write_text("100")
    page.slider(key="batch_size").set_value(100)

    press(page, "apply")
    refuse.unlink()

    after = ManagementClient(up).describe()
    assert before and after and before.settings == after.settings
    assert "batch size 100 does not fit in memory" in page.main.error[0].value
    assert "serves again with" in page.main.error[0].value
    assert "press Apply to serve like that" in shown(page)


def test_model_status_shows_and_hides_the_servers_json(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = registered_page(up, monkeypatch)
    assert not page.json

    press(page, "model_status")
    assert '"modelName": "llamacpp"' in page.json[0].value.replace('":"', '": "')

    press(page, "model_status")
    assert not page.json


@pytest.mark.parametrize("action", ["register", "apply"])
def test_action_on_a_stopped_server_says_to_start_it(
    down: ServerConfig, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    page = press(open_page(down, monkeypatch), action)

    assert "press Start Server" in shown(page)


def test_taken_port_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as listener:
        port = listener.getsockname()[1]
        config = make_home(tmp_path, metrics_address=f"http://127.0.0.1:{port}")

        page = press(open_page(config, monkeypatch), "start")

    assert f"Port {port} (metrics) is taken by" in page.error[0].value
    assert f"(process {os.getpid()})" in page.error[0].value
    assert "TorchServe is not running" in shown(page)


def test_failed_start_shows_the_end_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = press(open_page(make_home(tmp_path, vmargs="-Xmx1nonsense"), monkeypatch), "start")

    assert "Invalid maximum heap size" in page.error[0].value
    assert "Invalid maximum heap size" in page.code[0].value


def test_missing_archive_is_explained_and_the_demo_model_packaged(
    demo_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_home(tmp_path)
    with running_server(config):
        page = open_page(config, monkeypatch)
        assert "No archive in" in shown(page)

        press(page, "register")
        assert "llamacpp.tar.gz is missing in" in page.main.error[0].value
        press(page, "package")

        assert "The demo model is packaged in" in shown(page)
        assert (config.model_store / "llamacpp.tar.gz").is_file()
        assert page.selectbox(key="archive").value == "llamacpp.tar.gz"


def test_unregister_ends_the_model(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = press(registered_page(up, monkeypatch), "unregister")

    assert "TorchServe is running without a model" in shown(page)
    assert ManagementClient(up).describe() is None
    assert page.button(key="unregister").disabled


def test_unusable_config_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_home(tmp_path)
    config.path.write_text("inference_address=localhost\n")

    page = open_page(config, monkeypatch)

    assert "write it like http://127.0.0.1:8080" in page.error[0].value


def test_page_never_shows_a_key(up: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    page = press(registered_page(up, monkeypatch), "model_status")
    keys = [entry["key"] for entry in json.loads(key_file(up).read_text()).values()]

    assert not [key for key in keys if key in shown(page) + page.json[0].value]
