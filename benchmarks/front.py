"""Measures what the front costs: each workload straight to TorchServe and through the front, in turn.

    python -m benchmarks.front --rounds 8

Starts the front for the TorchServe of config.properties (or TS_CONFIG_FILE). Prints the figures of each round, their
medians, and the medians of the ratios and differences front to straight. Every round begins with the other target, and
no prompt is sent twice.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import argument_parser
from benchmarks.figures import Figures, compare, line, load_figures, medians
from benchmarks.workloads import CLOSED_LOOPS, Workload, distinct
from experiments.load_test import Target, run_load, torchserve_target
from tests.support.serving import free_ports, wait_until
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.keys import Keys
from torchserve_client.running_server import is_listening

HOST = "127.0.0.1"
WORKLOADS = (CLOSED_LOOPS["W8"], Workload("WF", "1 client, 100 prompt tokens, 2 generated", 1, distinct(40, 2)))
FIRST_TOKEN = "first_token_p50_ms"


@contextmanager
def running_front(config: ServerConfig) -> Iterator[Target]:
    """`python -m front` on a free port."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "front", "--port", str(port)]
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_listening(HOST, port), what="the front listens")
        yield Target("front", f"http://{HOST}:{port}/v1", Keys(config, "inference"))
    finally:
        process.terminate()
        process.wait()


def run_round(workload: Workload, targets: Sequence[Target], number: int, seed: int = 0) -> dict[str, Figures]:
    """The figures of each target, by its name. Raises WorkloadFailed."""
    figures = {}
    for target in targets if number % 2 else reversed(targets):
        bodies = workload.bodies(f"{workload.name} {number} {seed} {target.name}")
        figures[target.name] = load_figures(run_load(target, bodies, workload.clients))
        print(f"{target.name:10} {line(figures[target.name])}", flush=True)
    return figures


def first_token_difference_ms(rounds: Sequence[dict[str, Figures]]) -> float:
    """The median, over the rounds, of the time that the front adds."""
    return statistics.median(figures["front"][FIRST_TOKEN] - figures["straight"][FIRST_TOKEN] for figures in rounds)


def main() -> int:
    parser = argument_parser("front", __doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="of all texts")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    config = ServerConfig.load()
    report = {}
    with running_front(config) as front:
        targets = [replace(torchserve_target(config), name="straight"), front]
        for target in targets:  # the first requests are slower than the later ones
            run_load(target, distinct(2)(f"warm-up {target.name}"), clients=2)
        for workload in WORKLOADS:
            print(f"\n{workload.name}: {workload.about}", flush=True)
            rounds = [run_round(workload, targets, number, arguments.seed) for number in range(arguments.rounds)]
            for target in targets:
                print(f"median of {target.name}: {line(medians(each[target.name] for each in rounds))}")
            print(f"front / straight: {line(compare(rounds, 'front', 'straight'))}")
            if workload.clients == 1:  # with eight, chance decides which request is first in a batch
                print(f"the front adds {first_token_difference_ms(rounds):.1f} ms to the first token")
            report[workload.name] = rounds
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
