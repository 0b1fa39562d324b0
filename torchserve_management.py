"""Runs the model on TorchServe: register, describe, scale, change. Knows nothing of Streamlit.

ManagementClient uses the management key only; asking the model is in torchserve_client.py.

Not covered: several models or versions; letting requests in progress finish before a change.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlencode

import psutil

from sampling_params import Bounds
from torchserve_client import (
    MODEL_NAME,
    QUICK_SECONDS,
    STATE_SECONDS,
    Keys,
    RequestRefused,
    ServerUnreachable,
    fetch,
    parse_instant,
)
from torchserve_process import ServerConfig, TorchServeError, find_server

CONTINUOUS_ARCHIVE = "llamacpp.tar.gz"
DYNAMIC_ARCHIVE = "llamacpp-dynamic.tar.gz"

LOAD_SECONDS = 660.0  # startupTimeout in model-config.yaml, and a little more
UNLOAD_SECONDS = 150.0  # TorchServe's unregister_model_timeout, and a little more
READY_SECONDS = 30.0  # from the end of a registration until describe shows every worker READY
LOG_SECONDS = 5.0  # from a refused load until the log has what the worker said last, if it said anything


class ChangeFailed(TorchServeError):
    """The model could not be registered, scaled or changed; the message says why and what is serving now."""


SERVING_BOUNDS = {
    "batch_size": Bounds(int, 1, 128),
    "max_batch_delay_ms": Bounds(int, 0, 10_000),
    "workers": Bounds(int, 1, 4),
}


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How the model is served.

    batch_size: requests that one worker answers together.
    max_batch_delay_ms: how long a request that finds its worker idle waits for company; 0 is not at all.
    workers: processes, each with a model of its own.
    """

    batch_size: int
    max_batch_delay_ms: int
    workers: int

    def check(self) -> None:
        """Raises InvalidParameter (a ValueError) for what SERVING_BOUNDS does not allow."""
        for name, bounds in SERVING_BOUNDS.items():
            bounds.check(name, getattr(self, name))

    def __str__(self) -> str:
        plural = "" if self.workers == 1 else "s"
        return (
            f"{self.workers} worker{plural}, batch size {self.batch_size}, max batch delay {self.max_batch_delay_ms} ms"
        )


# No delay: with continuous batching whoever comes later joins at the next token.
DEFAULT_SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=0, workers=1)


def archive_for(settings: ServingSettings) -> str:
    """Continuous batching for one worker; TorchServe 0.12's freezes with more, so two or more use dynamic batching."""
    return CONTINUOUS_ARCHIVE if settings.workers == 1 else DYNAMIC_ARCHIVE


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    id: str
    pid: int  # 0 or less until the process has started
    status: str  # TorchServe knows READY and, for everything else, UNLOADING
    memory_bytes: int  # resident; 0 if unknown
    started: datetime | None

    @property
    def is_ready(self) -> bool:
        return self.status == "READY"

    @classmethod
    def from_describe(cls, raw: dict[str, Any]) -> WorkerStatus:
        pid = raw.get("pid", 0)
        try:
            memory = psutil.Process(pid).memory_info().rss  # TorchServe's own figure is 0 for the first minute
        except (psutil.Error, ValueError):
            memory = raw.get("memoryUsage", 0)
        return cls(raw["id"], pid, raw["status"], memory, parse_instant(raw.get("startTime", "")))


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A registered model: settings.workers is the number asked for, `workers` are those that exist."""

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
        """Whether every worker that was asked for can answer."""
        return 0 < self.settings.workers == self.ready_workers == len(self.workers)

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


class ManagementClient:
    """Registers, scales and describes the model, with the management key only."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "management")

    def state(self) -> Literal["down", "starting", "up"]:
        """ "up" is any TorchServe that answers, also one that refuses our key: describe() then says so."""
        try:
            self._call("GET", "/models", STATE_SECONDS)
        except ServerUnreachable:
            return "starting" if find_server(self._config) else "down"
        except RequestRefused as refusal:
            return "up" if refusal.type == "InvalidKeyException" else "down"
        return "up"

    def describe(self) -> ModelStatus | None:
        """None if the model is not registered."""
        try:
            return ModelStatus.from_describe(self._call("GET", f"/models/{MODEL_NAME}")[0])
        except RequestRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def register(self, settings: ServingSettings) -> None:
        """Loads the model and returns when all its workers are READY; raises ChangeFailed with the reason otherwise.

        After a failure nothing is registered.
        """
        settings.check()
        if self.describe():
            raise ChangeFailed("The model is already registered: move the sliders and press Apply to change it.")
        self._load(settings, archive_for(settings))

    def unregister(self) -> None:
        """Ends the model's workers; fine if there is no model."""
        try:
            self._call("DELETE", f"/models/{MODEL_NAME}", UNLOAD_SECONDS)
        except RequestRefused as refusal:
            if refusal.status != 404:
                raise

    def scale(self, workers: int) -> None:
        """Changes the number of workers only; puts the old number back and raises ChangeFailed if that fails."""
        SERVING_BOUNDS["workers"].check("workers", workers)
        before = self._registered()
        if before.batching == "continuous" and workers > 1:
            raise ChangeFailed(
                "Continuous batching works with one worker only: press Apply to change the batching, too."
            )
        log = _LogMark(self._config)
        try:
            self._set_workers(workers)
        except TorchServeError as error:
            reason = log.why(error)
            self._set_workers(before.settings.workers)
            raise ChangeFailed(f"{reason} The model serves on with {before.settings}.") from error

    def apply(self, settings: ServingSettings) -> None:
        """Makes the registered model serve with `settings`, and with its old ones again if that fails (ChangeFailed).

        TorchServe can change the workers of a registered model only. Everything else means to unregister and register
        it; requests in progress are cut.
        """
        settings.check()
        before = self._registered()
        archive = archive_for(settings)
        if (archive, settings) == (before.archive, before.settings) and before.is_ready:
            return
        batch = (before.settings.batch_size, before.settings.max_batch_delay_ms)
        if archive == before.archive and batch == (settings.batch_size, settings.max_batch_delay_ms):
            self.scale(settings.workers)
            return
        self._require_archive(archive)
        self.unregister()
        try:
            self._load(settings, archive)
        except TorchServeError as error:
            try:
                self._load(before.settings, before.archive)
            except TorchServeError as second:
                raise ChangeFailed(f"{error} The old settings could not be put back either: {second}") from error
            raise ChangeFailed(f"{error} The model serves again with {before.settings}.") from error

    def _registered(self) -> ModelStatus:
        status = self.describe()
        if status is None:
            raise ChangeFailed("The model is not registered: press Register Llama2 first.")
        return status

    def _require_archive(self, archive: str) -> None:
        if not archive.startswith("file:") and not (self._config.model_store / archive).is_file():
            raise ChangeFailed(f"{archive} is missing in {self._config.model_store}: run package_llama.sh first.")

    def _load(self, settings: ServingSettings, archive: str) -> None:
        """Registers with one worker and then scales.

        With more initial workers TorchServe 0.12 leaves, after a failed load, a worker that runs on unseen (tried).
        """
        self._require_archive(archive)
        log = _LogMark(self._config)
        query = {
            "model_name": MODEL_NAME,
            "url": archive,
            "batch_size": settings.batch_size,
            "max_batch_delay": settings.max_batch_delay_ms,
            "initial_workers": min(1, settings.workers),
            "synchronous": "true",
        }
        try:
            self._call("POST", f"/models?{urlencode(query)}", LOAD_SECONDS)
            if settings.workers > 1:
                self._set_workers(settings.workers)
            self._await(settings)
        except TorchServeError as error:
            if isinstance(error, RequestRefused) and error.type == "ConflictStatusException":
                raise ChangeFailed("Somebody else is registering the model: wait for it, then press Apply.") from error
            reason = log.why(error)
            with contextlib.suppress(ServerUnreachable):
                self.unregister()
            raise ChangeFailed(reason) from error

    def _set_workers(self, workers: int) -> None:
        query = urlencode({"min_worker": workers, "max_worker": workers, "synchronous": "true"})
        self._call("PUT", f"/models/{MODEL_NAME}?{query}", LOAD_SECONDS)

    def _await(self, settings: ServingSettings) -> None:
        """TorchServe answers the registration a moment before it shows the worker as READY."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            status = self._registered()
            if status.settings != settings:
                raise ChangeFailed(
                    f"TorchServe took {status.settings} instead of {settings}: look at model-config.yaml."
                )
            if status.is_ready or settings.workers == 0:
                return
            if time.monotonic() > deadline:
                raise ChangeFailed(f"Only {status.ready_workers} of {settings.workers} workers became ready.")
            time.sleep(0.05)

    def _call(self, method: str, path: str, seconds: float = QUICK_SECONDS) -> Any:
        return self._keys.use(lambda key: fetch(method, self._config.management_url + path, key, seconds))


class _LogMark:
    """Remembers where the worker's log ends now, to find out later what a failed load said."""

    _EXCEPTION = re.compile(r"MODEL_LOG - ((?:\w+\.)*\w*(?:Error|Exception|Parameter|Exit)\b:? .*)")

    def __init__(self, config: ServerConfig) -> None:
        self._file = config.logs / "model_log.log"
        self._offset = self._file.stat().st_size if self._file.exists() else 0

    def why(self, error: TorchServeError) -> str:
        """The worker's last exception since then, as a sentence; else TorchServe's own message."""
        # What a worker prints is copied to the log by a thread of its own: TorchServe's refusal may be here first.
        deadline = time.monotonic() + (LOG_SECONDS if isinstance(error, RequestRefused) and error.status >= 500 else 0)
        while not (causes := self._causes()):
            if time.monotonic() > deadline:
                return f"The model could not be loaded: {error} See {self._file}."
            time.sleep(0.05)
        return f"The model could not be loaded: {causes[-1].strip().rstrip('.')}."

    def _causes(self) -> list[str]:
        try:
            with self._file.open("rb") as log:
                log.seek(self._offset)
                text = log.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [cause for cause in self._EXCEPTION.findall(text) if "500 - " not in cause]
