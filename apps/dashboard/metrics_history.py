"""The last minutes of a server's metrics, gathered as long as the app runs, whether a page shows them or not.

Knows nothing of Streamlit. Threads: one thread polls TorchServe and writes; pages only read `latest`, `problem` and
points(), each of which is replaced as a whole.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass

from apps.dashboard.token_progress import TokenProgress
from torchserve_client import metrics
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.management import ManagementClient

POLL_SECONDS = 2.0
HISTORY_SECONDS = 300
WINDOW_SECONDS = 30  # for times to first token: too few answers end within one poll
HISTORY_POINTS = int(HISTORY_SECONDS / POLL_SECONDS)
WINDOW_POINTS = int(WINDOW_SECONDS / POLL_SECONDS)
GAP_SECONDS = 3 * POLL_SECONDS  # a longer time between two points is not drawn as a line

# The labels of the engine's metrics (llama_cpp_worker/metrics.py).
WAIT_REASONS = ("slot", "prefix", "prefill")
PREFIX_SOURCES = ("own", "copied", "saved", "none")


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """cpu_percent: of one core since the previous point; None for a process that is new since then."""

    worker: str
    cpu_percent: float | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class MetricsPoint:
    """The metrics at one moment, `at` in seconds since the epoch. Rates and counts are since the previous point.

    first_token_ms and first_token_p95_ms: from the arrival of a request in its worker, over the answers that ended in
    the last WINDOW_SECONDS; None without such an answer. A worker counts an answer only at its end.
    wait_ms: for each of WAIT_REASONS, how long these answers waited for it on average; empty without an answer.
    The time in TorchServe's queue is not a part of it: with continuous batching ts_queue_latency_microseconds ends at a
    request's last time slice, because ContinuousBatching.java sets the time of the scheduling again at each slice.
    queued: requests in TorchServe's queue, which have not reached a worker.
    prefix_lookups: prompts, by the place of their cached prefix (PREFIX_SOURCES). prompt_tokens include cached_tokens.
    """

    at: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    first_token_ms: float | None
    first_token_p95_ms: float | None
    wait_ms: dict[str, float]
    prefill_tokens_waiting: int
    queued: int
    slots_busy: int
    slots: int
    cache_tokens: int
    cache_capacity_tokens: int
    prompt_tokens: int
    cached_tokens: int
    prefix_lookups: dict[str, int]
    slot_swaps: int
    processes: tuple[ProcessUse, ...]


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest snapshot, with what the snapshots before it tell about it."""

    snapshot: metrics.MetricsSnapshot
    progress: TokenProgress
    tokens_per_second: float


class MetricsHistory:
    """The points of the last HISTORY_SECONDS.

    latest: None if the last poll failed; `problem` says why, "" if it did not.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._points: tuple[MetricsPoint, ...] = ()
        self._snapshots: deque[metrics.MetricsSnapshot] = deque(maxlen=WINDOW_POINTS + 1)
        self._progress = TokenProgress()
        self._arrived_when_empty: float | None = None
        self.latest: Latest | None = None
        self.problem = ""

    def start(self) -> None:
        """Polls every POLL_SECONDS in a thread of its own, until the app ends."""
        threading.Thread(target=self._poll_forever, daemon=True).start()

    def _poll_forever(self) -> None:
        while True:
            self.poll()
            time.sleep(POLL_SECONDS)

    def points(self) -> list[MetricsPoint]:
        oldest = time.time() - HISTORY_SECONDS
        return [point for point in self._points if point.at >= oldest]

    def poll(self) -> None:
        """Adds a point. A failure becomes `problem`."""
        try:
            self._add_point()
            self.problem = ""
        except TorchServeError as error:
            self._snapshots.clear()
            self.latest, self.problem = None, str(error)

    def _add_point(self) -> None:
        snapshot = metrics.scrape(self._config)
        if self._snapshots and snapshot.at - self._snapshots[-1].at > GAP_SECONDS:  # this machine was asleep
            self._snapshots.clear()
        queued = self._queued(snapshot)
        self._progress = self._progress.after(snapshot, queued)
        speed = 0.0
        if self._snapshots:
            point = self._point(self._snapshots[0], self._snapshots[-1], snapshot, queued)
            self._points, speed = (*self._points, point)[-HISTORY_POINTS:], point.tokens_per_second
        self._snapshots.append(snapshot)
        self.latest = Latest(snapshot, self._progress, speed)

    def _point(
        self,
        window: metrics.MetricsSnapshot,
        before: metrics.MetricsSnapshot,
        now: metrics.MetricsSnapshot,
        queued: int,
    ) -> MetricsPoint:
        first_token = metrics.mean(window, now, metrics.FIRST_TOKEN)
        first_token_p95 = metrics.percentile(window, now, metrics.FIRST_TOKEN, 95)

        def count(name: str, detail: str | None = None) -> int:
            return int(metrics.increase(before, now, name, detail=detail))

        return MetricsPoint(
            at=now.at,
            tokens_per_second=metrics.rate(before, now, "llamacpp_completion_tokens_total"),
            prompt_tokens_per_second=metrics.rate(before, now, "llamacpp_prompt_tokens_total"),
            first_token_ms=None if first_token is None else 1000 * first_token,
            first_token_p95_ms=None if first_token_p95 is None else 1000 * first_token_p95,
            wait_ms=_wait_ms(window, now),
            prefill_tokens_waiting=int(now.gauge_sum("llamacpp_prefill_tokens_waiting")),
            queued=queued,
            slots_busy=int(now.gauge_sum("llamacpp_slots_busy")),
            slots=int(now.gauge_sum("llamacpp_slots")),
            cache_tokens=int(now.gauge_sum("llamacpp_cache_tokens")),
            cache_capacity_tokens=int(now.gauge_sum("llamacpp_cache_capacity_tokens")),
            prompt_tokens=count("llamacpp_prompt_tokens_total"),
            cached_tokens=count("llamacpp_cached_tokens_total"),
            prefix_lookups={source: count("llamacpp_prefix_lookups_total", source) for source in PREFIX_SOURCES},
            slot_swaps=count("llamacpp_slot_swaps_total"),
            processes=tuple(
                ProcessUse(process.worker, metrics.cpu_percent(before, now, process), process.memory_bytes)
                for process in now.processes
            ),
        )

    def _queued(self, now: metrics.MetricsSnapshot) -> int:
        """Sends a request only if one has arrived since the queue was last empty, so an idle server gets none."""
        arrived = now.total(metrics.ARRIVED)
        if arrived == self._arrived_when_empty:
            return 0
        model = self._management.describe()
        queued = model.pending_requests if model else 0
        self._arrived_when_empty = arrived if queued == 0 else None
        return queued


def _wait_ms(window: metrics.MetricsSnapshot, now: metrics.MetricsSnapshot) -> dict[str, float]:
    answers = metrics.increase(window, now, f"{metrics.FIRST_TOKEN}_count")
    if not answers:
        return {}
    seconds = {
        reason: metrics.increase(window, now, "llamacpp_wait_seconds_total", detail=reason) for reason in WAIT_REASONS
    }
    return {reason: 1000 * waited / answers for reason, waited in seconds.items()}
