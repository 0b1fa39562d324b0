"""TorchServe as a process: starting it, finding it, stopping it.

Knows no HTTP request; what is said to the running server is in torchserve_client/inference.py.
The server is found by what it is (a ModelServer process that uses this config.properties), never by a remembered
object: one that was started by hand, or by an app that has ended since, is the same server.

Not covered: other people's processes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.file_lock import Locked, held
from torchserve_client.java import Java, find_java

LAUNCH_SECONDS = 30.0  # for the launcher, which starts Java and returns
START_SECONDS = 60.0  # from then until every port answers
TERMINATE_SECONDS = 20.0  # TorchServe's own shutdown; it waits for nothing after that
KILL_SECONDS = 10.0
CHANGE_SECONDS = 120.0  # longer than another program's start or stop takes
PORT_PROBE_SECONDS = 0.5
PORT_FREE_SECONDS = 2.0

# llama.cpp's threads wait for each other some hundred times a token. With libgomp's default they spin for milliseconds
# while they wait: the fastest on a machine with nothing else to do (8 streams on 2 cores: 26 ms a step), a collapse
# where two other programs are busy (up to 900 ms), since the waiting thread keeps the core that the other one needs.
# Sleeping after 1000 rounds is safe there (55 to 70 ms) but makes each step of a 7B model 8 % longer (179 ms; the
# default 165); 3000 rounds cost it nothing and are as safe; with 10,000 the collapse comes back now and then (259 ms).
# It must be in the environment before the worker starts.
SPIN_COUNT = "3000"

MODEL_SERVER = "org.pytorch.serve.ModelServer"
WORKER_SCRIPT = "model_service_worker.py"
SOCKET_PATH_LIMIT = 100  # bytes of <temp dir>/.ts.sock.9000; the system allows 103 on macOS, 107 on Linux


class StartFailed(TorchServeError):
    """TorchServe was launched and did not come up; log_tail() has what it said."""


def runtime_dir(config: ServerConfig) -> Path:
    """The server's own temp directory: pid file, worker sockets, unpacked archives.

    Short, because a worker's socket lives in it; named by the home, so that two servers do not meet.
    """
    name = f"torchserve-{os.getuid()}-{hashlib.sha256(os.fsencode(config.home)).hexdigest()[:10]}"
    folder = Path(tempfile.gettempdir()).resolve() / name
    if len(os.fsencode(folder / ".ts.sock.9000")) > SOCKET_PATH_LIMIT:
        folder = Path("/tmp").resolve() / name
    return folder


def _make_runtime_dir(config: ServerConfig) -> Path:
    folder = runtime_dir(config)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise TorchServeError(f"{folder} belongs to somebody else: remove it, or set TMPDIR to a folder of your own.")
    folder.chmod(0o700)
    return folder


def find_server(config: ServerConfig) -> psutil.Process | None:
    """The Java process that serves this config, whoever started it; None if there is none."""
    by_pid_file = _process_in_pid_file(config)
    if by_pid_file and _serves(by_pid_file, config):
        return by_pid_file
    return next((process for process in psutil.process_iter() if _serves(process, config)), None)


def _process_in_pid_file(config: ServerConfig) -> psutil.Process | None:
    try:
        return psutil.Process(int((runtime_dir(config) / ".model_server.pid").read_text()))
    except (OSError, ValueError, psutil.Error):
        return None


def _serves(process: psutil.Process, config: ServerConfig) -> bool:
    try:
        command = process.cmdline()
        if MODEL_SERVER not in command or process.status() == psutil.STATUS_ZOMBIE:
            return False
        # Without -f, TorchServe reads the config.properties of its working directory.
        file = command[command.index("-f") + 1] if "-f" in command else "config.properties"
        return (Path(process.cwd()) / file).resolve() == config.path
    except (psutil.Error, OSError):
        return False


def age_seconds(process: psutil.Process) -> float:
    """Since the process was started; 0 for one that has just ended."""
    try:
        return max(0.0, time.time() - process.create_time())
    except psutil.Error:
        return 0.0


def key_file(config: ServerConfig) -> Path:
    """In the server's working directory, which is another folder than its home if somebody started it from there."""
    file = config.home / "key_file.json"
    server = None if file.exists() else find_server(config)
    return _working_directory(server, config.home) / "key_file.json" if server else file


def _working_directory(process: psutil.Process, otherwise: Path) -> Path:
    try:
        return Path(process.cwd())
    except (psutil.Error, OSError):
        return otherwise


def _workers(config: ServerConfig, server: psutil.Process | None) -> list[psutil.Process]:
    """The server's Python processes, and those that a killed server left behind."""
    children: list[psutil.Process] = []
    if server:
        try:
            children = server.children(recursive=True)
        except psutil.Error:
            children = []
    folder = runtime_dir(config)
    for process in psutil.process_iter():
        try:
            is_worker = any(part.endswith(WORKER_SCRIPT) for part in process.cmdline())
            if is_worker and Path(process.cwd()).is_relative_to(folder):  # a worker's cwd is its unpacked archive
                children.append(process)
        except (psutil.Error, OSError):
            continue
    return list(set(children))


def is_listening(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), PORT_PROBE_SECONDS) as probe:
            # Linux can connect a socket to itself when nobody listens and it draws the same port for its own end.
            return probe.getsockname() != probe.getpeername()
    except OSError:
        return False


def port_owner(port: int) -> psutil.Process | None:
    """Who listens there; None when it is not one of our own processes."""
    for process in psutil.process_iter():  # one by one: the system-wide question needs root on macOS
        try:
            connections = process.net_connections(kind="tcp")
        except (psutil.Error, OSError):
            continue
        if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections):
            return process
    return None


def start(config: ServerConfig, tell: Callable[[str], None] = lambda sentence: None) -> str:
    """Starts TorchServe and returns, once every port answers, a sentence that says with which Java.

    `tell` gets a sentence at every step. Raises TorchServeError with the reason when it cannot start, or not within
    START_SECONDS. The server is no child of this process: Ctrl-C, a closed page or a stopped app leave it running.
    """
    with _only_one(config):
        running = find_server(config)
        java = None if running else _begin(config, tell)
    if running:
        _await_ports(config, START_SECONDS - age_seconds(running), tell)  # somebody else may just have started it
        return f"TorchServe is already running (process {running.pid})."
    if still_silent := _await_ports(config, START_SECONDS, tell):
        has_ended, last_words = find_server(config) is None, _last_words(config)
        stop(config)
        if has_ended:
            raise StartFailed(f"TorchServe ended right after its start with {java}: {last_words}")
        raise StartFailed(
            f"TorchServe did not answer within {START_SECONDS:.0f} s ({', '.join(still_silent)}) and was stopped: "
            f"{last_words}"
        )
    return f"TorchServe is running with {java}."


@contextlib.contextmanager
def _only_one(config: ServerConfig) -> Iterator[None]:
    """One start or stop at a time, in whatever program: a second server would fail, but only after overwriting the key
    file, and a stop would remove what a start has just made.
    """
    file = config.logs / "start.lock"
    try:
        config.logs.mkdir(exist_ok=True)
        file.touch()
    except OSError as error:
        raise TorchServeError(f"{config.logs} cannot be written ({error}): make that place writable.") from error
    try:
        with held(file, CHANGE_SECONDS):
            yield
    except Locked as error:
        raise TorchServeError("Another program keeps starting or stopping TorchServe: end that program.") from error


def _begin(config: ServerConfig, tell: Callable[[str], None]) -> Java:
    """Launches TorchServe, which does not answer yet; where that fails, nothing of it is left."""
    try:
        config.model_store.mkdir(parents=True, exist_ok=True)
        folder = _make_runtime_dir(config)
    except OSError as error:
        raise TorchServeError(f"TorchServe's folders cannot be made ({error}): make that place writable.") from error
    try:
        tell("Looking whether the ports are free")
        _require_free_ports(config)
        _stop_processes(_workers(config, None))
        tell("Looking for Java")
        java = find_java()
        tell(f"Launching TorchServe with {java}")
        _launch(config, java, folder)
        return java
    except TorchServeError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _launch(config: ServerConfig, java: Java, folder: Path) -> None:
    launcher = Path(sys.executable).with_name("torchserve")
    if not launcher.is_file():
        raise TorchServeError(f"{launcher} is missing: run `pip install -r requirements.txt` in this environment.")
    (folder / ".model_server.pid").unlink(missing_ok=True)
    options = {
        "--ts-config": config.path,
        "--model-store": config.model_store,
        "--log-config": Path(__file__).with_name("log4j2.xml"),
    }
    environment = os.environ | {
        "JAVA_HOME": str(java.home),
        "TS_CONFIG_FILE": str(config.path),
        "LOG_LOCATION": str(config.logs),
        "METRICS_LOCATION": str(config.logs),
        "TMPDIR": str(folder),  # the launcher's pid file
        "TEMP": str(folder),  # Java's temp directory
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT),
    }
    with _console_log(config).open("wb") as console:
        try:
            subprocess.run(
                [launcher, "--start", "--ncs", *(str(part) for option in options.items() for part in option)],
                cwd=config.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                timeout=LAUNCH_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartFailed(f"The torchserve command failed ({error}): see {_console_log(config)}.") from error


def _await_ports(config: ServerConfig, seconds: float, tell: Callable[[str], None]) -> list[str]:
    """The purposes of those that do not answer when the time is over, or when TorchServe has ended."""
    deadline = time.monotonic() + seconds
    while silent := [purpose for purpose, host, port in config.ports if not is_listening(host, port)]:
        if time.monotonic() > deadline or find_server(config) is None:
            break
        tell(f"Waiting for the ports: {', '.join(silent)}")
        time.sleep(0.1)
    return silent


def _require_free_ports(config: ServerConfig) -> None:
    for purpose, host, port in config.ports:
        if not _becomes_free(host, port):
            owner = port_owner(port)
            who = _describe(owner) if owner else "a program of another user"
            raise TorchServeError(
                f"Port {port} ({purpose}) is taken by {who}: stop it, or choose another port in {config.path}."
            )


def _becomes_free(host: str, port: int) -> bool:
    """Waits a little, because a server that has just been killed may still be closing its ports."""
    deadline = time.monotonic() + PORT_FREE_SECONDS
    while is_listening(host, port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.name()} (process {process.pid})"
    except psutil.Error:
        return f"process {process.pid}"


def stop(config: ServerConfig) -> None:
    """Ends TorchServe and its workers and makes sure that nothing is left; does nothing where nothing runs.

    Requests in progress are cut. Takes at most TERMINATE_SECONDS + KILL_SECONDS; raises TorchServeError if a process
    or a port is still there after that.
    """
    with _only_one(config):
        server = find_server(config)
        workers = _workers(config, server)
        if server:
            _stop_processes([server])
        _stop_processes(workers + _workers(config, None))
        if server:
            _require_ended(config)
            key_file(config).unlink(missing_ok=True)
        shutil.rmtree(runtime_dir(config), ignore_errors=True)


def _require_ended(config: ServerConfig) -> None:
    for purpose, host, port in config.ports:
        if not _becomes_free(host, port):
            owner = port_owner(port)
            who = f" by {_describe(owner)}" if owner else ""
            raise TorchServeError(f"TorchServe has ended, but port {port} ({purpose}) is still used{who}: end that.")


def _stop_processes(processes: list[psutil.Process]) -> None:
    for signal, seconds in ((psutil.Process.terminate, TERMINATE_SECONDS), (psutil.Process.kill, KILL_SECONDS)):
        for process in processes:
            _ignoring_its_end(signal, process)
        _, processes = psutil.wait_procs(processes, timeout=seconds)
    if processes:
        raise TorchServeError(f"{_describe(processes[0])} cannot be ended: end it by hand.")


def _ignoring_its_end(action: Callable[[psutil.Process], None], process: psutil.Process) -> None:
    try:
        action(process)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied as error:
        raise TorchServeError(f"{_describe(process)} belongs to another user: end it as that user.") from error


def log_tail(config: ServerConfig, lines: int = 40) -> str:
    """The last lines of TorchServe's log and of what it printed at its start."""
    texts = [_read(config.logs / "ts_log.log").splitlines(), _read(_console_log(config)).splitlines()]
    return "\n".join(line for text in texts for line in text[-lines:])


def _last_words(config: ServerConfig) -> str:
    """The reason in what the start printed: TorchServe says `Invalid configuration: …`, Java prints an exception."""
    printed = [line.strip() for line in _read(_console_log(config)).splitlines()]
    telling = [line for line in printed if re.search(r"Invalid|not found|Exception|Error|already running", line)]
    return telling[0] if telling else f"see {_console_log(config)}."


def _console_log(config: ServerConfig) -> Path:
    return config.logs / "console.log"


def _read(file: Path, limit: int = 65536) -> str:
    """The end of a log file, at most `limit` bytes; "" if there is none."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - limit))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""
