"""Numbers the running workers, so that a worker's metrics can go on under the number of one that has ended.

TorchServe gives each new worker a new id and never forgets a metric of the workers before it
(docs/torchserve-facts.md, fact 21). The worker's id would make more and more series.
"""

import contextlib
import fcntl
import itertools
import os
import tempfile
from pathlib import Path

RECORD_BYTES = 32


def claim_number(worker: int) -> int:
    """A number, 0 or higher, that no other running worker has: the worker's earlier one, else the lowest that is free.

    TorchServe restarts a killed worker under its id. Its earlier number keeps two series from having the same id.
    The number is a locked byte of a file in the temporary folder, which TorchServe's workers share. The system releases
    the lock when the process ends, in whatever way. Record n of the file names the frontend's pid and its last worker.
    """
    path = Path(tempfile.gettempdir(), f"llamacpp-workers-{os.getuid()}")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # open, and so locked, until the process ends
    record = f"{os.getppid()} {worker}".encode().ljust(RECORD_BYTES)
    n_records = os.fstat(file).st_size // RECORD_BYTES
    records = [os.pread(file, RECORD_BYTES, number * RECORD_BYTES) for number in range(n_records)]
    earlier = [number for number in range(n_records) if records[number] == record]
    for number in itertools.chain(earlier, itertools.count()):
        with contextlib.suppress(BlockingIOError, PermissionError):  # another worker has it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            os.pwrite(file, record, number * RECORD_BYTES)
            return number
    raise AssertionError("the numbers never end")
