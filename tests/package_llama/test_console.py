"""The progress bar, in a terminal and in a log."""

import io
import sys
import time

import pytest

from package_llama import console
from package_llama.console import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_per_cent_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Writing") as bar:
        bar.start_t -= 100  # seconds
        bar.last_print_t -= 1
        bar.update(25)
    assert "Writing: 25 %, 05:00 left" in terminal.getvalue()


def test_a_log_shows_no_progress_of_a_short_step(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar("Writing") as bar:
        bar.update(100)
    assert log.getvalue() == ""


def test_a_step_without_progress_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar("Writing"):
        pass
    assert terminal.getvalue() == ""


def test_a_step_without_progress_says_that_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LOG_SECONDS", 0.05)
    with console.still_working("Packing"):
        time.sleep(0.3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and set(lines) == {"Packing: 0 s"}


def test_nothing_is_silent_for_five_seconds() -> None:
    assert console.LOG_SECONDS < 5
