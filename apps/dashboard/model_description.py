"""What the model says about itself: asked once for each load, because a worker answers it like any other request.

Knows nothing of Streamlit. Threads may share a ModelFacts; it asks in a thread of its own.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, Keys, fetch
from torchserve_client.inference import ANSWER_SECONDS
from torchserve_client.management import ModelStatus

RETRY_SECONDS = 10.0  # after a question that nobody answered


class ModelFacts:
    """One server's model. With several workers it is whichever is free that answers."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._load: tuple[str, int] | None = None  # the one that was asked last: version and a worker's process
        self._asked_at = 0.0
        self._answer: dict[str, Any] | None = None
        self._question: threading.Thread | None = None

    def of(self, model: ModelStatus) -> dict[str, Any] | None:
        """The `meta` of the model's answer, None until there is one. Returns at once."""
        worker = next((worker for worker in model.workers if worker.is_ready), None)
        if worker is None:
            return None
        load = (model.version, worker.pid)
        with self._lock:
            is_unanswered = self._answer is None and time.monotonic() - self._asked_at > RETRY_SECONDS
            if (load != self._load or is_unanswered) and self._question is None:
                self._load, self._answer, self._asked_at = load, None, time.monotonic()
                self._question = threading.Thread(target=self._ask, args=(model.version,), daemon=True)
                self._question.start()
            return self._answer if load == self._load else None

    def _ask(self, version: str) -> None:
        url = f"{self._config.inference_url}/predictions/{MODEL_NAME}/{version}/v1/models"
        answer = None
        try:
            models = Keys(self._config, "inference").use(lambda key: fetch("GET", url, key, ANSWER_SECONDS))
            answer = models["data"][0].get("meta", {})
        except TorchServeError:
            pass  # asked again later, if it is still there
        finally:
            with self._lock:
                self._answer, self._question = answer, None


def describe_model(meta: dict[str, Any] | None) -> str:
    """A sentence about what `meta` says; None is a model that has not answered yet."""
    if meta is None:
        return "The model is being asked where its layers are."
    layers = where_layers_are(meta) or "The model does not say where its layers are"
    if meta.get("chat_template") != "raw":
        return f"{layers}."
    return f"{layers}. It has no chat template: conversations are sent to it as Question: … Answer: …"


def where_layers_are(meta: dict[str, Any]) -> str:
    """As llama.cpp reported it at the load, such as "33 of 33 layers on Metal (Apple M1)"; "" if that is not known."""
    devices, total = meta.get("devices") or [], meta.get("layers")
    parts = [f"{device['layers']} of {total} layers on {_named(device)}" for device in devices[:1]]
    parts += [f"{device['layers']} on {_named(device)}" for device in devices[1:]]
    return ", ".join(parts)


def _named(device: dict[str, Any]) -> str:
    return f"{device['kind']} ({device['description']})" if device["description"] else str(device["kind"])
