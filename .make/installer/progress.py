"""Runs a long program, shows one moving line of its progress, and says why it failed.

In a terminal the line is rewritten; elsewhere a new line comes every few seconds. The log has all that the program
prints.
"""

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TextIO

from installer import CACHE, SIGNALS, SetUpError

LOG = CACHE / "set-up.log"
TERMINAL_SECONDS, PLAIN_SECONDS = 0.25, 4.0  # between two states of the line
MAX_REASON_LINES = 8
REASON = re.compile(r"\berror:|CMake Error|No space left|Killed|not find|No matching|Errno", re.I)
WRAPPERS = re.compile(  # these lines only say that something failed
    r"subprocess-exited|did not run successfully|Failed building|Failed to build|metadata-generation-failed"
    r"|originates from a subprocess|build stopped|CMake build failed"
)
EDGE = re.compile(r"\s*\[ *\d+(/\d+|%)\]")  # of ninja or make: a command with all its options
NO_STEP = "the lines above say why; mend that"
NEXT_STEPS = {
    r"No space left": "make room on the disk",
    r"Killed|annot allocate": "close other programs, or use less memory with CMAKE_BUILD_PARALLEL_LEVEL=1 make chat",
    r"name resolution|NewConnectionError|Max retries|timed out|No matching": "check the network connection",
}


class Status(Protocol):
    """Reads a program's lines; `text` says how far it is."""

    def read(self, line: str) -> None: ...

    def text(self) -> str: ...


class Line:
    """The line of progress on stdout."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self.seconds = TERMINAL_SECONDS if self._is_terminal else PLAIN_SECONDS

    def show(self, text: str) -> None:
        if self._is_terminal:
            print("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        else:
            print(text, flush=True)

    def finish(self, text: str) -> None:
        print(("\r\x1b[K" if self._is_terminal else "") + text, flush=True)


def run(label: str, command: Sequence[str], status: Status, environment: Mapping[str, str] | None = None) -> None:
    """Runs `command` in its own process group, which is stopped with this program. Raises SetUpError if it fails."""
    line, reason, began = Line(), Reason(), time.monotonic()
    line.show(label)
    CACHE.mkdir(exist_ok=True)
    with _open_log(command) as log, contextlib.ExitStack() as running:
        with _signals_wait():
            process = running.enter_context(
                subprocess.Popen(
                    command,
                    env={**os.environ, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    close_fds=False,  # it gets the set-up's lock (environment.py)
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            )
            running.push(partial(_stop_group, process))
        for text in _lines_and_ticks(process, line.seconds):
            if text is not None:
                print(text, file=log, flush=True)
                status.read(text)
                reason.read(text)
            else:
                line.show(f"{label}: {_join(status.text(), _clock(began))}")
        failed = process.wait() != 0
    if failed:
        line.finish(f"{label}: failed after {_clock(began)}")
        raise reason.error(label)
    line.finish(f"{label}: done in {_clock(began)}")


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """A signal that comes meanwhile has its effect at the end: a program that is just being started has to be known."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _stop_group(process: subprocess.Popen[str], error: type[BaseException] | None, *_: object) -> None:
    """At the end of the `with` block above: after an error, and after Ctrl-C, the program and all that it started."""
    if error is not None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGTERM)


def _open_log(command: Sequence[str]) -> TextIO:
    log = LOG.open("a", encoding="utf-8")
    print(f"\n$ {' '.join(command)}", file=log, flush=True)
    return log


class Reason:
    """Collects the lines that say why a program failed, and the last lines in case there are none."""

    def __init__(self) -> None:
        self._reasons: list[str] = []
        self._last: deque[str] = deque(maxlen=MAX_REASON_LINES)

    def read(self, text: str) -> None:
        if not text.strip() or EDGE.match(text) or WRAPPERS.search(text):
            return
        self._last.append(text.strip())
        if REASON.search(text) and len(self._reasons) < MAX_REASON_LINES and text.strip() not in self._reasons:
            self._reasons.append(text.strip())

    def error(self, label: str) -> SetUpError:
        lines = tuple(self._reasons or self._last)
        step = next((step for pattern, step in NEXT_STEPS.items() if re.search(pattern, "\n".join(lines))), NO_STEP)
        return SetUpError(f"{label} failed: {step}, then run the same command again. All lines are in {LOG}.", lines)


def _lines_and_ticks(process: subprocess.Popen[str], seconds: float) -> Iterator[str | None]:
    """The program's lines, and None every `seconds`, until its output ends."""
    lines: queue.Queue[str | None] = queue.Queue()

    # The thread closes it: where another one does so, as `with process` at Ctrl-C, the thread ends with a traceback.
    output, process.stdout = process.stdout, None
    assert output is not None

    def read() -> None:
        with output:
            for text in output:
                lines.put(text.rstrip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    next_tick = time.monotonic() + seconds
    while True:
        if time.monotonic() >= next_tick:
            next_tick = time.monotonic() + seconds
            yield None
        try:
            text = lines.get(timeout=max(0.0, next_tick - time.monotonic()))
        except queue.Empty:
            continue
        if text is None:
            return
        yield text


def _join(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def _clock(began: float) -> str:
    seconds = int(time.monotonic() - began)
    return f"{seconds // 60}:{seconds % 60:02d}"
