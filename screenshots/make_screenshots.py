"""Makes the README's pictures from the running apps: `make screenshots`.

Uses the real TorchServe, the demo model and a real browser. Only the questions are chosen.
"""

import importlib.util
import re
import tempfile
import threading
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from experiments.load_test import run_load
from tests.support.browser import open_page, running_app, running_browser, send
from tests.support.running_cluster import running_cluster
from tests.support.serving import make_home, running_server, wait_until
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import DEFAULT_SETTINGS, ServingSettings

PICTURES = Path(__file__).resolve().parent
TIMEOUT_MS = 300_000
MARGIN = 16  # pixels around a part of a page
QUESTION = "What is the closest star to Earth?"
TWO_WORKERS = ServingSettings(batch_size=4, max_batch_delay_ms=50, workers=2)


def take(page: Page, name: str) -> None:
    page.mouse.move(0, 0)  # no tooltip
    page.screenshot(path=PICTURES / name)


def take_part(page: Page, first: Locator, last: Locator, name: str) -> None:
    """Takes a picture from the beginning of one element to the end of another, with a margin."""
    top, bottom = first.bounding_box(), last.bounding_box()
    assert top and bottom
    x, y = bottom["x"] - MARGIN, top["y"] - MARGIN
    width, height = bottom["width"] + 2 * MARGIN, bottom["y"] + bottom["height"] + MARGIN - y
    page.screenshot(path=PICTURES / name, clip={"x": x, "y": y, "width": width, "height": height})


def width_of(element: Locator) -> float:
    box = element.bounding_box()
    return box["width"] if box else 0


def draw_architecture(browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 640})
    page.goto((PICTURES / "architecture.svg").as_uri())
    page.screenshot(path=PICTURES / "architecture.png")


def picture_chat(browser: Browser, url: str) -> None:
    page = open_page(browser, f"{url}/?temperature=0.01&max_tokens=200&sidebar=Settings", height=800)
    send(page, QUESTION)
    expect(page.get_by_text(re.compile("tokens/s")).first).to_be_visible(timeout=TIMEOUT_MS)
    expect(page.get_by_text("ended by itself").first).to_be_visible(timeout=TIMEOUT_MS)
    take(page, "Client.png")


def picture_parallel_answers(browser: Browser, url: str) -> None:
    page = open_page(browser, f"{url}/?temperature=1&max_tokens=50&answers=4", width=1760, height=880)
    send(page, "Tell me a story about a lighthouse.")
    expect(page.get_by_text(re.compile("ended by itself|length limit reached"))).to_have_count(4, timeout=TIMEOUT_MS)
    # Only the wide layout has 1,000 pixels beside the sidebar. wait_for_function() would be blocked: no `unsafe-eval`.
    wait_until(lambda: width_of(page.get_by_test_id("stChatInput")) > 1000, TIMEOUT_MS / 1000, "the wide layout")
    take(page, "Parallel.png")


def picture_server(browser: Browser, url: str, ready: str, name: str) -> None:
    page = open_page(browser, url)
    expect(page.get_by_text(ready).first).to_be_visible(timeout=TIMEOUT_MS)
    expect(page.get_by_role("slider", name="Max Batch Delay")).to_be_visible(timeout=TIMEOUT_MS)
    use = page.get_by_test_id("stTable").get_by_text(re.compile(r"^\d+ %$"))  # known after the second poll
    expect(use.first).to_be_visible(timeout=TIMEOUT_MS)
    take(page, name)


def picture_experiment(browser: Browser, url: str) -> None:
    page = open_page(browser, url, height=1250)
    page.get_by_role("tab", name="Experiments").click()
    requests = page.get_by_label("Requests of each run", exact=True)
    requests.fill("32")
    requests.press("Tab")
    expect(page.get_by_text("3 runs, 96 requests")).to_be_visible(timeout=TIMEOUT_MS)
    page.get_by_role("button", name="Start experiment").click()
    chart = page.get_by_test_id("stVegaLiteChart").first
    expect(chart.locator("canvas, svg").first).to_be_visible(timeout=TIMEOUT_MS)
    title = page.get_by_text("Tokens per second by batch size")
    title.scroll_into_view_if_needed()
    take_part(page, title, chart, "batch_size.png")


def picture_nodes(browser: Browser, folder: Path) -> None:
    """Of a cluster that answers six people."""
    questions = [
        {"messages": [{"role": "user", "content": f"Tell me story {n}."}], "max_tokens": 100} for n in range(600)
    ]
    stop = threading.Event()
    with running_cluster(folder, PROJECT / "model_store") as cluster:
        config = ServerConfig.load(cluster.home / "config.properties")
        people = threading.Thread(target=run_load, args=(cluster.target, questions, 6), kwargs={"stop": stop})
        people.start()
        try:
            with running_app("torchserve_server_app.py", config, folder / "server.log") as url:
                page = open_page(browser, url, height=800)
                page.get_by_role("tab", name="Nodes").click()
                expect(page.get_by_text(re.compile("6 of 16 slots busy"))).to_be_visible(timeout=TIMEOUT_MS)
                cached = page.get_by_role("table").get_by_text(re.compile(r"^\d+ %$"))
                expect(cached).to_have_count(2, timeout=TIMEOUT_MS)
                expect(page.get_by_text("cluster.key")).to_be_visible(timeout=TIMEOUT_MS)  # its element comes late
                take(page, "Nodes.png")
        finally:
            stop.set()
            people.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        draw_architecture(browser)
        config = make_home(Path(folder) / "home", model_store=PROJECT / "model_store")
        with running_server(config):
            management = ManagementClient(config)
            management.register(DEFAULT_SETTINGS)
            with (
                running_app("client_app.py", config, config.logs / "client.log") as chat_url,
                running_app("torchserve_server_app.py", config, config.logs / "server.log") as server_url,
            ):
                picture_chat(browser, chat_url)
                picture_parallel_answers(browser, chat_url)
                picture_server(browser, server_url, "1 of 1 workers ready", "Server.png")
                picture_experiment(browser, server_url)
                management.apply(TWO_WORKERS)
                picture_server(browser, server_url, "2 of 2 workers ready", "Workers.png")
        if importlib.util.find_spec("ray"):
            picture_nodes(browser, Path(folder) / "cluster")
        else:
            print("Nodes.png stays as it is, because Ray is not installed: `make cluster` installs it.")


if __name__ == "__main__":
    main()
