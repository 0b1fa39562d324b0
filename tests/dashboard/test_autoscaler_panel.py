"""The autoscaler and the metrics as a person sees them: real browser, real TorchServe, real model, real load."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from autoscaler.control import autoscaler_pid, is_on, switch_off
from autoscaler.policy import Policy
from autoscaler.state_files import read_policy, read_report, write_policy
from experiments.load_test import Run, run_load, torchserve_target
from experiments.prompts import make_bodies
from tests.support.browser import open_page, running_app, running_browser
from tests.support.serving import make_home, running_server, wait_until
from tests.support.wire import CHAT_PATH, chat_body, post
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient, ServingSettings

LONG = 120_000  # milliseconds
CHARTS = ("Tokens per second", "Time to first token", "Requests", "KV cache", "CPU by process", "Memory by process")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def config(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """One worker with continuous batching, as the server app registers it."""
    config = make_home(tmp_path_factory.mktemp("panels"), model_store=demo_store)
    with running_server(config):
        ManagementClient(config).register(ServingSettings(batch_size=4, max_batch_delay_ms=50, workers=1))
        yield config


@pytest.fixture(scope="module")
def url(config: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app("tests/panels_page.py", config, tmp_path_factory.mktemp("log") / "panels.log") as url:
        yield url


def open_tab(browser: Browser, url: str, name: str) -> Page:
    page = open_page(browser, url)
    page.get_by_role("tab", name=name).click()
    return page


def wait_for_decision(page: Page, text: str) -> None:
    """Until the log on the page has an entry like that."""
    entries = page.locator(".st-key-autoscaler_log").get_by_test_id("stMarkdown")
    expect(entries.filter(has_text=re.compile(text)).first).to_be_visible(timeout=LONG)


def wait_for_workers(config: ServerConfig, number: int) -> None:
    management = ManagementClient(config)
    wait_until(lambda: (model := management.describe()) and model.ready_workers == number, 120, f"{number} workers")


def toggle(page: Page) -> None:
    page.locator("label").filter(has_text="Autoscaler").click()


class Load:
    """Twelve clients that ask until they are told to stop: three times what one worker answers together."""

    def __init__(self, config: ServerConfig) -> None:
        self._enough = threading.Event()
        self._runs: list[Run] = []
        bodies = make_bodies("short", 20_000, 48, str(time.time()))
        target = torchserve_target(config)
        self._thread = threading.Thread(
            target=lambda: self._runs.append(run_load(target, bodies, 12, stop=self._enough)), daemon=True
        )
        self._thread.start()

    def end(self) -> Run:
        self._enough.set()
        self._thread.join(LONG / 1000)
        return self._runs[0]


def test_metrics_show_what_the_server_does_and_every_tab_has_the_same_history(
    config: ServerConfig, browser: Browser, url: str
) -> None:
    page = open_tab(browser, url, "Metrics")
    expect(page.get_by_text("0 of 4 slots busy, 0 queued")).to_be_visible(timeout=LONG)
    for title in CHARTS:
        expect(page.get_by_text(title, exact=False).first).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(len(CHARTS))

    answer = post(config, chat_body("Count to ten.", max_tokens=20, ignore_eos=True), CHAT_PATH)
    assert answer.status_code == 200
    first_token = page.get_by_text(re.compile(r"^[\d,]+ ms$"))
    expect(first_token).to_be_visible(timeout=LONG)

    other = open_tab(browser, url, "Metrics")
    expect(other.get_by_text(re.compile(r"^[\d,]+ ms$"))).to_be_visible()  # it has seen nothing of that itself
    page.reload()
    expect(first_token).to_be_visible()
    page.context.close()
    other.context.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_of_the_metrics_moves_while_they_are_refreshed(browser: Browser, url: str, width: int) -> None:
    page = open_page(browser, url, width=width)
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(len(CHARTS))
    for chart in page.get_by_test_id("stVegaLiteChart").all():
        expect(chart.locator("canvas, svg").first).to_be_visible()
    page.wait_for_load_state("networkidle")

    def places() -> list[object]:
        return [chart.bounding_box() for chart in page.get_by_test_id("stVegaLiteChart").all()]

    before = places()
    for _ in range(6):  # three refreshes
        page.wait_for_timeout(1000)
        assert places() == before
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_under_load_it_goes_up_to_three_workers_and_back_to_one_before_everybodys_eyes(
    config: ServerConfig, browser: Browser, url: str
) -> None:
    write_policy(config, Policy(min_workers=1, max_workers=3, max_memory_percent=95, calm_seconds=6, pause_seconds=2))
    page = open_tab(browser, url, "Autoscaler")
    expect(page.get_by_text("switching it on registers the model again")).to_be_visible()
    toggle(page)
    wait_for_decision(page, r"Switched on for 1 to 3 workers\.")
    pid = autoscaler_pid(config)

    load = Load(config)
    wait_for_decision(page, r"2 workers.*(requests wait|request has waited)")
    page.reload()
    page.get_by_role("tab", name="Autoscaler").click()
    wait_for_decision(page, r"3 workers.*(requests wait|request has waited)")
    page.context.close()  # nobody looks any more
    wait_for_workers(config, 3)
    run = load.end()
    wait_until(
        lambda: (model := ManagementClient(config).describe()) and model.settings.workers == 1, 120, "one worker"
    )

    again = open_tab(browser, url, "Autoscaler")
    wait_for_decision(again, r"1 worker.*For 6 s nobody waited and a worker was free")
    report = read_report(config)
    assert report
    assert [(each.kind, each.workers) for each in report.log if each.kind in ("up", "down")] == [
        ("up", 2),
        ("up", 3),
        ("down", 2),
        ("down", 1),
    ]
    assert run.errors == []  # none was cut, going up or down
    assert autoscaler_pid(config) == pid

    toggle(again)
    expect(again.get_by_text("The autoscaler is off")).to_be_visible(timeout=LONG)
    assert not is_on(config)
    again.context.close()


def test_bounds_chosen_in_one_tab_are_seen_in_the_other_and_kept(
    config: ServerConfig, browser: Browser, url: str
) -> None:
    write_policy(config, Policy())
    page, other = (open_tab(browser, url, "Autoscaler") for _ in range(2))
    longest_wait = page.get_by_role("slider", name="Longest wait")
    longest_wait.focus()
    longest_wait.press("ArrowRight")
    wait_until(lambda: read_policy(config).max_wait_seconds == 2.5, what="the policy to be written")
    expect(other.get_by_role("slider", name="Longest wait")).to_have_value("2.5")
    page.context.close()
    other.context.close()


def test_a_killed_autoscaler_is_told_and_can_be_switched_on_again(
    config: ServerConfig, browser: Browser, url: str
) -> None:
    page = open_tab(browser, url, "Autoscaler")
    toggle(page)
    expect(page.get_by_role("switch").or_(page.get_by_role("checkbox")).first).to_be_checked(timeout=LONG)
    pid = wait_until(lambda: autoscaler_pid(config), what="the autoscaler")
    wait_until(lambda: (report := read_report(config)) and report.pid == pid and report.observation, what="its first look")
    psutil.Process(pid).kill()
    expect(page.get_by_text("Its process was ended from outside: switch it on again.")).to_be_visible()
    toggle(page)
    wait_until(lambda: autoscaler_pid(config) not in (None, pid), what="another autoscaler")
    switch_off(config)
    page.context.close()
