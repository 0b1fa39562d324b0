"""The lock between programs: one holder, whatever program it is in, and none once that program is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchserve_client.config import PROJECT
from torchserve_client.file_lock import Locked, file_lock, is_locked

HOLDER = """
import sys
from pathlib import Path
from torchserve_client.file_lock import file_lock
with file_lock(Path(sys.argv[1]), 0):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lock"
    path.touch()
    return path


def test_lock_is_taken_as_long_as_the_block_lasts(file: Path) -> None:
    with file_lock(file, 0):
        assert is_locked(file)
        with pytest.raises(Locked), file_lock(file, 0):
            pass
    assert not is_locked(file)


def test_lock_of_a_killed_program_is_free(file: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout
    with holder:
        assert holder.stdout.readline() == b"locked\n"
        assert is_locked(file)
        holder.kill()
        holder.wait()
        with file_lock(file, 30):
            assert is_locked(file)


def test_error_inside_the_block_frees_the_lock_and_stays_itself(file: Path) -> None:
    with pytest.raises(TimeoutError), file_lock(file, 0):
        raise TimeoutError
    assert not is_locked(file)


def test_file_that_is_not_there_is_not_locked(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none")
