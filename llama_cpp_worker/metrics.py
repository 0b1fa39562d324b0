"""The engine's metrics: reports them to TorchServe, whose frontend reads each value as a line on stdout.

Knows TorchServe's metric cache and the engine's counters. Knows nothing of HTTP. The metrics are defined here (and
explained in docs/api.md), so config.properties needs `model_metrics_auto_detect=true`. Histograms have the Prometheus
client's default buckets.
"""

import time
from collections.abc import Callable
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes

from llama_cpp_worker.engine import Engine, Request

REPORT_SECONDS = 0.5  # between two reports if only token counts have changed

SLOTS_BUSY, REQUESTS_WAITING = "llamacpp_slots_busy", "llamacpp_requests_waiting"
GAUGES: dict[str, Callable[[Engine], int]] = {
    SLOTS_BUSY: lambda engine: len(engine.running),
    REQUESTS_WAITING: lambda engine: len(engine.waiting),
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
}
QUEUE_SECONDS = "llamacpp_queue_seconds"
TIME_TO_FIRST_TOKEN_SECONDS = "llamacpp_time_to_first_token_seconds"
TIME_PER_OUTPUT_TOKEN_SECONDS = "llamacpp_time_per_output_token_seconds"
HISTOGRAMS = (QUEUE_SECONDS, TIME_TO_FIRST_TOKEN_SECONDS, TIME_PER_OUTPUT_TOKEN_SECONDS)


class EngineMetrics:
    """Reports an engine's metrics to TorchServe's metric cache under the labels ModelName and WorkerName."""

    def __init__(self, engine: Engine, cache: Any, model_name: str, worker_name: str) -> None:
        self._engine = engine
        self._labels = [model_name, worker_name]
        kinds = dict.fromkeys(GAUGES, MetricTypes.GAUGE) | dict.fromkeys(COUNTERS, MetricTypes.COUNTER)
        kinds |= dict.fromkeys(HISTOGRAMS, MetricTypes.HISTOGRAM)
        self._metrics = {
            name: cache.add_metric_to_cache(
                name, "seconds" if kind is MetricTypes.HISTOGRAM else "count", ["ModelName", "WorkerName"], kind
            )
            for name, kind in kinds.items()
        }
        self._reported: dict[str, int] = {}
        self._reported_at = 0.0

    def report(self, is_idle: bool = False) -> None:
        """Reports what has changed since the last report; if only token counts have, at most every REPORT_SECONDS.

        is_idle: report no busy slot and no waiting request, whatever the engine has.
        """
        gauges = {name: value(self._engine) for name, value in GAUGES.items()}
        if is_idle:
            gauges |= {SLOTS_BUSY: 0, REQUESTS_WAITING: 0}
        is_known = all(self._reported.get(name) == gauges[name] for name in (SLOTS_BUSY, REQUESTS_WAITING))
        if is_known and time.monotonic() < self._reported_at + REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        for name, value in gauges.items():
            if value != self._reported.get(name):
                self._add(name, value)
        counters = {name: value(self._engine) for name, value in COUNTERS.items()}
        for name, value in counters.items():
            if value != self._reported.get(name):
                self._add(name, value - self._reported.get(name, 0))
        self._reported = gauges | counters

    def observe(self, request: Request) -> None:
        """Reports the times of a request that has ended, as far as it got."""
        if request.admitted_at is None or request.first_token_at is None:
            return
        self._add(QUEUE_SECONDS, request.admitted_at - request.submitted_at)
        self._add(TIME_TO_FIRST_TOKEN_SECONDS, request.first_token_at - request.submitted_at)
        if request.finished_at is not None and len(request.completion) > 1:
            seconds = request.finished_at - request.first_token_at
            self._add(TIME_PER_OUTPUT_TOKEN_SECONDS, seconds / (len(request.completion) - 1))

    def _add(self, name: str, value: float) -> None:
        self._metrics[name].add_or_update(value, self._labels)
