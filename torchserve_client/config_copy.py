"""A copy of config.properties for one more TorchServe on this machine, with ports of its own at 127.0.0.1."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torchserve_client.config import ServerConfig

ADDRESSES = ("inference_address", "management_address", "metrics_address")
PORTS = (
    "grpc_inference_port",
    "grpc_management_port",
    # TCP where TorchServe's netty has no native sockets, as on Apple's processors.
    "initial_worker_port",
    "initial_distribution_port",
)
N_PORTS = len(ADDRESSES) + len(PORTS)


def write_config_copy(
    original: Path, copy: Path, ports: Sequence[int], changes: Mapping[str, object] | None = None
) -> ServerConfig:
    """Writes `copy` and returns it. ports: N_PORTS free ones. changes: properties that are replaced or added.

    Raises OSError.
    """
    numbers = dict(zip((*ADDRESSES, *PORTS), ports, strict=True))
    properties: dict[str, object] = {name: f"http://127.0.0.1:{numbers[name]}" for name in ADDRESSES}
    properties |= {name: numbers[name] for name in PORTS} | dict(changes or {})
    lines = original.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in properties]
    added = [f"{name}={value}" for name, value in properties.items()]
    copy.write_text("\n".join([*kept, *added]) + "\n", encoding="utf-8")
    return ServerConfig.load(copy)
