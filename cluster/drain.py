"""Takes a node out of service before its machine is switched off: its answers end, and no new ones begin there.

    python -m cluster.drain node-2

Returns when its last answer has ended and its TorchServe has stopped. Its conversations go to other nodes. Then press
Ctrl-C in its `python -m cluster.machine`; otherwise the node comes back, as a node of `make cluster` does.
"""

import argparse
import os
import sys
import time
from typing import Any

from cluster.environment import (
    HEAD_RESOURCE,
    LOOPBACK,
    SECONDS_TO_FINISH,
    loopback_environment,
    ray_environment,
    read_address,
)
from torchserve_client.config import ServerConfig, TorchServeError

POLL_SECONDS = 0.5


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.drain", description=__doc__)
    parser.add_argument("node", help="its name, as the tab Nodes shows it")
    name = parser.parse_args().node
    try:
        home = ServerConfig.load().home / ".cluster"
        address = read_address(home)
        os.environ |= ray_environment(home) | (loopback_environment() if address.startswith(LOOPBACK) else {})
        from cluster.connection import connect  # Ray reads its environment when it is imported

        connect(address)
        wait_until_idle(drain(name))
    except ImportError as error:
        print(f"{error.name} is missing: `make cluster` installs it.", file=sys.stderr)
        return 1
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{name} has ended its answers and gets no more.")
    return 0


def drain(name: str) -> str:
    """Returns the id of the machine in Ray. Raises TorchServeError if there is no such node, or if Ray refuses."""
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
    node_id = str(nodes[name]["NodeID"])
    accepted, problem = client.drain_node(node_id, reason, "cluster.drain", deadline_ms)
    if not accepted:
        raise TorchServeError(f"Ray does not drain {name}: {problem}")
    return node_id


def wait_until_idle(node_id: str) -> None:
    """Returns when the replica there has ended: it ends after its answers, and stops its TorchServe."""
    from ray._private import state

    def has_replica() -> bool:
        actors = state.actors(actor_state_name="ALIVE").values()
        return any(
            actor["Address"]["NodeID"] == node_id and actor["ActorClassName"].endswith(":Node") for actor in actors
        )

    while has_replica():
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
