"""Starts and stops TorchServe. Finding it is in torchserve_client/running_server.py. Sends no HTTP request.

Not covered: processes of other users.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil

from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.file_lock import file_lock, is_locked
from torchserve_client.java import Java, find_java
from torchserve_client.logs import console_log, start_failure
from torchserve_client.running_server import (
    START_SECONDS,
    age_seconds,
    find_server,
    is_listening,
    key_file,
    port_owner,
    runtime_dir,
    worker_processes,
)
from torchserve_client.socket_folder import make_socket_folder

LAUNCH_SECONDS = 30.0  # for the launcher, which starts Java and returns
TERMINATE_SECONDS = 20.0  # for TorchServe's own shutdown
KILL_SECONDS = 10.0
START_LOCK_SECONDS = 120.0  # longer than another program's start or stop takes
PORT_FREE_SECONDS = 2.0
OWNER_ONLY = 0o077  # umask: TorchServe's logs, archives and keys are for its user only

# How long the threads of llama.cpp spin while they wait for each other, in rounds of libgomp. With libgomp's default a
# busy machine slows each step from 26 ms to up to 900 ms, because a spinning thread occupies a core. With 1000 rounds
# every step of a 7B model is 8 % longer; 3000 rounds cost nothing and are safe (docs/measurements.md). The worker needs
# the value in its environment when it starts.
SPIN_COUNT = "3000"


class StartFailed(TorchServeError):
    """TorchServe was launched but does not serve; log_tail() has its output."""


def start(config: ServerConfig, on_progress: Callable[[str], None] = lambda sentence: None) -> str:
    """Starts TorchServe and waits until every port answers. Returns a sentence with the Java that it runs with.

    on_progress gets a sentence at every step. Raises TorchServeError with the reason if TorchServe does not answer
    within START_SECONDS. TorchServe is no child of this process: it goes on after Ctrl-C or the end of an app.
    """
    with _start_lock(config):
        running = find_server(config)
        java = None if running else _begin(config, on_progress)
    if running:
        _await_ports(config, START_SECONDS - age_seconds(running), on_progress)  # it may have been started just now
        return f"TorchServe is already running (process {running.pid})."
    if not_listening := _await_ports(config, START_SECONDS, on_progress):
        problem = f"did not answer within {START_SECONDS:.0f} s ({', '.join(not_listening)}) and was stopped"
        if find_server(config) is None:
            problem = f"ended right after its start with {java}"
        reason = start_failure(config)
        stop(config)
        raise StartFailed(f"TorchServe {problem}: {reason}")
    return f"TorchServe is running with {java}."


def is_switching(config: ServerConfig) -> bool:
    """Whether some program launches or stops TorchServe now. After the launch, its age tells that it is starting."""
    return is_locked(_start_lock_file(config))


def _start_lock_file(config: ServerConfig) -> Path:
    return config.logs / "start.lock"


def _start_lock(config: ServerConfig) -> AbstractContextManager[None]:
    """Allows one start or stop at a time, in whatever program.

    A second TorchServe would overwrite the key file before it fails, and a stop would remove what a start has made.
    """
    refusal = TorchServeError("Another program keeps starting or stopping TorchServe: end that program.")
    return file_lock(_start_lock_file(config), START_LOCK_SECONDS, refusal)


def _begin(config: ServerConfig, on_progress: Callable[[str], None]) -> Java:
    """Launches TorchServe, which does not answer yet. Leaves nothing behind if that fails."""
    folder = runtime_dir(config)
    try:
        config.model_store.mkdir(parents=True, exist_ok=True)
        make_socket_folder(folder)
    except OSError as error:
        raise TorchServeError(f"TorchServe's folders cannot be made ({error}): make that place writable.") from error
    try:
        on_progress("Checking whether the ports are free")
        _require_free_ports(config, f"stop it, or choose another port in {config.path}")
        _stop_processes(worker_processes(config, None))
        on_progress("Looking for Java")
        java = find_java()
        on_progress(f"Launching TorchServe with {java}")
        _launch(config, java)
        return java
    except TorchServeError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _launch(config: ServerConfig, java: Java) -> None:
    launcher = Path(sys.executable).with_name("torchserve")
    if not launcher.is_file():
        raise TorchServeError(f"{launcher} is missing: run `pip install -r requirements.txt` in this environment.")
    folder = runtime_dir(config)
    (folder / ".model_server.pid").unlink(missing_ok=True)
    log_config = Path(__file__).with_name("log4j2.xml")
    command: list[str | Path] = [launcher, "--start", "--ncs", "--log-config", log_config]
    command += ["--ts-config", config.path, "--model-store", config.model_store]
    environment = os.environ | {
        "JAVA_HOME": str(java.home),
        "TS_CONFIG_FILE": str(config.path),
        "LOG_LOCATION": str(config.logs),
        "METRICS_LOCATION": str(config.logs),
        "TMPDIR": str(folder),  # the launcher's pid file
        "TEMP": str(folder),  # Java's temp directory
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT),
    }
    console_log(config).touch(mode=0o600)
    with console_log(config).open("wb") as console:
        try:
            subprocess.run(
                command,
                cwd=config.home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=OWNER_ONLY,
                timeout=LAUNCH_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StartFailed(f"The torchserve command failed ({error}): see {console_log(config)}.") from error


def _await_ports(config: ServerConfig, seconds: float, on_progress: Callable[[str], None]) -> list[str]:
    """Waits until every port answers, TorchServe ends or the time is over. Returns the ports that do not answer."""
    deadline = time.monotonic() + seconds
    while missing := [purpose for purpose, host, port in config.ports if not is_listening(host, port)]:
        if time.monotonic() > deadline or find_server(config) is None:
            break
        on_progress(f"Waiting for the ports: {', '.join(missing)}")
        time.sleep(0.1)
    return missing


def _require_free_ports(config: ServerConfig, next_step: str) -> None:
    """Raises TorchServeError if a port is taken. Waits a moment, because a killed server closes its ports late."""
    deadline = time.monotonic() + PORT_FREE_SECONDS
    for purpose, host, port in config.ports:
        while is_listening(host, port):
            if time.monotonic() > deadline:
                owner = port_owner(port)
                program = _describe(owner) if owner else "a program of another user"
                raise TorchServeError(f"Port {port} ({purpose}) is taken by {program}: {next_step}.")
            time.sleep(0.1)


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.name()} (process {process.pid})"
    return f"process {process.pid}"


def stop(config: ServerConfig) -> None:
    """Ends TorchServe and its workers, and removes what they leave behind. Does nothing if nothing runs.

    Cuts the requests in progress. Takes at most TERMINATE_SECONDS + KILL_SECONDS. Raises TorchServeError if a process
    or a port is still in use then.
    """
    with _start_lock(config):
        server = find_server(config)
        workers = worker_processes(config, server)
        if server:
            _stop_processes([server])
        _stop_processes(workers + worker_processes(config, None))
        if server:
            _require_free_ports(config, "TorchServe has ended, so stop that program")
            key_file(config).unlink(missing_ok=True)
        shutil.rmtree(runtime_dir(config), ignore_errors=True)


def _stop_processes(processes: list[psutil.Process]) -> None:
    for signal, seconds in ((psutil.Process.terminate, TERMINATE_SECONDS), (psutil.Process.kill, KILL_SECONDS)):
        for process in processes:
            try:
                signal(process)
            except psutil.NoSuchProcess:
                pass
            except psutil.AccessDenied as error:
                raise TorchServeError(f"{_describe(process)} belongs to another user: end it as that user.") from error
        _, processes = psutil.wait_procs(processes, timeout=seconds)
    if processes:
        raise TorchServeError(f"{_describe(processes[0])} cannot be ended: end it by hand.")
