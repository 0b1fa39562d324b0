"""What TorchServe's metrics address and the system say about a running server, and what two such samples mean.

Knows the names of the metrics (the engine's are in llama_cpp_worker/metrics.py) and how Prometheus counts; keeps nothing.

Not covered: metrics of a GPU, and several models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import psutil
from prometheus_client.parser import text_string_to_metric_families

from torchserve_client.config import ServerConfig
from torchserve_client.http import Keys, fetch_text
from torchserve_client.process import WORKER_SCRIPT, find_server

METRICS_SECONDS = 5.0

# TorchServe's own. The first counts a request at its arrival; the second adds a request's wait in TorchServe's queue
# only when its answer has ended, and the engine's histograms count it at that moment, too (all tried). Prometheus'
# parser gives every counter the ending `_total`, also where TorchServe leaves it out.
ARRIVED = "ts_inference_requests_total"
QUEUE_MICROSECONDS = "ts_queue_latency_microseconds_total"
FIRST_TOKEN = "llamacpp_time_to_first_token_seconds"
_LABELS = ("WorkerName", "le", "model_version")


class Series(NamedTuple):
    """One line of the metrics; "" where it has none of a worker, `le` (a histogram's upper bound) and model version.

    TorchServe's version of a request that names none is "default" (tried).
    """

    name: str
    worker: str = ""
    le: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """A process at one moment. `worker` is the id that TorchServe's describe has, "" for TorchServe itself.

    cpu_seconds: since its start, all threads. memory_bytes: resident, pages of the model's file included.
    """

    worker: str
    pid: int
    started: float  # seconds since the epoch; with the pid it tells whether this is still the same process
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at `at`, in seconds since the epoch."""

    at: float
    series: Mapping[Series, float]
    processes: tuple[ProcessSample, ...] = ()

    @property
    def workers(self) -> tuple[ProcessSample, ...]:
        return tuple(process for process in self.processes if process.worker)

    def gauge(self, name: str, worker: str) -> float:
        """A worker's gauge, 0 before its first report. TorchServe keeps the last one of workers that have ended."""
        return self.series.get(Series(name, worker), 0.0)

    def gauge_sum(self, name: str) -> float:
        """The sum over the workers that live."""
        return sum(self.gauge(name, process.worker) for process in self.workers)

    def total(self, name: str, version: str | None = None) -> float:
        """A counter's sum over all workers there ever were; of one of the model's versions, where it is named."""
        return sum(
            value for series, value in self.series.items() if series.name == name and version in (None, series.version)
        )


def scrape(config: ServerConfig) -> Snapshot:
    """One request to TorchServe, with the inference key; raises TorchServeError."""
    url = f"{config.metrics_url}/metrics"
    text = Keys(config, "inference").use(lambda key: fetch_text("GET", url, key, METRICS_SECONDS))
    return Snapshot(time.time(), parse_metrics(text), read_processes(config))


def parse_metrics(text: str) -> dict[Series, float]:
    """The engine's metrics, and those of TorchServe's that are named above, from Prometheus' text format."""
    found: dict[Series, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("llamacpp_") or sample.name in (ARRIVED, QUEUE_MICROSECONDS):
                series = Series(sample.name, *(sample.labels.get(label, "") for label in _LABELS))
                found[series] = found.get(series, 0.0) + sample.value
    return found


def read_processes(config: ServerConfig) -> tuple[ProcessSample, ...]:
    """TorchServe and its workers, in the order of their start; empty where none runs. Asks the system only."""
    server = find_server(config)
    if server is None:
        return ()
    try:
        children = server.children(recursive=True)
    except psutil.Error:
        children = []
    samples = [_sample(process, is_server=process == server) for process in (server, *children)]
    return tuple(sample for sample in samples if sample)


def _sample(process: psutil.Process, is_server: bool) -> ProcessSample | None:
    """None for what has ended meanwhile, and for children that are no workers."""
    try:
        worker = "" if is_server else _worker_id(process)
        if worker is None:
            return None
        cpu = process.cpu_times()
        memory = process.memory_info().rss
        return ProcessSample(worker, process.pid, process.create_time(), cpu.user + cpu.system, memory)
    except psutil.Error:
        return None


def _worker_id(process: psutil.Process) -> str | None:
    """As the handler names itself in its metrics: the end of its socket's name, else its pid."""
    command = process.cmdline()
    if not any(part.endswith(WORKER_SCRIPT) for part in command):
        return None
    if "--sock-name" in command:
        return command[command.index("--sock-name") + 1].rsplit(".", 1)[-1]
    return str(process.pid)


# What two samples mean. Like Prometheus, a counter that is smaller than before has started again from zero.


def increase(before: Snapshot, after: Snapshot, name: str, le: str = "") -> float:
    """By how much a counter has grown, summed over its workers; each worker's series may have started again."""
    return sum(
        value - previous if value >= (previous := before.series.get(series, 0.0)) else value
        for series, value in after.series.items()
        if (series.name, series.le) == (name, le)
    )


def rate(before: Snapshot, after: Snapshot, name: str) -> float:
    """A counter's growth per second."""
    return increase(before, after, name) / (after.at - before.at)


def mean(before: Snapshot, after: Snapshot, histogram: str) -> float | None:
    """The average of what a histogram observed in between; None if that was nothing."""
    count = increase(before, after, f"{histogram}_count")
    return increase(before, after, f"{histogram}_sum") / count if count else None


def percentile(before: Snapshot, after: Snapshot, histogram: str, percent: float) -> float | None:
    """Where `percent` of the observations in between lie below, linear within a bucket; None if there were none.

    What lies above the last bound counts as that bound, as in Prometheus' histogram_quantile.
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


def mean_queue_seconds(before: Snapshot, after: Snapshot) -> float | None:
    """How long the answers that ended in between had waited in TorchServe's queue, on average."""
    count = increase(before, after, f"{FIRST_TOKEN}_count")
    return increase(before, after, QUEUE_MICROSECONDS) / 1e6 / count if count else None


def cpu_percent(before: Snapshot, after: Snapshot, process: ProcessSample) -> float | None:
    """What a process of `after` used in between, in percent of one core; None if it was not there before."""
    for earlier in before.processes:
        if (earlier.pid, earlier.started) == (process.pid, process.started):
            return 100 * (process.cpu_seconds - earlier.cpu_seconds) / (after.at - before.at)
    return None
