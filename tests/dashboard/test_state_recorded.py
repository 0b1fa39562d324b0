"""What the page says each second while everything happens to a real TorchServe with the demo model; it must be true.

A recorder reads the line of state once a second in a real browser, and beside it the processes and locks of the server,
which the page's claims are checked against. `pytest -s` prints the table.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from apps.dashboard.wording import counted
from autoscaler.control import is_on
from autoscaler.policy import Policy
from autoscaler.state_files import write_policy
from tests.dashboard.conftest import APP
from tests.support.browser import open_page, running_app
from tests.support.serving import make_home, wait_until
from tests.support.wire import Stream, chat_body
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.running_server import find_server

LONG = 120_000  # milliseconds
LATE_SECONDS = 5.0  # a page refreshes every 2 s, the metrics too; a busy machine needs some time more
ALARMS = ("failed", "unhealthy", "paused", "stalled")


@dataclass(frozen=True, slots=True)
class Row:
    """second: since the begin. step: what the test does. said: the page's line. fact: what is true, in a word."""

    second: float
    step: str
    said: str
    fact: str


class Recorder:
    """Reads the page between the steps; call watch() to wait. Playwright allows its own thread only."""

    def __init__(self, page: Page, config: ServerConfig) -> None:
        self._page = page
        self._config = config
        self._begun = time.monotonic()
        self.step = ""
        self.rows: list[Row] = []

    def watch(self, until: str, seconds: float = 120.0, least: float = 0.0) -> None:
        """Records each second until the page says `until`, and for `least` seconds at least."""
        begun = time.monotonic()
        while True:
            said = self.read()
            elapsed = time.monotonic() - begun
            if until in said and elapsed >= least:
                return
            assert elapsed < seconds, f"{self.step}: {until!r} not within {seconds:.0f} s; {self.table()}"
            self._page.wait_for_timeout(1000)

    def read(self) -> str:
        lines = self._page.get_by_test_id("stAlert").all_inner_texts()
        said = " ".join(" ".join(line for line in lines if "·" in line).split())
        said = re.sub(r"^\w+ (?=TorchServe: |Model: )", "", said)  # without the name of the icon
        self.rows.append(Row(time.monotonic() - self._begun, self.step, said, self._fact()))
        return said

    def _fact(self) -> str:
        server = find_server(self._config)
        if server is None:
            return "no process"
        workers = [each for each in server.children(recursive=True) if "model_service_worker.py" in _command(each)]
        states = [each.status() for each in workers if each.is_running()]
        if psutil.STATUS_STOPPED in states:
            return "a worker is paused"
        return f"process, {counted(len(states), 'worker')}"

    def table(self) -> str:
        """The rows as Markdown; equal ones of several seconds are one row."""
        lines = ["| second | what happens | the page says | processes |", "|---|---|---|---|"]
        previous: Row | None = None
        for row in self.rows:
            if previous is None or (row.step, row.said, row.fact) != (previous.step, previous.said, previous.fact):
                lines.append(f"| {row.second:.0f} | {row.step} | {row.said} | {row.fact} |")
            previous = row
        return "\n".join(lines)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture
def config(demo_store: Path, tmp_path: Path) -> Iterator[ServerConfig]:
    config = make_home(tmp_path / "home", model_store=demo_store)
    yield config
    torchserve_process.stop(config)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


@contextmanager
def one_busy_core(process: psutil.Process) -> Iterator[None]:
    """The process shares one core with three programs that are always busy. Linux only."""
    cores = os.sched_getaffinity(0)
    core = {min(cores)}
    threads = [thread.id for thread in process.threads()]
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        for task in [*threads, *(neighbour.pid for neighbour in neighbours)]:
            os.sched_setaffinity(task, core)
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


def untrue(rows: list[Row]) -> list[Row]:
    """Rows that say what was not the case at any moment of the LATE_SECONDS before them."""
    return [row for row in rows if _is_untrue(row, [each for each in rows if _is_recent(each, row)])]


def _is_recent(earlier: Row, row: Row) -> bool:
    return 0 <= row.second - earlier.second <= LATE_SECONDS


def _is_untrue(row: Row, recent: list[Row]) -> bool:
    facts, steps = {each.fact for each in recent}, {each.step for each in recent}
    claim = row.said.partition(" · ")[0]
    if "ready" in claim and not any(fact.startswith("process, ") and fact != "process, 0 workers" for fact in facts):
        return True
    if "TorchServe: down" in claim and "no process" not in facts:
        return True
    if "Model: " in claim and facts == {"no process"}:
        return True
    if "paused" in claim and "a worker is paused" not in facts:
        return True
    is_alarm = any(word in claim for word in ALARMS)
    is_empty = len(recent) > 2 and not any(
        each.said for each in recent
    )  # a tab that was just opened is empty for a second
    return is_empty or (is_alarm and not steps & {"kill a worker", "pause a worker", "a prompt takes long"})


def test_page_says_nothing_untrue_at_any_second(browser: Browser, config: ServerConfig, tmp_path: Path) -> None:
    write_policy(config, Policy(min_workers=1, max_workers=2))
    with running_app(APP, config, tmp_path / "app.log") as url:
        page = open_page(browser, url, height=1000)
        recorder = Recorder(page, config)
        try:
            live_through_everything(page, recorder, config)
        finally:
            print(f"\n{recorder.table()}")
        page.context.close()

    assert untrue(recorder.rows) == []


def live_through_everything(page: Page, recorder: Recorder, config: ServerConfig) -> None:
    recorder.step = "nothing runs"
    recorder.watch("TorchServe: down")

    recorder.step = "start"
    press(page, "Start Server")
    recorder.watch("Model: not registered")

    recorder.step = "register"
    press(page, "Register Llama2")
    recorder.watch("Model: ready")

    recorder.step = "apply"
    slider = page.get_by_role("slider", name="Batch Size")
    slider.press("ArrowLeft")
    expect(page.get_by_role("button", name="Apply", exact=True)).to_be_enabled()
    press(page, "Apply")
    recorder.watch("Model: ready", least=3)

    recorder.step = "long answer, worker paused"
    stream = Stream(config, chat_body("Tell me a story.", max_tokens=4000, ignore_eos=True)).start()
    stream.wait_for_text()
    recorder.watch("1 request")
    worker = psutil.Process(_worker_pid(config))
    recorder.step = "pause a worker"
    worker.suspend()
    try:
        recorder.watch("No token for", least=14)
    finally:
        worker.resume()
    recorder.step = "continue it"
    recorder.watch("Model: ready")
    stream.hang_up()

    if sys.platform == "linux":  # elsewhere nothing makes a prompt take long enough on every machine
        recorder.step = "a prompt takes long"
        with one_busy_core(worker):
            stream = Stream(config, chat_body("la " * 7000, max_tokens=8)).start()
            recorder.watch("1 of 1 open request is being prefilled")
            assert stream.text == ""
        stream.hang_up()
        recorder.watch("Model: ready")

    recorder.step = "kill a worker"
    worker.kill()
    recorder.watch("Model: ready", least=4)

    recorder.step = "autoscaler on"
    page.get_by_role("tab", name="Autoscaler").click()
    page.locator("label").filter(has_text="Autoscaler").click()
    wait_until(lambda: is_on(config), 60, "the autoscaler")
    page.get_by_role("tab", name="Status").click()
    recorder.watch("The autoscaler sets the number of workers")
    expect(page.get_by_role("button", name="Apply", exact=True)).to_be_disabled()

    recorder.step = "autoscaler off"
    page.get_by_role("tab", name="Autoscaler").click()
    page.locator("label").filter(has_text="Autoscaler").click()
    wait_until(lambda: not is_on(config), 60, "the autoscaler's end")
    page.get_by_role("tab", name="Status").click()
    recorder.watch("Model: ready")

    recorder.step = "experiment"
    page.get_by_role("tab", name="Experiments").click()
    page.get_by_label("Values", exact=True).fill("1, 2")
    page.get_by_label("Values", exact=True).press("Tab")
    page.get_by_label("Requests of each run", exact=True).fill("8")
    page.get_by_label("Requests of each run", exact=True).press("Tab")
    expect(page.get_by_text("2 runs, 16 requests")).to_be_visible()
    press(page, "Start experiment")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    page.get_by_role("tab", name="Status").click()
    recorder.watch("Model: ready", least=3)

    recorder.step = "stop"
    press(page, "Stop Server")
    recorder.watch("TorchServe: down")


def _worker_pid(config: ServerConfig) -> int:
    model = ManagementClient(config).describe()
    assert model
    return model.workers[0].pid
