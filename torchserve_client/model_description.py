"""What the model says about itself. Does not know whether a model is registered: torchserve_client/status.py does.

Queries the model once for every load, because a worker answers the query like any other request.
"""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import DESCRIPTION_TIMEOUT_SECONDS, MODEL_NAME, fetch
from torchserve_client.keys import Keys
from torchserve_client.status import ModelStatus

LARGEST_WINDOW = 1_000_000_000  # tokens; a larger number is no window
RETRY_DESCRIPTION_SECONDS = 10.0  # after a query without an answer


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """An entry of the answer of `/v1/models`: its id, and its `meta` object, which our worker and llama-server have."""

    id: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def all_from_models(cls, models: Any) -> list[Self]:
        """Out of the whole answer of `/v1/models`, whatever its shape; entries without an id are left out."""
        entries = models.get("data") if isinstance(models, dict) else None
        found = []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]:
                meta = entry.get("meta")
                found.append(cls(entry["id"], meta if isinstance(meta, dict) else {}))
        return found

    @property
    def name(self) -> str:
        """For people: the weights' file if the server names it, since our worker's id is the same for all models."""
        return str(self.meta.get("file") or "").removesuffix(".gguf") or self.id

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together; None if the model does not say."""
        sizes = (self.meta.get(name) for name in ("context_window", "n_ctx"))
        return next((size for size in sizes if type(size) is int and 0 < size <= LARGEST_WINDOW), None)

    @property
    def has_chat_template(self) -> bool:
        """False if the model has none. Our worker then sends a conversation as `Question: … Answer:`."""
        return self.meta.get("chat_template") != "raw"


class ModelDescriptions:
    """The descriptions of one server's model. Threads may share one; each query has its own thread."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "inference")
        self._lock = threading.Lock()
        self._load: tuple[str, int] | None = None  # the load that was queried last: a version and a worker's process
        self._queried_at = 0.0
        self._query_thread: threading.Thread | None = None
        self._description: ModelDescription | None = None

    def of(self, model: ModelStatus, wait_seconds: float = 0.0) -> ModelDescription | None:
        """The description of this load of the model; None if there is none yet. Waits for it so long at most."""
        worker = next((worker for worker in model.workers if worker.is_ready), None)
        if worker is None:
            return None
        load = (model.version, worker.pid)
        with self._lock:
            is_retry_due = time.monotonic() - self._queried_at > RETRY_DESCRIPTION_SECONDS
            is_missing = self._description is None and self._query_thread is None and is_retry_due
            if load != self._load or is_missing:
                self._load, self._description, self._queried_at = load, None, time.monotonic()
                self._query_thread = threading.Thread(target=self._query, args=(load,), daemon=True)
                self._query_thread.start()
            query_thread = self._query_thread
        if query_thread:
            query_thread.join(wait_seconds)
        with self._lock:
            return self._description if load == self._load else None

    def _query(self, load: tuple[str, int]) -> None:
        url = f"{self._config.inference_url}/predictions/{MODEL_NAME}/{load[0]}/v1/models"
        description = None
        try:
            # TorchServeError: the model has gone, or all its workers are busy. of() tries again later.
            with contextlib.suppress(TorchServeError):
                models = self._keys.use(lambda key: fetch("GET", url, key, DESCRIPTION_TIMEOUT_SECONDS))
                description = next(iter(ModelDescription.all_from_models(models)), ModelDescription())
        finally:
            with self._lock:
                if load == self._load:
                    self._description, self._query_thread = description, None
