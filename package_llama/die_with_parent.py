"""Runs a Python program that ends together with the one that started it, even where that is killed.

    python -m package_llama.die_with_parent <descriptor> <script or -m module> <arguments>

descriptor: the reading end of a pipe whose writing end only the starter has. The system closes it when the starter is
gone, in whatever way. The program is to have a process group of its own: all of it ends.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    descriptor = int(sys.argv[1])
    threading.Thread(target=_end_with_starter, args=(descriptor,), daemon=True).start()
    del sys.argv[:2]
    if sys.argv[0] == "-m":
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).parent)  # as for any script
        runpy.run_path(sys.argv[0], run_name="__main__")


def _end_with_starter(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
