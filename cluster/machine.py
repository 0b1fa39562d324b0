"""Makes this machine a part of a cluster, and starts its Ray again when that ends. Ctrl-C takes the machine away.

    python -m cluster.machine                       on the first machine, the head
    python -m cluster.machine --address HEAD:6379   on each other one

All machines need the same version of this project, and the head's file .cluster/ray_token (docs/scaling.md).
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from cluster.environment import TOKEN_FILE, prepare, ray_environment
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.stop_signals import StopRequested, ignore_signals, raise_on_signals

HEAD_PORT = 6379  # Ray's own
OBJECT_STORE_BYTES = 78_643_200  # Ray's least; only pieces of answers pass through it
RESTART_SECONDS = 2.0
LEAST_SECONDS = 20.0  # a Ray that ends earlier has not run: its port is taken, its token is wrong, its head is away


def main() -> int:
    """Runs until a signal arrives; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.machine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", metavar="HEAD:6379", help="of the head; without it, this machine is the head")
    parser.add_argument("--ip", help="this machine's address in the cluster (default: Ray's choice)")
    parser.add_argument("--name", default=socket.gethostname(), help="of this node (default %(default)s)")
    chosen = parser.parse_args()
    try:
        run(chosen)
    except StopRequested:
        return 0
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1


def run(chosen: argparse.Namespace) -> NoReturn:
    """Raises StopRequested when a signal arrives, and TorchServeError if this machine cannot be used."""
    home = ServerConfig.load().home / ".cluster"
    if chosen.address and not (home / TOKEN_FILE).exists():
        raise TorchServeError(f"Copy the head's {TOKEN_FILE} to {home / TOKEN_FILE} first: every connection needs it.")
    if not ray_program().is_file():
        raise TorchServeError("Ray is missing: run `.venv/bin/pip install -r cluster/requirements.txt`.")
    prepare(home)
    raise_on_signals()
    environment = os.environ | ray_environment(home) | {"PYTHONPATH": str(PROJECT)}
    has_run = False
    while True:
        began = time.monotonic()
        run_until_end(ray_command(chosen.address, chosen.ip, chosen.name), environment)
        has_run = has_run or time.monotonic() - began > LEAST_SECONDS
        if not has_run:
            raise TorchServeError(f"Ray cannot run on {chosen.name}: correct what it says above, and start this again.")
        print(f"Ray has ended on {chosen.name} and is started again.", flush=True)
        time.sleep(RESTART_SECONDS)


def run_until_end(command: list[str], environment: dict[str, str]) -> None:
    """Returns when the program has ended. When StopRequested is raised, the program is stopped first.

    It is in a session of its own: a Ctrl-C that it got as well would interrupt its own stop.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        process.wait()
    except StopRequested:
        ignore_signals()
        process.terminate()
        process.wait()
        raise


def ray_program() -> Path:
    return Path(sys.executable).with_name("ray")


def ray_command(address: str | None, ip: str | None, name: str) -> list[str]:
    command = [str(ray_program()), "start", "--block", "--disable-usage-stats"]
    command += ["--node-name", name, "--object-store-memory", str(OBJECT_STORE_BYTES)]
    if ip:
        command += ["--node-ip-address", ip]
    if address:
        return [*command, "--address", address]
    return [*command, "--head", "--port", str(HEAD_PORT), "--include-dashboard", "false"]


if __name__ == "__main__":
    sys.exit(main())
