"""A cluster's answers, also wrong and hostile ones: nodes, or a sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.dashboard import cluster_nodes
from apps.dashboard.cluster_nodes import ClusterNode, ClusterNodes
from cluster.entry_file import ClusterEntry
from tests.support.cluster_answer import answer, node
from tests.support.scripted_server import Server, running_scripted_server
from tests.support.serving import free_ports, wait_until

FILE = Path("/home/me/.cluster/entry.json")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running_scripted_server(tmp_path) as (server, _):
        server.valid_key = "the-key"
        yield server


def nodes_of(server: Server, key: str = "the-key") -> ClusterNodes:
    return ClusterNodes(ClusterEntry(f"http://127.0.0.1:{server.server_port}", key), FILE)


def test_nodes_are_in_the_clusters_order(server: Server) -> None:
    server.cluster = 200, answer(node("b"), {"name": "a", "state": "gone"})

    first, second = nodes_of(server).latest().nodes

    assert first == ClusterNode("b", "serving", 3, 8, 0, 45.2, 0.83, 963_000_000, "")
    assert second == ClusterNode("a", "gone")


def test_a_thousand_nodes_are_read(server: Server) -> None:
    server.cluster = 200, answer(*(node(f"node-{number}") for number in range(1000)))
    assert len(nodes_of(server).latest().nodes) == 1000


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests": "3"},
        {"requests": -1},
        {"requests": 1.5},
        {"requests": True},
        {"slots": 10**400},
        {"tokens_per_second": float("nan")},
        {"tokens_per_second": float("inf")},
        {"cached_share": 83},
        {"memory_bytes": None},
        {"name": ""},
        {"name": "a" * 101},
        {"state": "asleep"},
        {"problem": ["It ended."]},
    ],
    ids=str,
)
def test_a_wrong_value_is_a_sentence(server: Server, wrong: dict[str, Any]) -> None:
    server.cluster = 200, answer(node("node-1"), node("node-2") | wrong)
    reading = nodes_of(server).latest()
    assert reading.nodes == ()
    assert reading.problem.startswith("The cluster at http://127.0.0.1:")
    assert reading.problem.endswith("run the same version at both places.")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"nodes": {}}', '{"nodes": [1]}', '{"nodes": [{}]}', "[" * 100_000, "<html>"],
    ids=lambda text: text[:12],
)
def test_another_form_is_a_sentence(server: Server, text: str) -> None:
    server.cluster = 200, text
    assert "does not describe its nodes as this version expects" in nodes_of(server).latest().problem


def test_no_answer_a_refused_key_and_an_error_have_a_next_step(server: Server) -> None:
    address = f"http://127.0.0.1:{server.server_port}"
    assert nodes_of(server, "wrong").latest().problem == (
        f"The cluster at {address} refuses the key in {FILE}: correct it, or start the cluster again."
    )
    server.cluster = 404, json.dumps({"error": {"message": "There is no GET /cluster here"}})
    assert nodes_of(server).latest().problem.startswith(f"The server at {address} is no cluster: correct the url")
    server.cluster = 503, json.dumps({"error": {"message": "No node ![is](http://x) ready"}})
    assert nodes_of(server).latest().problem.startswith(f"The cluster at {address} cannot answer now (No node \\!\\[is")

    nobody = ClusterNodes(ClusterEntry(f"http://127.0.0.1:{free_ports(1)[0]}", "the-key"), FILE)
    assert nobody.latest().problem.endswith(
        f"Start it with `make cluster`, or delete {FILE} if it is not needed any more."
    )


def test_pages_share_one_query_and_wait_for_it_only_for_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_nodes, "WAIT_SECONDS", 0.05)
    server.cluster = 200, answer(node("node-1"))
    server.is_quick.clear()
    nodes = nodes_of(server)

    assert all("does not answer in time" in nodes.latest().problem for _ in range(5))
    assert server.n_waiting == 1

    server.is_quick.set()
    wait_until(lambda: nodes.latest().nodes, what="the answer")


def test_a_late_answer_leaves_the_one_before_until_that_is_stale(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_nodes, "MAX_AGE_SECONDS", 0.0)
    server.cluster = 200, answer(node("node-1"))
    nodes = nodes_of(server)
    before = nodes.latest()
    monkeypatch.setattr(cluster_nodes, "WAIT_SECONDS", 0.05)
    server.cluster = 200, answer(node("node-2"))
    server.is_quick.clear()
    assert before.nodes
    assert nodes.latest() == before

    monkeypatch.setattr(cluster_nodes, "STALE_SECONDS", 0.0)
    assert "does not answer in time" in nodes.latest().problem
    server.is_quick.set()
    wait_until(lambda: [node.name for node in nodes.latest().nodes] == ["node-2"], what="the late answer")
