"""Takes a node out of service before its machine is switched off: its answers end, and no new ones begin there.

    python -m cluster.drain node-2

Returns when the node has no requests any more. Its conversations go to other nodes. Then press Ctrl-C in its
`python -m cluster.machine`; otherwise the node comes back, as a node of `make cluster` does.
"""

import argparse
import os
import sys
import time
from typing import Any

from cluster.entry_file import entry_file, read_entry
from cluster.environment import (
    HEAD_RESOURCE,
    LOOPBACK,
    SECONDS_TO_FINISH,
    loopback_environment,
    ray_environment,
    read_address,
)
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import REQUEST_TIMEOUT_SECONDS, fetch

POLL_SECONDS = 0.5


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.drain", description=__doc__)
    parser.add_argument("node", help="its name, as the tab Nodes shows it")
    name = parser.parse_args().node
    try:
        config = ServerConfig.load()
        home = config.home / ".cluster"
        address = read_address(home)
        os.environ |= ray_environment(home) | (loopback_environment() if address.startswith(LOOPBACK) else {})
        from cluster.connection import connect  # Ray reads its environment when it is imported

        connect(address)
        drain(name)
        wait_until_idle(config, name)
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name} answers no requests any more.")
    return 0


def drain(name: str) -> None:
    """Raises TorchServeError if there is no such node, or if Ray refuses."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    nodes = {node["NodeName"]: node for node in ray.nodes() if node["Alive"]}
    if name not in nodes:
        raise TorchServeError(f"There is no node {name!r}. The nodes are: {', '.join(sorted(nodes))}.")
    if HEAD_RESOURCE in nodes[name]["Resources"]:
        raise TorchServeError(f"{name} is the head, and the entry is there: stop the cluster instead.")
    client: Any = GcsClient(address=ray.get_runtime_context().gcs_address)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # Ray refuses the other reason for a busy node
    # Ray Serve begins to end the node's replica so long before the deadline as its requests may take.
    deadline_ms = int(1000 * (time.time() + SECONDS_TO_FINISH))
    accepted, problem = client.drain_node(nodes[name]["NodeID"], reason, "cluster.drain", deadline_ms)
    if not accepted:
        raise TorchServeError(f"Ray does not drain {name}: {problem}")


def wait_until_idle(config: ServerConfig, name: str) -> None:
    """Returns when the node has no TorchServe any more. Raises TorchServeError if the cluster does not answer."""
    entry = read_entry(config.home)
    if entry is None:
        raise TorchServeError(f"{entry_file(config.home)} is missing, so {name} cannot be watched: look at its tab.")
    while "slots" in node_named(name, fetch("GET", f"{entry.url}/cluster", entry.key, REQUEST_TIMEOUT_SECONDS)):
        time.sleep(POLL_SECONDS)


def node_named(name: str, answer: Any) -> dict[str, Any]:
    return next((node for node in answer["nodes"] if node["name"] == name), {})


if __name__ == "__main__":
    sys.exit(main())
