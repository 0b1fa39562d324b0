"""Each running worker has a number, and later workers use the numbers of those that have ended."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
WORKER = """
import sys
from llama_cpp_worker.worker_number import claim_number
print(claim_number(int(sys.argv[1])), flush=True)
sys.stdin.read()
"""

Start = Callable[[int], tuple[int, subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a worker with this id. Returns its number and its process."""
    processes = []

    def start_worker(worker_id: int) -> tuple[int, subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(worker_id)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        processes.append(process)
        assert process.stdout
        return int(process.stdout.readline()), process

    yield start_worker
    for process in processes:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_one_worker_after_another_has_the_same_number(start: Start) -> None:
    for worker_id in (9000, 9001, 9002):
        number, process = start(worker_id)
        assert number == 0
        kill(process)


def test_running_workers_have_different_numbers_and_a_new_one_the_lowest_free(start: Start) -> None:
    workers = [start(worker_id) for worker_id in (9000, 9001, 9002)]
    assert [number for number, _ in workers] == [0, 1, 2]
    kill(workers[1][1])
    assert start(9003)[0] == 1
    assert start(9004)[0] == 3


def test_a_worker_that_restarts_under_its_id_has_its_earlier_number(start: Start) -> None:
    workers = [start(worker_id) for worker_id in (9000, 9001)]
    for _, process in workers:
        kill(process)
    assert start(9001)[0] == 1
    assert start(9000)[0] == 0
