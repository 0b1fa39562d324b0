"""The server app as a person uses it: a real browser, app and TorchServe; the demo model where it matters.

What needs no browser is in test_server_app.py.
"""

import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.dashboard.conftest import APP, LIGHT_SETTINGS
from tests.support.browser import open_page, running_app
from tests.support.serving import make_home, running_server, start_by_hand, write_echo_archives
from tests.support.wire import CHAT_PATH, Stream, chat_body, post
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import find_server, is_listening, key_file, port_owner
from torchserve_client.status import ModelStatus, ServingSettings

LONG = 120_000  # milliseconds; for what loads or ends something on a busy machine
WARM_SECONDS = 3  # an opened page imports what it needs and refreshes for the first time
MEASURED_SECONDS = 6  # three refreshes


@pytest.fixture
def page(browser: Browser, light_url: str, management: ManagementClient) -> Iterator[Page]:
    """A page of the server that serves with LIGHT_SETTINGS."""
    opened = open_page(browser, light_url)
    expect(opened.get_by_text("1 of 1 workers ready")).to_be_visible(timeout=LONG)
    yield opened
    opened.close()


def described(management: ManagementClient) -> ModelStatus:
    status = management.describe()
    assert status is not None
    return status


def badge(page: Page, text: str) -> Locator:
    return page.locator(".stMarkdownBadge").get_by_text(text, exact=True)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def move(page: Page, label: str, key: str, presses: int) -> None:
    """Moves a slider with the keyboard, one step at a time, as the page keeps up."""
    slider = page.get_by_role("slider", name=label)
    for _ in range(presses):
        before = slider.input_value()
        slider.press(key)
        expect(slider).not_to_have_value(before)


def choose(page: Page, workers: int, batch_size: int, delay_steps: int) -> None:
    """Sets all three sliders, from LIGHT_SETTINGS."""
    move(page, "Num Workers", "ArrowRight", workers - LIGHT_SETTINGS.workers)
    move(page, "Batch Size", "ArrowLeft", LIGHT_SETTINGS.batch_size - batch_size)
    move(page, "Max Batch Delay", "ArrowRight", delay_steps)


def press_key_on(page: Page, name: str) -> None:
    """Presses Tab until that button has the focus, then Enter."""
    expect(page.get_by_role("button", name=name, exact=True)).to_be_enabled(timeout=LONG)
    for _ in range(40):
        if page.evaluate("document.activeElement.innerText") == name:
            page.keyboard.press("Enter")
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{name} cannot be reached with Tab")


def test_start_register_unregister_and_stop_with_the_keyboard_alone(browser: Browser, tmp_path: Path) -> None:
    config = make_home(tmp_path / "home")
    write_echo_archives(config)
    try:
        with running_app(APP, config, tmp_path / "app.log") as url:
            page = open_page(browser, url)
            expect(page.get_by_text("TorchServe is not running")).to_be_visible()

            press_key_on(page, "Start Server")
            expect(page.get_by_text("Starting TorchServe")).to_be_visible()
            expect(page.get_by_text("running without a model")).to_be_visible(timeout=LONG)
            expect(page.get_by_text(re.compile("TorchServe is running with Java"))).to_be_visible()
            press_key_on(page, "Register Llama2")
            expect(page.get_by_text("Model: ready")).to_be_visible(timeout=LONG)
            expect(page.get_by_text("continuous batching").first).to_be_visible()
            press_key_on(page, "Unregister")
            expect(page.get_by_text("Model: not registered")).to_be_visible(timeout=LONG)

            press_key_on(page, "Stop Server")
            expect(page.get_by_text("nothing of it is running any more")).to_be_visible(timeout=LONG)
            expect(page.get_by_text("TorchServe: down")).to_be_visible()
            assert find_server(config) is None
            assert not any(is_listening(host, port) for _, host, port in config.ports)
    finally:
        torchserve_process.stop(config)


def test_all_three_settings_change_with_one_press(page: Page, management: ManagementClient) -> None:
    choose(page, workers=2, batch_size=5, delay_steps=3)
    expect(page.get_by_text("The sliders say 2 workers, batch size 5, max batch delay 30 ms")).to_be_visible()
    expect(page.get_by_text("5 requests a worker at once")).to_be_visible()
    expect(page.get_by_text("Up to 30 ms more for a lone request")).to_be_visible()
    expect(page.get_by_text(re.compile("at least [0-9,]+ of [0-9,]+ MB"))).to_be_visible()

    press(page, "Apply")

    expect(page.get_by_text("2 of 2 workers ready")).to_be_visible(timeout=LONG)
    status = described(management)
    assert (status.settings, status.batching) == (ServingSettings(5, 30, 2), "dynamic")
    for text in ("dynamic batching", "batch size 5", "max batch delay 30 ms", "llamacpp-dynamic.tar.gz"):
        expect(badge(page, text)).to_be_visible()
    expect(page.get_by_text("The sliders say")).to_have_count(0)


def test_killed_worker_is_shown_and_its_recovery(
    page: Page, management: ManagementClient, light_server: ServerConfig
) -> None:
    pid = described(management).workers[0].pid
    expect(page.get_by_test_id("stTable").get_by_text(str(pid), exact=True)).to_be_visible()
    refuse = light_server.home / "refuse_batch_size"
    refuse.write_text("1")  # no new worker loads before the page has shown that there is none

    psutil.Process(pid).kill()

    expect(page.get_by_text("0 of 1 workers ready").first).to_be_visible()
    expect(page.get_by_text("Model: ready")).to_have_count(0)
    refuse.unlink()
    expect(page.get_by_text("1 of 1 workers ready")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Model: ready")).to_be_visible()
    new = described(management).workers[0].pid
    assert new != pid
    expect(page.get_by_test_id("stTable").get_by_text(str(new), exact=True)).to_be_visible()


def test_reload_and_second_tab_show_what_another_program_did(
    browser: Browser, page: Page, light_url: str, management: ManagementClient
) -> None:
    second = open_page(browser, light_url)
    expect(badge(second, "batch size 8")).to_be_visible()

    management.apply(ServingSettings(batch_size=3, max_batch_delay_ms=40, workers=1))  # as the command line does

    for each in (page, second):
        expect(badge(each, "batch size 3")).to_be_visible()
        expect(each.get_by_role("slider", name="Batch Size")).to_have_value("3")
    page.reload()
    expect(badge(page, "max batch delay 40 ms")).to_be_visible()
    expect(page.get_by_role("slider", name="Max Batch Delay")).to_have_value("40")
    second.close()


def test_moved_sliders_stay_when_the_server_changes(page: Page, management: ManagementClient) -> None:
    move(page, "Batch Size", "ArrowLeft", 2)

    management.apply(ServingSettings(batch_size=3, max_batch_delay_ms=0, workers=1))

    expect(badge(page, "batch size 3")).to_be_visible()
    expect(page.get_by_role("slider", name="Batch Size")).to_have_value("6")
    expect(page.get_by_text("The sliders say 1 worker, batch size 6")).to_be_visible()


def test_failed_apply_ends_with_the_old_settings_serving(
    page: Page, management: ManagementClient, light_server: ServerConfig
) -> None:
    (light_server.home / "refuse_batch_size").write_text("10")
    move(page, "Batch Size", "ArrowRight", 2)

    press(page, "Apply")

    expect(page.get_by_text("batch size 10 does not fit in memory")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("The model serves again with 1 worker, batch size 8")).to_be_visible()
    expect(page.get_by_text("Model: ready")).to_be_visible()
    assert (described(management).settings, described(management).is_ready) == (LIGHT_SETTINGS, True)
    expect(page.get_by_role("slider", name="Batch Size")).to_have_value("10")
    press(page, "Dismiss")
    expect(page.get_by_text("does not fit in memory")).to_have_count(0)


def test_action_continues_without_its_page_and_its_drain_can_be_skipped(
    browser: Browser, page: Page, light_url: str, management: ManagementClient
) -> None:
    management.apply(ServingSettings(batch_size=8, max_batch_delay_ms=10_000, workers=1))
    expect(page.get_by_role("slider", name="Max Batch Delay")).to_have_value("10000")
    move(page, "Max Batch Delay", "Home", 1)
    press(page, "Apply")
    expect(page.get_by_text("Applying the settings")).to_be_visible()
    expect(page.get_by_text("Letting the max batch delay pass")).to_be_visible()

    page.close()

    second = open_page(browser, light_url)
    press(second, "Don't wait: cut them")
    expect(second.get_by_text("Applied 1 worker, batch size 8, max batch delay 0 ms.")).to_be_visible(timeout=LONG)
    assert described(management).settings == LIGHT_SETTINGS
    second.close()


def write_version(store: Path, version: str) -> Path:
    """A copy of the light archive with another version."""
    target = store / f"llamacpp-{version}.tar.gz"
    with tarfile.open(store / "llamacpp.tar.gz") as archive, tarfile.open(target, "w:gz") as copy:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            content = file.read() if file else b""
            if entry.name.endswith("MANIFEST.json"):
                content = content.replace(b'"modelVersion": "1.0"', f'"modelVersion": "{version}"'.encode())
            entry.size = len(content)
            copy.addfile(entry, io.BytesIO(content) if file else None)
    return target


def test_versions_are_listed_by_number_and_made_the_default(
    page: Page, management: ManagementClient, light_server: ServerConfig
) -> None:
    """tests/torchserve_client/test_versions.py tests the change itself."""
    archives = [write_version(light_server.model_store, version) for version in ("1.1", "1.10")]
    try:
        rows = page.locator("[class*='st-key-row_']")
        expect(rows).to_have_count(3)
        assert [row.split("\n")[0] for row in rows.all_inner_texts()] == ["1.0", "1.10", "1.1"]

        for version in ("1.1", "1.0"):
            row = page.locator(f".st-key-row_{version.replace('.', '-')}")
            row.get_by_role("button", name="Make default").click()
            expect(page.get_by_text(f"Version {version} is the default and answers.")).to_be_visible(timeout=LONG)
            expect(row).to_contain_text("default")
            assert described(management).version == version
    finally:
        for archive in archives:
            archive.unlink()


def test_stop_asks_while_busy_and_lets_requests_finish(browser: Browser, demo_store: Path, tmp_path: Path) -> None:
    config = make_home(tmp_path / "home", model_store=demo_store)
    with running_server(config), running_app(APP, config, tmp_path / "app.log") as url:
        ManagementClient(config).register(LIGHT_SETTINGS)
        page = open_page(browser, url)
        expect(page.get_by_text("Model: ready")).to_be_visible(timeout=LONG)
        stream = start_answer(config, seconds=12)
        expect(page.get_by_text("1 running")).to_be_visible(timeout=LONG)

        press(page, "Stop Server")
        expect(page.get_by_text("1 request is in progress or waiting.")).to_be_visible()
        press(page, "Keep running")
        expect(page.get_by_role("dialog")).to_have_count(0)
        assert find_server(config)
        press(page, "Stop Server")
        press(page, "Let them finish")

        expect(page.get_by_text("Letting 1 request finish")).to_be_visible()
        expect(page.get_by_role("button", name="Stop now")).to_be_visible()
        expect(page.get_by_text("TorchServe is not running")).to_be_visible(timeout=LONG)
        assert (stream.finish().is_done, stream.failure) == (True, None)
        assert find_server(config) is None
        page.close()


def start_answer(config: ServerConfig, seconds: float) -> Stream:
    """An answer that takes about `seconds` on any machine."""
    question = chat_body("Tell me a story.", max_tokens=50, ignore_eos=True)
    speed = post(config, question, CHAT_PATH).json()["timings"]["predicted_per_second"]
    tokens = min(4000, int(seconds * speed))  # the context window has 4,096
    return Stream(config, chat_body("Tell me a story.", max_tokens=tokens, ignore_eos=True)).start().wait_for_text()


def test_copied_snippet_works_and_the_page_shows_no_key_unasked(
    browser: Browser, server: ServerConfig, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    keys = {kind: entry["key"] for kind, entry in json.loads(key_file(server).read_text()).items()}
    with running_app(APP, server, tmp_path / "app.log") as url:
        page = open_page(browser, url)
        expect(page.get_by_text("31 of 31 layers on CPU.", exact=True)).to_be_visible(timeout=LONG)
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("tab", name="Connect").click()
        expect(page.get_by_role("button", name="Show key")).to_be_visible()
        assert not [key for key in keys.values() if key in page.content() + page.locator("body").inner_text()]
        press(page, "Show key")
        expect(page.get_by_text(keys["inference"]).first).to_be_visible()
        press(page, "Copy the snippet with the key")
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        snippet = page.evaluate("navigator.clipboard.readText()")

        answer = subprocess.run(
            [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=300, check=False
        )
        assert answer.stdout.strip(), answer.stderr
        assert keys["management"] not in page.content()
        page.close()
    assert not [key for key in keys.values() if key in (tmp_path / "app.log").read_text()]


def test_logs_are_filtered_followed_and_downloaded_without_a_key(
    browser: Browser, page: Page, light_url: str, light_server: ServerConfig, management: ManagementClient
) -> None:
    keys = [entry["key"] for entry in json.loads(key_file(light_server).read_text()).values()]
    page.goto(f"{light_url}/?panel=Logs")
    expect(page.get_by_text("Inference API bind to").first).to_be_visible()
    page.get_by_role("textbox", name="Text to look for").fill("management api")
    page.get_by_role("textbox", name="Text to look for").press("Enter")
    expect(page.get_by_text("Inference API bind to")).to_have_count(0)
    expect(page.get_by_text("Management API bind to").first).to_be_visible()

    (light_server.home / "refuse_batch_size").write_text("10")
    page.get_by_role("textbox", name="Text to look for").fill(f"does not fit {keys[0]}")
    page.get_by_role("textbox", name="Text to look for").fill("")
    page.get_by_role("textbox", name="Text to look for").press("Enter")
    page.get_by_text("model_log", exact=True).click()
    with (light_server.logs / "model_log.log").open("a") as log:  # what a worker could print
        log.write(f"2026-01-01T00:00:00,000 [INFO ] a worker MODEL_LOG - request with {keys[0]} just now\n")
    expect(page.get_by_text("just now").first).to_be_visible()
    assert keys[0] not in page.content()
    with page.expect_download() as download:
        press(page, "Download model_log.log")
    text = Path(download.value.path()).read_text()
    assert "just now" in text and not [key for key in keys if key in text]


def test_nothing_moves_while_the_page_refreshes(page: Page) -> None:
    parts = "[data-testid=stMain], [data-testid=stSidebar]"  # not the header, which shows a slow run
    elements = f":is({parts}) :is(button, h1, h3, td)"
    positions = f"[...document.querySelectorAll('{elements}')].map(e => e.getBoundingClientRect().y)"
    percent = page.get_by_test_id("stTable").get_by_text(re.compile(r"^\d+ %$"))
    expect(percent).to_be_visible()  # the second refresh is the first one with it
    seen = set()
    for _ in range(8):  # two refreshes
        page.wait_for_timeout(500)
        seen.add(json.dumps(page.evaluate(positions)))

    assert len(seen) == 1, seen


@pytest.mark.parametrize("panel", ["Status", "Logs", "Connect"])
def test_page_fits_a_narrow_window(browser: Browser, light_url: str, management: ManagementClient, panel: str) -> None:
    page = open_page(browser, f"{light_url}/?panel={panel}", width=400)
    expect(page.get_by_text("Model: ready")).to_be_visible()
    last = {"Status": "Model Status", "Logs": "Download ts_log.log", "Connect": "Show key"}[panel]
    expect(page.get_by_role("button", name=last)).to_be_visible()

    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def test_idle_page_costs_little(browser: Browser, tmp_path: Path) -> None:
    """The panel that sends most requests, of a server started on the command line, which logs every request."""
    config = make_home(tmp_path / "home")
    write_echo_archives(config)
    try:
        start_by_hand(config)
        ManagementClient(config).register(LIGHT_SETTINGS)
        with running_app(APP, config, tmp_path / "app.log") as url:
            page = open_page(browser, f"{url}/?panel=Metrics")
            expect(page.get_by_text("Model: ready")).to_be_visible(timeout=LONG)
            page.wait_for_timeout(WARM_SECONDS * 1000)
            app = port_owner(int(url.rpartition(":")[2]))
            assert app
            for _ in range(5):  # on a busy machine the first measurements may contain the start of the page
                python_seconds = seconds_of_python()
                begun, cpu, requests = time.monotonic(), sum(app.cpu_times()[:2]), count_requests(config)
                page.wait_for_timeout(MEASURED_SECONDS * 1000)
                seconds = time.monotonic() - begun
                cpu_share = (sum(app.cpu_times()[:2]) - cpu) / seconds
                rate = (count_requests(config) - requests) / seconds
                cost = cpu_share / python_seconds
                print(f"{100 * cpu_share:.1f} % of a core, {cost:.2f} x Python, {rate:.2f} requests/s to TorchServe")
                if cost < 1 / 4 and rate <= 2:
                    break
            page.close()
    finally:
        torchserve_process.stop(config)

    assert cost < 1 / 4
    assert 0 < rate <= 2


def seconds_of_python() -> float:
    """CPU time of a fixed piece of work. Where it takes 0.2 s, the page takes 5 % of a core at most; more elsewhere."""
    begun = time.process_time()
    assert sum(number % 7 for number in range(5_000_000)) > 0
    return time.process_time() - begun


def count_requests(config: ServerConfig) -> int:
    return len((config.logs / "access_log.log").read_text().splitlines())
