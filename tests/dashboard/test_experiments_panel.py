"""The experiments as a person does them: a real browser, the real TorchServe, and (but for failures) the demo model."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from experiments import records
from experiments.plan import Setup
from experiments.records import ExperimentRecord, MeasuredPoint
from experiments.restore import is_running, restore_note_file, write_restore_note
from tests.support.browser import open_page, running_app, running_browser
from tests.support.chatting_handler import write_chatting_archives
from tests.support.serving import make_home, running_server, wait_until
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient, ServingSettings

PAGE = "tests/experiments_page.py"
LONG = 300_000  # milliseconds; the model is loaded several times


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def url(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(PAGE, server, tmp_path_factory.mktemp("app") / "page.log") as address:
        yield address


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("chatting"))
    write_chatting_archives(config)
    with running_server(config):
        ManagementClient(config).register(ServingSettings(batch_size=2, max_batch_delay_ms=0, workers=1))
        yield config


@pytest.fixture(scope="module")
def chatting_url(chatting: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(PAGE, chatting, tmp_path_factory.mktemp("app") / "page.log") as address:
        yield address


def served(config: ServerConfig) -> Setup | None:
    status = ManagementClient(config).describe()
    return Setup.of(status) if status else None


def newest(config: ServerConfig) -> ExperimentRecord:
    return records.load(config, records.record_ids(config)[0])


def type_into(page: Page, label: str, text: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(text)
    box.press("Tab")


def start_button(page: Page) -> Locator:
    return page.get_by_role("button", name="Start experiment")


def start(page: Page, effort: str) -> None:
    """Presses the button once the page has understood what was typed."""
    expect(page.get_by_text(effort)).to_be_visible()
    start_button(page).click()
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()


def begin_long_one(page: Page, config: ServerConfig) -> None:
    """Returns when the server has changed and requests are answered."""
    type_into(page, "Values", "1, 4")
    type_into(page, "Requests of each run", "400")
    start(page, "2 runs, 800 requests")
    expect(page.get_by_text(re.compile(r"Batch size 1, 8 clients · [1-9]\d* of 800"))).to_be_visible(timeout=LONG)
    setup = served(config)
    assert setup and setup.settings.batch_size == 1


def written_together(point: MeasuredPoint) -> int:
    """How many answers were being written at once, at most: unlike its speed, no other program changes that much."""
    writing = [sample.phases()["writing"] for sample in point.samples]
    changes = sorted([(begin, 1) for begin, _ in writing] + [(end, -1) for _, end in writing])
    return max(itertools.accumulate(change for _, change in changes))


def test_larger_batches_write_more_answers_together_and_the_page_shows_it(
    browser: Browser, server: ServerConfig, url: str
) -> None:
    before = served(server)
    page = open_page(browser, url)
    type_into(page, "Requests of each run", "16")
    start(page, "3 runs, 48 requests, 1,536 tokens to write.")
    expect(page.get_by_text(re.compile(r"of 48 requests answered · about \d+ s left"))).to_be_visible(timeout=LONG)

    expect(page.get_by_text("Tokens per second by batch size")).to_be_visible(timeout=LONG)
    record = newest(server)
    speed = {point.value: point.summary["tokens_per_second"] for point in record.points}
    assert record.state == "done" and list(speed) == [1, 4, 8]
    alone, together, most = map(written_together, record.points)
    assert alone < together <= most
    assert served(server) == before

    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(4)
    for chart in page.get_by_test_id("stVegaLiteChart").all():
        expect(chart.locator("canvas, svg").first).to_be_visible()
    rows = page.get_by_test_id("stTable").locator("tbody tr")
    expect(rows).to_have_count(3)
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [cell[:3] for cell in cells] == [[str(value), "8", f"{speed[value]:.1f}"] for value in speed]
    assert all(cell[-1] == "0 of 16" for cell in cells)

    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    assert json.loads(Path(download.value.path()).read_text()) == json.loads(record.to_json())
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 3


def test_cancel_in_the_middle_from_another_tab_brings_the_old_settings_back(
    browser: Browser, server: ServerConfig, url: str
) -> None:
    before = served(server)
    page = open_page(browser, url)
    begin_long_one(page, server)
    page.close()  # stops nothing

    other = open_page(browser, url)
    expect(other.get_by_text(re.compile(r"Batch size 1, 8 clients · \d+ of 800"))).to_be_visible(timeout=LONG)
    expect(start_button(other)).to_be_disabled()
    other.get_by_role("button", name="Cancel").click()

    expect(other.get_by_text(re.compile(r"Cancelled: 0 of 2 runs were measured"))).to_be_visible(timeout=LONG)
    assert served(server) == before
    assert newest(server).state == "cancelled"
    expect(start_button(other)).to_be_enabled()
    expect(other.get_by_text("No run was measured to its end, so there is nothing to draw.")).to_be_visible()


def test_app_that_is_ended_in_the_middle_puts_the_old_settings_back_first(
    browser: Browser, server: ServerConfig, tmp_path: Path
) -> None:
    before = served(server)
    with running_app(PAGE, server, tmp_path / "page.log") as address:
        begin_long_one(open_page(browser, address), server)

    assert not is_running(server) and not restore_note_file(server).exists()
    assert served(server) == before


def test_failed_experiment_says_why_shows_what_was_measured_and_brings_the_old_settings_back(
    browser: Browser, chatting: ServerConfig, chatting_url: str
) -> None:
    before = served(chatting)
    (chatting.home / "refuse_batch_size").write_text("4")
    page = open_page(browser, chatting_url)
    type_into(page, "Values", "1, 4")
    start(page, "2 runs")

    expect(page.get_by_text(re.compile(r"batch size 4 does not fit in memory.*\(1 of 2 runs"))).to_be_visible(
        timeout=LONG
    )
    expect(page.get_by_text("Tokens per second", exact=True)).to_be_visible()
    assert served(chatting) == before


def test_an_experiment_is_compared_with_an_earlier_one_in_charts_table_and_csv(
    browser: Browser, chatting: ServerConfig, chatting_url: str
) -> None:
    shown = newest(chatting)
    earlier = replace(shown, id="20200101-000000-000000", started=shown.started - timedelta(days=1))
    records.save(chatting, earlier)
    try:
        page = open_page(browser, chatting_url)
        page.get_by_role("combobox", name="Compare with").click()
        page.get_by_role("option").first.click()
        page.keyboard.press("Escape")  # closes the list, which hides the rest of the page from a reader

        rows = page.get_by_test_id("stTable").locator("tbody tr")
        expect(rows).to_have_count(2)
        for record, row in zip((shown, earlier), rows.all(), strict=True):
            expect(row).to_contain_text(f"{record.started.astimezone():%d %b %H:%M:%S}")
        expect(page.get_by_text("Tokens per second by batch size")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 2
    finally:
        records.delete(chatting, earlier.id)


def test_what_a_killed_program_left_is_offered_and_put_back(
    browser: Browser, chatting: ServerConfig, chatting_url: str
) -> None:
    before = served(chatting)
    assert before
    write_restore_note(chatting, before)
    ManagementClient(chatting).apply(ServingSettings(batch_size=1, max_batch_delay_ms=0, workers=1))
    page = open_page(browser, chatting_url)
    expect(page.get_by_text("ended without putting the server's settings back")).to_be_visible()

    page.get_by_role("button", name="Put back").click()

    expect(page.get_by_text("ended without putting the server's settings back")).to_be_hidden(timeout=LONG)
    wait_until(lambda: served(chatting) == before, what="the old settings")


def test_what_cannot_be_done_is_said_before_it_is_started(browser: Browser, chatting_url: str) -> None:
    page = open_page(browser, chatting_url)
    expect(start_button(page)).to_be_enabled()
    type_into(page, "Values", "1, 500")

    expect(page.get_by_text("Batch size: must be an integer from 1 to 128, not 500.")).to_be_visible()
    expect(start_button(page)).to_be_disabled()


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off(browser: Browser, chatting_url: str, width: int) -> None:
    page = open_page(browser, chatting_url, width=width)
    expect(page.get_by_role("button", name="Download JSON")).to_be_visible(timeout=LONG)

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_deleted_experiment_is_gone(browser: Browser, chatting: ServerConfig, chatting_url: str) -> None:
    assert len(records.record_ids(chatting)) == 1
    page = open_page(browser, chatting_url)
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()

    expect(page.get_by_text("Nothing yet")).to_be_visible()
    assert records.record_ids(chatting) == []
