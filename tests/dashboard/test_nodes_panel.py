"""The tab with a cluster's nodes: its sentences without a browser, and the whole page in one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from streamlit.testing.v1 import AppTest

from apps.dashboard import cluster_nodes
from cluster.entry_file import ClusterEntry, entry_file, write_entry
from tests.dashboard.conftest import APP
from tests.support.accessibility import expect_no_violations
from tests.support.browser import open_page, running_app
from tests.support.cluster_answer import answer, node
from tests.support.scripted_server import Server, running_scripted_server
from tests.support.serving import write_echo_archives
from torchserve_client.config import ServerConfig

KEY = "key-of-the-cluster"
MARKUP = "**b** ![i](http://x/y) <b>n</b> :red[z] :smile: $x$ -> `c`"


@dataclass(frozen=True)
class Cluster:
    server: Server
    config: ServerConfig

    def write_entry(self, key: str = KEY) -> None:
        write_entry(self.config.home, ClusterEntry(f"http://127.0.0.1:{self.server.server_port}", key))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster without nodes and without its file. TorchServe, on the same port, has no model."""
    monkeypatch.setattr(cluster_nodes, "MAX_AGE_SECONDS", 0.0)
    with running_scripted_server(tmp_path) as (server, config):
        server.has_model = False
        server.cluster = 200, answer()
        server.valid_key = KEY
        monkeypatch.setenv("TS_CONFIG_FILE", str(config.path))
        yield Cluster(server, config)


def nodes_page() -> None:
    from apps.dashboard.nodes_panel import show_nodes
    from torchserve_client.config import ServerConfig

    show_nodes(ServerConfig.load())


def opened() -> AppTest:
    page = AppTest.from_function(nodes_page, default_timeout=60).run()
    assert not page.exception
    return page


def text_of(page: AppTest) -> str:
    kinds = (page.markdown, page.caption, page.code, page.error, page.warning, page.info)
    return "\n".join(element.value for kind in kinds for element in kind)


def test_sums_are_those_of_the_nodes_that_report(cluster: Cluster) -> None:
    cluster.write_entry()
    busy = node("b", requests=8, waiting=2, tokens_per_second=100, cached_share=None)
    silent = {"name": "d", "state": "starting"}
    cluster.server.cluster = 200, answer(node("a"), busy, node("c", "gone", waiting=50), silent, waiting=3)
    page = opened()

    sums = ("2 of 4 nodes serving", "11 of 16 slots busy", "5 requests waiting", "145 tokens/s", "1,837 MB")
    assert [part for part in sums if part not in text_of(page)] == []
    table = page.table[0].value
    assert [cell.split() for cell in table["Slots busy"]] == [["3", "of", "8"], ["8", "of", "8"], [], []]
    assert table["Cached"].tolist() == ["83 %", "", "", ""]


def test_of_a_thousand_nodes_those_that_need_attention_are_shown(cluster: Cluster) -> None:
    cluster.write_entry()
    nodes = [node(f"n{number}", requests=number % 8) for number in range(999)]
    cluster.server.cluster = 200, answer(*nodes, node("last", "gone", problem="x" * 5000))
    page = opened()

    table = page.table[0].value
    assert (len(table), table["Node"].iloc[0], table["Slots busy"].iloc[1][0]) == (50, "last", "7")
    assert "50 of 1,000 nodes: first those that do not serve, then the busiest." in text_of(page)
    assert len(page.warning[0].value) < 400


def test_each_failure_is_a_sentence_and_the_key_is_never_on_the_page(cluster: Cluster) -> None:
    cluster.write_entry("wrong")
    assert "refuses the key in" in opened().error[0].value
    cluster.write_entry()
    page = opened()
    assert page.info[0].value == "The cluster has no nodes yet. This page goes on by itself."
    assert f"TS_CONFIG_FILE={cluster.config.path} .venv/bin/python -m cluster.key" in text_of(page)
    assert KEY not in text_of(page)
    entry_file(cluster.config.home).chmod(0o644)
    assert "run `chmod 600" in opened().error[0].value
    entry_file(cluster.config.home).write_text("{")
    assert "cannot be read" in opened().error[0].value
    entry_file(cluster.config.home).unlink()
    assert opened().info[0].value == "The cluster has ended."


def test_the_tab_comes_and_goes_with_the_file_and_shows_names_as_they_are(
    cluster: Cluster, browser: Browser, tmp_path: Path
) -> None:
    cluster.config.model_store.mkdir()
    write_echo_archives(cluster.config)  # axe: without an archive, the label of their list is pale
    with running_app(APP, cluster.config, tmp_path / "app.log") as url:
        page = open_page(browser, f"{url}?panel=Nodes")
        expect(page.get_by_role("tab", name="Status")).to_have_attribute("aria-selected", "true")
        tab = page.get_by_role("tab", name="Nodes")
        expect(tab).to_have_count(0)

        problem = "It ended: ![i](http://x/y)"
        cluster.server.cluster = 200, answer(node(MARKUP), node("node-2", "gone", problem=problem))
        cluster.write_entry()
        tab.click()
        table = page.get_by_role("table")
        expect(table.get_by_role("cell").filter(has_text="serving")).to_be_visible()
        name = table.get_by_role("cell").first
        assert name.inner_text().replace("\u2060", "").strip() == MARKUP
        assert name.locator("b, strong, img, code, a").count() == 0
        expect(page.get_by_role("alert").filter(has_text="node-2")).to_be_visible()
        expect_no_violations(page)
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0

        entry_file(cluster.config.home).unlink()
        expect(tab).to_have_count(0)
        expect(page.get_by_role("tab", name="Status")).to_have_attribute("aria-selected", "true")
        page.context.close()
