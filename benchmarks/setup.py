"""Measures and records `make chat` as a new user runs it: a fresh clone, an empty home, and then a second time.

    python -m benchmarks.setup /big/disk/empty-folder > transcript.txt

Prints each line of both runs with its second, then the seconds, the longest silence, the bytes that the machine
received (Linux; other programs count as well) and the disk space. Each run ends with Ctrl-C as soon as the apps'
addresses are printed, which is after the model has answered. pip's cache and the compiled llama.cpp are in the empty
home, so the first run downloads and compiles everything. The real home's pip configuration does not apply, unless
--pip-config names the file.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import argument_parser

PROJECT = Path(__file__).resolve().parents[1]
READY = "Press Ctrl-C"
DROPPED = ("VIRTUAL_ENV", "PYTHONPATH", "XDG_CACHE_HOME", "MAKEFLAGS", "MAKELEVEL", "PIP_CACHE_DIR")


@dataclass(frozen=True, slots=True)
class Run:
    """seconds: until the addresses were printed. silence: the longest time without a line. received: bytes."""

    seconds: float
    silence: float
    received: int
    status: int


def received_bytes() -> int:
    """Of all network devices but the loopback; 0 where the system does not tell."""
    devices = Path("/proc/net/dev")
    if not devices.is_file():
        return 0
    lines = [line.split() for line in devices.read_text().splitlines()[2:]]
    return sum(int(words[1]) for words in lines if words[0] != "lo:")


def record(folder: Path, environment: dict[str, str]) -> Run:
    """Runs `make chat` until the apps run, prints its lines, and stops it with Ctrl-C."""
    print("\n$ make chat", flush=True)
    before, began = received_bytes(), time.monotonic()
    last, silence, seconds, received = began, 0.0, 0.0, 0
    with subprocess.Popen(
        ["make", "chat"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.monotonic()
            silence, last = (silence if seconds else max(silence, now - last)), now
            print(f"{now - began:7.1f}  {line.rstrip()}", flush=True)
            if READY in line and not seconds:
                seconds, received = now - began, received_bytes() - before
                os.killpg(process.pid, signal.SIGINT)
        status = process.wait()
    return Run(seconds, silence, received, status)


def main() -> int:
    parser = argument_parser("setup", __doc__)
    parser.add_argument("folder", type=Path, help="an empty folder, or one that does not exist")
    parser.add_argument("--pip-config", type=Path, help="a pip.conf for the empty home")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    home, clone = folder / "home", folder / "chatapp"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED} | {"HOME": str(home)}
    if given.pip_config:
        shutil.copy(given.pip_config, home / "pip.conf")
        environment["PIP_CONFIG_FILE"] = str(home / "pip.conf")
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(clone)], check=True)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.platform()}, {os.cpu_count()} cores")
    runs = [record(clone, environment), record(clone, environment)]
    for name, run in zip(("first", "second"), runs, strict=True):
        print(
            f"{name} make chat: {run.seconds:.0f} s, longest silence {run.silence:.1f} s, "
            f"received {run.received / 1e6:.0f} MB, exit status {run.status}"
        )
    disk = {
        name: sum(file.lstat().st_size for file in (clone / name).rglob("*")) for name in (".venv", ".cache", "models")
    }
    print("disk: " + ", ".join(f"{name} {n_bytes / 1e6:.0f} MB" for name, n_bytes in disk.items()))
    return 0 if all(run.seconds for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
