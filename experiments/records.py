"""What experiments have measured. Each record is one JSON file. Knows no server and no page.

The files are in the folder `experiment_runs` beside config.properties. The newest MAX_RECORDS files stay there.
"""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from experiments.json_file import read_json, write_whole
from experiments.load_test import PERCENTILES, Run, Sample
from experiments.plan import SWEEPS, Plan, Setup, Value
from torchserve_client.config import ServerConfig, TorchServeError

MAX_RECORDS = 50
EndState = Literal["done", "cancelled", "failed"]


@dataclass(frozen=True, slots=True)
class MeasuredPoint:
    """One run of an experiment: one value of the setting that varies, and one number of clients.

    value: None if no setting varies. summary: the figures of load_test's Run.summary().
    """

    value: Value | None
    clients: int
    setup: Setup
    summary: dict[str, Any]
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, value: Value | None, clients: int, setup: Setup, run: Run) -> Self:
        # No page shows the texts and the times of their pieces, and they are most of a sample.
        samples = tuple(replace(sample, events=(), text="") for sample in run.samples)
        return cls(value, clients, setup, run.summary(), samples)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        samples = tuple(Sample(**{**sample, "events": tuple(sample["events"])}) for sample in fields["samples"])
        return cls(fields["value"], fields["clients"], Setup.from_fields(fields["setup"]), fields["summary"], samples)

    @property
    def first_error(self) -> str | None:
        return next((sample.error for sample in self.samples if sample.error), None)

    @property
    def has_answers(self) -> bool:
        return bool(self.summary["errors"] < self.summary["requests"])


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """An experiment that has ended. `reason` says why it failed."""

    id: str
    started: datetime
    model: str
    plan: Plan
    base: Setup
    points: tuple[MeasuredPoint, ...]
    state: EndState
    reason: str = ""

    @property
    def title(self) -> str:
        end = "" if self.state == "done" else f" ({self.state})"
        return f"{self.started.astimezone():%d %b %H:%M:%S} · {self.plan}{end}"

    @property
    def answered(self) -> tuple[MeasuredPoint, ...]:
        """The points with at least one answer."""
        return tuple(point for point in self.points if point.has_answers)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "started": self.started.isoformat()}, indent=1)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Parses the decoded value of to_json(). Raises ValueError, KeyError or TypeError for other values."""
        parsed = {
            "started": datetime.fromisoformat(fields["started"]),
            "plan": Plan.from_fields(fields["plan"]),
            "base": Setup.from_fields(fields["base"]),
            "points": tuple(MeasuredPoint.from_fields(point) for point in fields["points"]),
        }
        return cls(**{**fields, **parsed})


def new_record_id() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"


def records_folder(config: ServerConfig) -> Path:
    return config.home / "experiment_runs"


def record_file(config: ServerConfig, record_id: str) -> Path:
    return records_folder(config) / f"run-{record_id}.json"


def record_ids(config: ServerConfig) -> list[str]:
    """The newest record comes first."""
    return sorted((file.stem.removeprefix("run-") for file in records_folder(config).glob("run-*.json")), reverse=True)


def save(config: ServerConfig, record: ExperimentRecord) -> None:
    """Writes a record, and removes the oldest ones beyond MAX_RECORDS."""
    write_whole(record_file(config, record.id), record.to_json())
    for old_id in record_ids(config)[MAX_RECORDS:]:
        delete(config, old_id)


def load(config: ServerConfig, record_id: str) -> ExperimentRecord:
    """Raises TorchServeError if there is no valid record with this id."""
    file = record_file(config, record_id)
    record = read_json(file, ExperimentRecord.from_fields)
    if record is None:
        raise TorchServeError(f"{file} does not exist.")
    return record


def delete(config: ServerConfig, record_id: str) -> None:
    record_file(config, record_id).unlink(missing_ok=True)


TIME_COLUMNS = ("first_token_ms", "per_token_ms", "latency_ms")
COUNT_COLUMNS = (
    *("requests", "errors", "seconds", "tokens_per_second"),
    *("prompt_tokens", "cached_tokens", "completion_tokens"),
)
CSV_COLUMNS = (
    *("experiment", "started", "model", "state", "prompts", "max_tokens", "clients"),
    *SWEEPS,
    *COUNT_COLUMNS,
    *(f"{name}_p{percent}" for name in TIME_COLUMNS for percent in PERCENTILES),
    "first_error",
)


def to_csv(records: Iterable[ExperimentRecord]) -> str:
    """One line for each run, with times in milliseconds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerows(_csv_row(record, point) for point in record.points)
    return text.getvalue()


def _csv_row(record: ExperimentRecord, point: MeasuredPoint) -> dict[str, object]:
    times = {f"{name}_{at}": value for name in TIME_COLUMNS for at, value in point.summary[name].items()}
    return {
        "experiment": record.id,
        "started": record.started.isoformat(timespec="seconds"),
        "model": record.model,
        "state": record.state,
        "prompts": record.plan.prompts,
        "max_tokens": record.plan.max_tokens,
        "clients": point.clients,
        **asdict(point.setup.settings),
        "batching": point.setup.batching,
        **{name: point.summary[name] for name in COUNT_COLUMNS},
        **times,
        "first_error": point.first_error or "",
    }
