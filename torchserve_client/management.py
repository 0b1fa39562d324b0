"""Changes how the model is served: registers, scales, replaces and unregisters it. Sends no request to the model.

Before a worker ends, its requests may finish (torchserve_client/drain.py). A lock file allows one change at a time, in
whatever program.

One of several versions is the default: it answers requests that name no version. A second version is loaded only until
it becomes the default, because two versions need the memory twice.

Not covered: several models.
"""

import contextlib
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import psutil

from torchserve_client import process as torchserve_process
from torchserve_client.archives import archive_for, read_archive
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy, drain
from torchserve_client.file_lock import file_lock, is_locked
from torchserve_client.http import (
    LOAD_TIMEOUT_SECONDS,
    MODEL_NAME,
    UNLOAD_TIMEOUT_SECONDS,
    RequestRefused,
    ServerUnreachable,
)
from torchserve_client.logs import WORKER_LOG, worker_exceptions
from torchserve_client.metrics import ARRIVED, scrape
from torchserve_client.status import SERVING_BOUNDS, ModelStatus, ServingSettings, StatusClient, version_path

READY_SECONDS = 30.0  # from the end of a registration until describe shows every worker as READY
LOG_SECONDS = 5.0  # from a failed load until the log has the worker's exception, if there is one
CHANGE_LOCK_SECONDS = 1.0
# A second version is loaded beside the first one only if this multiple of the workers' memory is free: the cache of
# each worker and its saved sequences may take two fifths of the free memory.
MIN_FREE_MEMORY_FACTOR = 3


class ChangeFailed(TorchServeError):
    """The model could not be changed. The message says why, and what serves now."""


class ArchiveMissing(ChangeFailed):
    """The archive is not in the model store: package_llama.sh makes it."""


def is_changing(config: ServerConfig) -> bool:
    """Whether some program changes the model now."""
    return is_locked(_change_lock_file(config))


def _change_lock_file(config: ServerConfig) -> Path:
    return config.logs / "change.lock"


class ManagementClient(StatusClient):
    """Changes the model, and queries it like its base class.

    Every method that changes the model raises ChangeFailed if another program is changing it.
    """

    def register(self, settings: ServingSettings, archive: str | None = None) -> None:
        """Loads the model. Returns when all its workers are READY.

        archive: a file in the model store; None is the archive of package_llama.sh for that number of workers.
        Raises ChangeFailed with the reason; nothing is registered then.
        """
        settings.check()
        with self._change_lock():
            if self.describe():
                raise ChangeFailed("The model is already registered: move the sliders and press Apply to change it.")
            self._load(settings, archive or archive_for(settings.workers))

    def unregister(self, drain_policy: DrainPolicy | None = None) -> None:
        """Ends the workers of all versions. Does nothing if no model is registered.

        Requests in progress may finish first. Requests that do not finish in time are cut: TorchServe is restarted.
        """
        with self._change_lock():
            if self.describe():
                self._remove(drain_policy or DrainPolicy())

    def scale(self, workers: int, drain_policy: DrainPolicy | None = None) -> None:
        """Changes only the number of workers.

        The newest workers are ended, as soon as they are idle. Raises ChangeFailed if they do not become idle in time,
        or if a new worker does not load; the model then serves with as many workers as before.
        """
        SERVING_BOUNDS["workers"].check("workers", workers)
        with self._change_lock():
            before = self._require_registered()
            if before.batching == "continuous" and workers > 1:
                sentence = "Continuous batching works with one worker only: press Apply to change the batching, too."
                raise ChangeFailed(sentence)
            if not self._drain_surplus(before, workers, drain_policy or DrainPolicy()):
                sentence = f"A worker that should end is still busy. The model serves on with {before.settings}."
                raise ChangeFailed(sentence)
            self._scale(before, workers)

    def apply(
        self, settings: ServingSettings, archive: str | None = None, drain_policy: DrainPolicy | None = None
    ) -> None:
        """Makes the registered model serve with `settings`. If that fails, restores the old ones; raises ChangeFailed.

        TorchServe can change only the workers of a registered model. Any other change unregisters the model as
        unregister() does, and registers it again; while it loads, TorchServe refuses requests (404).

        An archive with another version is loaded beside the default version, if there is enough memory, and becomes the
        default version when it is ready. So no request is refused. The old version is unregistered once it is idle; if
        it does not become idle in time, it stays registered (see end_version).
        """
        settings.check()
        drain_policy = drain_policy or DrainPolicy()
        with self._change_lock():
            before = self._require_registered()
            archive = archive or archive_for(settings.workers)
            if (archive, settings) == (before.archive, before.settings) and before.is_ready:
                return
            version = self._version_in(archive)
            scaled = replace(before.settings, workers=settings.workers)
            can_scale = (archive, settings) == (before.archive, scaled) and before.phase == "ready"
            if version != before.version and _has_memory_beside(before):
                self._switch(before, settings, archive, version, drain_policy)
            elif can_scale and self._drain_surplus(before, settings.workers, drain_policy):
                self._scale(before, settings.workers)
            else:
                self._replace(before, settings, archive, drain_policy)

    def make_default(self, archive: str, drain_policy: DrainPolicy | None = None) -> None:
        """Serves the version in `archive`, or in its twin, with the settings of now. Raises like apply()."""
        settings = self._require_registered().settings
        self.apply(settings, archive_for(settings.workers, archive, self._config.model_store), drain_policy)

    def end_version(self, version: str, drain_policy: DrainPolicy | None = None) -> None:
        """Unregisters a version that is not the default one, once it is idle. Raises ChangeFailed if it stays busy."""
        with self._change_lock():
            if not self._retire(version, drain_policy or DrainPolicy()):
                raise ChangeFailed(f"Version {version} still answers requests and stays loaded: try again later.")

    def await_ready(self, settings: ServingSettings) -> None:
        """Returns when the registered model has all its workers. Raises ChangeFailed if it does not get them."""
        self._await_workers(settings, "")

    # Each of these is called while this program holds the change lock.

    def _drain_surplus(self, before: ModelStatus, workers: int, drain_policy: DrainPolicy) -> bool:
        """Whether the workers beyond the first `workers` are idle; True if there are none."""
        surplus = len(before.workers) - workers
        return surplus <= 0 or drain(self._config, self.describe, drain_policy, last=surplus) is not None

    def _scale(self, before: ModelStatus, workers: int) -> None:
        log_size = self._worker_log_size()
        try:
            self._set_workers(workers)
        except TorchServeError as error:
            reason = _load_failure(self._config, log_size, error)
            self._set_workers(before.settings.workers)
            raise ChangeFailed(f"{reason} The model serves on with {before.settings}.") from error

    def _switch(
        self, before: ModelStatus, settings: ServingSettings, archive: str, version: str, drain_policy: DrainPolicy
    ) -> None:
        if self.describe(version) and not self._retire(version, drain_policy):
            raise ChangeFailed(f"Version {version} is loaded already and answers requests: end it first.")
        drain_policy.on_progress(f"Loading version {version}; version {before.version} serves meanwhile")
        try:
            self._load(settings, archive, version)
        except TorchServeError as error:
            raise ChangeFailed(f"{error} Version {before.version} serves on with {before.settings}.") from error
        self._call("PUT", f"{version_path(version)}/set-default")
        drain_policy.on_progress(f"Version {version} serves; ending version {before.version}")
        self._retire(before.version, drain_policy)

    def _retire(self, version: str, drain_policy: DrainPolicy) -> bool:
        """Unregisters a version that is not the default one, once it is idle; False if it stays busy."""
        if drain(self._config, partial(self.describe, version), drain_policy, version=version) is None:
            return False
        self._delete(version)
        return True

    def _replace(self, before: ModelStatus, settings: ServingSettings, archive: str, drain_policy: DrainPolicy) -> None:
        self._remove(drain_policy)
        drain_policy.on_progress(f"Loading {archive} with {settings}")
        try:
            self._load(settings, archive)
        except TorchServeError as error:
            drain_policy.on_progress(f"That failed; loading the old settings again: {before.settings}")
            try:
                self._load(before.settings, before.archive)
            except TorchServeError as second:
                raise ChangeFailed(f"{error} The old settings could not be put back either: {second}") from error
            raise ChangeFailed(f"{error} The model serves again with {before.settings}.") from error

    def _remove(self, drain_policy: DrainPolicy) -> None:
        """Unregisters all versions. Cuts the requests that have not finished in time, or that arrived too late."""
        retired = [self._retire(other.version, drain_policy) for other in self.registered()[1:]]
        arrived = drain(self._config, self.describe, drain_policy)
        if all(retired) and arrived is not None:
            drain_policy.on_progress("Ending the workers")
            self._delete()
            with contextlib.suppress(TorchServeError):  # the metrics do not answer
                if scrape(self._config).total(ARRIVED) == arrived:
                    return
        # TorchServe would neither answer nor cut a request that it has accepted by now; only its end cuts it.
        drain_policy.on_progress("Cutting the requests in progress: TorchServe is started again")
        torchserve_process.stop(self._config)
        torchserve_process.start(self._config)

    def _require_registered(self, version: str = "") -> ModelStatus:
        status = self.describe(version)
        if status is None:
            raise ChangeFailed("The model is not registered: press Register Llama2 first.")
        return status

    def _version_in(self, archive: str) -> str:
        """The version of an archive in the model store; raises ArchiveMissing."""
        path = self._config.model_store / archive
        if not path.is_file():
            raise ArchiveMissing(f"{archive} is missing in {self._config.model_store}: run package_llama.sh first.")
        return read_archive(path).version

    def _load(self, settings: ServingSettings, archive: str, version: str = "") -> None:
        """Registers the archive. `version` is needed only if another version is the default one.

        Registers one worker and then scales: with more initial workers, TorchServe 0.12 forgets a worker that runs
        on after a failed load (docs/torchserve-facts.md).
        """
        self._version_in(archive)
        log_size = self._worker_log_size()
        query = {
            "model_name": MODEL_NAME,
            "url": archive,
            "batch_size": settings.batch_size,
            "max_batch_delay": settings.max_batch_delay_ms,
            "initial_workers": min(1, settings.workers),
            "synchronous": "true",
        }
        try:
            self._call("POST", f"/models?{urlencode(query)}", LOAD_TIMEOUT_SECONDS)
            if settings.workers > 1:
                self._set_workers(settings.workers, version)
            self._await_workers(settings, version)
        except TorchServeError as error:
            if isinstance(error, RequestRefused) and error.type == "ConflictStatusException":
                sentence = "Another program is registering the model: wait for its end, then press Apply."
                raise ChangeFailed(sentence) from error
            reason = _load_failure(self._config, log_size, error)
            with contextlib.suppress(ServerUnreachable):
                self._delete(version)
            raise ChangeFailed(reason) from error

    def _delete(self, version: str = "") -> None:
        try:
            self._call("DELETE", version_path(version), UNLOAD_TIMEOUT_SECONDS)
        except RequestRefused as refusal:
            if refusal.status != 404:
                raise

    def _set_workers(self, workers: int, version: str = "") -> None:
        query = urlencode({"min_worker": workers, "max_worker": workers, "synchronous": "true"})
        self._call("PUT", f"{version_path(version)}?{query}", LOAD_TIMEOUT_SECONDS)

    def _await_workers(self, settings: ServingSettings, version: str) -> None:
        """TorchServe answers the registration a moment before describe shows the workers as READY."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            status = self._require_registered(version)
            if status.settings != settings:
                sentence = f"TorchServe took {status.settings} instead of {settings}: correct model-config.yaml."
                raise ChangeFailed(sentence)
            if status.is_ready or settings.workers == 0:
                return
            if time.monotonic() > deadline:
                raise ChangeFailed(f"Only {status.ready_workers} of {settings.workers} workers became ready.")
            time.sleep(0.05)

    def _worker_log_size(self) -> int:
        file = self._config.logs / WORKER_LOG
        return file.stat().st_size if file.exists() else 0

    def _change_lock(self) -> contextlib.AbstractContextManager[None]:
        refusal = ChangeFailed("Another page or program is changing the model: wait for its end, then try again.")
        return file_lock(_change_lock_file(self._config), CHANGE_LOCK_SECONDS, refusal)


def _has_memory_beside(status: ModelStatus) -> bool:
    """Whether a second version with as many workers fits into the free memory without making the caches smaller."""
    used = sum(worker.memory_bytes for worker in status.workers)
    return MIN_FREE_MEMORY_FACTOR * used <= psutil.virtual_memory().available


def _load_failure(config: ServerConfig, log_size: int, error: TorchServeError) -> str:
    """The worker's last exception after byte `log_size` of its log, as a sentence; else TorchServe's own message."""
    # TorchServe copies the worker's output to the log in a thread, so its response may come before the log entry.
    deadline = time.monotonic() + (LOG_SECONDS if isinstance(error, RequestRefused) and error.status >= 500 else 0)
    while not (causes := worker_exceptions(config, log_size)):
        if time.monotonic() > deadline:
            return f"The model could not be loaded: {error} See {config.logs / WORKER_LOG}."
        time.sleep(0.05)
    return f"The model could not be loaded: {causes[-1]}."
