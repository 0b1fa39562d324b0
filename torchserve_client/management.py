"""Runs the model on TorchServe: register, describe, scale, change. Knows nothing of Streamlit.

ManagementClient uses the management key, and for the metrics the inference key; asking the model is in
torchserve_client/inference.py. Before a worker is taken away its requests may finish (torchserve_client/drain.py). Only one change
is made at a time, by whatever program: config.properties is the lock.

Of several versions one is the default, which answers requests that name none. Another one is loaded beside it only
until it takes its place: two would need the memory twice.

Not covered: several models.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlencode

import psutil

from torchserve_client import process as torchserve_process
from torchserve_client.archives import CONTINUOUS_ARCHIVE, DYNAMIC_ARCHIVE, archive_for, read_archive
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy, drain
from torchserve_client.file_lock import Locked, held
from torchserve_client.http import (
    MODEL_NAME,
    QUICK_SECONDS,
    STATE_SECONDS,
    Keys,
    RequestRefused,
    ServerUnreachable,
    fetch,
    retry_once,
)
from torchserve_client.logs import worker_exceptions
from torchserve_client.metrics import ARRIVED, scrape
from torchserve_client.process import START_SECONDS, find_server
from torchserve_client.status import DEFAULT_SETTINGS, SERVING_BOUNDS, ModelStatus, ServingSettings

__all__ = [
    "CONTINUOUS_ARCHIVE",
    "DEFAULT_SETTINGS",
    "DYNAMIC_ARCHIVE",
    "SERVING_BOUNDS",
    "ArchiveMissing",
    "ChangeFailed",
    "ManagementClient",
    "ModelStatus",
    "DrainPolicy",
    "ServerState",
    "ServingSettings",
]

LOAD_SECONDS = 660.0  # startupTimeout in model-config.yaml, and a little more
UNLOAD_SECONDS = 150.0  # TorchServe's unregister_model_timeout, and a little more
READY_SECONDS = 30.0  # from the end of a registration until describe shows every worker READY
LOG_SECONDS = 5.0  # from a refused load until the log has what the worker said last, if it said anything
LOCK_SECONDS = 1.0
ROOM_FACTOR = 3  # free memory, as a multiple of what the workers take, for as many beside them: a cache takes a third


class ChangeFailed(TorchServeError):
    """The model could not be registered, scaled or changed; the message says why and what is serving now."""


class ArchiveMissing(ChangeFailed):
    """The archive is not in the model store: package_llama.sh makes it."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """What can be seen of TorchServe at one moment. `problem` says what is wrong where it is unhealthy.

    "unhealthy": it runs but does not answer, or not to us. `model` is the default version, None where none is
    registered or can be seen.
    """

    state: Literal["down", "starting", "up", "unhealthy"]
    model: ModelStatus | None = None
    problem: str = ""


class ManagementClient:
    """Registers, scales and describes the model."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "management")

    def state(self) -> ServerState:
        """One request, or two; takes two seconds at most and raises nothing."""
        try:
            return ServerState("up", retry_once(lambda: self._describe(STATE_SECONDS)))
        except ServerUnreachable:
            return self._look_at_process()
        except RequestRefused as refusal:
            if refusal.status == 502:  # what answers is not TorchServe
                return ServerState("down", problem=str(refusal))
            return ServerState("unhealthy", problem=str(refusal))
        except TorchServeError as error:
            return ServerState("unhealthy", problem=str(error))

    def _look_at_process(self) -> ServerState:
        process = find_server(self._config)
        if process is None:
            return ServerState("down")
        if torchserve_process.age_seconds(process) < START_SECONDS:
            return ServerState("starting")
        url = self._config.management_url
        problem = f"TorchServe (process {process.pid}) runs but does not answer at {url}: stop it and start it again."
        return ServerState("unhealthy", problem=problem)

    def describe(self) -> ModelStatus | None:
        """The default version; None if the model is not registered."""
        return self._describe(QUICK_SECONDS)

    def registered(self) -> tuple[ModelStatus, ...]:
        """All versions, the default one first."""
        default = self.describe()
        if default is None:
            return ()
        versions = map(ModelStatus.from_describe, self._call("GET", f"/models/{MODEL_NAME}/all"))
        return (default, *(each for each in versions if each.version != default.version))

    def _describe(self, seconds: float, version: str = "") -> ModelStatus | None:
        try:
            return ModelStatus.from_describe(self._call("GET", _path(version), seconds)[0])
        except RequestRefused as refusal:
            if refusal.status == 404:
                return None
            raise

    def register(self, settings: ServingSettings, archive: str | None = None) -> None:
        """Loads the model and returns when all its workers are READY; raises ChangeFailed with the reason otherwise.

        archive: a file in the model store; None is package_llama.sh's for so many workers. After a failure nothing is
        registered.
        """
        settings.check()
        with self._only_change():
            if self.describe():
                raise ChangeFailed("The model is already registered: move the sliders and press Apply to change it.")
            self._load(settings, archive or archive_for(settings.workers))

    def unregister(self, drain_policy: DrainPolicy | None = None) -> None:
        """Ends the workers of all versions; fine if there is no model.

        Requests in progress may finish first; once `patience` is over they are cut, for which TorchServe is started
        again.
        """
        with self._only_change():
            if self.describe():
                self._remove(drain_policy or DrainPolicy())

    def scale(self, workers: int, drain_policy: DrainPolicy | None = None) -> None:
        """Changes the number of workers only; puts the old number back and raises ChangeFailed if that fails.

        The last workers are those that go, once they are quiet; if they are not before `patience` is over, that is a
        ChangeFailed, too, and nothing is changed.
        """
        SERVING_BOUNDS["workers"].check("workers", workers)
        with self._only_change():
            before = self._registered()
            if before.batching == "continuous" and workers > 1:
                raise ChangeFailed(
                    "Continuous batching works with one worker only: press Apply to change the batching, too."
                )
            if not self._frees_workers(before, workers, drain_policy or DrainPolicy()):
                raise ChangeFailed(
                    f"A worker that should go is still busy. The model serves on with {before.settings}."
                )
            self._scale(before, workers)

    def apply(
        self, settings: ServingSettings, archive: str | None = None, drain_policy: DrainPolicy | None = None
    ) -> None:
        """Makes the registered model serve with `settings`, and with its old ones again if that fails (ChangeFailed).

        TorchServe can change the workers of a registered model only. Everything else means to unregister and register
        it, which unregister() does as it says; while the model loads, TorchServe refuses requests (404).

        An archive of another version is loaded beside the one that serves, where memory allows that, and becomes the
        default when it is ready, so that no request is refused. The old one is unregistered as soon as it is quiet; if
        it is not before `patience` is over, it stays registered (end_version).
        """
        settings.check()
        drain_policy = drain_policy or DrainPolicy()
        with self._only_change():
            before = self._registered()
            archive = archive or archive_for(settings.workers)
            if (archive, settings) == (before.archive, before.settings) and before.is_ready:
                return
            version = self._version_in(archive)
            if version not in ("", before.version) and _has_room_beside(before):
                self._switch(before, settings, archive, version, drain_policy)
                return
            batch = (before.settings.batch_size, before.settings.max_batch_delay_ms)
            changes_workers_only = archive == before.archive and batch == (
                settings.batch_size,
                settings.max_batch_delay_ms,
            )
            if (
                changes_workers_only
                and before.phase == "ready"
                and self._frees_workers(before, settings.workers, drain_policy)
            ):
                self._scale(before, settings.workers)
            else:
                self._replace(before, settings, archive, drain_policy)

    def make_default(self, archive: str, drain_policy: DrainPolicy | None = None) -> None:
        """Lets the version in `archive`, or its twin, answer instead, with the same settings; see apply()."""
        settings = self._registered().settings
        self.apply(settings, archive_for(settings.workers, archive, self._config.model_store), drain_policy)

    def end_version(self, version: str, drain_policy: DrainPolicy | None = None) -> None:
        """Unregisters a version that is not the default one, once its requests are answered; else ChangeFailed."""
        with self._only_change():
            if not self._retire(version, drain_policy or DrainPolicy()):
                raise ChangeFailed(f"Version {version} still answers requests and stays loaded: try again later.")

    # Each of these is called with the lock held.

    def _frees_workers(self, before: ModelStatus, workers: int, drain_policy: DrainPolicy) -> bool:
        """Whether those above `workers`, if any, have nothing to do any more."""
        surplus = len(before.workers) - workers
        return surplus <= 0 or drain(self._config, self.describe, drain_policy, last=surplus) is not None

    def _scale(self, before: ModelStatus, workers: int) -> None:
        log = _LogMark(self._config)
        try:
            self._set_workers(workers)
        except TorchServeError as error:
            reason = log.why(error)
            self._set_workers(before.settings.workers)
            raise ChangeFailed(f"{reason} The model serves on with {before.settings}.") from error

    def _switch(
        self, before: ModelStatus, settings: ServingSettings, archive: str, version: str, drain_policy: DrainPolicy
    ) -> None:
        if self._describe(QUICK_SECONDS, version) and not self._retire(version, drain_policy):
            raise ChangeFailed(f"Version {version} is loaded already and answers requests: end it first.")
        drain_policy.tell(f"Loading version {version}; version {before.version} serves meanwhile")
        try:
            self._load(settings, archive, version)
        except TorchServeError as error:
            raise ChangeFailed(f"{error} Version {before.version} serves on with {before.settings}.") from error
        self._call("PUT", f"{_path(version)}/set-default")
        drain_policy.tell(f"Version {version} serves; ending version {before.version}")
        self._retire(before.version, drain_policy)

    def _retire(self, version: str, drain_policy: DrainPolicy) -> bool:
        """Unregisters a version that is not the default one once it is quiet; False if that does not come in time."""
        describe = partial(self._describe, QUICK_SECONDS, version)
        if drain(self._config, describe, drain_policy, version=version) is None:
            return False
        self._delete(version)
        return True

    def _replace(self, before: ModelStatus, settings: ServingSettings, archive: str, drain_policy: DrainPolicy) -> None:
        self._remove(drain_policy)
        drain_policy.tell(f"Loading {archive} with {settings}")
        try:
            self._load(settings, archive)
        except TorchServeError as error:
            drain_policy.tell(f"That failed; loading the old settings again: {before.settings}")
            try:
                self._load(before.settings, before.archive)
            except TorchServeError as second:
                raise ChangeFailed(f"{error} The old settings could not be put back either: {second}") from error
            raise ChangeFailed(f"{error} The model serves again with {before.settings}.") from error

    def _remove(self, drain_policy: DrainPolicy) -> None:
        """Unregisters all versions; whoever was not answered by then has its connection cut."""
        are_retired = all([self._retire(other.version, drain_policy) for other in self.registered()[1:]])
        arrived = drain(self._config, self.describe, drain_policy)
        if are_retired and arrived is not None:
            drain_policy.tell("Ending the workers")
            self._delete()
            if self._arrived() == arrived:
                return
        # What TorchServe had accepted it would now neither answer nor cut; only its end does that.
        drain_policy.tell("Cutting the requests in progress: TorchServe is started again")
        torchserve_process.stop(self._config)
        torchserve_process.start(self._config)

    def _arrived(self) -> float | None:
        """How many requests have arrived since TorchServe's start; None where it does not tell just now."""
        try:
            return scrape(self._config).total(ARRIVED)
        except TorchServeError:
            return None

    def _registered(self, version: str = "") -> ModelStatus:
        status = self._describe(QUICK_SECONDS, version)
        if status is None:
            raise ChangeFailed("The model is not registered: press Register Llama2 first.")
        return status

    def _version_in(self, archive: str) -> str:
        """The version of an archive in the model store, "" for one elsewhere; raises ArchiveMissing."""
        if archive.startswith("file:"):
            return ""
        path = self._config.model_store / archive
        if not path.is_file():
            raise ArchiveMissing(f"{archive} is missing in {self._config.model_store}: run package_llama.sh first.")
        return read_archive(path).version

    def _load(self, settings: ServingSettings, archive: str, version: str = "") -> None:
        """Registers with one worker and then scales; `version`, where another one is the default.

        With more initial workers TorchServe 0.12 leaves, after a failed load, a worker that runs on unseen (tried).
        """
        self._version_in(archive)
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
                self._set_workers(settings.workers, version)
            self._await(settings, version)
        except TorchServeError as error:
            if isinstance(error, RequestRefused) and error.type == "ConflictStatusException":
                raise ChangeFailed("Somebody else is registering the model: wait for it, then press Apply.") from error
            reason = log.why(error)
            with contextlib.suppress(ServerUnreachable):
                self._delete(version)
            raise ChangeFailed(reason) from error

    def _delete(self, version: str = "") -> None:
        try:
            self._call("DELETE", _path(version), UNLOAD_SECONDS)
        except RequestRefused as refusal:
            if refusal.status != 404:
                raise

    def _set_workers(self, workers: int, version: str = "") -> None:
        query = urlencode({"min_worker": workers, "max_worker": workers, "synchronous": "true"})
        self._call("PUT", f"{_path(version)}?{query}", LOAD_SECONDS)

    def _await(self, settings: ServingSettings, version: str) -> None:
        """TorchServe answers the registration a moment before it shows the worker as READY."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            status = self._registered(version)
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

    @contextlib.contextmanager
    def _only_change(self) -> Iterator[None]:
        """The system lets go for a program that is killed."""
        try:
            with held(self._config.path, LOCK_SECONDS):
                yield
        except Locked as error:
            raise ChangeFailed(
                "Another page or program is changing the model: wait for its end, then try again."
            ) from error


def _path(version: str) -> str:
    """The management API's path of a version, of the default one without it."""
    return f"/models/{MODEL_NAME}/{version}" if version else f"/models/{MODEL_NAME}"


def _has_room_beside(status: ModelStatus) -> bool:
    """Whether as many workers again would fit into the memory, without making their caches smaller."""
    used = sum(worker.memory_bytes for worker in status.workers)
    return ROOM_FACTOR * used <= psutil.virtual_memory().available


class _LogMark:
    """Remembers where the worker's log ends now, to find out later what a failed load said."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._file = config.logs / "model_log.log"
        self._offset = self._file.stat().st_size if self._file.exists() else 0

    def why(self, error: TorchServeError) -> str:
        """The worker's last exception since then, as a sentence; else TorchServe's own message."""
        # What a worker prints is copied to the log by a thread of its own: TorchServe's refusal may be here first.
        deadline = time.monotonic() + (LOG_SECONDS if isinstance(error, RequestRefused) and error.status >= 500 else 0)
        while not (causes := worker_exceptions(self._config, self._offset)):
            if time.monotonic() > deadline:
                return f"The model could not be loaded: {error} See {self._file}."
            time.sleep(0.05)
        return f"The model could not be loaded: {causes[-1]}."
