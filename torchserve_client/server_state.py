"""Queries how TorchServe and its model are. Starts, stops and changes nothing.

Uses the management key. torchserve_client/management.py adds the changes; the chat needs only this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

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
from torchserve_client.keys import Keys
from torchserve_client.running_server import START_SECONDS, age_seconds, find_server
from torchserve_client.status import ModelStatus

Availability = Literal["down", "starting", "unhealthy", "no model", "loading", "ready"]


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
            return ServerState("up", retry_once(lambda: self.describe_version("", STATE_TIMEOUT_SECONDS)))
        except ServerUnreachable:
            return self._state_of_process()
        except RequestRefused as refusal:
            if refusal.status == 502:  # another program answers at TorchServe's address
                return ServerState("down", problem=str(refusal))
            return ServerState("unhealthy", problem=str(refusal))
        except TorchServeError as error:
            return ServerState("unhealthy", problem=str(error))

    def _state_of_process(self) -> ServerState:
        process = find_server(self._config)
        if process is None:
            return ServerState("down")
        if age_seconds(process) < START_SECONDS:
            return ServerState("starting")
        url = self._config.management_url
        problem = f"TorchServe (process {process.pid}) runs but does not answer at {url}: stop it and start it again."
        return ServerState("unhealthy", problem=problem)

    def describe(self) -> ModelStatus | None:
        """The default version; None if the model is not registered. Raises TorchServeError."""
        return self.describe_version("")

    def describe_version(self, version: str, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS) -> ModelStatus | None:
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
