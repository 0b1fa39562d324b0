"""A node of the cluster: owns one TorchServe on its machine and passes its answers on.

A replica lives exactly as long as its TorchServe and that server's worker: when one of them ends, the replica ends as
well. So Ray Serve routes around the node within a moment, and starts another replica, which finds or starts TorchServe.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import psutil
import ray

from cluster.listening import listen_at_own_address
from cluster.messages import Cut, Head
from cluster.model_archive import ModelArchive
from cluster.node_facts import N_SNAPSHOTS, NodeFacts
from cluster.torchserve_home import node_home, prepare_home
from cluster.watch import OWNER_LOCK, start_watching
from front.errors import ApiError
from front.torchserve import TorchServe
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.file_lock import file_lock
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import MetricsSnapshot, scrape
from torchserve_client.process import start, stop
from torchserve_client.running_server import find_server, worker_processes
from torchserve_client.status import ServingSettings

OWNER_SECONDS = 60.0  # until the replica before this one has ended
CHECK_SECONDS = 0.25
OBSERVE_SECONDS = 2.0
HANGING_SECONDS = 60.0  # TorchServe answers a request for its metrics within this time on the busiest machine


class Node:
    """The deployment. One replica runs on each machine. Raises TorchServeError if it cannot serve.

    folder: has a folder for the TorchServe of each node on this machine.
    """

    async def __init__(self, archive: ModelArchive, settings: ServingSettings, folder: str) -> None:  # type: ignore[misc]
        # Ray Serve awaits it, in the event loop of the requests.
        self._owns_torchserve = False
        listen_at_own_address()
        self._name, self._settings = node_name(), settings
        self._config = prepare_home(node_home(folder, self._name))
        self._lifetime = contextlib.ExitStack()
        self._lifetime.enter_context(file_lock(self._config.home / OWNER_LOCK, OWNER_SECONDS))
        self._owns_torchserve = True
        is_new = archive.install(self._config)
        start_watching(self._config)
        start(self._config)
        _serve(self._config, settings, is_new)
        server = find_server(self._config)
        self._processes = [server, *worker_processes(self._config, server)] if server else []
        self._torchserve = TorchServe(self._config)
        await self._torchserve.read_key()  # it lasts as long as this TorchServe
        self._snapshots: deque[MetricsSnapshot] = deque(maxlen=N_SNAPSHOTS)
        self._answered_at = time.monotonic()
        self._n_accepted = 0
        self._tasks = [asyncio.create_task(self._end_with_torchserve()), asyncio.create_task(self._observe())]

    async def answer(self, path: str, body: tuple[bytes, str] | None) -> AsyncIterator[Head | bytes]:
        """A Head, and then the pieces of TorchServe's answer as they come. Raises Cut if TorchServe does not answer.

        Closing the generator disconnects from TorchServe, which frees the slot.
        """
        self._n_accepted += 1
        try:
            async with self._torchserve.answer(path, body) as answer:
                if answer.status_code >= 500:
                    self._end_if_broken()
                yield Head(answer.status_code, dict(answer.headers))
                async for piece in answer.aiter_raw():
                    yield piece
        except ApiError as error:  # TorchServe does not answer, or has ended
            self._end_if_broken()
            raise Cut from error
        finally:
            self._n_accepted -= 1

    async def _end_with_torchserve(self) -> None:
        while True:
            self._end_if_broken()
            await asyncio.sleep(CHECK_SECONDS)

    async def _observe(self) -> None:
        while True:
            with contextlib.suppress(TorchServeError):  # it does not answer: _end_if_broken() counts the time
                self._snapshots.append(await asyncio.to_thread(scrape, self._config))
                self._answered_at = time.monotonic()
            await asyncio.sleep(OBSERVE_SECONDS)

    def _end_if_broken(self) -> None:
        """Ends the replica, so that its other requests are known to be cut, and new ones go elsewhere at once."""
        is_hanging = time.monotonic() - self._answered_at > HANGING_SECONDS
        if is_hanging:  # the next replica could not use it
            for process in self._processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        if is_hanging or not all(map(_runs, self._processes)):
            os._exit(1)

    async def record_routing_stats(self) -> dict[str, Any]:
        """Ray Serve asks for it regularly and sends it to the entry: what the node does."""
        slots, snapshots = self._settings.batch_size, tuple(self._snapshots)
        return NodeFacts.of(self._name, slots, self._n_accepted, snapshots, time.time()).to_dict()

    def __del__(self) -> None:
        """Ray Serve calls it when the node is no longer needed and its requests have finished."""
        if self._owns_torchserve:  # Ray Serve calls it also when the constructor has failed
            stop(self._config)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def node_name() -> str:
    here = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeName"]) for node in ray.nodes() if node["NodeID"] == here)


def _serve(config: ServerConfig, settings: ServingSettings, is_new: bool) -> None:
    """Registers the model, unless the TorchServe of the replica before this one serves it already.

    is_new: whether the archive is another one than that TorchServe has registered.
    """
    management = ManagementClient(config)
    status = management.describe()
    if status and (is_new or status.settings != settings or status.phase == "failed"):
        management.unregister()
        status = None
    if status is None:
        management.register(settings)
    management.await_ready(settings)
