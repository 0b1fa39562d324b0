"""Both apps beside a cluster, in a real browser. TorchServe of config.properties itself does not run."""

from pathlib import Path

from playwright.sync_api import Browser, expect

from cluster.entry_file import read_entry
from tests.cluster.conftest import needs_ray
from tests.support.browser import open_page, running_app, send
from tests.support.running_cluster import RunningCluster
from tests.support.serving import wait_until
from torchserve_client.config import ServerConfig

pytestmark = needs_ray

ANSWER_MS = 300_000


def test_the_chat_uses_the_cluster_with_one_press(cluster: RunningCluster, browser: Browser, tmp_path: Path) -> None:
    config = ServerConfig.load(cluster.home / "config.properties")
    wait_until(lambda: read_entry(config.home), what="the cluster's file")
    wait_until(cluster.serves, ANSWER_MS / 1000, "all nodes serve")
    with running_app("client_app.py", config, tmp_path / "chat.log") as url:
        page = open_page(browser, f"{url}?max_tokens=16&sidebar=Settings")
        page.get_by_text("Server", exact=True).click()
        page.get_by_role("button", name="Use the cluster").click()
        expect(page.get_by_role("textbox", name="Base URL")).to_have_value(cluster.url)
        expect(page.get_by_text("llamacpp").first).to_be_visible(timeout=ANSWER_MS)
        send(page, "What is the closest star to Earth?")
        expect(page.get_by_text("tokens/s").first).to_be_visible(timeout=ANSWER_MS)
        assert cluster.key not in page.content()
        page.context.close()
    assert cluster.key not in (tmp_path / "chat.log").read_text()


def test_the_server_app_shows_what_the_nodes_do(cluster: RunningCluster, browser: Browser, tmp_path: Path) -> None:
    config = ServerConfig.load(cluster.home / "config.properties")
    wait_until(cluster.serves, ANSWER_MS / 1000, "all nodes serve")
    with running_app("torchserve_server_app.py", config, tmp_path / "server.log") as url:
        page = open_page(browser, url)
        page.get_by_role("tab", name="Nodes").click()
        expect(page.get_by_text("2 of 2 nodes serving")).to_be_visible()
        rows = page.get_by_role("table").get_by_role("row")
        for number, name in ((1, "node-1"), (2, "node-2")):
            cells = rows.nth(number).get_by_role("cell")
            expect(cells.nth(0)).to_have_text(name)
            expect(cells.nth(2)).to_contain_text("of")
            expect(cells.nth(6)).to_contain_text("MB")
        assert cluster.key not in page.content()
        page.context.close()
