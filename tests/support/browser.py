"""A real browser and real Streamlit apps, for browser tests and screenshots."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.serving import free_ports, wait_until
from torchserve_client.config import PROJECT, ServerConfig

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CANDIDATES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
PAGE_SECONDS = 60.0
expect.set_options(timeout=PAGE_SECONDS * 1000)  # milliseconds; a page on a busy machine can take far more than 5 s


def find_chromium() -> str | None:
    return next((found for name in CANDIDATES if (found := shutil.which(name))), None)


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Starts the system's Chromium without a window and with an empty profile."""
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium found: install the package `chromium`, or Google Chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@contextmanager
def running_app(script: str, config: ServerConfig, log: Path) -> Iterator[str]:
    """Starts one of the project's Streamlit apps for the server of `config`. Yields the app's URL."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "streamlit", "run", str(PROJECT / script)]
    command += ["--server.headless=true", "--server.address=127.0.0.1", f"--server.port={port}"]
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"{url}/_stcore/health", timeout=5).ok
        except requests.RequestException:
            return False

    try:
        wait_until(is_up, timeout=PAGE_SECONDS, what=f"{script} to answer")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=PAGE_SECONDS)


def open_page(browser: Browser, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
    """Opens a tab with a new, empty profile."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", device_scale_factor=1
    )
    context.set_default_timeout(PAGE_SECONDS * 1000)
    page = context.new_page()
    page.goto(url)
    return page


def send(page: Page, question: str) -> None:
    """Types a question into the chat input and sends it."""
    box = page.get_by_test_id("stChatInputTextArea")
    box.fill(question)
    box.press("Enter")
