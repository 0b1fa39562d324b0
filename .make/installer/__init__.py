"""The set-up behind `make`: installs the environment with progress, says what is missing, and removes what it made.

It runs before anything is installed, so it needs only the standard library of Python 3.11 and newer.
"""

import os
import signal
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
VENV = PROJECT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CACHE = PROJECT / ".cache"
USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llama-chatapp"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they stop the set-up


class SetUpError(Exception):
    """The message is one sentence: the thing, the problem, the next step. lines: the reason, from a program's log."""

    def __init__(self, sentence: str, lines: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.lines = lines
