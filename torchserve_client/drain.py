"""Counts the requests in progress, and waits until there are none. Starts, stops and changes nothing.

A worker must be idle before it ends. TorchServe 0.12 never answers the requests of an unregistered model or of a
removed worker, and leaves their connections open. It does this also to a request that waits for its batch to fill, up
to max_batch_delay. Such a request appears in no metric. TorchServe serves new requests during the wait, because it
cannot refuse them (docs/torchserve-facts.md).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torchserve_client.config import ServerConfig
from torchserve_client.metrics import ARRIVED, MetricsSnapshot, scrape
from torchserve_client.status import ModelStatus, WorkerStatus

DRAIN_SECONDS = 60.0
DRAIN_POLL_SECONDS = 0.25
IDLE_CPU_SHARE = 0.1  # of one core; a worker that computes takes a whole core


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """How long requests in progress may take to finish. `is_cancelled` becomes True to skip the rest of the wait.

    on_progress gets a sentence about every step of a change; on_drain (None: on_progress) gets one at every poll.
    """

    seconds: float = DRAIN_SECONDS
    is_cancelled: Callable[[], bool] = lambda: False
    on_progress: Callable[[str], None] = lambda sentence: None
    on_drain: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests that wait in TorchServe's queue, and requests that a worker has taken."""

    waiting: int
    running: int

    @property
    def requests(self) -> int:
        return self.waiting + self.running

    @classmethod
    def of(cls, model: ModelStatus, metrics: MetricsSnapshot) -> Self:
        return cls(model.pending_requests, _running(metrics, model.workers))


def _running(metrics: MetricsSnapshot, workers: tuple[WorkerStatus, ...]) -> int:
    """The requests of those workers. A worker that is not ready counts as idle: its last metrics are stale."""
    gauges = ("llamacpp_slots_busy", "llamacpp_requests_waiting")
    return int(sum(metrics.gauge(name, worker.id) for worker in workers if worker.is_ready for name in gauges))


def drain(
    config: ServerConfig,
    describe: Callable[[], ModelStatus | None],
    drain_policy: DrainPolicy,
    last: int | None = None,
    version: str | None = None,
) -> float | None:
    """Waits until no request is in progress. Returns None if the wait was cancelled or took too long.

    last: wait only for so many of the last workers; None waits for all workers and for the queue.
    version: count only requests for this version, which is not the default one.
    Returns how many requests had arrived since TorchServe's start. If that number grows later, a request came too late.
    """
    on_drain = drain_policy.on_drain or drain_policy.on_progress
    deadline = time.monotonic() + drain_policy.seconds
    before: MetricsSnapshot | None = None
    arrived_at = time.monotonic()
    while True:
        model, after = describe(), scrape(config)
        if model is None:
            return after.total(ARRIVED, version)
        workers = model.workers if last is None else model.workers[-last:]
        counts = RequestCounts(model.pending_requests if last is None else 0, _running(after, workers))
        arrived = after.total(ARRIVED, version)
        if before is None or arrived != before.total(ARRIVED, version):
            arrived_at = time.monotonic()
        # A request may wait in TorchServe for its batch to fill, without appearing in any metric.
        batch_fill_seconds = model.settings.max_batch_delay_ms / 1000 if model.settings.batch_size > 1 else 0.0
        batch_fill_left = arrived_at + batch_fill_seconds - time.monotonic()
        if before and not counts.requests and batch_fill_left < 0 and _are_idle(before, after, workers):
            return arrived
        seconds_left = deadline - time.monotonic()
        if seconds_left < 0 or drain_policy.is_cancelled():
            return None
        if counts.requests:
            plural = "" if counts.requests == 1 else "s"
            on_drain(f"Letting {counts.requests} request{plural} finish, {seconds_left:.0f} s at most")
        elif batch_fill_left > 1:
            on_drain(f"Letting the max batch delay pass, in which a batch may fill: {batch_fill_left:.0f} s")
        before = after
        time.sleep(DRAIN_POLL_SECONDS)


def _are_idle(before: MetricsSnapshot, after: MetricsSnapshot, workers: tuple[WorkerStatus, ...]) -> bool:
    """Whether the workers computed nothing in between. A worker reports a request only after its first step."""
    ids = {worker.id for worker in workers if worker.is_ready}
    earlier = {process.pid: process.cpu_seconds for process in before.workers}
    allowed = IDLE_CPU_SHARE * (after.at - before.at)
    return all(
        process.cpu_seconds - earlier.get(process.pid, 0.0) <= allowed
        for process in after.workers
        if process.worker in ids
    )
