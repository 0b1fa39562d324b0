"""Runs a cluster: on this machine until Ctrl-C, or on machines where Ray runs already."""

import argparse
import os
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path

import ray

from cluster.application import deploy, machine_names
from cluster.connection import connect
from cluster.embedded import EmbeddedCluster, HeadEnded
from cluster.entry import EntrySettings
from cluster.entry_file import ClusterEntry, remove_entry, write_entry
from cluster.environment import LOOPBACK, secret, write_address
from cluster.model_archive import ModelArchive, packaged
from cluster.torchserve_home import node_home
from front.server import listen
from front.torchserve import max_body_bytes
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.file_lock import file_lock
from torchserve_client.process import stop
from torchserve_client.status import ServingSettings
from torchserve_client.stop_signals import StopRequested, ignore_signals, raise_on_signals

REMOTE_FOLDER = "~/.cache/llama-chatapp/cluster"  # on each machine of a real cluster
CHECK_SECONDS, LOCK_SECONDS = 0.5, 1.0
ALL_ADDRESSES = "0.0.0.0"  # noqa: S104  # nothing is bound to it here


def run(chosen: argparse.Namespace, config: ServerConfig, home: Path) -> int:
    """Returns the exit status. Raises TorchServeError."""
    local = LOOPBACK if chosen.host == ALL_ADDRESSES else chosen.host
    archive = packaged(config)
    # The same key after every start, so that clients need no new one.
    entry = ClusterEntry(f"http://{local}:{chosen.port}", secret(home / "key", "sk-" + secrets.token_urlsafe(32)))
    if chosen.address:
        _deploy(chosen.address, REMOTE_FOLDER, archive, entry, chosen, config)
    else:
        taken = TorchServeError(f"A cluster runs already in {home}: stop it first.")
        with file_lock(home / "cluster.lock", LOCK_SECONDS, taken):
            _run_embedded(archive, entry, chosen, config, home)
    return 0


def _run_embedded(
    archive: ModelArchive, entry: ClusterEntry, chosen: argparse.Namespace, config: ServerConfig, home: Path
) -> None:
    try:
        listen(chosen.host, chosen.port).close()
    except OSError as error:
        problem = f"The cluster cannot listen at {chosen.host}:{chosen.port} ({error.strerror})"
        raise TorchServeError(f"{problem}: choose another --port or --host.") from error
    raise_on_signals()
    print(f"Starting {chosen.nodes} nodes on this machine …", flush=True)
    cluster = EmbeddedCluster(chosen.nodes)
    try:
        cluster.start()
        _deploy(cluster.address, str(home), archive, entry, chosen, config)
        ray.shutdown()  # else this process would end with the head's raylet
        raise_on_signals()  # Ray has replaced the handler
        print("Press Ctrl-C to stop everything.", flush=True)
        while True:
            time.sleep(CHECK_SECONDS)
            try:
                for name in cluster.start():
                    print(f"{name} had ended and runs again.", flush=True)
            except TorchServeError as error:
                print(error, flush=True)  # the other nodes serve, and the next round tries again
    except StopRequested:
        pass
    except HeadEnded:
        print("The head has ended: starting all nodes again.", flush=True)
        ray.shutdown()
        cluster.stop()
        os.execv(sys.executable, [sys.executable, "-m", "cluster", *sys.argv[1:]])  # noqa: S606  # this program
    finally:
        ignore_signals()
        print("Stopping the cluster …", flush=True)
        remove_entry(config.home, entry)
        cluster.stop()
        for name in cluster.names:
            _stop_torchserve(node_home(str(home), name) / "config.properties")


def _stop_torchserve(config_file: Path) -> None:
    """Says what is wrong if that fails, so that the other nodes are stopped all the same."""
    try:
        if config_file.exists():
            stop(ServerConfig.load(config_file))
    except TorchServeError as error:
        print(error, file=sys.stderr)


def _deploy(
    address: str,
    folder: str,
    archive: ModelArchive,
    entry: ClusterEntry,
    chosen: argparse.Namespace,
    config: ServerConfig,
) -> None:
    connect(address)
    names = machine_names()
    n_nodes = chosen.max_nodes or len(names)
    print(f"Deploying to {', '.join(names)} …", flush=True)
    hosts = ("127.0.0.1", "localhost", "[::1]", chosen.host, *chosen.allow_host)
    deploy(
        replace(archive, source_ip=ray.util.get_node_ip_address()),
        ServingSettings(chosen.batch_size, 0, 1),
        folder,
        (min(chosen.min_nodes, n_nodes), n_nodes),
        EntrySettings(chosen.host, chosen.port, hosts, max_body_bytes(config), entry.key),
    )
    write_address(config.home / ".cluster", address)
    write_entry(config.home, entry)
    print(f"The cluster listens at {entry.url}/v1. `.venv/bin/python -m cluster.key` prints its key.", flush=True)
