"""Switches the autoscaler on and off: its lock and its process, for the process itself, the server app and the shell.

The process that holds the lock is the autoscaler of this server. Knows nothing of its decisions.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from autoscaler.policy import Policy
from autoscaler.state_files import read_report, write_policy
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.file_lock import Locked, file_lock, is_locked

SWITCH_OFF_SECONDS = 10.0
LOCK_SECONDS = 1.0  # is_on() takes the lock for an instant


def output_file(config: ServerConfig) -> Path:
    """What the process prints."""
    return config.logs / "autoscaler.log"


def _lock_file(config: ServerConfig) -> Path:
    return config.logs / "autoscaler.lock"


@contextlib.contextmanager
def autoscaler_lock(config: ServerConfig) -> Iterator[None]:
    """Raises TorchServeError if another autoscaler of this server runs. The lock of a killed process is free."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(_lock_file(config), LOCK_SECONDS))
        except Locked as error:
            raise TorchServeError(f"The autoscaler is on already (process {autoscaler_pid(config)}).") from error
        yield


def is_on(config: ServerConfig) -> bool:
    return is_locked(_lock_file(config))


def autoscaler_pid(config: ServerConfig) -> int | None:
    """Returns the process id of the autoscaler: 0 before its first report, None if it is off."""
    if not is_on(config):
        return None
    report = read_report(config)
    if report is None:
        return 0
    try:
        is_its_own = psutil.Process(report.pid).create_time() <= report.at  # else another process has got its id
    except psutil.NoSuchProcess:
        return 0  # the report of an earlier autoscaler
    return report.pid if is_its_own else 0


def switch_on(config: ServerConfig, policy: Policy) -> None:
    """Starts the autoscaler as a process that outlives this one, and waits until it has begun.

    A continuously batched model has been registered again by then. An autoscaler that is on already gets the policy.
    Raises TorchServeError with the reason if the autoscaler cannot begin.
    """
    write_policy(config, policy)
    if is_on(config):
        return
    started = time.time()
    process = _launch(config)
    while True:
        has_ended = process.poll() is not None  # before the report is read, which is then complete
        if _has_begun(config, process.pid, started):
            return  # it may have ended since; its log says so
        if has_ended:
            break
        time.sleep(0.05)
    if is_on(config):
        return  # another one has started at the same moment
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise TorchServeError(f"The autoscaler's process was ended from outside ({name}) while it started.")
    lines = output_file(config).read_text().splitlines()
    raise TorchServeError(lines[-1] if lines else "The autoscaler ended right after its start.")


def _launch(config: ServerConfig) -> subprocess.Popen[bytes]:
    output_file(config).touch(mode=0o600)
    with output_file(config).open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "autoscaler"],
            cwd=config.home,
            env=os.environ | {"TS_CONFIG_FILE": str(config.path), "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _has_begun(config: ServerConfig, pid: int, since: float) -> bool:
    report = read_report(config)
    if report is None or report.pid != pid:
        return False
    return any(entry.kind == "on" and entry.at >= since for entry in report.log)


def switch_off(config: ServerConfig) -> None:
    """Ends the autoscaler and leaves the workers as they are. Raises TorchServeError if it does not end in time."""
    deadline = time.monotonic() + SWITCH_OFF_SECONDS
    while (pid := autoscaler_pid(config)) is not None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise TorchServeError("The autoscaler is changing the workers: it ends when that is done.")
        time.sleep(0.1)
