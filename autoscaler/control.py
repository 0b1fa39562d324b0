"""The autoscaler's switch and its files, for the process itself, the server app and the command line.

Whoever holds the lock is the autoscaler; it is what keeps a second one from running, and what tells that one is on.
The process, not this module, decides anything; see autoscaler.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from autoscaler.policy import Observation, Policy
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.file_lock import Locked, held, is_held

SWITCH_OFF_SECONDS = 10.0
LOCK_SECONDS = 1.0  # is_on() holds the lock for a moment, too

Kind = Literal["on", "up", "down", "held back", "failed", "waiting", "off"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the decision log. at: seconds since the epoch. workers: as many as there are after it, 0 if unknown."""

    at: float
    kind: Kind
    workers: int
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the autoscaler tells about itself: its state now in words, its last look, and its log, oldest first."""

    pid: int
    at: float
    now: str
    seen: Observation | None
    log: tuple[Entry, ...]


class AlreadyOn(TorchServeError):
    """Another autoscaler has the lock."""


# The files, all in the server's log folder.


def policy_file(config: ServerConfig) -> Path:
    return config.logs / "autoscaler_policy.json"


def report_file(config: ServerConfig) -> Path:
    return config.logs / "autoscaler.json"


def output_file(config: ServerConfig) -> Path:
    return config.logs / "autoscaler.log"


def read_policy(config: ServerConfig) -> Policy:
    """The defaults before anybody has chosen; raises TorchServeError for a file that cannot be used."""
    file = policy_file(config)
    try:
        policy = Policy(**json.loads(file.read_text()))
        policy.check()
        return policy
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError, TypeError) as error:
        raise TorchServeError(f"{file} cannot be used ({error}): delete it.") from error


def write_policy(config: ServerConfig, policy: Policy) -> None:
    """Counts from the next look of a running autoscaler; raises ValueError for what cannot be."""
    policy.check()
    _write(policy_file(config), asdict(policy))


def read_report(config: ServerConfig) -> Report | None:
    """The running autoscaler's, or the last one's; None if there never was one. Raises TorchServeError like above."""
    file = report_file(config)
    try:
        raw: dict[str, Any] = json.loads(file.read_text())
        seen = Observation(**raw["seen"]) if raw["seen"] else None
        return Report(**raw | {"seen": seen, "log": tuple(Entry(**entry) for entry in raw["log"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TorchServeError(f"{file} cannot be used ({error}): delete it.") from error


def write_report(config: ServerConfig, report: Report) -> None:
    _write(report_file(config), asdict(report))


def _write(file: Path, content: dict[str, Any]) -> None:
    """As a whole: who reads at the same time sees the old file or the new one."""
    file.parent.mkdir(exist_ok=True)
    number, part = tempfile.mkstemp(prefix=f"{file.stem}.", dir=file.parent)  # two pages may write at once
    with open(number, "w") as opened:
        opened.write(json.dumps(content, indent=1))
    os.replace(part, file)


# On and off.


def is_on(config: ServerConfig) -> bool:
    return owner(config) is not None


def owner(config: ServerConfig) -> int | None:
    """The process id of the autoscaler that is on, 0 while it starts; None if none is."""
    if not is_held(_lock_file(config)):
        return None
    pid = int(_lock_file(config).read_text() or 0)
    return pid if psutil.pid_exists(pid) else 0  # one that was killed has left its own


def _lock_file(config: ServerConfig) -> Path:
    return config.logs / "autoscaler.lock"


@contextlib.contextmanager
def only_one(config: ServerConfig) -> Iterator[None]:
    """Holds the lock; raises AlreadyOn."""
    config.logs.mkdir(exist_ok=True)
    _lock_file(config).touch()
    try:
        with held(_lock_file(config), LOCK_SECONDS):
            _lock_file(config).write_text(str(os.getpid()))
            try:
                yield
            finally:
                _lock_file(config).write_text("")
    except Locked as error:
        raise AlreadyOn(f"The autoscaler is on already (process {owner(config)}).") from error


def switch_on(config: ServerConfig, policy: Policy) -> None:
    """Starts the autoscaler as a process that outlives this one; returns when it looks after the server.

    That is after a model with continuous batching has been registered again. Raises TorchServeError with the reason
    where it does not come to that. One that is on already goes on, with this policy.
    """
    write_policy(config, policy)
    if is_on(config):
        return
    started = time.time()
    process = _launch(config)
    while True:
        has_ended = process.poll() is not None  # asked before the log is read: that is complete then
        if _was_logged(config, "on", process.pid, started):
            return  # even if it has been ended again since: that is told by its log, to everybody
        if has_ended:
            break
        time.sleep(0.05)
    if is_on(config):
        return  # somebody else was quicker
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        raise TorchServeError(f"The autoscaler's process was ended from outside ({name}) while it started.")
    lines = output_file(config).read_text().splitlines()
    raise TorchServeError(lines[-1] if lines else "The autoscaler ended right after its start.")


def _launch(config: ServerConfig) -> subprocess.Popen[bytes]:
    with output_file(config).open("ab") as output:
        output.truncate(0)
        return subprocess.Popen(
            [sys.executable, "-m", "autoscaler"],
            cwd=config.home,
            env=os.environ | {"TS_CONFIG_FILE": str(config.path), "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _was_logged(config: ServerConfig, kind: Kind, pid: int, since: float) -> bool:
    report = read_report(config)
    return (
        report is not None
        and report.pid == pid
        and any(entry.kind == kind and entry.at >= since for entry in report.log)
    )


def switch_off(config: ServerConfig) -> None:
    """Ends the autoscaler and leaves the workers as they are; raises TorchServeError where it does not end."""
    deadline = time.monotonic() + SWITCH_OFF_SECONDS
    while (pid := owner(config)) is not None:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if time.monotonic() > deadline:
            raise TorchServeError("The autoscaler is changing the workers: it ends when that is done.")
        time.sleep(0.1)
