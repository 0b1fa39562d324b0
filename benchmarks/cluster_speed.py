"""Measures what a cluster gives and costs on this machine, with two of its cores as two machines.

    python -m benchmarks.cluster_speed scale costs affinity --repeats 2 --rounds 3

- Two nodes with a core each against one node with one core: tokens/s of 16 clients (Linux, `taskset`).
- Through the entry against straight to the node's TorchServe: tokens/s, and the time to the first token.
- 40 conversations of 5 turns over two nodes by session and at random, and over one node: the cached share.

Clusters start one after the other. No prompt is sent twice.
"""

import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks import argument_parser
from benchmarks.conversations import run_many_conversations
from benchmarks.figures import Figures, line, load_figures, medians
from benchmarks.workloads import CLOSED_LOOPS, Workload, distinct
from experiments.load_test import Target, run_load, torchserve_target
from tests.support.running_cluster import RunningCluster, running_cluster
from torchserve_client.config import ServerConfig

SCALE = CLOSED_LOOPS["W16"]
COSTS = (CLOSED_LOOPS["W8"], Workload("WF", "1 client, 100 prompt tokens, 2 generated", 1, distinct(40, 2)))
CONVERSATIONS, TURNS, CLIENTS, ANSWER_TOKENS = 40, 5, 16, 16
RANDOM_KEYS = 16  # few, so that nearly every turn belongs to one that has a node
NODE_CORE, OTHER_CORE = 0, 1

Found = defaultdict[str, list[Figures]]


def measure(workload: Workload, target: Target, tag: object) -> Figures:
    figures = load_figures(run_load(target, workload.bodies(f"{workload.name} {tag} {time.time()}"), workload.clients))
    print(f"{workload.name:5} {target.name:10} {line(figures)}", flush=True)
    return figures


@contextmanager
def warm_cluster(n_nodes: int, cores: tuple[int, ...] = ()) -> Iterator[RunningCluster]:
    with (
        tempfile.TemporaryDirectory() as folder,
        running_cluster(Path(folder), ServerConfig.load().model_store, n_nodes, cores) as cluster,
    ):
        print(f"{n_nodes} nodes, cores {cores or 'all'}", flush=True)
        measure(Workload("warm", "", 8, distinct(16, 16)), cluster.target, "")
        yield cluster


def conversations(cluster: RunningCluster, name: str, at_random: bool = False) -> Figures:
    """at_random: the router takes each turn for one of a few conversations, which are on both nodes."""
    keys = [f"{name} {time.time()} {number}" for number in range(RANDOM_KEYS)]

    def fields() -> dict[str, Any]:
        return {"max_tokens": ANSWER_TOKENS, **({"prompt_cache_key": random.choice(keys)} if at_random else {})}

    figures = run_many_conversations(cluster.target, f"{name} {time.time()}", CONVERSATIONS, TURNS, CLIENTS, fields)
    print(f"40x5  {name:10} {line(figures)}", flush=True)
    return figures


def give_core(processes: list[psutil.Process], core: int) -> None:
    for process in processes:
        for thread in process.threads():
            psutil.Process(thread.id).cpu_affinity([core])


def split_cores(cluster: RunningCluster) -> psutil.Process:
    """The node and its TorchServe stay on one core; Ray and the entry get the other one. Returns the node's replica."""
    children = psutil.Process(cluster.process.pid).children(recursive=True)
    (node,) = [process for process in children if ":Node" in " ".join(process.cmdline())]
    give_core([process for process in children if process != node], OTHER_CORE)
    return node


def with_cpu_share(process: psutil.Process, workload: Workload, target: Target, tag: object) -> Figures:
    """`measure`, and the share of a core that the process takes meanwhile: it varies less than tokens/s."""
    begun, cpu = time.monotonic(), sum(process.cpu_times()[:2])
    figures = measure(workload, target, tag)
    return {**figures, "cpu_share": (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - begun)}


def measure_scale(found: Found, rounds: int) -> None:
    for n_nodes, cores, name in ((1, (NODE_CORE,), "one"), (2, (NODE_CORE, OTHER_CORE), "two")):
        with warm_cluster(n_nodes, cores) as cluster:
            for number in range(rounds):
                found[name].append(measure(SCALE, replace(cluster.target, name=name), number))


def measure_costs(found: Found, rounds: int) -> None:
    with warm_cluster(1, (NODE_CORE,)) as cluster:
        node = split_cores(cluster)
        targets = [
            replace(torchserve_target(cluster.config("node-1")), name="straight"),
            replace(cluster.target, name="entry"),
        ]
        for workload, number in itertools.product(COSTS, range(2 * rounds)):
            for target in targets if number % 2 else reversed(targets):
                found[f"{target.name} {workload.name}"].append(with_cpu_share(node, workload, target, number))


def measure_affinity(found: Found, rounds: int) -> None:
    for n_nodes, cores in ((1, (NODE_CORE,)), (2, (NODE_CORE, OTHER_CORE))):
        with warm_cluster(n_nodes, cores) as cluster:
            for _ in range(rounds):
                if n_nodes == 1:
                    found["one 40x5"].append(conversations(cluster, "one"))
                else:
                    found["session 40x5"].append(conversations(cluster, "session"))
                    found["random 40x5"].append(conversations(cluster, "random", at_random=True))


def report(found: Found) -> None:
    middle = {name: medians(figures) for name, figures in found.items()}
    for name, figures in middle.items():
        print(f"median {name:14} {line(figures)}")

    def ratio(figure: str, above: str, below: str) -> float:
        return middle[above][figure] / middle[below][figure]

    if "two" in middle:
        print(f"two nodes / one: tokens/s {ratio('tokens_per_second', 'two', 'one'):.3f}")
    if "entry WF" in middle:
        for figure in ("tokens_per_second", "per_token_p50_ms"):
            ratios = [
                entry[figure] / straight[figure]
                for entry, straight in zip(found["entry W8"], found["straight W8"], strict=True)
            ]
            print(f"entry / straight: {figure} {statistics.median(ratios):.3f}")
        more = middle["entry W8"]["cpu_share"] - middle["straight W8"]["cpu_share"]
        print(f"passing answers on takes {more:.3f} of the node's core")
        added = [
            entry["first_token_p50_ms"] - straight["first_token_p50_ms"]
            for entry, straight in zip(found["entry WF"], found["straight WF"], strict=True)
        ]
        print(f"the entry adds {statistics.median(added):.1f} ms to the first token")
    if "one 40x5" in middle:
        for name in ("session", "random"):
            print(f"cached share, two nodes by {name} / one: {ratio('cached_share', f'{name} 40x5', 'one 40x5'):.3f}")


PARTS = {"scale": measure_scale, "costs": measure_costs, "affinity": measure_affinity}


def main() -> int:
    parser = argument_parser("cluster_speed", __doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure (default: all)")
    parser.add_argument("--repeats", type=int, default=2, help="how often each cluster is started")
    parser.add_argument("--rounds", type=int, default=3, help="of each start")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    found: Found = defaultdict(list)
    for _, part in itertools.product(range(arguments.repeats), arguments.parts or PARTS):
        PARTS[part](found, arguments.rounds)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
