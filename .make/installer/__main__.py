"""`make` runs this: python -m installer chat | check | test | cluster | doctor | distclean"""

import signal
import sys
from types import FrameType

from installer import SIGNALS, SetUpError
from installer.doctor import examine
from installer.environment import STEPS, install
from installer.removal import remove


def main(goal: str) -> int:
    """Returns the exit status: 0, 1 for a failure, 130 if it was stopped."""
    for number in SIGNALS:  # Ctrl-C as well: Python leaves it ignored in the background of a script
        signal.signal(number, _stop)
    try:
        if goal in STEPS:
            install(goal)
        elif goal == "doctor":
            return examine()
        elif goal == "distclean":
            remove()
        else:
            raise SetUpError(f"'{goal}' is unknown: {__doc__}")
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on where this one stopped.", file=sys.stderr)
        return 130
    except SetUpError as error:
        for line in error.lines:
            print(f"    {line[:300]}", file=sys.stderr)
        print(error, file=sys.stderr)
        return 1
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
