"""The experiments as a person does them: a real browser and TorchServe; the demo model where its speed matters."""

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
from tests.dashboard.conftest import APP
from tests.support.browser import open_page, running_app
from tests.support.serving import wait_until
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

LONG = 300_000  # milliseconds; the model is loaded several times


@pytest.fixture
def page(browser: Browser, light_url: str, management: ManagementClient) -> Iterator[Page]:
    """The experiments of the server without a model."""
    opened = open_page(browser, f"{light_url}/?panel=Experiments")
    expect(start_button(opened)).to_be_enabled()
    yield opened
    opened.context.close()


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


def begin_long_experiment(page: Page, config: ServerConfig) -> None:
    """Returns while the first of two runs, which takes minutes, is being measured."""
    type_into(page, "Values", "1, 4")
    type_into(page, "Requests of each run", "400")
    type_into(page, "Answer length, tokens", "400")
    start(page, "2 runs, 800 requests")
    expect(page.get_by_text(re.compile(r"Batch size 1, 8 clients · [1-9]\d* of 800"))).to_be_visible(timeout=LONG)
    setup = served(config)
    assert setup and setup.settings.batch_size == 1


def decoded_at_once(point: MeasuredPoint) -> float:
    """How many answers were decoded at the same time, on average. Other programs change this less than the speed."""
    decodes = [sample.phases()["decode"] for sample in point.samples]
    begin, end = min(begin for begin, _ in decodes), max(end for _, end in decodes)
    return sum(end - begin for begin, end in decodes) / (end - begin)


def test_larger_batches_decode_more_answers_at_once_and_the_page_shows_it(
    browser: Browser, server: ServerConfig, panels_url: str
) -> None:
    before = served(server)
    page = open_page(browser, f"{panels_url}/?panel=Experiments")
    type_into(page, "Requests of each run", "16")
    start(page, "3 runs, 48 requests, 1,536 tokens to generate.")
    expect(page.get_by_text(re.compile(r"of 48 requests answered · about \d+ (s|min) left"))).to_be_visible(
        timeout=LONG
    )

    expect(page.get_by_text("Tokens per second by batch size")).to_be_visible(timeout=LONG)
    record = newest(server)
    speed = {point.value: point.summary["tokens_per_second"] for point in record.points}
    assert record.state == "done"
    assert list(speed) == [1, 4, 8]
    alone, together, most = map(decoded_at_once, record.points)
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
    page.context.close()


def test_cancel_from_another_tab_restores_the_old_settings(
    browser: Browser, page: Page, light_server: ServerConfig, light_url: str
) -> None:
    before = served(light_server)
    begin_long_experiment(page, light_server)
    page.close()  # stops nothing

    other = open_page(browser, f"{light_url}/?panel=Experiments")
    expect(other.get_by_text(re.compile(r"Batch size 1, 8 clients · \d+ of 800"))).to_be_visible(timeout=LONG)
    expect(start_button(other)).to_be_disabled()
    other.get_by_role("button", name="Cancel").click()

    expect(other.get_by_text(re.compile(r"Cancelled: 0 of 2 runs were measured"))).to_be_visible(timeout=LONG)
    assert served(light_server) == before
    assert newest(light_server).state == "cancelled"
    expect(start_button(other)).to_be_enabled()
    expect(other.get_by_text("No run was measured to its end, so there is nothing to draw.")).to_be_visible()
    other.context.close()


def test_app_that_ends_during_an_experiment_restores_the_old_settings(
    browser: Browser, light_server: ServerConfig, management: ManagementClient, tmp_path: Path
) -> None:
    before = served(light_server)
    with running_app(APP, light_server, tmp_path / "app.log") as url:
        begin_long_experiment(open_page(browser, f"{url}/?panel=Experiments"), light_server)

    assert not is_running(light_server)
    assert not restore_note_file(light_server).exists()
    assert served(light_server) == before


def test_failed_experiment_says_why_and_restores_the_old_settings(page: Page, light_server: ServerConfig) -> None:
    before = served(light_server)
    (light_server.home / "refuse_batch_size").write_text("16")
    type_into(page, "Values", "1, 16")
    start(page, "2 runs, 32 requests, 1,024 tokens to generate.")
    reason = re.compile(r"batch size 16 does not fit in memory.*\(1 of 2 runs")
    expect(page.get_by_text(reason)).to_be_visible(timeout=LONG)
    expect(page.get_by_text("Tokens per second", exact=True)).to_be_visible()
    assert served(light_server) == before


def test_experiment_is_compared_with_an_earlier_one(page: Page, light_server: ServerConfig) -> None:
    """In the charts, the table and the CSV file. The newest record is that of the failed experiment."""
    shown = newest(light_server)
    earlier = replace(shown, id="20200101-000000-000000", started=shown.started - timedelta(days=1))
    records.save(light_server, earlier)
    try:
        page.reload()
        choices = page.get_by_role("combobox", name="Compare with")
        choice = page.get_by_role("option").first

        def open_choices() -> bool:
            """A refresh of the page may close the list."""
            choices.press("ArrowDown")
            return choice.is_visible()

        wait_until(open_choices, what="the experiments to choose from")
        choice.click()
        page.keyboard.press("Escape")  # closes the list, which hides the rest of the page

        rows = page.get_by_test_id("stTable").locator("tbody tr")
        expect(rows).to_have_count(2)
        for record, row in zip((shown, earlier), rows.all(), strict=True):
            expect(row).to_contain_text(f"{record.started.astimezone():%d %b %H:%M:%S}")
        expect(page.get_by_text("Tokens per second by batch size")).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 1 + 2
    finally:
        records.delete(light_server, earlier.id)


def test_settings_that_a_killed_program_left_are_offered_and_restored(
    page: Page, light_server: ServerConfig, management: ManagementClient
) -> None:
    before = served(light_server)
    assert before
    write_restore_note(light_server, before)
    management.apply(ServingSettings(batch_size=1, max_batch_delay_ms=0, workers=1))
    page.reload()
    expect(page.get_by_text("ended without putting the server's settings back")).to_be_visible()

    page.get_by_role("button", name="Put back").click()

    expect(page.get_by_text("ended without putting the server's settings back")).to_be_hidden(timeout=LONG)
    wait_until(lambda: served(light_server) == before, what="the old settings")


def test_invalid_plan_is_explained_and_cannot_be_started(page: Page) -> None:
    type_into(page, "Values", "1, 500")

    expect(page.get_by_text("Batch size: must be an integer from 1 to 128, not 500.")).to_be_visible()
    expect(start_button(page)).to_be_disabled()


def test_experiments_fit_a_narrow_page(browser: Browser, light_url: str) -> None:
    page = open_page(browser, f"{light_url}/?panel=Experiments", width=400)
    expect(page.get_by_role("button", name="Download JSON")).to_be_visible(timeout=LONG)

    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.context.close()


def test_deleted_experiment_disappears(page: Page, light_server: ServerConfig) -> None:
    for record_id in records.record_ids(light_server)[1:]:
        records.delete(light_server, record_id)
    page.reload()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()

    expect(page.get_by_text("Nothing yet")).to_be_visible()
    assert records.record_ids(light_server) == []
