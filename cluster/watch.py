"""Ends a node's TorchServe when no replica has owned it for a while, so that none is left when Ray was killed.

    python -m cluster.watch <config.properties>

Runs beside each node. A killed replica is followed by another one, which goes on with the same TorchServe.
"""

import contextlib
import os
import subprocess
import sys
import time

from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.file_lock import Locked, file_lock, is_locked
from torchserve_client.process import stop
from torchserve_client.running_server import find_server

OWNER_LOCK, WATCH_LOCK = "owner.lock", "watch.lock"
GRACE_SECONDS = 180.0  # Ray starts another replica within some seconds, and all nodes within a minute on a busy machine
POLL_SECONDS = 1.0


def start_watching(config: ServerConfig) -> None:
    """Starts this program. It does nothing if another one watches already."""
    subprocess.run(
        [sys.executable, "-m", "cluster.watch", str(config.path)],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )


def watch(config: ServerConfig, grace_seconds: float = GRACE_SECONDS) -> None:
    """Returns when TorchServe has ended, by itself or because nobody owned it for `grace_seconds`."""
    owned_at = time.monotonic()
    while (is_owned := is_locked(config.home / OWNER_LOCK)) or find_server(config):
        if is_owned:
            owned_at = time.monotonic()
        elif time.monotonic() - owned_at > grace_seconds:
            with contextlib.suppress(Locked), file_lock(config.home / OWNER_LOCK, POLL_SECONDS):  # a new owner came
                stop(config)
        time.sleep(POLL_SECONDS)


def main() -> None:
    config = ServerConfig.load(sys.argv[1])
    if os.fork():  # Ray ends the children of a replica together with it, but not an orphan
        os._exit(0)
    try:
        with file_lock(config.home / WATCH_LOCK, POLL_SECONDS):
            watch(config)
    except Locked:
        return


if __name__ == "__main__":
    main()
