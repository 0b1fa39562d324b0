"""Versions as a person sees and changes them: a real browser, the real app, TorchServe and the demo model, twice."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.browser import open_page, running_app, running_browser
from tests.support.serving import make_home, running_server
from torchserve_client.config import ServerConfig
from torchserve_client.inference import InferenceClient
from torchserve_client.management import ManagementClient, ServingSettings

LONG = 120_000  # milliseconds; for a load on a busy machine
SETTINGS = ServingSettings(batch_size=4, max_batch_delay_ms=0, workers=1)


def write_version(source: Path, target: Path, version: str) -> None:
    """The same archive as another version."""
    with tarfile.open(source) as archive, tarfile.open(target, "w:gz") as made:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            content = file.read() if file else b""
            if entry.name.endswith("MANIFEST.json"):
                content = content.replace(b'"modelVersion": "1.0"', b'"modelVersion": "%s"' % version.encode())
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content) if file else None)


@pytest.fixture(scope="module")
def server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Serves version 1.0 of the demo model, and has 1.1 and 1.10 in its store."""
    folder = tmp_path_factory.mktemp("versions")
    store = folder / "store"
    store.mkdir()
    for name, version in (("llamacpp", "1.0"), ("llamacpp-1.1", "1.1"), ("llamacpp-1.10", "1.10")):
        write_version(demo_store / "llamacpp.tar.gz", store / f"{name}.tar.gz", version)
    config = make_home(folder / "home", model_store=store)
    with running_server(config):
        ManagementClient(config).register(SETTINGS)
        yield config


@pytest.fixture(scope="module")
def page(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    log = tmp_path_factory.mktemp("app") / "app.log"
    with running_app("torchserve_server_app.py", server, log) as url, running_browser() as browser:
        yield open_page(browser, url)


def row(page: Page, version: str) -> Locator:
    return page.locator(f".st-key-row_{version.replace('.', '-')}")


def answer(server: ServerConfig) -> str:
    messages = [{"role": "user", "content": "What is the closest star to Earth?"}]
    params = SamplingParams(temperature=0, max_tokens=8)
    return "".join(piece.text for piece in InferenceClient(server).chat(messages, params))


def test_the_status_says_where_the_layers_are(page: Page) -> None:
    """The demo model has 30, and its output."""
    expect(page.get_by_text("31 of 31 layers on CPU.", exact=True)).to_be_visible(timeout=LONG)


def test_a_version_becomes_the_default_and_rolling_back_is_one_press(page: Page, server: ServerConfig) -> None:
    expect(page.get_by_text("Versions", exact=True)).to_be_visible(timeout=LONG)
    expect(row(page, "1.0")).to_contain_text("default")
    expect(row(page, "1.1")).to_contain_text("in the model store")
    before = answer(server)

    row(page, "1.1").get_by_role("button", name="Make default").click()

    expect(page.get_by_text("Version 1.1 is the default and answers.")).to_be_visible(timeout=LONG)
    expect(row(page, "1.1")).to_contain_text("default")
    expect(page.get_by_text("31 of 31 layers on CPU.", exact=True)).to_be_visible(timeout=LONG)  # asked anew
    assert answer(server) == before
    assert [each.version for each in ManagementClient(server).registered()] == ["1.1"]

    row(page, "1.0").get_by_role("button", name="Make default").click()

    expect(page.get_by_text("Version 1.0 is the default and answers.")).to_be_visible(timeout=LONG)
    expect(row(page, "1.1")).to_contain_text("in the model store")
    (status,) = ManagementClient(server).registered()
    assert (status.version, status.archive, status.settings) == ("1.0", "llamacpp.tar.gz", SETTINGS)


def test_versions_are_in_the_order_of_their_numbers(page: Page) -> None:
    expect(page.locator("[class*='st-key-row_']")).to_have_count(3)
    assert [name.split("\n")[0] for name in page.locator("[class*='st-key-row_']").all_inner_texts()] == [
        "1.0",
        "1.10",
        "1.1",
    ]
