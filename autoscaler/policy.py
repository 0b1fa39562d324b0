"""Decides when to add a worker and when to remove one. Pure functions: no clock, no server, no file.

Add one: for OVERLOAD_SECONDS, a whole batch was in the queue, or one request had waited for max_wait_seconds. Remove
one: for calm_seconds, no request waited and a worker was idle. Between the two, nothing changes. A pause follows each
change. Changes are by one worker, because only a loaded worker shows what the next one needs.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from llama_cpp_worker.sampling_params import Bounds

OVERLOAD_SECONDS = 4.0  # a shorter queue needs no worker

POLICY_BOUNDS = {
    "min_workers": Bounds(int, 1, 4),
    "max_workers": Bounds(int, 1, 4),
    "max_memory_percent": Bounds(int, 1, 95),
    "max_wait_seconds": Bounds(float, 0.5, 60),
    "calm_seconds": Bounds(float, 1, 600),
    "pause_seconds": Bounds(float, 0, 600),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """The limits of the autoscaler.

    max_memory_percent: of the machine's memory, used by all programs and the worker to be added.
    max_wait_seconds: a longer wait of a request is an overload.
    calm_seconds: how long no request waits and a worker is free before a worker is removed.
    pause_seconds: from the end of one change to the next change.
    """

    min_workers: int = 1
    max_workers: int = 3
    max_memory_percent: int = 80
    max_wait_seconds: float = 2.0
    calm_seconds: float = 30.0
    pause_seconds: float = 15.0

    def check(self) -> None:
        """Raises ValueError: InvalidParameter for a value outside POLICY_BOUNDS."""
        for name, bounds in POLICY_BOUNDS.items():
            bounds.check(name, getattr(self, name))
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers must not be more than max_workers, which is {self.max_workers}.")


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a model with dynamic batching. `at`: seconds of any monotonic clock.

    queued, oldest_wait_seconds: requests in TorchServe's queue, and the wait of the first of them.
    is_newest_busy: the newest worker is the one that TorchServe removes.
    worker_bytes: what another worker will need when its caches are full, without the model's file, which all workers
    map once. used_bytes: memory in use by all programs, that file included, of total_bytes.
    """

    at: float
    workers: int
    ready_workers: int
    busy_workers: int
    is_newest_busy: bool
    batch_size: int
    queued: int
    oldest_wait_seconds: float
    worker_bytes: int
    used_bytes: int
    total_bytes: int

    def is_overloaded(self, policy: Policy) -> bool:
        return self.queued >= self.batch_size or self.oldest_wait_seconds >= policy.max_wait_seconds

    @property
    def has_spare_worker(self) -> bool:
        return self.queued == 0 and self.busy_workers < self.workers


@dataclass(frozen=True, slots=True)
class Trend:
    """What earlier observations have shown: since when there is an overload or a spare worker, and the last change."""

    overloaded_since: float | None = None
    spare_since: float | None = None
    changed_at: float | None = None

    def after(self, now: Observation, policy: Policy) -> Self:
        return replace(
            self,
            overloaded_since=_since(self.overloaded_since, now.at, now.is_overloaded(policy)),
            spare_since=_since(self.spare_since, now.at, now.has_spare_worker),
        )


def _since(before: float | None, at: float, is_true: bool) -> float | None:
    if not is_true:
        return None
    return at if before is None else before


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why. `blocker`: what prevents a necessary change."""

    workers: int
    reason: str
    blocker: Literal["", "maximum", "memory", "answers"] = ""


def decide(policy: Policy, trend: Trend, now: Observation) -> Decision:
    """Decides for the same number of workers, one more or one fewer. `trend` includes `now`."""
    if now.ready_workers < now.workers:
        return Decision(now.workers, f"{now.ready_workers} of {_count(now.workers)} ready: waiting for the others.")
    if now.workers < policy.min_workers:
        return _up(policy, now, f"The minimum is {policy.min_workers}")
    if now.workers > policy.max_workers:
        return _down(now, f"The maximum is {policy.max_workers}")
    is_overloaded = _lasts(trend.overloaded_since, now.at, OVERLOAD_SECONDS)
    is_calm = now.workers > policy.min_workers and _lasts(trend.spare_since, now.at, policy.calm_seconds)
    if not is_overloaded and not is_calm:
        return Decision(now.workers, _state(trend, now, policy))
    pause_left = 0.0 if trend.changed_at is None else trend.changed_at + policy.pause_seconds - now.at
    if pause_left > 0:
        return Decision(now.workers, f"{_load(now)}. Next change in {pause_left:.0f} s at the earliest.")
    if is_overloaded:
        return _up(policy, now, _load(now))
    return _down(now, f"For {policy.calm_seconds:.0f} s nobody waited and a worker was free")


def _lasts(since: float | None, at: float, seconds: float) -> bool:
    return since is not None and at - since >= seconds


def _up(policy: Policy, now: Observation, why: str) -> Decision:
    if now.workers >= policy.max_workers:
        return Decision(now.workers, f"{why}; {_count(now.workers)} are the maximum.", "maximum")
    percent = 100 * (now.used_bytes + now.worker_bytes) / now.total_bytes
    if percent > policy.max_memory_percent:
        need = f"another worker needs about {now.worker_bytes / 2**20:,.0f} MB"
        limit = f"{percent:.0f} % of the memory would be in use, {policy.max_memory_percent} % are allowed"
        return Decision(now.workers, f"{why}, but {need}: {limit}.", "memory")
    return Decision(now.workers + 1, f"{why}.")


def _down(now: Observation, why: str) -> Decision:
    if now.is_newest_busy:  # TorchServe removes the newest worker, busy or not
        return Decision(now.workers, f"{why}. The worker to be ended finishes its answers first.", "answers")
    return Decision(now.workers - 1, f"{why}.")


def _load(now: Observation) -> str:
    if not now.queued:
        return "No request waits"
    if now.queued == 1:
        return f"1 request has waited for {now.oldest_wait_seconds:.0f} s"
    return f"{now.queued} requests wait, the first for {now.oldest_wait_seconds:.0f} s"


def _state(trend: Trend, now: Observation, policy: Policy) -> str:
    busy = f"{now.busy_workers} of {_count(now.workers)} busy"
    if trend.spare_since is not None and now.workers > policy.min_workers:
        left = trend.spare_since + policy.calm_seconds - now.at
        return f"{_load(now)}, {busy}: one fewer in {left:.0f} s if it stays like that."
    return f"{_load(now)}, {busy}."


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """TorchServe's count of all requests that have arrived until the time `at`."""

    at: float
    count: int


def still_waiting(counts: tuple[Arrivals, ...], queued: int) -> tuple[Arrivals, ...]:
    """Drops the counts from before the oldest queued request arrived; returns () if the queue is empty.

    The queue is first in, first out. With 30 arrivals and 4 queued requests, the first in the queue is number 27. It
    has waited at least since the first count of 27 or more. A lower count comes from a restarted TorchServe.
    """
    if not counts:
        return ()
    total = counts[-1].count
    return tuple(arrivals for arrivals in counts if total - queued < arrivals.count <= total)


def oldest_wait_seconds(waiting: tuple[Arrivals, ...]) -> float:
    """Returns the shortest possible wait of the queue's first request."""
    return waiting[-1].at - waiting[0].at if waiting else 0.0
