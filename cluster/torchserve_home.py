"""The folder of a node's TorchServe: its config.properties with free ports, keys, logs and model store.

Every address is 127.0.0.1, so TorchServe cannot be reached from outside its machine.
"""

import contextlib
import re
import socket
from pathlib import Path

from torchserve_client.config import ServerConfig, config_file
from torchserve_client.config_copy import N_PORTS, write_config_copy
from torchserve_client.running_server import find_server


def node_home(folder: str, name: str) -> Path:
    """The same after every restart, so that a new replica finds the TorchServe of the one before it."""
    return Path(folder).expanduser() / re.sub(r"[^\w.-]", "_", name)


def prepare_home(folder: Path) -> ServerConfig:
    """Writes the project's config.properties with free ports, unless a TorchServe runs there. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "config.properties"
    if file.exists() and find_server(config := ServerConfig.load(file)):
        return config
    changes = {
        "model_store": "model_store",
        "grpc_inference_address": "127.0.0.1",
        "grpc_management_address": "127.0.0.1",
        "token_expiration_min": 52_560_000,  # a hundred years: no client has these keys, only the replica
    }
    return write_config_copy(config_file(), file, free_ports(N_PORTS), changes)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
