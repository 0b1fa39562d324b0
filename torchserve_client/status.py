"""How the model is served: the settings that a person chooses, and what TorchServe says of the model and its workers.

Sends no request: torchserve_client/server_state.py does. Not covered: several models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import psutil

from llama_cpp_worker.sampling_params import Bounds
from torchserve_client.keys import parse_instant

SERVING_BOUNDS = {
    "batch_size": Bounds(int, 1, 128),
    "max_batch_delay_ms": Bounds(int, 0, 10_000),
    "workers": Bounds(int, 1, 4),
}


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How the model is served.

    batch_size: requests that one worker answers together.
    max_batch_delay_ms: how long a request for an idle worker waits for its batch to fill; 0 is not at all.
    workers: processes; each loads the model.
    """

    batch_size: int
    max_batch_delay_ms: int
    workers: int

    def check(self) -> None:
        """Raises InvalidParameter (a ValueError) if a setting is out of SERVING_BOUNDS."""
        for name, bounds in SERVING_BOUNDS.items():
            bounds.check(name, getattr(self, name))

    def __str__(self) -> str:
        plural = "" if self.workers == 1 else "s"
        return (
            f"{self.workers} worker{plural}, batch size {self.batch_size}, max batch delay {self.max_batch_delay_ms} ms"
        )


# No delay: with continuous batching a later request joins the batch at the next token.
DEFAULT_SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=0, workers=1)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One of TorchServe's workers. Its status is READY or, in all other cases, UNLOADING. So its process matters."""

    id: str
    pid: int  # 0 or less until the process has started
    status: str
    is_alive: bool  # whether its process runs
    memory_bytes: int  # resident; 0 if unknown
    started: datetime | None

    @property
    def is_ready(self) -> bool:
        return self.status == "READY" and self.is_alive

    @property
    def phase(self) -> Literal["ready", "loading", "restarting"]:
        """TorchServe restarts a worker whose process has ended, with growing pauses."""
        if self.is_ready:
            return "ready"
        return "loading" if self.is_alive else "restarting"

    @classmethod
    def from_describe(cls, raw: dict[str, Any]) -> WorkerStatus:
        pid = raw.get("pid", 0)
        started = parse_instant(raw.get("startTime", ""))
        try:
            process = psutil.Process(pid)
            memory = process.memory_info().rss  # TorchServe's own figure is 0 for the first minute
            is_alive = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError):
            return cls(raw["id"], pid, raw["status"], False, 0, started)
        return cls(raw["id"], pid, raw["status"], is_alive, memory, started)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A registered version of the model. settings.workers is the wanted number; `workers` are the existing ones."""

    name: str
    version: str
    archive: str
    settings: ServingSettings
    batching: Literal["continuous", "dynamic"]
    workers: tuple[WorkerStatus, ...]
    pending_requests: int
    queue_capacity: int
    raw: dict[str, Any] = field(repr=False)

    @property
    def ready_workers(self) -> int:
        return sum(worker.is_ready for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether every wanted worker can answer."""
        return 0 < self.settings.workers == self.ready_workers == len(self.workers)

    @property
    def phase(self) -> Literal["ready", "loading", "failed"]:
        """ "ready" if any worker can answer, "failed" if no worker has a process that could become ready."""
        if self.ready_workers:
            return "ready"
        return "loading" if any(worker.is_alive for worker in self.workers) else "failed"

    @classmethod
    def from_describe(cls, raw: dict[str, Any]) -> ModelStatus:
        queue = raw.get("jobQueueStatus", {})
        pending = queue.get("pendingRequests", 0)
        return cls(
            name=raw["modelName"],
            version=raw["modelVersion"],
            archive=raw["modelUrl"],
            settings=ServingSettings(raw["batchSize"], raw["maxBatchDelay"], raw["minWorkers"]),
            batching="continuous" if raw.get("continuousBatching") else "dynamic",
            workers=tuple(WorkerStatus.from_describe(worker) for worker in raw.get("workers", [])),
            pending_requests=pending,
            queue_capacity=pending + queue.get("remainingCapacity", 0),
            raw=raw,
        )
