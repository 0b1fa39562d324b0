"""What the Connect tab says about the key. Its buttons are tested in test_server_browser.py."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.support.scripted_server import running_scripted_server, write_keys
from torchserve_client.config import ServerConfig


def connect_page() -> None:
    from apps.dashboard.connect_panel import show_connect
    from torchserve_client.config import ServerConfig

    show_connect(ServerConfig.load())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerConfig]:
    """A server that needs a key, which is in the key file and lasts a hundred years."""
    with running_scripted_server(tmp_path) as (server, open_config):
        file = open_config.path
        file.write_text(file.read_text().replace("authorization=true", "authorization=false"))
        server.valid_key = "the-key"
        write_keys(tmp_path / "key_file.json", server.valid_key)
        monkeypatch.setenv("TS_CONFIG_FILE", str(file))
        yield ServerConfig.load(file)


def opened() -> AppTest:
    page = AppTest.from_function(connect_page, default_timeout=60).run()
    assert not page.exception
    return page


def shown() -> str:
    return text_of(opened())


def text_of(page: AppTest) -> str:
    return "\n".join(element.value for kind in (page.markdown, page.code, page.caption) for element in kind)


def test_key_is_valid_until_torchserve_stops(config: ServerConfig) -> None:
    text = shown()
    assert "clients send it with each request · valid until TorchServe stops" in text
    assert f"TS_CONFIG_FILE={config.path} .venv/bin/python -m torchserve_client.keys" in text
    assert "the-key" not in text


def test_time_left_of_a_key_that_expires_is_shown(config: ServerConfig) -> None:
    file = config.home / "key_file.json"
    keys = json.loads(file.read_text())
    keys["inference"]["expiration time"] = f"{datetime.now(UTC) + timedelta(minutes=45):%Y-%m-%dT%H:%M:%S}.123Z"
    file.write_text(json.dumps(keys))

    assert "valid for 45 min, then a new one replaces it" in shown()


def test_page_has_the_key_only_for_a_while_after_it_was_asked_for(config: ServerConfig) -> None:
    page = opened()
    assert not page.get("bidi_component"), "a copy button would have the key"
    page.button(key="show_key").click().run()
    assert "the-key" in text_of(page)
    assert 'api_key="the-key"' in page.code[-1].value
    assert len(page.get("bidi_component")) == 2

    page.session_state.key_shown_until = 0.0
    page.run()
    assert "the-key" not in text_of(page)
    assert not page.get("bidi_component")


def test_errors_that_come_before_the_models_code_are_named(config: ServerConfig) -> None:
    page = opened()
    assert page.table[0].value["Status"].tolist() == ["400", "404", "503"]
    assert page.table[0].value["Type"].iloc[0] == "InvalidKeyException"
    assert "`make front` starts a front at `http://127.0.0.1:8000/v1`" in text_of(page)
