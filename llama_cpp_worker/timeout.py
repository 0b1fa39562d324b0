"""A timeout that calls a function from a thread, because a signal handler could run in the middle of a print."""

import threading
import time
from collections.abc import Callable


class Timeout:
    """Calls `on_timeout` if `seconds` pass after `start` without a `cancel`. Can be started again.

    The call comes from a thread. `cancel` and `start` wait until a call that has begun is over. So after `cancel`, none
    is in progress and none comes. `start` wakes the thread only if the thread waits for a start, so frequent calls of
    `start` and `cancel` cost little.
    """

    def __init__(self, seconds: float, on_timeout: Callable[[], None]) -> None:
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._deadline: float | None = None
        self._condition = threading.Condition()
        self._waits_for_start = False
        threading.Thread(target=self._run, name="timeout", daemon=True).start()

    def start(self) -> None:
        with self._condition:
            self._deadline = time.monotonic() + self._seconds
            if self._waits_for_start:  # else the thread sees the new deadline at the end of its wait
                self._condition.notify()

    def cancel(self) -> None:
        with self._condition:
            self._deadline = None

    def _run(self) -> None:
        with self._condition:  # released while it waits
            while True:
                if self._deadline is None:
                    self._waits_for_start = True
                    self._condition.wait()
                    self._waits_for_start = False
                elif (seconds_left := self._deadline - time.monotonic()) > 0:
                    self._condition.wait(seconds_left)
                else:
                    self._deadline = None
                    self._on_timeout()
