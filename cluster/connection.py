"""Connects this process to a Ray cluster. Ray reads its environment when this is imported (cluster/environment.py)."""

import logging

import ray

from cluster.environment import APPLICATION
from torchserve_client.config import TorchServeError
from torchserve_client.running_server import is_listening


def connect(address: str) -> None:
    """address: HOST:PORT of the head. Raises TorchServeError."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 65_536):
        raise TorchServeError(f"{address!r} is no address of a head: write it like 10.0.0.1:6379.")
    if not is_listening(host, int(port)):  # Ray itself would wait for minutes
        raise TorchServeError(f"No Ray listens at {address}: start `python -m cluster.machine` there, or wait for it.")
    try:
        ray.init(address=address, namespace=APPLICATION, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        advice = "start it there with `python -m cluster.machine`, with the same .cluster/ray_token"
        raise TorchServeError(f"Ray does not answer at {address} ({reason}): {advice}.") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
