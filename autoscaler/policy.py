"""When a worker is added and when one is taken away: pure functions of what was seen. No clock, no server, no file.

Up: requests wait, a whole batch of them or one for too long, and that for some seconds. Down: for much longer nobody
waited and a worker was free. Between the two lies a range in which nothing changes, and after a change comes a pause.
One worker at a time: what the next one needs is known only when the last one has loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llama_cpp_worker.sampling_params import Bounds

OVERLOAD_SECONDS = 4.0  # a queue that is gone after two looks needs no worker

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
    """What the autoscaler may do.

    max_memory_percent: of the machine's memory that may be in use, by everything, with the worker to be added.
    max_wait_seconds: a request that waits longer than this asks for another worker.
    calm_seconds: nobody must have waited, and a worker must have been free, for so long before one is taken away.
    pause_seconds: from the end of a change to the next one.
    """

    min_workers: int = 1
    max_workers: int = 3
    max_memory_percent: int = 80
    max_wait_seconds: float = 2.0
    calm_seconds: float = 30.0
    pause_seconds: float = 15.0

    def check(self) -> None:
        """Raises InvalidParameter (a ValueError) for what POLICY_BOUNDS does not allow, ValueError for min > max."""
        for name, bounds in POLICY_BOUNDS.items():
            bounds.check(name, getattr(self, name))
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers must not be more than max_workers, which is {self.max_workers}.")


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a model that is served with dynamic batching; `at` is in seconds of any clock that only goes on.

    queued, oldest_wait_seconds: requests in TorchServe's queue, and how long the first of them has been there.
    busy_workers, is_newest_busy: workers that are answering, and whether the one that would be taken away is.
    worker_bytes: what the largest worker has resident. used_bytes: of the machine's total_bytes, by everything.
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
    """What must be remembered between two looks: since when it has been like that, and when the last change ended."""

    overloaded_since: float | None = None
    spare_since: float | None = None
    changed_at: float | None = None

    def after(self, seen: Observation, policy: Policy) -> Trend:
        return replace(
            self,
            overloaded_since=_since(self.overloaded_since, seen.at, seen.is_overloaded(policy)),
            spare_since=_since(self.spare_since, seen.at, seen.has_spare_worker),
        )


def _since(before: float | None, at: float, is_so: bool) -> float | None:
    if not is_so:
        return None
    return at if before is None else before


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there should be, and why. `blocker` is what keeps a change that is due from being made."""

    workers: int
    reason: str
    blocker: Literal["", "maximum", "memory", "answers"] = ""


def decide(policy: Policy, trend: Trend, seen: Observation) -> Decision:
    """`trend` includes `seen`. The number is that of now, or one more, or one less."""
    if seen.ready_workers < seen.workers:
        return Decision(seen.workers, f"{seen.ready_workers} of {_count(seen.workers)} ready: waiting for the others.")
    if seen.workers < policy.min_workers:
        return _up(policy, seen, f"The minimum is {policy.min_workers}")
    if seen.workers > policy.max_workers:
        return _down(seen, f"The maximum is {policy.max_workers}")
    is_overloaded = _lasts(trend.overloaded_since, seen.at, OVERLOAD_SECONDS)
    is_calm = seen.workers > policy.min_workers and _lasts(trend.spare_since, seen.at, policy.calm_seconds)
    if not is_overloaded and not is_calm:
        return Decision(seen.workers, _state(trend, seen, policy))
    if trend.changed_at is not None and seen.at < (resumes := trend.changed_at + policy.pause_seconds):
        return Decision(seen.workers, f"{_load(seen)}. Next change in {resumes - seen.at:.0f} s at the earliest.")
    if is_overloaded:
        return _up(policy, seen, _load(seen))
    return _down(seen, f"For {policy.calm_seconds:.0f} s nobody waited and a worker was free")


def _lasts(since: float | None, at: float, seconds: float) -> bool:
    return since is not None and at - since >= seconds


def _up(policy: Policy, seen: Observation, why: str) -> Decision:
    if seen.workers >= policy.max_workers:
        return Decision(seen.workers, f"{why}; {_count(seen.workers)} are the maximum.", "maximum")
    percent = 100 * (seen.used_bytes + seen.worker_bytes) / seen.total_bytes
    if percent > policy.max_memory_percent:
        need = f"another worker needs about {seen.worker_bytes / 2**20:,.0f} MB"
        limit = f"{percent:.0f} % of the memory would be in use, {policy.max_memory_percent} % are allowed"
        return Decision(seen.workers, f"{why}, but {need}: {limit}.", "memory")
    return Decision(seen.workers + 1, f"{why}.")


def _down(seen: Observation, why: str) -> Decision:
    if seen.is_newest_busy:  # TorchServe ends the newest worker, whatever it is doing
        return Decision(seen.workers, f"{why}. The worker to be ended finishes its answers first.", "answers")
    return Decision(seen.workers - 1, f"{why}.")


def _load(seen: Observation) -> str:
    if not seen.queued:
        return "Nobody waits"
    if seen.queued == 1:
        return f"1 request has waited for {seen.oldest_wait_seconds:.0f} s"
    return f"{seen.queued} requests wait, the first for {seen.oldest_wait_seconds:.0f} s"


def _state(trend: Trend, seen: Observation, policy: Policy) -> str:
    busy = f"{seen.busy_workers} of {_count(seen.workers)} busy"
    if trend.spare_since is not None and seen.workers > policy.min_workers:
        left = trend.spare_since + policy.calm_seconds - seen.at
        return f"{_load(seen)}, {busy}: one fewer in {left:.0f} s if it stays like that."
    return f"{_load(seen)}, {busy}."


def _count(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How many requests had ever arrived at a moment; TorchServe counts them."""

    at: float
    count: int


def still_waiting(seen: tuple[Arrivals, ...], queued: int) -> tuple[Arrivals, ...]:
    """The looks since the first one that had seen a request of today's queue; empty where nobody waits.

    The queue is first in, first out. With 30 arrivals and 4 queued, number 27 is the first in it, and it has waited at
    least since the first look that had counted 27. A count that falls is that of a restarted TorchServe.
    """
    if not seen:
        return ()
    now = seen[-1]
    return tuple(look for look in seen if now.count - queued < look.count <= now.count)


def oldest_wait_seconds(waiting: tuple[Arrivals, ...]) -> float:
    """At least so long has the first request of the queue waited; precise to the time between two looks."""
    return waiting[-1].at - waiting[0].at if waiting else 0.0
