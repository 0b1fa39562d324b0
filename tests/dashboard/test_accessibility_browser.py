"""The server app for everybody: what axe-core finds in each tab, and a narrow page."""

from playwright.sync_api import Browser, Page, expect

from tests.support.accessibility import expect_no_violations
from tests.support.browser import open_page
from tests.support.wire import CHAT_PATH, chat_body, post
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient

# Of each tab, something that is there when it is drawn.
DRAWN = {
    "Status": "1 of 1 workers ready",
    "Metrics": "Tokens per second",
    "Experiments": "Start experiment",
    "Autoscaler": "Adds a worker while requests wait too long",
    "Logs": "Least level",
    "Connect": "In a terminal",
}


def open_panel(page: Page, panel: str) -> None:
    page.get_by_role("tab", name=panel).click()
    expect(page.get_by_role("tabpanel").get_by_text(DRAWN[panel]).first).to_be_visible()


def test_axe_finds_nothing_in_any_tab(
    browser: Browser, light_url: str, light_server: ServerConfig, management: ManagementClient
) -> None:
    post(light_server, chat_body("Hello", max_tokens=50), CHAT_PATH)
    page = open_page(browser, light_url, 1440, 1000)
    for panel in DRAWN:
        open_panel(page, panel)
        if panel == "Metrics":
            expect(page.locator("canvas, svg.marks").first).to_be_visible()
        expect_no_violations(page)
    page.context.close()


def test_the_state_is_announced_and_headings_are_no_stops_of_the_keyboard(
    browser: Browser, light_url: str, management: ManagementClient
) -> None:
    page = open_page(browser, light_url)
    open_panel(page, "Status")
    expect(page.get_by_test_id("stMain").locator('[role="status"], [role="alert"]').first).to_be_visible()
    assert page.locator(":is(h1, h2, h3, h4, h5, h6) :is(a, button)").count() == 0
    page.context.close()


def test_no_tab_is_wider_than_a_narrow_page(browser: Browser, light_url: str, management: ManagementClient) -> None:
    page = open_page(browser, light_url, 390, 800)
    expect(page.get_by_test_id("stSidebar")).not_to_be_in_viewport()
    for panel in DRAWN:
        open_panel(page, panel)
        for width, height in ((390, 800), (720, 450)):  # a phone, and what a window of 1440 × 900 shows at 200 %
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0, (panel, width)
    page.context.close()
