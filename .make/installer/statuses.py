"""Reads how far pip and llama.cpp's compilation are from the lines that they print."""

import re
from collections.abc import Callable

FETCHED = re.compile(r"\s*Downloading (\S+) \(")  # pip: Downloading pyarrow-26.0.1-….whl (55.0 MB)
BYTES = re.compile(r"Progress (\d+) of (\d+)")  # pip's --progress-bar raw
EDGE = re.compile(r"\s*\[(\d+)/(\d+)\]|\s*\[ *(\d+)%\]")  # ninja, or make
PIP_STEP = re.compile(r"\s*(Installing build dependencies|Getting requirements|Preparing metadata)")
UNPACKING = "Installing collected packages: "


class PipStatus:
    """What pip downloads or unpacks. count_unpacked: the number of packages that are in the environment."""

    def __init__(self, count_unpacked: Callable[[], int] | None = None) -> None:
        self._text, self._file, self._n_found, self._n_unpacking = "starting pip", "", 0, 0
        self._count = count_unpacked or (lambda: 0)
        self._n_before = self._count()

    def read(self, line: str) -> None:
        if line.startswith("Collecting "):
            self._n_found += 1
            self._text = f"{self._n_found} packages, looking for {line.split()[1]}"
        elif found := FETCHED.match(line):
            self._file = found[1].split("-")[0].rpartition("/")[2]
            self._text = f"downloading {self._file}"
        elif found := BYTES.match(line):
            self._text = f"downloading {self._file}, {int(found[1]) / 1e6:.0f} of {int(found[2]) / 1e6:.0f} MB"
        elif found := PIP_STEP.match(line):
            self._text = "getting the build tools"
        elif line.startswith(UNPACKING):
            self._n_unpacking = line.count(",") + 1

    def text(self) -> str:
        if not self._n_unpacking:
            return self._text
        n_unpacked = min(self._n_unpacking, max(0, self._count() - self._n_before))
        return f"unpacking packages, {n_unpacked} of {self._n_unpacking}"


class CompileStatus:
    """Per cent of the files that the build program (ninja or make) still had to compile when it started."""

    def __init__(self) -> None:
        self._text = "getting the build tools"

    def read(self, line: str) -> None:
        if found := EDGE.match(line):
            percent = int(found[3]) if found[3] else 100 * int(found[1]) // int(found[2])
            self._text = f"{percent} %"
        elif "Configuring CMake" in line:
            self._text = "looking at the compiler"

    def text(self) -> str:
        return self._text


class PlainStatus:
    """For a program without progress: only the time moves."""

    def read(self, line: str) -> None:
        pass

    def text(self) -> str:
        return ""
