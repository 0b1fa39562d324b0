"""The engine's metrics: reports them to TorchServe, whose frontend reads each value as a line on stdout.

Knows TorchServe's metric cache and the engine's counters. Knows nothing of HTTP. The metrics are defined here (and
explained in docs/api.md), so config.properties needs `model_metrics_auto_detect=true`. Histograms have the Prometheus
client's default buckets.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes

from llama_cpp_worker.engine import Engine
from llama_cpp_worker.request import Request

REPORT_SECONDS = 0.5  # between two reports if only token counts have changed

SLOTS_BUSY, REQUESTS_WAITING = "llamacpp_slots_busy", "llamacpp_requests_waiting"
PREFILL_TOKENS_WAITING = "llamacpp_prefill_tokens_waiting"
REQUESTS_PREFILLING = "llamacpp_requests_prefilling"
WORKER_ID = "llamacpp_worker_id"
GAUGES: dict[str, Callable[[Engine], int]] = {
    SLOTS_BUSY: lambda engine: len(engine.running),
    REQUESTS_WAITING: lambda engine: engine.n_waiting,
    PREFILL_TOKENS_WAITING: lambda engine: sum(
        request.n_to_prefill for request in (*engine.waiting, *engine.running.values())
    ),
    REQUESTS_PREFILLING: lambda engine: sum(request.n_to_prefill > 0 for request in engine.running.values()),
    "llamacpp_slots": lambda engine: engine.model.n_slots,
    "llamacpp_cache_tokens": lambda engine: engine.cache.n_tokens,
    "llamacpp_cache_capacity_tokens": lambda engine: engine.model.n_slots * engine.model.window,
}
COUNTERS: dict[str, Callable[[Engine], int]] = {
    "llamacpp_requests_total": lambda engine: engine.counters.requests,
    "llamacpp_requests_cancelled_total": lambda engine: engine.counters.cancelled,
    "llamacpp_requests_failed_total": lambda engine: engine.counters.failed,
    "llamacpp_prompt_tokens_total": lambda engine: engine.counters.prompt_tokens,
    "llamacpp_cached_tokens_total": lambda engine: engine.counters.cached_tokens,
    "llamacpp_completion_tokens_total": lambda engine: engine.counters.completion_tokens,
    "llamacpp_slot_swaps_total": lambda engine: engine.cache.swaps,
}
PREFIX_LOOKUPS, WAIT_SECONDS = "llamacpp_prefix_lookups_total", "llamacpp_wait_seconds_total"
THIRD_LABELS = {PREFIX_LOOKUPS: "Source", WAIT_SECONDS: "Reason"}  # of the counters that have one
QUEUE_SECONDS = "llamacpp_queue_seconds"
TIME_TO_FIRST_TOKEN_SECONDS = "llamacpp_time_to_first_token_seconds"
TIME_PER_OUTPUT_TOKEN_SECONDS = "llamacpp_time_per_output_token_seconds"
HISTOGRAMS = (QUEUE_SECONDS, TIME_TO_FIRST_TOKEN_SECONDS, TIME_PER_OUTPUT_TOKEN_SECONDS)


class EngineMetrics:
    """Reports an engine's metrics to TorchServe's metric cache under the labels ModelName and WorkerName.

    TorchServe gives each new worker a new id and never forgets a series. So WorkerName is not the id but a small number
    that later workers use again: `worker_number`. The gauge WORKER_ID is the id of the worker that has the number now.
    It comes after the other gauges. So a reader that knows the new id never gets the gauges of an earlier worker.

    The methods may be called from several threads. `report_idle` reads only numbers that count up:
    a step may run meanwhile.
    """

    def __init__(self, engine: Engine, cache: Any, model_name: str, worker_id: int, worker_number: int) -> None:
        self._engine = engine
        self._labels = [model_name, str(worker_number)]
        self._worker_id = worker_id
        kinds = dict.fromkeys((*GAUGES, WORKER_ID), MetricTypes.GAUGE)
        kinds |= dict.fromkeys((*COUNTERS, *THIRD_LABELS), MetricTypes.COUNTER)
        kinds |= dict.fromkeys(HISTOGRAMS, MetricTypes.HISTOGRAM)
        self._metrics = {
            name: cache.add_metric_to_cache(name, "seconds" if "_seconds" in name else "count", _labels(name), kind)
            for name, kind in kinds.items()
        }
        self._reported: dict[tuple[str, ...], float] = {}  # by the metric's name and the third label
        self._reported_at = 0.0
        self._wait_seconds = dict.fromkeys(("slot", "prefix", "prefill"), 0.0)
        self._lock = threading.Lock()

    def report(self) -> None:
        """Reports what has changed since the last report; if only token counts have, at most every REPORT_SECONDS."""
        with self._lock:
            urgent = ((name,) for name in (SLOTS_BUSY, REQUESTS_WAITING))
            is_known = all(self._reported.get(key) == GAUGES[key[0]](self._engine) for key in urgent)
            if is_known and time.monotonic() < self._reported_at + REPORT_SECONDS:
                return
            self._reported_at = time.monotonic()
            self._set_gauges({name: value(self._engine) for name, value in GAUGES.items()})
            self._set_gauges({WORKER_ID: self._worker_id})
            self._report_counters()

    def report_idle(self) -> None:
        """Reports no busy slot and nothing that waits, whatever the engine has. The next report corrects it.

        The counters come first, so that a reader of an idle engine has all counts until now.
        """
        with self._lock:
            self._report_counters()
            self._set_gauges(dict.fromkeys((SLOTS_BUSY, REQUESTS_WAITING, PREFILL_TOKENS_WAITING), 0))

    def observe(self, request: Request) -> None:
        """Reports the times of a request that has ended, as far as it got."""
        with self._lock:
            self._add_waits(request)
            if request.admitted_at is None or request.first_token_at is None:
                return
            self._add((QUEUE_SECONDS,), request.admitted_at - request.submitted_at)
            self._add((TIME_TO_FIRST_TOKEN_SECONDS,), request.first_token_at - request.submitted_at)
            if request.finished_at is not None and len(request.completion) > 1:
                seconds = request.finished_at - request.first_token_at
                self._add((TIME_PER_OUTPUT_TOKEN_SECONDS,), seconds / (len(request.completion) - 1))

    def _report_counters(self) -> None:
        for key, value in self._counters().items():
            growth = round(value - self._reported.get(key, 0), 3)
            if growth or key not in self._reported:
                self._add(key, growth)
            self._reported[key] = value

    def _counters(self) -> dict[tuple[str, ...], float]:
        counters: dict[tuple[str, ...], float] = {(name,): value(self._engine) for name, value in COUNTERS.items()}
        counters |= {(PREFIX_LOOKUPS, source): count for source, count in self._engine.cache.hits.items()}
        return counters | {(WAIT_SECONDS, reason): round(value, 3) for reason, value in self._wait_seconds.items()}

    def _add_waits(self, request: Request) -> None:
        """Counts how long a request has waited for each reason. The next report has the sums."""
        begin = request.submitted_at
        ends = (request.admitted_at, request.prefix_assigned_at, request.first_chunk_at)
        for reason, moment in zip(self._wait_seconds, ends, strict=True):
            end = request.finished_at if moment is None else moment
            if end is None:
                return
            self._wait_seconds[reason] += end - begin
            if moment is None:  # it ended while it waited
                return
            begin = end

    def _set_gauges(self, values: dict[str, int]) -> None:
        for name, value in values.items():
            if value != self._reported.get((name,)):
                self._add((name,), value)
                self._reported[name,] = value

    def _add(self, key: tuple[str, ...], value: float) -> None:
        name, *third_label = key
        self._metrics[name].add_or_update(value, [*self._labels, *third_label])


def _labels(name: str) -> list[str]:
    return ["ModelName", "WorkerName", *([THIRD_LABELS[name]] if name in THIRD_LABELS else [])]
