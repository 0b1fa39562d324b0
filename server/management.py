"""Runs the model on TorchServe: register, describe, scale, change. Knows nothing of Streamlit.

ManagementClient uses the management key, and for the metrics the inference key; asking the model is in
server/client.py. Before a worker is taken away its requests may finish (server/traffic.py). Only one change
is made at a time, by whatever program: config.properties is the lock.

Not covered: several models or versions.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from server import process as torchserve_process
from server.client import MODEL_NAME, QUICK_SECONDS, STATE_SECONDS, Keys, RequestRefused, ServerUnreachable, fetch
from server.logs import worker_exceptions
from server.metrics import ARRIVED, read_snapshot
from server.model_store import CONTINUOUS_ARCHIVE, DYNAMIC_ARCHIVE, archive_for
from server.process import START_SECONDS, ServerConfig, TorchServeError, find_server
from server.status import DEFAULT_SETTINGS, SERVING_BOUNDS, ModelStatus, ServingSettings
from server.traffic import Patience, wait_until_quiet

__all__ = [
    "CONTINUOUS_ARCHIVE",
    "DEFAULT_SETTINGS",
    "DYNAMIC_ARCHIVE",
    "SERVING_BOUNDS",
    "ArchiveMissing",
    "ChangeFailed",
    "ManagementClient",
    "ModelStatus",
    "Patience",
    "ServerView",
    "ServingSettings",
]

LOAD_SECONDS = 660.0  # startupTimeout in model-config.yaml, and a little more
UNLOAD_SECONDS = 150.0  # TorchServe's unregister_model_timeout, and a little more
READY_SECONDS = 30.0  # from the end of a registration until describe shows every worker READY
LOG_SECONDS = 5.0  # from a refused load until the log has what the worker said last, if it said anything
LOCK_SECONDS = 1.0


class ChangeFailed(TorchServeError):
    """The model could not be registered, scaled or changed; the message says why and what is serving now."""


class ArchiveMissing(ChangeFailed):
    """The archive is not in the model store: package_llama.sh makes it."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """What can be seen of TorchServe at one moment. `problem` says what is wrong where it is unhealthy.

    "unhealthy": it runs but does not answer, or not to us. `model` is None where none is registered or can be seen.
    """

    state: Literal["down", "starting", "up", "unhealthy"]
    model: ModelStatus | None = None
    problem: str = ""


class ManagementClient:
    """Registers, scales and describes the model."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "management")

    def look(self) -> ServerView:
        """One request, which takes about a second at most; raises nothing."""
        try:
            return ServerView("up", self._describe(STATE_SECONDS))
        except ServerUnreachable:
            return self._look_at_process()
        except RequestRefused as refusal:
            if refusal.status == 502:  # what answers is not TorchServe
                return ServerView("down", problem=str(refusal))
            return ServerView("unhealthy", problem=str(refusal))
        except TorchServeError as error:
            return ServerView("unhealthy", problem=str(error))

    def _look_at_process(self) -> ServerView:
        process = find_server(self._config)
        if process is None:
            return ServerView("down")
        if torchserve_process.age_seconds(process) < START_SECONDS:
            return ServerView("starting")
        url = self._config.management_url
        problem = f"TorchServe (process {process.pid}) runs but does not answer at {url}: stop it and start it again."
        return ServerView("unhealthy", problem=problem)

    def describe(self) -> ModelStatus | None:
        """None if the model is not registered."""
        return self._describe(QUICK_SECONDS)

    def _describe(self, seconds: float) -> ModelStatus | None:
        try:
            return ModelStatus.from_describe(self._call("GET", f"/models/{MODEL_NAME}", seconds)[0])
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

    def unregister(self, patience: Patience | None = None) -> None:
        """Ends the model's workers; fine if there is no model.

        Requests in progress may finish first; once `patience` is over they are cut, for which TorchServe is started
        again.
        """
        with self._only_change():
            if self.describe():
                self._remove(patience or Patience())

    def scale(self, workers: int, patience: Patience | None = None) -> None:
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
            if not self._frees_workers(before, workers, patience or Patience()):
                raise ChangeFailed(
                    f"A worker that should go is still busy. The model serves on with {before.settings}."
                )
            self._scale(before, workers)

    def apply(self, settings: ServingSettings, archive: str | None = None, patience: Patience | None = None) -> None:
        """Makes the registered model serve with `settings`, and with its old ones again if that fails (ChangeFailed).

        TorchServe can change the workers of a registered model only. Everything else means to unregister and register
        it, which unregister() does as it says; while the model loads, TorchServe refuses requests (404).
        """
        settings.check()
        patience = patience or Patience()
        with self._only_change():
            before = self._registered()
            archive = archive or archive_for(settings.workers)
            if (archive, settings) == (before.archive, before.settings) and before.is_ready:
                return
            self._require_archive(archive)
            batch = (before.settings.batch_size, before.settings.max_batch_delay_ms)
            changes_workers_only = archive == before.archive and batch == (
                settings.batch_size,
                settings.max_batch_delay_ms,
            )
            if (
                changes_workers_only
                and before.phase == "ready"
                and self._frees_workers(before, settings.workers, patience)
            ):
                self._scale(before, settings.workers)
            else:
                self._replace(before, settings, archive, patience)

    # Each of these is called with the lock held.

    def _frees_workers(self, before: ModelStatus, workers: int, patience: Patience) -> bool:
        """Whether those above `workers`, if any, have nothing to do any more."""
        surplus = len(before.workers) - workers
        return surplus <= 0 or wait_until_quiet(self._config, self.describe, patience, last=surplus) is not None

    def _scale(self, before: ModelStatus, workers: int) -> None:
        log = _LogMark(self._config)
        try:
            self._set_workers(workers)
        except TorchServeError as error:
            reason = log.why(error)
            self._set_workers(before.settings.workers)
            raise ChangeFailed(f"{reason} The model serves on with {before.settings}.") from error

    def _replace(self, before: ModelStatus, settings: ServingSettings, archive: str, patience: Patience) -> None:
        self._remove(patience)
        patience.tell(f"Loading {archive} with {settings}")
        try:
            self._load(settings, archive)
        except TorchServeError as error:
            patience.tell(f"That failed; loading the old settings again: {before.settings}")
            try:
                self._load(before.settings, before.archive)
            except TorchServeError as second:
                raise ChangeFailed(f"{error} The old settings could not be put back either: {second}") from error
            raise ChangeFailed(f"{error} The model serves again with {before.settings}.") from error

    def _remove(self, patience: Patience) -> None:
        """Unregisters the model; whoever was not answered by then has its connection cut."""
        arrived = wait_until_quiet(self._config, self.describe, patience)
        if arrived is not None:
            patience.tell("Ending the workers")
            self._delete()
            if read_snapshot(self._config).total(ARRIVED) == arrived:
                return
        # What TorchServe had accepted it would now neither answer nor cut; only its end does that.
        patience.tell("Cutting the requests in progress: TorchServe is started again")
        torchserve_process.stop(self._config)
        torchserve_process.start(self._config)

    def _registered(self) -> ModelStatus:
        status = self.describe()
        if status is None:
            raise ChangeFailed("The model is not registered: press Register Llama2 first.")
        return status

    def _require_archive(self, archive: str) -> None:
        if not archive.startswith("file:") and not (self._config.model_store / archive).is_file():
            raise ArchiveMissing(f"{archive} is missing in {self._config.model_store}: run package_llama.sh first.")

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
                self._delete()
            raise ChangeFailed(reason) from error

    def _delete(self) -> None:
        try:
            self._call("DELETE", f"/models/{MODEL_NAME}", UNLOAD_SECONDS)
        except RequestRefused as refusal:
            if refusal.status != 404:
                raise

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

    @contextlib.contextmanager
    def _only_change(self) -> Iterator[None]:
        """The system lets go for a program that is killed."""
        deadline = time.monotonic() + LOCK_SECONDS
        with self._config.path.open() as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ChangeFailed(
                            "Another page or program is changing the model: wait for its end, then try again."
                        ) from None
                    time.sleep(0.05)
            yield


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
