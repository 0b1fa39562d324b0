"""The moving line: in a terminal, in a log, and what is left of a failure."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from installer import SetUpError, progress
from installer.statuses import CompileStatus, PipStatus, PlainStatus

PYTHON = [sys.executable, "-c"]


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(progress, "LOG", tmp_path_factory.mktemp("log") / "set-up.log")


def test_a_silent_program_still_moves_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.1)
    progress.run("Unpacking", [*PYTHON, "import time; time.sleep(0.5)"], PlainStatus())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Unpacking"
    assert lines[1:-1] == ["Unpacking: 0:00"] * len(lines[1:-1]) and len(lines) >= 4
    assert lines[-1] == "Unpacking: done in 0:00"


def test_a_program_that_prints_all_the_time_does_not_delay_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.1)
    program = "import time\nfor number in range(40): print(number, flush=True); time.sleep(0.02)"
    progress.run("Compiling", [*PYTHON, program], PlainStatus())
    assert len(capsys.readouterr().out.splitlines()) >= 5


def test_nothing_is_silent_for_five_seconds() -> None:
    assert progress.PLAIN_SECONDS < 5
    assert progress.TERMINAL_SECONDS < 5


def test_a_failure_without_known_words_ends_with_the_last_lines() -> None:
    with pytest.raises(SetUpError) as caught:
        progress.run("Testing", [*PYTHON, "print(*range(100), sep=chr(10)); exit(3)"], PlainStatus())
    assert caught.value.lines == tuple(map(str, range(92, 100)))


@pytest.mark.parametrize(
    ("printed", "step"),
    [
        ("OSError: [Errno 28] No space left on device", "make room on the disk"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
        ("ERROR: No matching distribution found for tqdm==4.70.1", "check the network connection"),
    ],
)
def test_a_known_failure_names_the_next_step(printed: str, step: str) -> None:
    with pytest.raises(SetUpError, match=step) as caught:
        progress.run("Testing", [*PYTHON, f"print({printed!r}); exit(1)"], PlainStatus())
    assert caught.value.lines == (printed,)


def test_the_compilation_is_shown_in_per_cent() -> None:
    status = CompileStatus()
    shown = [status.text()]
    for line in (
        "  *** Configuring CMake...",
        "  [48/193] g++ -c a.cpp",
        "  [ 66%] Building CXX object b.o",
        "warning",
    ):
        status.read(line)
        shown.append(status.text())
    assert shown == ["getting the build tools", "looking at the compiler", "24 %", "66 %", "66 %"]


def test_pip_is_shown_by_what_it_downloads_and_unpacks() -> None:
    n_unpacked = 5
    status = PipStatus(lambda: n_unpacked)
    shown = []
    for line in (
        "Collecting numpy==2.4.6",
        "  Downloading numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl (16.9 MB)",
        "Progress 8459082 of 16918164",
        "Installing collected packages: a, b, c",
    ):
        status.read(line)
        shown.append(status.text())
    n_unpacked += 2
    assert shown == [
        "1 packages, looking for numpy==2.4.6",
        "downloading numpy",
        "downloading numpy, 8 of 17 MB",
        "unpacking packages, 0 of 3",
    ]
    assert status.text() == "unpacking packages, 2 of 3"


def test_the_line_of_a_terminal_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    began = time.monotonic()
    progress.run("Unpacking", [*PYTHON, "import time; time.sleep(0.6)"], PlainStatus())
    text = capsys.readouterr().out
    assert text.count("\n") == 1
    assert text.count("\r\x1b[K") >= 2, time.monotonic() - began


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where pytest runs in the background and ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_program_is_started_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        """Ctrl-C comes when the program runs already, and before its starter has its number."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        progress.run("Compiling", ["sleep", "60"], PlainStatus())
    assert started[0].wait(timeout=30) == -signal.SIGTERM
