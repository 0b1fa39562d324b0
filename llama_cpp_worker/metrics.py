"""The engine's metrics: reports them to TorchServe, whose frontend reads each value as a line on stdout.

Knows TorchServe's metric cache and the engine's counters. Knows nothing of HTTP. The metrics are defined here and not
in a metrics file, so config.properties needs `model_metrics_auto_detect=true`. Histograms have the default buckets of
the Prometheus client.
"""

from __future__ import annotations

import time
from typing import Any

from ts.metrics.metric_type_enum import MetricTypes

from llama_cpp_worker.engine import Engine, Request

REPORT_SECONDS = 0.5  # between two reports if only token counts have changed

GAUGES = {
    "llamacpp_slots": "the largest number of sequences in one batch",
    "llamacpp_slots_busy": "running sequences",
    "llamacpp_requests_waiting": "requests that wait for a slot",
    "llamacpp_cache_tokens": "tokens in the KV cache, those of idle slots included",
    "llamacpp_cache_capacity_tokens": "tokens that fit into the KV cache",
}
COUNTERS = {
    "llamacpp_requests_total": "accepted requests",
    "llamacpp_requests_cancelled_total": "requests whose client disconnected",
    "llamacpp_requests_failed_total": "requests that ended with an error",
    "llamacpp_prompt_tokens_total": "prompt tokens, reused ones included",
    "llamacpp_cached_tokens_total": "prompt tokens reused from the prefix cache",
    "llamacpp_completion_tokens_total": "generated tokens",
}
HISTOGRAMS = {
    "llamacpp_queue_seconds": "from a request's arrival to its slot",
    "llamacpp_time_to_first_token_seconds": "from a request's arrival to its first token",
    "llamacpp_time_per_output_token_seconds": "a request's average time between two tokens",
}


class EngineMetrics:
    """Reports an engine's figures to TorchServe's metric cache under the labels ModelName and WorkerName."""

    def __init__(self, engine: Engine, cache: Any, model_name: str, worker_name: str) -> None:
        self._engine = engine
        self._labels = [model_name, worker_name]
        self._metrics = {
            name: cache.add_metric_to_cache(
                name, "seconds" if kind is MetricTypes.HISTOGRAM else "count", ["ModelName", "WorkerName"], kind
            )
            for kind, names in (
                (MetricTypes.GAUGE, GAUGES),
                (MetricTypes.COUNTER, COUNTERS),
                (MetricTypes.HISTOGRAM, HISTOGRAMS),
            )
            for name in names
        }
        self._reported: dict[str, int] = {}
        self._reported_at = 0.0

    def report(self, is_idle: bool = False) -> None:
        """Reports what has changed since the last report; if only token counts have, at most every REPORT_SECONDS.

        is_idle: report no busy slot and no waiting request, whatever the engine has.
        """
        counters, engine = self._engine.counters, self._engine
        busy, waiting = (0, 0) if is_idle else (len(engine.running), len(engine.waiting))
        last = self._reported.get("llamacpp_slots_busy"), self._reported.get("llamacpp_requests_waiting")
        if last == (busy, waiting) and time.monotonic() < self._reported_at + REPORT_SECONDS:
            return
        self._reported_at = time.monotonic()
        self._set("llamacpp_slots", engine.model.n_slots)
        self._set("llamacpp_slots_busy", busy)
        self._set("llamacpp_requests_waiting", waiting)
        self._set("llamacpp_cache_tokens", engine.cache.n_tokens)
        self._set("llamacpp_cache_capacity_tokens", engine.model.n_slots * engine.model.window)
        self._set("llamacpp_requests_total", counters.requests)
        self._set("llamacpp_requests_cancelled_total", counters.cancelled)
        self._set("llamacpp_requests_failed_total", counters.failed)
        self._set("llamacpp_prompt_tokens_total", counters.prompt_tokens)
        self._set("llamacpp_cached_tokens_total", counters.cached_tokens)
        self._set("llamacpp_completion_tokens_total", counters.completion_tokens)

    def observe(self, request: Request) -> None:
        """Reports the times of a request that has ended, as far as it got."""
        if request.admitted_at is None or request.first_token_at is None:
            return
        self._add("llamacpp_queue_seconds", request.admitted_at - request.submitted_at)
        self._add("llamacpp_time_to_first_token_seconds", request.first_token_at - request.submitted_at)
        if request.finished_at is not None and len(request.completion) > 1:
            seconds = request.finished_at - request.first_token_at
            self._add("llamacpp_time_per_output_token_seconds", seconds / (len(request.completion) - 1))

    def _set(self, name: str, value: int) -> None:
        before = self._reported.get(name)
        if value != before:
            self._add(name, value - (before or 0) if name in COUNTERS else value)
            self._reported[name] = value

    def _add(self, name: str, value: float) -> None:
        self._metrics[name].add_or_update(value, self._labels)
