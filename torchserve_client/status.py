"""Queries how TorchServe and its model are: the server's state, the model's settings and workers.

Uses the management key. Starts, stops and changes nothing: torchserve_client/management.py does.

Not covered: several models.
"""

import contextlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

import psutil

from llama_cpp_worker.sampling_params import Bounds
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import (
    MODEL_NAME,
    REQUEST_TIMEOUT_SECONDS,
    STATE_TIMEOUT_SECONDS,
    RequestRefused,
    ServerUnreachable,
    fetch,
    retry_once,
)
from torchserve_client.keys import Keys, parse_instant
from torchserve_client.running_server import START_SECONDS, age_seconds, find_server

Availability = Literal["down", "starting", "unhealthy", "no model", "loading", "ready"]

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
    is_paused: bool  # whether a signal has stopped its process, as Ctrl-Z does
    memory_bytes: int  # resident; 0 if unknown
    started: datetime | None

    @property
    def is_ready(self) -> bool:
        return self.status == "READY" and self.is_alive

    @property
    def phase(self) -> Literal["ready", "loading", "starting"]:
        """Without a process, TorchServe is starting one: at once, or with growing pauses after processes that ended."""
        if self.is_ready:
            return "ready"
        return "loading" if self.is_alive else "starting"

    @classmethod
    def from_describe(cls, raw: dict[str, Any]) -> Self:
        pid, status, memory = raw.get("pid", 0), "", 0
        with contextlib.suppress(psutil.Error, ValueError):
            process = psutil.Process(pid)
            memory = process.memory_info().rss  # TorchServe's own figure is 0 for the first minute
            status = process.status()
        return cls(
            id=raw["id"],
            pid=pid,
            status=raw["status"],
            is_alive=status not in ("", psutil.STATUS_ZOMBIE),
            is_paused=status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP),
            memory_bytes=memory,
            started=parse_instant(raw.get("startTime", "")),
        )


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
    def from_describe(cls, raw: dict[str, Any]) -> Self:
        return cls(
            name=raw["modelName"],
            version=raw["modelVersion"],
            archive=raw["modelUrl"],
            settings=ServingSettings(raw["batchSize"], raw["maxBatchDelay"], raw["minWorkers"]),
            batching="continuous" if raw.get("continuousBatching") else "dynamic",
            workers=tuple(WorkerStatus.from_describe(worker) for worker in raw.get("workers", [])),
            pending_requests=raw.get("jobQueueStatus", {}).get("pendingRequests", 0),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class ServerState:
    """TorchServe at one moment. `problem` says what is wrong if it is unhealthy.

    "unhealthy": TorchServe runs but does not answer, or refuses our key. `model` is the default version, None if no
    model is registered or the model is not known.
    """

    state: Literal["down", "starting", "up", "unhealthy"]
    model: ModelStatus | None = None
    problem: str = ""

    @property
    def availability(self) -> Availability:
        """Whether a request can be answered now, and if not, why. A failed model counts as loading."""
        if self.state != "up":
            return self.state
        if self.model is None:
            return "no model"
        return "ready" if self.model.phase == "ready" else "loading"


class StatusClient:
    """Queries the server and the model. Threads may share one."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "management")

    def state(self) -> ServerState:
        """Sends one request or two. Takes two seconds at most and raises nothing."""
        try:
            return ServerState("up", retry_once(lambda: self.describe(timeout_seconds=STATE_TIMEOUT_SECONDS)))
        except ServerUnreachable:
            return self._state_of_process()
        except RequestRefused as refusal:
            is_foreign = refusal.status == 502  # another program answers at TorchServe's address
            return ServerState("down" if is_foreign else "unhealthy", problem=str(refusal))
        except TorchServeError as error:
            return self._state_of_process(str(error))  # TorchServe writes its keys while it starts

    def _state_of_process(self, problem: str = "") -> ServerState:
        process = find_server(self._config)
        if process is None or age_seconds(process) < START_SECONDS:
            return ServerState("starting" if process else "down")
        url = self._config.management_url
        silent = f"TorchServe (process {process.pid}) runs but does not answer at {url}: stop it and start it again."
        return ServerState("unhealthy", problem=problem or silent)

    def describe(self, version: str = "", timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> ModelStatus | None:
        """One version, "" for the default one; None if it is not registered. Raises TorchServeError."""
        try:
            return ModelStatus.from_describe(self._call("GET", version_path(version), timeout_seconds)[0])
        except RequestRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def registered(self) -> tuple[ModelStatus, ...]:
        """All versions, the default one first. Raises TorchServeError."""
        default = self.describe()
        if default is None:
            return ()
        versions = map(ModelStatus.from_describe, self._call("GET", f"/models/{MODEL_NAME}/all"))
        return (default, *(each for each in versions if each.version != default.version))

    def _call(self, method: str, path: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> Any:
        return self._keys.use(lambda key: fetch(method, self._config.management_url + path, key, timeout_seconds))


def version_path(version: str) -> str:
    """The management API's path of a version, "" for the default one."""
    return f"/models/{MODEL_NAME}/{version}" if version else f"/models/{MODEL_NAME}"
