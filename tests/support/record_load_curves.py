"""Records the autoscaler's observations of a real server under load, for tests/autoscaler/test_policy.py.

Run `python -m tests.support.record_load_curves` after `make package`. It writes tests/autoscaler/load_curves/*.csv.
"""

import csv
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from autoscaler.control import switch_off, switch_on
from autoscaler.policy import Observation, Policy
from autoscaler.state_files import read_report
from experiments.load_test import Run, run_load, torchserve_target
from experiments.prompts import make_bodies
from tests.support.serving import make_home, running_server, wait_until
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

CURVES = Path(__file__).resolve().parents[1] / "autoscaler" / "load_curves"
POLICY = Policy(min_workers=1, max_workers=3, max_memory_percent=90, calm_seconds=10, pause_seconds=4)
LOADS = {  # clients, requests, tokens of each answer
    "burst": (12, 72, 64),  # more requests than one batch wait for a long time
    "hiccup": (8, 8, 96),  # a whole batch waits for a short time
    "trickle": (1, 12, 32),  # no request waits
}


def load(config: ServerConfig, clients: int, requests: int, max_tokens: int) -> Run:
    return run_load(torchserve_target(config), make_bodies("short", requests, max_tokens, str(time.time())), clients)


def record(config: ServerConfig, work: Callable[[], Run]) -> list[Observation]:
    """The observations from before the load until one worker has been free for a while."""
    seen: list[Observation] = []

    def observe() -> Observation | None:
        report = read_report(config)
        if report and report.observation and report.observation not in seen:
            seen.append(report.observation)
        return seen[-1] if seen else None

    wait_until(observe, what="the first observation")
    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: observe() and not thread.is_alive(), timeout=200, what="the load")
    ended = time.monotonic()
    calm = POLICY.calm_seconds

    def is_calm() -> bool:
        last = observe()
        return last is not None and last.workers == 1 and time.monotonic() > ended + calm

    wait_until(is_calm, timeout=100, what="one worker")
    return seen


def write(name: str, seen: list[Observation]) -> None:
    first = seen[0].at
    with (CURVES / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Observation)])
        table.writeheader()
        for each in seen:
            row = asdict(each)
            waited = round(each.oldest_wait_seconds, 2)
            table.writerow(row | {"at": round(each.at - first, 2), "oldest_wait_seconds": waited})


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        config = make_home(Path(home) / "home", model_store=PROJECT / "model_store")
        with running_server(config):
            ManagementClient(config).register(ServingSettings(batch_size=4, max_batch_delay_ms=50, workers=1))
            switch_on(config, POLICY)
            for name, (clients, requests, max_tokens) in LOADS.items():
                write(name, record(config, partial(load, config, clients, requests, max_tokens)))
            switch_off(config)


if __name__ == "__main__":
    main()
