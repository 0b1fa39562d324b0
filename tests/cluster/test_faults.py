"""What clients see when a part of the cluster is killed. All requests end, and the cluster repairs itself.

`python -m benchmarks.cluster_faults` measures the same with more clients and more rounds.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from experiments.load_test import Sample, run_load
from tests.cluster.conftest import needs_ray
from tests.support.running_cluster import RunningCluster
from tests.support.serving import make_home, wait_until
from torchserve_client.config import PROJECT

pytestmark = needs_ray

N_CLIENTS = 4
N_TOKENS, ENDLESS = 60, 3000
REPAIR_SECONDS = 300.0
Find = Callable[[RunningCluster], psutil.Process | None]
VICTIMS: dict[str, Find] = {
    "worker": lambda cluster: next(iter(cluster.workers("node-2")), None),
    "TorchServe": lambda cluster: cluster.server("node-2"),
    "raylet": lambda cluster: cluster.raylet("node-2"),
    "raylet of the head": lambda cluster: cluster.raylet("node-1"),
}


def stream_all(
    cluster: RunningCluster, on_all_begun: Callable[[], None], tag: str, until_cut: bool = False
) -> list[Sample]:
    """Answers of some clients at once. on_all_begun is called when each of them has text.

    Each begins when the one before it has text, so both nodes get some. until_cut: answers are endless, and the others
    are cancelled when one has been cut.
    """
    begun, stop, n_tokens = threading.Semaphore(0), threading.Event(), ENDLESS if until_cut else N_TOKENS
    bodies = [
        {"messages": [{"role": "user", "content": f"{tag} {number}"}], "max_tokens": n_tokens, "ignore_eos": True}
        for number in range(N_CLIENTS)
    ]
    runs: list[Sample] = []

    def send(number: int) -> None:
        is_first = iter([True])
        run = run_load(
            cluster.target,
            [bodies[number]],
            1,
            on_text=lambda: begun.release() if next(is_first, False) else None,
            stop=stop,
        )
        runs.extend(run.samples)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=REPAIR_SECONDS), "an answer has not begun"
    on_all_begun()
    if until_cut:
        wait_until(lambda: any(sample.error for sample in runs), REPAIR_SECONDS, "a cut answer")
        stop.set()
    for thread in threads:
        thread.join(REPAIR_SECONDS)
        assert not thread.is_alive(), "a request has no end"
    return runs


@pytest.mark.parametrize("victim", VICTIMS)
def test_cut_answers_say_so_and_the_cluster_repairs_itself(cluster: RunningCluster, victim: str) -> None:
    wait_until(cluster.serves, REPAIR_SECONDS, "all nodes serve")
    process = wait_until(lambda: VICTIMS[victim](cluster), what=victim)
    assert process is not None
    samples = stream_all(cluster, process.kill, victim, until_cut=True)
    assert samples and all("The answer was cut" in str(sample.error) for sample in samples)
    wait_until(lambda: not process.is_running() and cluster.serves(), REPAIR_SECONDS, "the cluster is repaired")
    assert not any(sample.error for sample in stream_all(cluster, lambda: None, f"after {victim}"))


def test_a_torchserve_that_hangs_is_named_and_replaced(cluster: RunningCluster) -> None:
    wait_until(cluster.serves, REPAIR_SECONDS, "all nodes serve")
    server = wait_until(lambda: cluster.server("node-2"), what="TorchServe")
    assert server is not None

    def problem() -> str:
        return next(str(node.get("problem")) for node in cluster.nodes() if node["name"] == "node-2")

    def hang() -> None:
        server.suspend()
        wait_until(lambda: "has not answered for" in problem(), REPAIR_SECONDS, "the problem is named")

    samples = stream_all(cluster, hang, "hanging", until_cut=True)
    assert samples and all("The answer was cut" in str(sample.error) for sample in samples)
    wait_until(lambda: not server.is_running() and cluster.serves(), REPAIR_SECONDS, "the cluster is repaired")
    assert not any(sample.error for sample in stream_all(cluster, lambda: None, "after hanging"))


def test_the_end_of_serves_controller_disturbs_nobody(cluster: RunningCluster) -> None:
    wait_until(cluster.serves, REPAIR_SECONDS, "all nodes serve")

    def programs(name: str) -> list[psutil.Process]:
        children = psutil.Process(cluster.process.pid).children(recursive=True)
        return [process for process in children if name in " ".join(process.cmdline())]

    (entry,) = programs("ServeReplica:llama:Entry")
    (controller,) = programs("ServeController")
    samples = stream_all(cluster, controller.kill, "controller")
    assert [sample.error for sample in samples] == [None] * N_CLIENTS
    wait_until(lambda: programs("ServeController") not in ([], [controller]), REPAIR_SECONDS, "another controller")
    wait_until(cluster.serves, REPAIR_SECONDS, "all nodes serve")
    assert not any(sample.error for sample in stream_all(cluster, lambda: None, "after controller"))
    assert programs("ServeReplica:llama:Entry") == [entry]


def test_a_drained_node_ends_its_answers_before_it_is_reported_as_drained(cluster: RunningCluster) -> None:
    wait_until(cluster.serves, REPAIR_SECONDS, "all nodes serve")
    server = wait_until(lambda: cluster.server("node-2"), what="TorchServe")
    outcomes = []

    def drain() -> None:
        command = [sys.executable, "-m", "cluster.drain", "node-2"]
        outcomes.append(
            subprocess.run(command, cwd=PROJECT, env=cluster.environment, capture_output=True, text=True, check=False)
        )
        assert server is not None and not server.is_running()

    samples = stream_all(cluster, drain, "drain")
    assert [sample.error for sample in samples] == [None] * N_CLIENTS
    assert outcomes[0].returncode == 0, outcomes
    wait_until(cluster.serves, REPAIR_SECONDS, "the node is back")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("node-9", "There is no node 'node-9'. The nodes are: node-1, node-2.\n"),
        ("node-1", "node-1 is the head, and the entry is there: stop the cluster instead.\n"),
    ],
)
def test_an_unknown_node_and_the_head_cannot_be_drained(cluster: RunningCluster, name: str, sentence: str) -> None:
    command = [sys.executable, "-m", "cluster.drain", name]
    drained = subprocess.run(command, cwd=PROJECT, env=cluster.environment, capture_output=True, text=True, check=False)
    assert (drained.returncode, drained.stderr) == (1, sentence)


def test_without_a_cluster_nothing_can_be_drained(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    command = [sys.executable, "-m", "cluster.drain", "node-1"]
    drained = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert drained.returncode == 1
    assert drained.stderr.endswith("run this where `python -m cluster` has deployed.\n")
