"""How long each worker has generated nothing, and why: from one snapshot of the metrics to the next.

Plain values. Sends no request and knows nothing of Streamlit. Not covered: one request of several that gets no token
while the others of its worker do.
"""

from dataclasses import dataclass, replace

from apps.dashboard.wording import counted, duration
from torchserve_client.metrics import MetricsSnapshot

STALL_SECONDS = 10.0  # open requests without a token for so long are a stall
COMPLETION_TOKENS = "llamacpp_completion_tokens_total"


@dataclass(frozen=True, slots=True)
class WorkerProgress:
    """One worker at a moment.

    open: requests in a slot or waiting for one. prefilling: of them, those in a slot whose prompt is not prefilled.
    prefill_tokens: prompt tokens that are not computed yet, of all open requests.
    quiet_since: when the last token came, or when requests were first open after that.
    prefill_at: when prefill_tokens changed last. prefill_speed: prompt tokens per second, 0 if it is unknown.
    """

    worker: str
    open: int
    waiting: int
    prefilling: int
    prefill_tokens: int
    tokens: float
    quiet_since: float
    prefill_at: float
    prefill_speed: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenProgress:
    """All workers at the time `at`, in seconds since the epoch.

    queued: requests in TorchServe's queue; queue_since: when it was last empty, or the last token of any worker.
    last_token_at: None if no token has been seen since the first snapshot.
    has_metrics: whether the workers report the engine's metrics; without them nothing is known about tokens.
    """

    at: float = 0.0
    workers: tuple[WorkerProgress, ...] = ()
    queued: int = 0
    queue_since: float = 0.0
    tokens: float = 0.0
    last_token_at: float | None = None
    has_metrics: bool = False

    def after(self, now: MetricsSnapshot, queued: int) -> "TokenProgress":
        """The progress at the next snapshot."""
        tokens = now.total(COMPLETION_TOKENS)
        has_token = self.at > 0 and tokens > self.tokens
        is_waiting = self.queued > 0 and queued > 0 and not has_token
        earlier = {worker.worker: worker for worker in self.workers}
        return TokenProgress(
            at=now.at,
            workers=tuple(_worker(earlier.get(each.worker), each.worker, now) for each in now.workers),
            queued=queued,
            queue_since=self.queue_since if is_waiting else now.at,
            tokens=tokens,
            last_token_at=now.at if has_token else self.last_token_at,
            has_metrics=any(series.name == COMPLETION_TOKENS for series in now.series),
        )

    def stall(self, at: float) -> str:
        """Which requests get no token at the time `at`, and why, in sentences; "" if there are none."""
        if not self.has_metrics or at - self.at > STALL_SECONDS:
            return ""
        sentences = [_why(worker, at) for worker in self.workers if _is_stalled(worker, at)]
        if not sentences and self.queued and at - self.queue_since >= STALL_SECONDS:
            wait = "waits" if self.queued == 1 else "wait"
            where = f"{counted(self.queued, 'request')} {wait} in TorchServe's queue, and no worker takes any"
            sentences.append(f"No token for {duration(at - self.queue_since)}: {where}.")
        return " ".join(sentences)


def _worker(before: WorkerProgress | None, worker: str, now: MetricsSnapshot) -> WorkerProgress:
    def gauge(name: str) -> int:
        return int(now.gauge(f"llamacpp_{name}", worker))

    waiting = gauge("requests_waiting")
    current = WorkerProgress(
        worker=worker,
        open=gauge("slots_busy") + waiting,
        waiting=waiting,
        prefilling=gauge("requests_prefilling"),
        prefill_tokens=gauge("prefill_tokens_waiting"),
        tokens=now.gauge(COMPLETION_TOKENS, worker),
        quiet_since=now.at,
        prefill_at=now.at,
    )
    if before is None:
        return current
    if before.open and current.open and current.tokens == before.tokens:
        current = replace(current, quiet_since=before.quiet_since)
    computed = before.prefill_tokens - current.prefill_tokens
    if computed == 0:
        return replace(current, prefill_at=before.prefill_at, prefill_speed=before.prefill_speed)
    speed = computed / (now.at - before.prefill_at) if computed > 0 else before.prefill_speed
    return replace(current, prefill_speed=speed)


def _is_stalled(worker: WorkerProgress, at: float) -> bool:
    return worker.open > 0 and at - worker.quiet_since >= STALL_SECONDS


def _why(worker: WorkerProgress, at: float) -> str:
    """One stalled worker, in a sentence."""
    start = f"No token for {duration(at - worker.quiet_since)} from worker {worker.worker}"
    open_requests = f"{counted(worker.open, 'request')} {'is' if worker.open == 1 else 'are'} open"
    waiting = f", {worker.waiting} of them without a slot" if worker.waiting else ""
    if not worker.prefill_tokens:
        return f"{start}: {open_requests}{waiting}, no prompt is left to prefill, and the worker generates nothing."
    left = f"{counted(worker.prefill_tokens, 'prompt token')} {'is' if worker.prefill_tokens == 1 else 'are'} left"
    if at - worker.prefill_at >= STALL_SECONDS:
        left += f", and none was prefilled for {duration(at - worker.prefill_at)}"
    elif worker.prefill_speed:
        left += f", about {duration(worker.prefill_tokens / worker.prefill_speed)}"
    if worker.prefilling:
        verb = "is" if worker.prefilling == 1 else "are"
        who = f"{worker.prefilling} of {counted(worker.open, 'open request')} {verb} being prefilled"
        return f"{start}: {who}{waiting}; {left}."
    return f"{start}: {open_requests}{waiting}; {left} to prefill."
