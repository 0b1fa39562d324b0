"""TorchServe's log files: as records that can be filtered, without any key; and what they say about a failure.

Only reads files. Not covered: rotated files (`ts_log.1.log.gz`); TorchServe rotates a log at 20 MB.
"""

import contextlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torchserve_client.config import ServerConfig
from torchserve_client.running_server import key_file

WORKER_LOG = "model_log.log"
LOG_FILES = {
    "ts_log.log": "TorchServe itself: starts, registrations, trouble",
    WORKER_LOG: "what the workers print",
    "access_log.log": "the requests that people and programs made",
}
LEVELS = ("DEBUG", "INFO", "WARN", "ERROR")
SEARCHED_BYTES = 1_000_000
TAIL_BYTES = 65_536
REDACTED = "●●●●●●"

_START = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d")
_LEVEL = re.compile(r"^\S+ \[(\w+) *\] ")
_ACCESS_STATUS = re.compile(r'" (\d{3}) \d+$', re.MULTILINE)
# A worker's exception is an ordinary line in the log.
_EXCEPTION = re.compile(r"MODEL_LOG - ((?:\w+\.)*\w*(?:Error|Exception|Parameter|Exit)\b:? .*)")
_START_FAILURE = re.compile(r"Invalid|not found|Exception|Error|already running")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One entry of a log: its first line, and the lines that belong to it, such as those of a traceback."""

    level: str  # one of LEVELS
    text: str


@dataclass(frozen=True, slots=True)
class LogExcerpt:
    """The end of a log file. The file has `skipped_bytes` before it."""

    records: tuple[LogRecord, ...]
    skipped_bytes: int


def read_excerpt(file: Path, secrets: Iterable[str], limit: int = SEARCHED_BYTES) -> LogExcerpt:
    """The records in the last `limit` bytes, without `secrets`; empty if there is no file."""
    text, skipped = _read_from(file, -limit)
    if skipped:
        text = text.partition("\n")[2]
    return LogExcerpt(tuple(split_records(redact(text, secrets))), skipped)


def split_records(text: str) -> list[LogRecord]:
    """One record for each line that begins with a time, and one for the lines before the first time."""
    entries: list[list[str]] = []
    for line in text.splitlines():
        if _START.match(line) or not entries:
            entries.append([line])
        else:
            entries[-1].append(line)
    return [LogRecord(_level("\n".join(lines)), "\n".join(lines)) for lines in entries]


def _level(entry: str) -> str:
    """As logged. A request's level follows from its status; a worker's exception is an ERROR, logged as INFO."""
    if _EXCEPTION.search(entry):
        return "ERROR"
    if found := _LEVEL.match(entry):
        return found[1] if found[1] in LEVELS else "INFO"
    found = _ACCESS_STATUS.search(entry)
    status = int(found[1]) if found else 200
    return "ERROR" if status >= 500 else "WARN" if status >= 400 else "INFO"


def select(records: Iterable[LogRecord], least_level: str, text: str) -> list[LogRecord]:
    """The records of at least that level that contain `text`, upper or lower case."""
    least, wanted = LEVELS.index(least_level), text.casefold()
    return [each for each in records if LEVELS.index(each.level) >= least and wanted in each.text.casefold()]


def redact(text: str, secrets: Iterable[str]) -> str:
    """`text` without the `secrets`, in case one of them is in it (in a URL, for example)."""
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return text


def current_keys(config: ServerConfig) -> tuple[str, ...]:
    """All keys in the server's key file; none if it is missing or incomplete."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return tuple(entry["key"] for entry in json.loads(key_file(config).read_text()).values())
    return ()


def worker_exceptions(config: ServerConfig, offset: int = -SEARCHED_BYTES) -> list[str]:
    """The exceptions that workers printed after byte `offset` of their log, each as one line.

    A negative offset counts from the end.
    """
    text, _ = _read_from(config.logs / WORKER_LOG, offset)
    return [cause.strip().rstrip(".") for cause in _EXCEPTION.findall(text) if "500 - " not in cause]


def console_log(config: ServerConfig) -> Path:
    """The file with the output of the `torchserve` command and of Java."""
    return config.logs / "console.log"


def log_tail(config: ServerConfig, lines: int = 40) -> str:
    """The last lines of TorchServe's log and of its console output."""
    texts = [_read_from(file, -TAIL_BYTES)[0] for file in (config.logs / "ts_log.log", console_log(config))]
    return "\n".join(line for text in texts for line in text.splitlines()[-lines:])


def start_failure(config: ServerConfig) -> str:
    """Why a start failed: TorchServe prints `Invalid configuration: …` and Java an exception."""
    printed = [line.strip() for line in _read_from(console_log(config), -TAIL_BYTES)[0].splitlines()]
    return next((line for line in printed if _START_FAILURE.search(line)), f"see {console_log(config)}.")


def _read_from(file: Path, offset: int) -> tuple[str, int]:
    """The text after byte `offset`, and where it begins. A negative offset counts from the end. "" without a file."""
    with contextlib.suppress(FileNotFoundError), file.open("rb") as log:
        begin = max(0, file.stat().st_size + offset) if offset < 0 else offset
        log.seek(begin)
        return log.read().decode("utf-8", "replace"), begin
    return "", 0
