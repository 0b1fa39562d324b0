"""TorchServe's three log files as records that can be filtered, with every key blacked out. Reads files only.

Not covered: rotated files (`ts_log.1.log.gz`), which TorchServe makes of every 20 MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torchserve_client.config import ServerConfig
from torchserve_client.process import key_file

LOG_FILES = {
    "ts_log.log": "TorchServe itself: starts, registrations, trouble",
    "model_log.log": "what the workers print",
    "access_log.log": "the requests that people and programs made",
}
LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
SEARCHED_BYTES = 1_000_000
REDACTED = "●●●●●●"

_START = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
_LEVEL = re.compile(r"^\S+ \[(\w+) *\] ")
_ACCESS_STATUS = re.compile(r'" (\d{3}) \d+$', re.MULTILINE)
# A worker's exception reaches the log as an ordinary line.
_EXCEPTION = re.compile(r"MODEL_LOG - ((?:\w+\.)*\w*(?:Error|Exception|Parameter|Exit)\b:? .*)")


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of a log: its first line and those that belong to it, such as a traceback's."""

    level: str  # one of LEVELS
    text: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The end of a log file. `skipped_bytes` of it lie before and were not read."""

    records: tuple[Record, ...]
    skipped_bytes: int


def read_excerpt(file: Path, secrets: Iterable[str], limit: int = SEARCHED_BYTES) -> Excerpt:
    """The records in the last `limit` bytes, without `secrets`; empty where there is no file."""
    try:
        with file.open("rb") as log:
            skipped = max(0, file.stat().st_size - limit)
            log.seek(skipped)
            text = log.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return Excerpt((), 0)
    if skipped:
        text = text.partition("\n")[2]
    return Excerpt(tuple(split_records(redact(text, secrets))), skipped)


def split_records(text: str) -> list[Record]:
    """One record for each line that begins with a time, and for what comes before the first of them."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if _START.match(line) or not entries:
            entries.append([line])
        else:
            entries[-1].append(line)
    return [Record(_level("\n".join(lines)), "\n".join(lines)) for lines in entries]


def _level(entry: str) -> str:
    """As written; by its status for a request, and ERROR for a worker's exception, which TorchServe logs as INFO."""
    if _EXCEPTION.search(entry):
        return "ERROR"
    if found := _LEVEL.match(entry):
        return found[1] if found[1] in LEVELS else "INFO"
    if found := _ACCESS_STATUS.search(entry):
        return "ERROR" if found[1] >= "500" else "WARN" if found[1] >= "400" else "INFO"
    return "INFO"


def select(records: Iterable[Record], least_level: str, text: str) -> list[Record]:
    """The records of at least that level that contain `text`, whatever its case."""
    least, wanted = LEVELS.index(least_level), text.casefold()
    return [each for each in records if LEVELS.index(each.level) >= least and wanted in each.text.casefold()]


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without the `secrets`, should one of them ever have come into it (in a URL, for example)."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def current_keys(config: ServerConfig) -> tuple[str, ...]:
    """All keys in the server's key file; none where it is missing or just being written."""
    try:
        return tuple(entry["key"] for entry in json.loads(key_file(config).read_text()).values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def worker_exceptions(config: ServerConfig, offset: int | None = None) -> list[str]:
    """The exceptions that workers printed, each as one line: from byte `offset` of their log on, else near its end."""
    file = config.logs / "model_log.log"
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - SEARCHED_BYTES) if offset is None else offset)
            text = log.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [cause.strip().rstrip(".") for cause in _EXCEPTION.findall(text) if "500 - " not in cause]
