"""Runs the Python programs that do the work, shows their progress, and turns a failure into one sentence."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from package_llama.console import gigabytes, progress_bar, report, still_working
from package_llama.errors import PackagingError
from package_llama.paths import PROJECT

FULL_DISK = re.compile(r"No space left|Errno 28|failed to write|write error|basic_ios::clear", re.IGNORECASE)


def run(
    module: str,
    *arguments: str,
    purpose: str,
    written_folder: Path | None = None,
    label: str = "",
    percent_pattern: str = "",
    advice: str = "",
    **environment: str,
) -> None:
    """Runs a module as a program in PROJECT. Raises PackagingError with its last line of stderr if it fails.

    written_folder: the staging folder for its files; after a full disk the error says how much space is there.
    label: the word before the progress. percent_pattern: matches the lines of stderr that are progress; group 1 is the
    percentage. advice: the next step after another failure. The program and its children are killed if this process
    ends before them.
    """
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "package_llama.die_with_parent", str(reading), module, *arguments],
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,  # also makes a line of each carriage return
        errors="replace",
        start_new_session=True,  # and a process group, which die_with_parent needs
        pass_fds=[reading],
    ) as process:
        os.close(reading)
        try:
            assert process.stderr is not None
            with nullcontext() if percent_pattern else still_working(purpose):
                reason = _show_progress(process.stderr, label, percent_pattern)
                status = process.wait()
        finally:
            os.close(writing)  # kills the program, unless it has ended
    if status != 0:
        if written_folder and FULL_DISK.search(reason):
            free = gigabytes(shutil.disk_usage(written_folder).free)
            advice = f"make room, {free} are free in {written_folder.parent}, "
        if status < 0 and not reason:
            reason = f"it was ended by {signal.Signals(-status).name}"
        reason = re.sub(r"^/\S*/", "", reason) or "no reason given"  # llama.cpp begins an assertion with a path
        raise PackagingError(
            f"{purpose} failed ({reason}): {advice or 'correct that, '}then run the same command again."
        )


def run_pip(purpose: str, *arguments: str, written_folder: Path) -> None:
    """Runs pip, with `written_folder` for its temporary files."""
    if importlib.util.find_spec("pip") is None:
        raise PackagingError(f"pip is missing in {sys.prefix}: run '{sys.executable} -m ensurepip'.")
    report(purpose)
    run(
        *("pip", "--disable-pip-version-check", *arguments),
        purpose=purpose,
        written_folder=written_folder,
        advice="check the network connection, ",
        TMPDIR=str(written_folder),
    )


def _show_progress(stderr: Iterable[str], label: str, percent_pattern: str) -> str:
    """Shows the lines that match as a progress bar. Returns the last of the other lines, or nothing."""
    reason = ""
    with progress_bar(label) as bar:
        for line in filter(None, map(str.strip, stderr)):
            if percent_pattern and (found := re.match(percent_pattern, line)):
                bar.update(int(found[1]) - bar.n)
            else:
                reason = line.removeprefix("RuntimeError: ")
    return reason
