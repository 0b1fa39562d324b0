"""What packaging says while it works: sentences, sizes, and how far a long step has come."""

from __future__ import annotations

import math
import sys
import time

STEP_PERCENT = 10  # between two lines where no terminal lets one line change


def say(line: str) -> None:
    print(line, flush=True)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


class Progress:
    """Per cent and time left of one step, on stderr: one line that changes in a terminal, else a few lines."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._begin: tuple[float, float] | None = None  # seconds, and what was done by then
        self._next_percent = 0.0  # not shown before

    def show(self, fraction: float) -> None:
        now = time.monotonic()
        self._begin = self._begin or (now, fraction)
        line = f"{self._label}: {100 * fraction:.0f} %{self._time_left(now, fraction)}"
        if sys.stderr.isatty():
            print(f"\r{line}\033[K", end="", file=sys.stderr, flush=True)
        elif 100 * fraction >= self._next_percent:
            print(line, file=sys.stderr, flush=True)
            self._next_percent = min(int(100 * fraction) + STEP_PERCENT, 100) if fraction < 1 else math.inf

    def end(self) -> None:
        """Leaves the line, if there is one."""
        if sys.stderr.isatty() and self._begin:
            print(file=sys.stderr, flush=True)

    def _time_left(self, now: float, fraction: float) -> str:
        assert self._begin
        seconds, done = now - self._begin[0], fraction - self._begin[1]
        if fraction >= 1 or done <= 0 or seconds < 1:
            return ""
        left = seconds * (1 - fraction) / done
        return f", about {left / 60:.0f} min left" if left >= 90 else f", about {max(left, 1):.0f} s left"
