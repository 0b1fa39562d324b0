"""The metrics as a person sees them: a real browser, TorchServe and the demo model."""

import re

from playwright.sync_api import Browser, expect

from tests.support.browser import open_page
from tests.support.wire import CHAT_PATH, chat_body, post
from torchserve_client.config import ServerConfig

LONG = 120_000  # milliseconds
CHARTS = (
    "Tokens per second",
    "Time to first token",
    "Requests",
    "Why requests wait in a worker",
    "KV cache",
    "CPU by process",
    "Memory by process",
)


def test_metrics_show_an_answer_and_all_tabs_share_the_history(
    server: ServerConfig, browser: Browser, panels_url: str
) -> None:
    page = open_page(browser, panels_url)
    expect(page.get_by_text("0 of 8 slots busy, 0 queued")).to_be_visible(timeout=LONG)
    for title in CHARTS:
        expect(page.get_by_text(title, exact=False).first).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(len(CHARTS))

    answer = post(server, chat_body("Count to ten.", max_tokens=20, ignore_eos=True), CHAT_PATH)
    assert answer.status_code == 200
    expect(page.get_by_role("table").get_by_text(re.compile(r"^[1-9]\d*$")).first).to_be_visible(timeout=LONG)
    first_token = page.get_by_text(re.compile(r"^[\d,]+ ms$"))
    expect(first_token).to_be_visible(timeout=LONG)

    other = open_page(browser, panels_url)
    expect(other.get_by_text(re.compile(r"^[\d,]+ ms$"))).to_be_visible()  # of an answer before this tab was open
    page.reload()
    expect(first_token).to_be_visible()
    page.context.close()
    other.context.close()


def test_metrics_fit_a_narrow_page_and_refresh_without_moving(browser: Browser, panels_url: str) -> None:
    width = 400
    page = open_page(browser, panels_url, width=width)
    expect(page.get_by_test_id("stVegaLiteChart")).to_have_count(len(CHARTS))
    for chart in page.get_by_test_id("stVegaLiteChart").all():
        expect(chart.locator("canvas, svg").first).to_be_visible()
    page.wait_for_load_state("networkidle")

    def boxes() -> list[object]:
        return [chart.bounding_box() for chart in page.get_by_test_id("stVegaLiteChart").all()]

    before = boxes()
    for _ in range(5):  # two refreshes
        page.wait_for_timeout(1000)
        assert boxes() == before
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()
