"""Runs the Python programs that do the work, shows how far they are, and turns their failures into sentences."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from package_llama.console import Progress, gigabytes, say
from package_llama.errors import PackagingError
from package_llama.paths import PROJECT


def run(
    program: Sequence[str],
    purpose: str,
    folder: Path,
    *,
    label: str = "",
    fraction_of: Callable[[str], float | None] = lambda line: None,
    advice: str = "",
    is_about_room: bool = True,
    **environment: str,
) -> None:
    """Runs a script or `-m module` that writes into `folder`; PackagingError with its last words if it fails.

    fraction_of: how much is done, for a line of its stderr that tells; `label` stands before that. `advice` is what to
    do next beside making room, or, unless `is_about_room`, instead. The program ends when we do, however that happens.
    """
    with started(program, **environment) as process:
        assert process.stderr is not None
        reason = _follow(process.stderr, Progress(label), fraction_of)
        status = process.wait()
    if status != 0:
        room = f"make room if {gigabytes(shutil.disk_usage(folder).free)} free in {folder.parent} are too little, "
        again = "then run the same command again."
        raise PackagingError(f"{purpose} failed ({reason}): {advice}{room if is_about_room else ''}{again}")


def run_pip(purpose: str, *arguments: str, folder: Path) -> None:
    """Runs pip, which may use `folder` for temporary files; its progress bar is shown."""
    if importlib.util.find_spec("pip") is None:
        raise PackagingError(f"pip is missing in {sys.prefix}: run '{sys.executable} -m ensurepip'.")
    say(purpose)
    command = ["-m", "pip", "--disable-pip-version-check", *arguments]
    run(command, purpose, folder, advice="check the network connection, ", TMPDIR=str(folder))


@contextmanager
def started(program: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A script or `-m module` at work, with stderr as a pipe; it is ended where the block does not end as it should.

    It has a session of its own, so that whatever it has started ends together with it.
    """
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "package_llama.die_with_parent", str(reading), *program],
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[reading],
        )
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError, PermissionError):  # it has just ended, which macOS calls not permitted
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    finally:
        os.close(reading)
        os.close(writing)


def _follow(stderr: IO[bytes], progress: Progress, fraction_of: Callable[[str], float | None]) -> str:
    """Shows the progress that lines of `stderr` tell; returns the last of the other lines."""
    reason, rest = "no reason given", b""
    for piece in itertools.chain(iter(lambda: os.read(stderr.fileno(), 4096), b""), [b"\n"]):
        *lines, rest = re.split(rb"[\r\n]", rest + piece)
        for line in filter(None, (line.decode(errors="replace").partition("Traceback")[0].strip() for line in lines)):
            fraction = fraction_of(line)
            if fraction is None:
                reason = line.removeprefix("RuntimeError: ")
            else:
                progress.show(fraction)
    progress.end()
    return reason
