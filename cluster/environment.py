"""Ray's environment variables for our clusters: a token for every connection, and no usage statistics.

Ray reads them when it is imported, so nothing here imports it.
"""

import os
import secrets
from pathlib import Path

from torchserve_client.config import TorchServeError
from torchserve_client.socket_folder import make_socket_folder, socket_folder

APPLICATION = "llama"  # its name in Ray Serve, and that of the namespace
SECONDS_TO_FINISH = 1200.0  # for the answers of a node that is taken away
MESSAGE_BYTES = 64 * 2**20  # Ray Serve's own limit of 4 MiB is less than max_request_size in config.properties
TOKEN_FILE, ADDRESS_FILE = "ray_token", "ray_address"
LONGEST_SOCKET = "ray/session_2026-11-26_23-59-59_999999_9999999/sockets/plasma_store.9"
LOOPBACK = "127.0.0.1"
HEAD_RESOURCE = "node:__internal_head__"  # Ray gives it to the head


def ray_environment(home: Path) -> dict[str, str]:
    """For the machines' Ray as well as for our process. home: the folder .cluster.

    https://docs.ray.io/en/releases-2.60.0/ray-security/token-auth.html
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(home / TOKEN_FILE),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_HA_PROXY": "0",  # it would listen at all of the machine's addresses
        # Between entry and nodes: half the processor time for each piece of an answer.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MESSAGE_BYTES),
        "RAY_TMPDIR": str(ray_folder(home)),
    }


def loopback_environment() -> dict[str, str]:
    """Keeps a cluster of one machine at 127.0.0.1. It is Ray's default on macOS, and the name is about that."""
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def prepare(home: Path) -> None:
    """Makes the folders and the token. Raises TorchServeError if that cannot be done, or if others could read them."""
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.stat().st_mode & 0o77:
            raise TorchServeError(f"Other accounts can open {home}: run `chmod 700 {home}`.")
        make_socket_folder(ray_folder(home))
        secret(home / TOKEN_FILE, secrets.token_hex(32))
    except OSError as error:
        raise TorchServeError(f"{home} cannot be used ({error.strerror}): make that place writable.") from error


def secret(file: Path, new: str) -> str:
    """What the file contains; `new`, if it is made now. Raises TorchServeError, also if others can read it."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(new)
    except FileExistsError:
        if file.stat().st_mode & 0o77:
            raise TorchServeError(f"Other accounts can read {file}: run `chmod 600 {file}`.") from None
    except OSError as error:
        raise TorchServeError(f"{file} cannot be made ({error.strerror}): make that place writable.") from error
    text = file.read_text().strip()
    if not text:
        raise TorchServeError(f"{file} is empty: remove it, and a new one is made.")
    return text


def write_address(home: Path, address: str) -> None:
    """Where the deployed cluster's head is, for programs that come later. (Ray's own search may find another one.)

    Raises TorchServeError.
    """
    try:
        (home / ADDRESS_FILE).write_text(address)
    except OSError as error:
        problem = f"{home / ADDRESS_FILE} cannot be written ({error.strerror})"
        raise TorchServeError(f"{problem}: make that place writable.") from error


def read_address(home: Path) -> str:
    """Raises TorchServeError if nothing has been deployed."""
    try:
        return (home / ADDRESS_FILE).read_text()
    except OSError as error:
        problem = f"{home / ADDRESS_FILE} cannot be read ({error.strerror})"
        raise TorchServeError(f"{problem}: run this where `python -m cluster` has deployed.") from error


def ray_folder(home: Path) -> Path:
    """Ray's own temporary folder."""
    return socket_folder("llama-ray", home, LONGEST_SOCKET)
