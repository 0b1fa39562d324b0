"""The autoscaler's page: a real browser, app, autoscaler and TorchServe, whose workers need no model.

When the autoscaler adds and removes workers is tested in tests/autoscaler.
"""

import psutil
from playwright.sync_api import Browser, Page, expect

from autoscaler.control import autoscaler_pid, is_on, switch_off
from autoscaler.policy import Policy
from autoscaler.state_files import read_policy, read_report, write_policy
from tests.support.browser import open_page
from tests.support.serving import wait_until
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient

LONG = 120_000  # milliseconds


def open_panel(browser: Browser, url: str) -> Page:
    return open_page(browser, f"{url}/?panel=Autoscaler")


def toggle(page: Page) -> None:
    page.locator("label").filter(has_text="Autoscaler").click()


def test_autoscaler_is_switched_on_and_off_and_the_page_says_so(
    light_server: ServerConfig, management: ManagementClient, browser: Browser, light_url: str
) -> None:
    write_policy(light_server, Policy(min_workers=1, max_workers=3))
    page = open_panel(browser, light_url)
    expect(page.get_by_text("switching it on registers the model again")).to_be_visible()

    toggle(page)
    log = page.locator(".st-key-autoscaler_log")
    expect(log.get_by_text("Switched on for 1 to 3 workers.")).to_be_visible(timeout=LONG)
    assert is_on(light_server)
    model = management.describe()
    assert model and model.batching == "dynamic"
    page.context.close()  # the autoscaler continues without a page
    assert is_on(light_server)

    again = open_panel(browser, light_url)
    expect(again.locator(".st-key-autoscaler_log").get_by_text("Switched on for 1 to 3 workers.")).to_be_visible()
    toggle(again)
    expect(again.get_by_text("The autoscaler is off")).to_be_visible(timeout=LONG)
    assert not is_on(light_server)
    again.context.close()


def test_limits_chosen_in_one_tab_are_saved_and_seen_in_another(
    light_server: ServerConfig, management: ManagementClient, browser: Browser, light_url: str
) -> None:
    write_policy(light_server, Policy())
    page, other = (open_panel(browser, light_url) for _ in range(2))
    longest_wait = page.get_by_role("slider", name="Longest wait")
    longest_wait.focus()
    longest_wait.press("ArrowRight")
    wait_until(lambda: read_policy(light_server).max_wait_seconds == 2.5, what="the policy to be written")
    expect(other.get_by_role("slider", name="Longest wait")).to_have_value("2.5")
    page.context.close()
    other.context.close()


def test_killed_autoscaler_is_reported_and_can_be_switched_on_again(
    light_server: ServerConfig, management: ManagementClient, browser: Browser, light_url: str
) -> None:
    page = open_panel(browser, light_url)
    expect(page.get_by_text("The autoscaler is off")).to_be_visible()
    toggle(page)
    expect(page.get_by_role("switch").or_(page.get_by_role("checkbox")).first).to_be_checked(timeout=LONG)
    pid = wait_until(lambda: autoscaler_pid(light_server), what="the autoscaler")
    wait_until(
        lambda: (report := read_report(light_server)) and report.pid == pid and report.observation,
        what="its first observation",
    )
    psutil.Process(pid).kill()
    expect(page.get_by_text("Its process was ended from outside: switch it on again.")).to_be_visible()
    toggle(page)
    wait_until(lambda: autoscaler_pid(light_server) not in (None, pid), what="another autoscaler")
    switch_off(light_server)
    page.context.close()
