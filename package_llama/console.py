"""Prints sentences on stdout and the progress of a long step on stderr."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm  # type: ignore[import-untyped]

LOG_SECONDS = 2  # between two lines of progress if stderr is not a terminal, and of a step without progress of its own


def report(sentence: str) -> None:
    print(sentence, flush=True)


@contextmanager
def still_working(purpose: str) -> Iterator[None]:
    """Reports every few seconds how long a step without progress of its own has taken."""
    is_over, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not is_over.wait(LOG_SECONDS):
            report(f"{purpose}: {time.monotonic() - began:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        is_over.set()
        ticker.join()


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def progress_bar(label: str) -> tqdm:
    """A tqdm bar of 100 per cent. It shows nothing before its first update."""
    return tqdm(
        total=100,
        desc=label,
        bar_format="{desc}: {percentage:.0f} %, {remaining} left",
        mininterval=0.2 if sys.stderr.isatty() else LOG_SECONDS,
        miniters=0,
        delay=0.01,
    )
