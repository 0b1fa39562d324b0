"""Runs a Python module as a program and kills it when the parent process ends, even if the parent was killed.

    python -m package_llama.die_with_parent <descriptor> <module> <arguments>

descriptor: the reading end of a pipe. Only the parent has the writing end. The parent can close it; the system closes
it when the parent ends. The program must lead a process group: the whole group is killed.
"""

import os
import runpy
import signal
import sys
import threading


def main() -> None:
    descriptor = int(sys.argv[1])
    threading.Thread(target=_kill_group_at_end_of, args=(descriptor,), daemon=True).start()
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _kill_group_at_end_of(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
