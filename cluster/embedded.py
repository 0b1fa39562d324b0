"""Two or more Ray nodes on this machine, to try a cluster. Each gets a share of the cores.

Not for several machines: there, cluster/machine.py runs on each (docs/scaling.md).
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.machine import OBJECT_STORE_BYTES
from torchserve_client.config import TorchServeError


class HeadEnded(Exception):
    """A process of the first node has ended. All nodes must be started again."""


class EmbeddedCluster:
    """Starts the nodes; start() again replaces those that have ended."""

    def __init__(self, n_nodes: int) -> None:
        self._cluster = Cluster()
        self._nodes: dict[str, Any] = {}
        self.names = [f"node-{number}" for number in range(1, n_nodes + 1)]
        self._cores = _shares(n_nodes)

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def start(self) -> list[str]:
        """Starts each node that does not run. Returns their names. Raises HeadEnded and TorchServeError."""
        head = self._nodes.get(self.names[0])
        if head and head.dead_processes():
            raise HeadEnded
        started = []
        for name, cores in zip(self.names, self._cores, strict=True):
            node = self._nodes.get(name)
            if node and not node.dead_processes():
                continue
            if node:
                self._cluster.remove_node(node, allow_graceful=False)
            with _pinned(cores):
                self._nodes[name] = self._add(name, max(1, len(cores)))
            started.append(name)
        return started

    def _add(self, name: str, n_cpus: int) -> Any:
        head_only = {"include_dashboard": False, "no_monitor": True} if self._cluster.head_node is None else {}
        try:
            return self._cluster.add_node(
                node_name=name,
                num_cpus=n_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_log_monitor=False,
                **head_only,
            )
        except Exception as error:  # Ray raises nothing narrower if a node does not start within 30 s
            raise TorchServeError(
                f"Ray's {name} did not start ({error}): close other programs, and try again."
            ) from error

    def stop(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def _shares(n_nodes: int) -> list[set[int]]:
    """A part of the cores for each node, like machines of their own; all cores where they cannot be divided."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [set(cores[number::n_nodes] or cores) for number in range(n_nodes)]


@contextlib.contextmanager
def _pinned(cores: set[int]) -> Iterator[None]:
    """The processes that are started meanwhile run on these cores only."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
