"""Makes the README's pictures from the running apps: `make screenshots`.

Nothing is staged but the questions: the real TorchServe, the demo model, a real browser.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from playwright.sync_api import Browser, expect  # noqa: E402

from browser import open_page, running_app, running_browser, send  # noqa: E402
from serving import make_home, running_server  # noqa: E402
from torchserve_management import DEFAULT_SETTINGS, ManagementClient  # noqa: E402

PICTURES = Path(__file__).resolve().parent
PATIENCE = 120_000  # milliseconds
QUESTION = "What is the closest star to Earth?"


def picture_chat(browser: Browser, url: str) -> None:
    page = open_page(browser, f"{url}/?temperature=0.01&max_tokens=200", width=1280, height=760)
    send(page, QUESTION)
    expect(page.get_by_text(re.compile("tokens/s"))).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=PICTURES / "Client.png")


def picture_server(browser: Browser, url: str) -> None:
    page = open_page(browser, url, width=1280, height=760)
    expect(page.get_by_text("1 of 1 workers ready").first).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("slider", name="Max Batch Delay")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_test_id("stTable")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Model Status")).to_be_visible(timeout=PATIENCE)
    page.screenshot(path=PICTURES / "Server.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        config = make_home(Path(folder), model_store=PROJECT / "model_store")
        with running_server(config):
            ManagementClient(config).register(DEFAULT_SETTINGS)
            with running_app("client_app.py", config, config.logs / "client.log") as url:
                picture_chat(browser, url)
            with running_app("torchserve_server_app.py", config, config.logs / "server.log") as url:
                picture_server(browser, url)


if __name__ == "__main__":
    main()
