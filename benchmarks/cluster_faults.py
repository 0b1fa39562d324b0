"""Kills a worker, a TorchServe and a raylet of a cluster in turn, while 16 clients stream, and measures what they see.

    python -m benchmarks.cluster_faults --rounds 20

Starts a cluster of two nodes on this machine. Each round kills one process of node-2 with SIGKILL, waits until both
nodes serve again, and lets every request end. Fails if a request has no end, or if a cut answer is not marked as cut.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks import argument_parser
from benchmarks.workloads import body, text
from experiments.load_test import Sample, run_load
from tests.support.running_cluster import RunningCluster, running_cluster
from tests.support.serving import wait_until
from torchserve_client.config import ServerConfig

CLIENTS = 16
CUT = "The answer was cut"
RECOVERY_SECONDS = 180.0
END_SECONDS = 180.0


@dataclass
class Clients:
    """They send chats until `stop` is set. ended: the time at which each request ended, and its sample."""

    cluster: RunningCluster
    stop: threading.Event = field(default_factory=threading.Event)
    ended: list[tuple[float, Sample]] = field(default_factory=list)

    def run(self, number: int) -> None:
        turn = 0
        while not self.stop.is_set():
            turn += 1
            question = [{"role": "user", "content": f"{number} {turn} {text(20, number, turn, time.time())}"}]
            (sample,) = run_load(self.cluster.target, [body(question, turn, 48)], 1).samples
            self.ended.append((time.monotonic(), sample))
            if sample.error and not sample.events:
                self.stop.wait(1.0)  # as the header Retry-After asks for


def victim(cluster: RunningCluster, kind: str) -> psutil.Process:
    find: dict[str, Callable[[], psutil.Process | None]] = {
        "worker": lambda: next(iter(cluster.workers("node-2")), None),
        "TorchServe": lambda: cluster.server("node-2"),
        "raylet": lambda: cluster.raylet("node-2"),
    }
    process = wait_until(find[kind], RECOVERY_SECONDS, f"a {kind} of node-2")
    assert process is not None
    return process


def run_round(cluster: RunningCluster, clients: Clients, kind: str) -> dict[str, float]:
    process, n_before, killed_at = victim(cluster, kind), len(clients.ended), time.monotonic()
    process.kill()
    wait_until(lambda: not cluster.serves(), RECOVERY_SECONDS, "the entry notices the end")
    noticed_at = time.monotonic()
    wait_until(cluster.serves, RECOVERY_SECONDS, "both nodes serve")
    back_at = time.monotonic()
    wait_until(lambda: sum(at > back_at for at, _ in clients.ended) >= CLIENTS, END_SECONDS, "every client goes on")
    ended = clients.ended[n_before:]
    errors = Counter(sample.error for _, sample in ended if sample.error)
    unmarked = [error for error in errors if CUT not in error]
    assert not unmarked, unmarked
    good_after = [at for at, sample in ended if not sample.error and at > killed_at]
    figures = {
        "noticed_s": noticed_at - killed_at,
        "back_s": back_at - killed_at,
        "cut": errors.total(),
        "good": len(good_after),
        "longest_gap_s": max(b - a for a, b in zip([killed_at, *good_after], good_after, strict=False)),
    }
    print(f"{kind:10} " + "  ".join(f"{name} {value:.1f}" for name, value in figures.items()), flush=True)
    return figures


def main() -> int:
    parser = argument_parser("cluster_faults", __doc__)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    kinds = ("worker", "TorchServe", "raylet")
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_cluster(Path(folder), ServerConfig.load().model_store) as cluster,
    ):
        clients = Clients(cluster)
        threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: len(clients.ended) >= CLIENTS, END_SECONDS, "every client has an answer")
            for number in range(arguments.rounds):
                rounds[kinds[number % 3]].append(run_round(cluster, clients, kinds[number % 3]))
        finally:
            clients.stop.set()
            for thread in threads:
                thread.join(END_SECONDS)
        assert not any(thread.is_alive() for thread in threads), "a request has no end"
    for kind, figures in rounds.items():
        for name in figures[0] if figures else ():
            values = [each[name] for each in figures]
            print(f"{kind:10} {name:14} median {statistics.median(values):6.1f}  most {max(values):6.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
