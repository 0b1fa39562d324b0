"""Reads the metrics of a running TorchServe and of its processes, and computes what two such snapshots mean.

Stores nothing. The names of the engine's metrics are in llama_cpp_worker/metrics.py.

Not covered: metrics of a GPU, and several models.
"""

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

from torchserve_client.config import ServerConfig
from torchserve_client.http import METRICS_TIMEOUT_SECONDS, fetch_text
from torchserve_client.keys import Keys
from torchserve_client.running_server import WORKER_SCRIPT, child_processes, find_server

# TorchServe's own counter (docs/torchserve-facts.md).
ARRIVED = "ts_inference_requests_total"  # counts a request at its arrival
FIRST_TOKEN = "llamacpp_time_to_first_token_seconds"
WORKER_ID = "llamacpp_worker_id"
_LABELS = ("WorkerName", "le", "model_version", "Reason", "Source")
_USED = ("llamacpp_", ARRIVED)


class Series(NamedTuple):
    """The name and labels of one line of the metrics; "" for a label that it lacks. `le` is a histogram's upper bound.

    `detail` is the label Reason of the waits and the label Source of the prefix lookups (docs/api.md). `worker` is not
    a worker's id but a small number, which later workers use again: see `MetricsSnapshot.gauge`.
    A request that names no version counts for the version "default".
    """

    name: str
    worker: str = ""
    le: str = ""
    version: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A process at one moment. `worker` is the id in TorchServe's describe, "" for TorchServe itself.

    cpu_seconds: since its start, of all threads. memory_bytes: resident, with the pages of the model's file.
    """

    worker: str
    pid: int
    started: float  # seconds since the epoch; pid and start identify a process
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class MetricsSnapshot:
    """The metrics and processes at the time `at`, in seconds since the epoch."""

    at: float
    series: Mapping[Series, float]
    processes: tuple[ProcessSample, ...] = ()

    @property
    def workers(self) -> tuple[ProcessSample, ...]:
        return tuple(process for process in self.processes if process.worker)

    def gauge(self, name: str, worker: str) -> float:
        """The gauge of the worker with this id, 0 before its first report.

        TorchServe also has stale gauges, of workers that have ended.
        """
        for series, value in self.series.items():
            if series.name == WORKER_ID and f"{value:.0f}" == worker:
                return self.series.get(Series(name, series.worker), 0.0)
        return 0.0

    def gauge_sum(self, name: str) -> float:
        """The sum over the running workers."""
        return sum(self.gauge(name, process.worker) for process in self.workers)

    def total(self, name: str, version: str | None = None) -> float:
        """A counter's sum over all workers since TorchServe's start, ended ones too. None means all versions."""
        return sum(
            value for series, value in self.series.items() if series.name == name and version in (None, series.version)
        )


def scrape(config: ServerConfig) -> MetricsSnapshot:
    """Sends one request to TorchServe, with the inference key. Raises TorchServeError."""
    url = f"{config.metrics_url}/metrics"
    text = Keys(config, "inference").use(lambda key: fetch_text("GET", url, key, METRICS_TIMEOUT_SECONDS))
    return MetricsSnapshot(time.time(), parse_metrics(text), read_processes(config))


def parse_metrics(text: str) -> dict[Series, float]:
    """Parses Prometheus' text format. Returns the engine's metrics and TorchServe's counter of arrived requests."""
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(used_lines(text)):
        for sample in family.samples:
            worker, le, version, reason, source = (sample.labels.get(label, "") for label in _LABELS)
            series = Series(sample.name, worker, le, version, reason or source)
            found[series] = found.get(series, 0.0) + sample.value
    return found


def used_lines(text: str) -> str:
    """The lines of the metrics that parse_metrics() returns, with their types.

    TorchServe's other series are not parsed: it adds one with each new worker and never forgets one
    (docs/torchserve-facts.md).
    """
    used = (*_USED, *(f"# TYPE {name}" for name in _USED))
    return "\n".join(line for line in text.split("\n") if line.startswith(used)) + "\n"


def read_processes(config: ServerConfig) -> tuple[ProcessSample, ...]:
    """TorchServe and its workers, in the order of their start; empty if none runs. Sends no request."""
    server = find_server(config)
    if server is None:
        return ()
    samples = []
    for process in (server, *child_processes(server)):
        with contextlib.suppress(psutil.Error):  # it has ended
            worker = "" if process == server else _worker_id(process)
            if worker is not None:
                cpu, memory = process.cpu_times(), process.memory_info().rss
                started = process.create_time()
                samples.append(ProcessSample(worker, process.pid, started, cpu.user + cpu.system, memory))
    return tuple(samples)


def _worker_id(process: psutil.Process) -> str | None:
    """The worker's id, as in the handler's metrics: the end of its socket's name, else its pid. None: no worker."""
    command = process.cmdline()
    if not any(part.endswith(WORKER_SCRIPT) for part in command):
        return None
    if "--sock-name" in command:
        return command[command.index("--sock-name") + 1].rsplit(".", 1)[-1]
    return str(process.pid)


# What two snapshots mean.


def increase(
    before: MetricsSnapshot, after: MetricsSnapshot, name: str, le: str = "", detail: str | None = None
) -> float:
    """By how much a counter has grown, summed over its workers; None sums over all details as well.

    A value below its earlier one has started again from zero, as in Prometheus.
    """
    grown = 0.0
    for series, value in after.series.items():
        if (series.name, series.le) == (name, le) and detail in (None, series.detail):
            earlier = before.series.get(series, 0.0)
            grown += value - earlier if value >= earlier else value
    return grown


def rate(before: MetricsSnapshot, after: MetricsSnapshot, name: str) -> float:
    """A counter's growth per second."""
    return increase(before, after, name) / (after.at - before.at)


def mean(before: MetricsSnapshot, after: MetricsSnapshot, histogram: str) -> float | None:
    """The average of a histogram's observations in between; None if there were none."""
    count = increase(before, after, f"{histogram}_count")
    return increase(before, after, f"{histogram}_sum") / count if count else None


def percentile(before: MetricsSnapshot, after: MetricsSnapshot, histogram: str, percent: float) -> float | None:
    """The value below which `percent` of the observations in between lie; None if there were none.

    Interpolates linearly within a bucket. An observation above the last bound counts as that bound. Both are the rules
    of Prometheus' histogram_quantile.
    """
    name = f"{histogram}_bucket"
    bounds = sorted({series.le for series in after.series if series.name == name}, key=float)
    counts = [(float(le), increase(before, after, name, le)) for le in bounds]
    if not counts or not counts[-1][1]:
        return None
    wanted, low, below = counts[-1][1] * percent / 100, 0.0, 0.0
    for bound, count in counts:
        if count >= wanted and count > below:
            return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    raise AssertionError("the last bucket of a histogram holds everything")


def cpu_percent(before: MetricsSnapshot, after: MetricsSnapshot, process: ProcessSample) -> float | None:
    """The processor time of a process of `after` in between, in percent of one core; None if it is newer."""
    for earlier in before.processes:
        if (earlier.pid, earlier.started) == (process.pid, process.started):
            return 100 * (process.cpu_seconds - earlier.cpu_seconds) / (after.at - before.at)
    return None
