"""Makes Ray Serve's replicas listen at their machine's address in the cluster only: 127.0.0.1 on a single machine.

Ray Serve 2.60 opens a port at all addresses for each replica ("[::]:0" in serve/_private/replica.py) and has no setting
for that. The port needs Ray's token, but it should not be there for others at all.
"""

from typing import Any

import ray
from ray.serve._private import replica

_add_port = replica.add_port_to_grpc_server


def listen_at_own_address() -> None:
    """Called in a replica's constructor: Ray Serve opens the port after that."""
    replica.add_port_to_grpc_server = _add_own_port


def _add_own_port(server: Any, address: str) -> int:
    port = address.rpartition(":")[2]
    bound: int = _add_port(server, f"{ray.util.get_node_ip_address()}:{port}")
    return bound
