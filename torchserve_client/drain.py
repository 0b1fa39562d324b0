"""What the model is answering now, and waiting until that is nothing.

Whoever takes a worker away must wait: TorchServe 0.12 leaves the requests that an unregistered model or a removed
worker was answering without an answer and with their connections open, for ever (tried). So it does with one that it
holds back until max_batch_delay is over, in case another one comes for the same batch: nothing tells of that one. New
requests are served while one waits, because TorchServe cannot refuse them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torchserve_client.config import ServerConfig
from torchserve_client.metrics import ARRIVED, Snapshot, scrape
from torchserve_client.status import ModelStatus, WorkerStatus

DRAIN_SECONDS = 60.0
LOOK_SECONDS = 0.25
LETTING = "Letting "  # how a sentence about waiting for requests begins
IDLE_CPU_SHARE = 0.1  # of one core; a worker that computes takes a whole one


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How long to wait for requests in progress. `is_over`: somebody does not want to wait any longer.

    `tell` gets a sentence whenever there is something new to say.
    """

    seconds: float = DRAIN_SECONDS
    is_cancelled: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda sentence: None


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests that wait in TorchServe's queue, and those that a worker has taken."""

    waiting: int
    running: int

    @property
    def requests(self) -> int:
        return self.waiting + self.running

    @classmethod
    def of(cls, model: ModelStatus, snapshot: Snapshot) -> RequestCounts:
        return cls(model.pending_requests, _running(snapshot, model.workers))


def _running(snapshot: Snapshot, workers: tuple[WorkerStatus, ...]) -> int:
    """Workers that cannot answer count as idle: what they once reported stays in the metrics."""
    gauges = ("llamacpp_slots_busy", "llamacpp_requests_waiting")
    return int(sum(snapshot.gauge(name, worker.id) for worker in workers if worker.is_ready for name in gauges))


def drain(
    config: ServerConfig,
    describe: Callable[[], ModelStatus | None],
    drain_policy: DrainPolicy,
    last: int | None = None,
    version: str | None = None,
) -> float | None:
    """Returns once no request is being answered or waits; None when the patience is over before that.

    last: how many of the last workers have to be quiet; None is all of them and the queue.
    version: whose requests count, where the model has several; it is not the default one.
    Returns how many requests had arrived by then since TorchServe's start; if that grows, somebody came later.
    """
    deadline = time.monotonic() + drain_policy.seconds
    before: Snapshot | None = None
    arrived_at = time.monotonic()
    while True:
        model, after = describe(), scrape(config)
        if model is None:
            return after.total(ARRIVED, version)
        workers = model.workers if last is None else model.workers[-last:]
        traffic = RequestCounts(model.pending_requests if last is None else 0, _running(after, workers))
        if before is None or after.total(ARRIVED, version) != before.total(ARRIVED, version):
            arrived_at = time.monotonic()
        held_back = arrived_at + _company_seconds(model) - time.monotonic()
        if before and not traffic.requests and held_back < 0 and _is_still(before, after, workers):
            return after.total(ARRIVED, version)
        left = deadline - time.monotonic()
        if left < 0 or drain_policy.is_cancelled():
            return None
        if traffic.requests:
            drain_policy.tell(f"{LETTING}{_counted(traffic.requests)} finish, {left:.0f} s at most")
        elif held_back > 1:
            drain_policy.tell(
                f"{LETTING}the max batch delay pass, in which TorchServe may hold a request: {held_back:.0f} s"
            )
        before = after
        time.sleep(LOOK_SECONDS)


def _company_seconds(model: ModelStatus) -> float:
    """How long TorchServe holds a request back for others to come, out of everybody's sight."""
    return model.settings.max_batch_delay_ms / 1000 if model.settings.batch_size > 1 else 0.0


def _counted(requests: int) -> str:
    return "1 request" if requests == 1 else f"{requests} requests"


def _is_still(before: Snapshot, after: Snapshot, workers: tuple[WorkerStatus, ...]) -> bool:
    """Whether nothing has been computed in between: a worker reports a request only after its first step."""
    ids = {worker.id for worker in workers if worker.is_ready}
    earlier = {process.pid: process.cpu_seconds for process in before.workers}
    allowed = IDLE_CPU_SHARE * (after.at - before.at)
    return all(
        process.cpu_seconds - earlier.get(process.pid, 0.0) <= allowed
        for process in after.workers
        if process.worker in ids
    )
