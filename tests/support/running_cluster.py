"""A cluster for tests and benchmarks: `python -m cluster` in a folder of its own, and its processes."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from experiments.load_test import Target
from tests.support.serving import free_ports, make_home, wait_until
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.http import REQUEST_TIMEOUT_SECONDS, fetch
from torchserve_client.keys import FixedKey
from torchserve_client.running_server import find_server, worker_processes

START_SECONDS, STOP_SECONDS = 300.0, 120.0


@dataclass(frozen=True)
class RunningCluster:
    """home: of its config.properties. process: of `python -m cluster`."""

    home: Path
    port: int
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return (self.home / ".cluster" / "key").read_text()

    @property
    def environment(self) -> dict[str, str]:
        """For programs that ask for this cluster."""
        return os.environ | {"TS_CONFIG_FILE": str(self.home / "config.properties")}

    @property
    def target(self) -> Target:
        return Target("cluster", f"{self.url}/v1", FixedKey(self.key))

    def config(self, name: str) -> ServerConfig:
        """Of the TorchServe of a node."""
        return ServerConfig.load(self.home / ".cluster" / name / "config.properties")

    def server(self, name: str) -> psutil.Process | None:
        return find_server(self.config(name))

    def workers(self, name: str) -> list[psutil.Process]:
        config = self.config(name)
        return worker_processes(config, find_server(config))

    def raylet(self, name: str) -> psutil.Process | None:
        """Of node-1, the head, or of node-2."""
        for process in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):
                is_head = "__internal_head__" in " ".join(process.cmdline())
                if process.name() == "raylet" and is_head == (name == "node-1"):
                    return process
        return None

    def nodes(self) -> list[dict[str, Any]]:
        """What the entry says about each node. Raises TorchServeError."""
        found: list[dict[str, Any]] = fetch("GET", f"{self.url}/cluster", self.key, REQUEST_TIMEOUT_SECONDS)["nodes"]
        return found

    def states(self) -> dict[str, str]:
        return {node["name"]: node["state"] for node in self.nodes()}

    def serves(self) -> bool:
        """Whether all nodes serve."""
        with contextlib.suppress(TorchServeError):
            return set(self.states().values()) == {"serving"}
        return False


@contextmanager
def running_cluster(folder: Path, store: Path, n_nodes: int = 2, cores: Sequence[int] = ()) -> Iterator[RunningCluster]:
    """Yields it when all nodes serve. store: a model store with the packaged archive. cores: all of them if empty."""
    config, (port,) = make_home(folder, model_store=store), free_ports(1)
    command = [sys.executable, "-m", "cluster", "--port", str(port), "--nodes", str(n_nodes)]
    if cores:
        command = ["taskset", "--cpu-list", ",".join(map(str, cores)), *command]
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    with (
        (folder / "cluster.log").open("w") as log,
        subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log, text=True) as process,
    ):
        cluster = RunningCluster(folder, port, process)
        try:
            wait_until(lambda: _serves(cluster, n_nodes), START_SECONDS, "all nodes serve")
            yield cluster
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def _serves(cluster: RunningCluster, n_nodes: int) -> bool:
    log = (cluster.home / "cluster.log").read_text()
    assert cluster.process.poll() is None, log
    return "Press Ctrl-C" in log and cluster.serves() and len(cluster.nodes()) == n_nodes
