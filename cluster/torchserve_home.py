"""The folder of a node's TorchServe: its config.properties with free ports, keys, logs and model store.

Every address is 127.0.0.1, so TorchServe cannot be reached from outside its machine.
"""

import contextlib
import re
import socket
from pathlib import Path

from torchserve_client.config import ServerConfig, config_file
from torchserve_client.running_server import find_server

ADDRESSES = ("inference_address", "management_address", "metrics_address")
PORTS = ("grpc_inference_port", "grpc_management_port")
# TCP where TorchServe's netty has no native sockets, as on Apple's processors.
WORKER_PORTS = ("initial_worker_port", "initial_distribution_port")


def node_home(folder: str, name: str) -> Path:
    """The same after every restart, so that a new replica finds the TorchServe of the one before it."""
    return Path(folder).expanduser() / re.sub(r"[^\w.-]", "_", name)


def prepare_home(folder: Path) -> ServerConfig:
    """Writes the project's config.properties with free ports, unless a TorchServe runs there. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "config.properties"
    if file.exists() and find_server(config := ServerConfig.load(file)):
        return config
    names = (*ADDRESSES, *PORTS, *WORKER_PORTS)
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    changes = {name: f"http://127.0.0.1:{ports[name]}" for name in ADDRESSES} | {
        name: str(ports[name]) for name in (*PORTS, *WORKER_PORTS)
    }
    changes |= {"model_store": "model_store", "grpc_inference_address": "127.0.0.1"}
    changes |= {"grpc_management_address": "127.0.0.1"}
    lines = config_file().read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in changes]
    file.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in changes.items())]) + "\n")
    return ServerConfig.load(file)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
