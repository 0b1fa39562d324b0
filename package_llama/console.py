"""Prints sentences on stdout and the progress of a long step on stderr."""

import sys

from tqdm import tqdm  # type: ignore[import-untyped]

LOG_SECONDS = 30  # between two lines of progress if stderr is not a terminal


def report(sentence: str) -> None:
    print(sentence, flush=True)


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
