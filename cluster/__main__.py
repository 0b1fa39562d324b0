"""Serves the packaged model on several machines that look like one: http://127.0.0.1:8000/v1.

Without --address it starts two Ray nodes on this machine, each with a share of the cores. With --address it deploys to
the machines of a cluster (cluster/machine.py, docs/scaling.md), and ends. `.venv/bin/python -m cluster.key` prints the
key.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Callable

from cluster.environment import loopback_environment, prepare, ray_environment
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.status import DEFAULT_SETTINGS, SERVING_BOUNDS


def whole(low: int, high: int) -> Callable[[str], int]:
    """The type of an argument: a whole number within bounds."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low} to {high}")
        return int(text)

    return number


def address(text: str) -> str:
    """The type of --host: an IPv4 address. An empty one would mean all addresses."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address of this machine") from error


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("--address", metavar="HOST:PORT", help="of a running Ray cluster's head")
    parser.add_argument("--host", type=address, default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=whole(1, 65_535), default=8000, help="(default %(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this host")
    parser.add_argument("--nodes", type=whole(1, 16), help="to start on this machine (default 2)")
    parser.add_argument("--min-nodes", type=whole(1, 10_000), default=1, help="that always serve (default %(default)s)")
    parser.add_argument("--max-nodes", type=whole(1, 10_000), help="that serve at most (default: all that there are)")
    batch_sizes = SERVING_BOUNDS["batch_size"]
    parser.add_argument(
        "--batch-size",
        type=whole(int(batch_sizes.low), int(batch_sizes.high)),
        default=DEFAULT_SETTINGS.batch_size,
        help="requests that a node answers at once (default %(default)s)",
    )
    chosen = parser.parse_args()
    if chosen.address and chosen.nodes:
        parser.error("--nodes starts nodes on this machine, and --address uses those of a running cluster")
    chosen.nodes = chosen.nodes or 2
    try:
        config = ServerConfig.load()
        home = config.home / ".cluster"
        prepare(home)
        os.environ |= ray_environment(home) | ({} if chosen.address else loopback_environment())
        from cluster.run import run  # Ray reads its environment when it is imported

        return run(chosen, config, home)
    except ImportError as error:
        print(f"{error.name} is missing: `make cluster` installs it.", file=sys.stderr)
        return 1
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
