"""The signals that request a program's end, as an exception, so that it stops in order what it has started."""

import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """A signal requests the end. It is no Exception, so that `except Exception` in a library does not catch it."""


def raise_on_signals() -> None:
    """From now on a signal raises StopRequested in the main thread."""
    for number in SIGNALS:
        signal.signal(number, _request_stop)


def ignore_signals() -> None:
    """For the stop itself: a second Ctrl-C would leave some processes running."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _request_stop(number: int, frame: FrameType | None) -> None:
    raise StopRequested
