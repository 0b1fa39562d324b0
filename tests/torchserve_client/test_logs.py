"""Log records: where one begins, how bad it is, what a filter finds, and that no key is in them."""

import json
from pathlib import Path

import pytest

from tests.support.serving import make_home
from torchserve_client.logs import (
    LEVELS,
    REDACTED,
    LogRecord,
    current_keys,
    read_excerpt,
    redact,
    select,
    split_records,
    worker_exceptions,
)
from torchserve_client.running_server import key_file

STARTED = "2026-11-22T16:11:14,077 [INFO ] main org.pytorch.serve.ModelServer - Initialize Inference server"
TRACEBACK = "2026-11-22T16:11:15,001 [ERROR] main org.pytorch.serve - it failed\njava.lang.Oops: no\n\tat somewhere"
WORKER = "2026-11-22T16:11:16,000 [INFO ] W-9000-stdout MODEL_LOG - "


@pytest.mark.parametrize(
    ("entry", "level"),
    [
        pytest.param(STARTED, "INFO", id="as-written"),
        pytest.param(TRACEBACK, "ERROR", id="with-a-traceback"),
        pytest.param(f"{WORKER}llama_cpp_worker.weights.ModelLoadError: no memory.", "ERROR", id="exception"),
        pytest.param(f"{WORKER}Torch worker started.", "INFO", id="words-of-a-worker"),
        pytest.param('2026-11-22T16:11:16,000 - /127.0.0.1:1 "GET /x HTTP/1.1" 200 3', "INFO", id="request"),
        pytest.param('2026-11-22T16:11:16,000 - /127.0.0.1:1 "GET /x HTTP/1.1" 404 3', "WARN", id="refused-request"),
        pytest.param('2026-11-22T16:11:16,000 - /127.0.0.1:1 "GET /x HTTP/1.1" 503 3', "ERROR", id="failed-request"),
    ],
)
def test_level_of_an_entry(entry: str, level: str) -> None:
    assert split_records(entry) == [LogRecord(level, entry)]


def test_lines_without_a_time_belong_to_the_entry_before() -> None:
    records = split_records(f"{STARTED}\n{TRACEBACK}\n{STARTED}\n")

    assert [record.text for record in records] == [STARTED, TRACEBACK, STARTED]


@pytest.mark.parametrize(
    ("least_level", "text", "found"),
    [
        pytest.param("DEBUG", "", 2, id="all"),
        pytest.param("WARN", "", 1, id="by-level"),
        pytest.param("INFO", "initialize INFERENCE", 1, id="by-text-of-any-case"),
        pytest.param("INFO", "at somewhere", 1, id="in-a-traceback"),
        pytest.param("ERROR", "Initialize", 0, id="both"),
    ],
)
def test_select(least_level: str, text: str, found: int) -> None:
    assert least_level in LEVELS
    assert len(select(split_records(f"{STARTED}\n{TRACEBACK}"), least_level, text)) == found


def test_excerpt_of_a_long_file_says_what_it_left_out(tmp_path: Path) -> None:
    file = tmp_path / "ts_log.log"
    file.write_text(f"{STARTED}\n" * 100)

    excerpt = read_excerpt(file, (), limit=10 * len(STARTED))

    assert excerpt.skipped_bytes == 100 * (len(STARTED) + 1) - 10 * len(STARTED)
    assert {record.text for record in excerpt.records} == {STARTED} and len(excerpt.records) == 9


def test_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert read_excerpt(tmp_path / "ts_log.log", ()).records == ()


def test_keys_are_blacked_out(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    assert current_keys(config) == ()
    key_file(config).write_text(json.dumps({"API": {"key": "secret-1"}, "inference": {"key": "secret-2"}}))

    text = redact("GET /models?token=secret-2 secret-1", current_keys(config))

    assert text == f"GET /models?token={REDACTED} {REDACTED}"


def test_exceptions_of_workers_are_found_from_an_offset_on(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    assert worker_exceptions(config) == []
    config.logs.mkdir()
    log = config.logs / "model_log.log"
    log.write_text(f"{WORKER}ValueError: the first.\n")
    offset = log.stat().st_size
    with log.open("a") as file:
        file.write(f"{WORKER}ModelLoadError: the second.\n")

    assert worker_exceptions(config) == ["ValueError: the first", "ModelLoadError: the second"]
    assert worker_exceptions(config, offset) == ["ModelLoadError: the second"]
