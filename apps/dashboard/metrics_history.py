"""The last minutes of a server's metrics, for as many viewers as there are: one poll serves them all.

Knows no page. Threads: viewers may call poll() and points() at the same time; TorchServe is asked in a thread of its
own, the only one that writes, and never in two.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import (
    ARRIVED,
    FIRST_TOKEN,
    Snapshot,
    cpu_percent,
    mean,
    percentile,
    rate,
    scrape,
)

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 0.3
EARLY_SECONDS = 0.1  # a viewer's timer may be that early
HISTORY_SECONDS = 300
WINDOW_SECONDS = 30  # a time to first token is known when the answer has ended; in 2 s there are few of them
HISTORY_POINTS = int(HISTORY_SECONDS / POLL_SECONDS)
WINDOW_POINTS = int(WINDOW_SECONDS / POLL_SECONDS)
GAP_SECONDS = 3 * POLL_SECONDS  # nobody looked for longer than that: what happened meanwhile is not shown


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """cpu_percent: of one core since the point before; None for a process that was not there then."""

    worker: str
    cpu_percent: float | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Point:
    """One moment, `at` in seconds since the epoch. Rates are since the point before.

    first_token_ms and first_token_p95_ms: of the answers that ended in the last WINDOW_SECONDS, from the request's
    arrival in its worker; None without any.
    queued: requests in TorchServe's queue, which comes before the workers.
    """

    at: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    first_token_ms: float | None
    first_token_p95_ms: float | None
    queued: int
    slots_busy: int
    slots: int
    cache_tokens: int
    cache_capacity_tokens: int
    processes: tuple[ProcessUse, ...]


class MetricsHistory:
    """At most HISTORY_SECONDS of points; `problem` says why there is no newer one, "" where all is well."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._lock = threading.Lock()
        self._points: deque[Point] = deque(maxlen=HISTORY_POINTS)
        self._snapshots: deque[Snapshot] = deque(maxlen=WINDOW_POINTS + 1)
        self._polled_at = float("-inf")
        self._poll: threading.Thread | None = None
        self._arrived_when_empty: float | None = None
        self.problem = ""

    def points(self) -> list[Point]:
        oldest = time.time() - HISTORY_SECONDS
        return [point for point in list(self._points) if point.at >= oldest]

    @property
    def is_asking(self) -> bool:
        return self._poll is not None and self._poll.is_alive()

    def poll(self) -> None:
        """Has a point added, unless somebody has just done so; what TorchServe does not tell becomes `problem`.

        Returns when it is there, or after PATIENCE_SECONDS: a busy TorchServe does not hold up the page.
        """
        with self._lock:
            is_due = time.monotonic() >= self._polled_at + POLL_SECONDS - EARLY_SECONDS
            if is_due and not self.is_asking:
                self._polled_at = time.monotonic()
                self._poll = threading.Thread(target=self._ask, daemon=True)
                self._poll.start()
            poll = self._poll
        if poll:
            poll.join(PATIENCE_SECONDS)

    def _ask(self) -> None:
        try:
            self._add_point()
            self.problem = ""
        except TorchServeError as error:
            self._snapshots.clear()
            self.problem = str(error)

    def _add_point(self) -> None:
        snapshot = scrape(self._config)
        if self._snapshots and snapshot.at - self._snapshots[-1].at > GAP_SECONDS:
            self._snapshots.clear()
        if self._snapshots:
            self._points.append(self._point(self._snapshots[0], self._snapshots[-1], snapshot))
        self._snapshots.append(snapshot)

    def _point(self, window: Snapshot, before: Snapshot, now: Snapshot) -> Point:
        first_token = mean(window, now, FIRST_TOKEN)
        first_token_p95 = percentile(window, now, FIRST_TOKEN, 95)
        return Point(
            at=now.at,
            tokens_per_second=rate(before, now, "llamacpp_completion_tokens_total"),
            prompt_tokens_per_second=rate(before, now, "llamacpp_prompt_tokens_total"),
            first_token_ms=None if first_token is None else 1000 * first_token,
            first_token_p95_ms=None if first_token_p95 is None else 1000 * first_token_p95,
            queued=self._queued(now),
            slots_busy=int(now.gauge_sum("llamacpp_slots_busy")),
            slots=int(now.gauge_sum("llamacpp_slots")),
            cache_tokens=int(now.gauge_sum("llamacpp_cache_tokens")),
            cache_capacity_tokens=int(now.gauge_sum("llamacpp_cache_capacity_tokens")),
            processes=tuple(
                ProcessUse(process.worker, cpu_percent(before, now, process), process.memory_bytes)
                for process in now.processes
            ),
        )

    def _queued(self, now: Snapshot) -> int:
        """Asks only if a request has arrived since the queue was last seen empty, so an idle server is not asked."""
        arrived = now.total(ARRIVED)
        if arrived == self._arrived_when_empty:
            return 0
        model = self._management.describe()
        queued = model.pending_requests if model else 0
        self._arrived_when_empty = arrived if queued == 0 else None
        return queued
