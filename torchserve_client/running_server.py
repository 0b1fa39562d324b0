"""Finds the running TorchServe and its processes, files and ports. Starts and stops nothing, and sends no request.

TorchServe is found by what it is: a ModelServer process that uses this config.properties. So it makes no difference
which program or person started it.

Not covered: processes of other users.
"""

import contextlib
import socket
import time
from pathlib import Path

import psutil

from torchserve_client.config import ServerConfig
from torchserve_client.socket_folder import socket_folder

START_SECONDS = 60.0  # from the launch until every port answers
PORT_PROBE_SECONDS = 0.5
LONGEST_SOCKET = ".ts.sock.99999"  # TorchServe's for a worker; the number is its port

MODEL_SERVER = "org.pytorch.serve.ModelServer"
WORKER_SCRIPT = "model_service_worker.py"


def runtime_dir(config: ServerConfig) -> Path:
    """The server's own temporary folder: pid file, worker sockets, unpacked archives."""
    return socket_folder("torchserve", config.home, LONGEST_SOCKET)


def find_server(config: ServerConfig) -> psutil.Process | None:
    """The Java process that serves this config; None if there is none. Tries the process in the pid file first."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int((runtime_dir(config) / ".model_server.pid").read_text()))
        if _serves(process, config):
            return process
    return next((process for process in psutil.process_iter() if _serves(process, config)), None)


def _serves(process: psutil.Process, config: ServerConfig) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        command = process.cmdline()
        if MODEL_SERVER in command and process.status() != psutil.STATUS_ZOMBIE:
            # Without -f, TorchServe uses the config.properties of its working directory.
            file = command[command.index("-f") + 1] if "-f" in command else "config.properties"
            return (Path(process.cwd()) / file).resolve() == config.path
    return False


def age_seconds(process: psutil.Process) -> float:
    """The time since the process was started; 0 for a process that has just ended."""
    with contextlib.suppress(psutil.Error):
        return max(0.0, time.time() - process.create_time())
    return 0.0


def key_file(config: ServerConfig) -> Path:
    """TorchServe writes it into its working directory, which is not its home if a person started it elsewhere."""
    file = config.home / "key_file.json"
    with contextlib.suppress(psutil.Error, OSError):
        if not file.exists() and (server := find_server(config)):
            return Path(server.cwd()) / file.name
    return file


def worker_processes(config: ServerConfig, server: psutil.Process | None) -> list[psutil.Process]:
    """The children of `server`, and the workers that a killed server left behind."""
    found = child_processes(server) if server else []
    folder = runtime_dir(config)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_worker = any(part.endswith(WORKER_SCRIPT) for part in process.cmdline())
            if is_worker and Path(process.cwd()).is_relative_to(folder):  # a worker's cwd is its unpacked archive
                found.append(process)
    return list(set(found))


def child_processes(server: psutil.Process) -> list[psutil.Process]:
    """Its children and their children; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        return list(server.children(recursive=True))
    return []


def is_listening(host: str, port: int) -> bool:
    """Whether a program accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), PORT_PROBE_SECONDS) as probe:
        # Linux can connect a socket to itself if no program listens and the system gives the socket this port.
        return bool(probe.getsockname() != probe.getpeername())
    return False


def port_owner(port: int) -> psutil.Process | None:
    """The process that listens there; None if it belongs to another user."""
    for process in psutil.process_iter():  # one by one: the system-wide query needs root on macOS
        with contextlib.suppress(psutil.Error, OSError):
            connections = process.net_connections(kind="tcp")
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections):
                return process
    return None
