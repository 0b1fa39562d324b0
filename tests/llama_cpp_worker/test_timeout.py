"""A timeout calls from a thread, once for each start, and never after a cancel."""

import threading
import time

from llama_cpp_worker.timeout import Timeout


def test_each_start_that_is_not_cancelled_calls_once_from_a_thread() -> None:
    callers: list[threading.Thread] = []
    called = threading.Semaphore(0)

    def on_timeout() -> None:
        callers.append(threading.current_thread())
        called.release()

    timeout = Timeout(0.01, on_timeout)
    for number in (1, 2, 3):
        timeout.start()
        assert called.acquire(timeout=10)
        assert len(callers) == number
    assert threading.current_thread() not in callers


def test_a_later_start_moves_the_timeout() -> None:
    called_at: list[float] = []
    called = threading.Event()

    def on_timeout() -> None:
        called_at.append(time.monotonic())
        called.set()

    timeout = Timeout(0.05, on_timeout)
    timeout.start()
    timeout.cancel()
    timeout.start()
    started_at = time.monotonic()
    timeout.start()
    assert called.wait(10)
    assert called_at[0] >= started_at + 0.05


def test_cancel_waits_for_a_call_in_progress_and_none_comes_after_it() -> None:
    has_begun, may_end = threading.Event(), threading.Event()
    calls: list[str] = []

    def on_timeout() -> None:
        has_begun.set()
        may_end.wait()
        calls.append("ended")

    timeout = Timeout(0.01, on_timeout)
    timeout.start()
    has_begun.wait()
    canceller = threading.Thread(target=timeout.cancel)
    canceller.start()
    canceller.join(0.05)  # time in which it could return too early
    assert canceller.is_alive()
    may_end.set()
    canceller.join()
    assert calls == ["ended"]
    timeout.start()
    timeout.cancel()
    time.sleep(0.05)  # five times the timeout
    assert calls == ["ended"]
