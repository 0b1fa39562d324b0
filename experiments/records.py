"""What experiments have measured. Each record is one JSON file. Knows no server and no page.

The files are in the folder `experiment_runs` beside config.properties. The newest MAX_RECORDS files stay there.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from experiments.json_file import read_json, to_json, write_json
from experiments.load_test import PERCENTILES, Run, Sample
from experiments.plan import Plan, Setup, Value
from torchserve_client.config import ServerConfig, TorchServeError

MAX_RECORDS = 50
P99_ANSWERS = 100
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

    def times(self, name: str) -> dict[str, float]:
        """The milliseconds of the summary by percentile. The 99th of fewer than P99_ANSWERS is only the slowest one."""
        answered = self.summary["requests"] - self.summary["errors"]
        return {at: ms for at, ms in self.summary[name].items() if at != "p99" or answered >= P99_ANSWERS}

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

    def to_json(self) -> bytes:
        return to_json(self)


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
    write_json(record_file(config, record.id), record)
    for old_id in record_ids(config)[MAX_RECORDS:]:
        delete(config, old_id)


def load(config: ServerConfig, record_id: str) -> ExperimentRecord:
    """Raises TorchServeError if there is no valid record with this id."""
    file = record_file(config, record_id)
    record = read_json(file, ExperimentRecord)
    if record is None:
        raise TorchServeError(f"{file} does not exist.")
    return record


def delete(config: ServerConfig, record_id: str) -> None:
    record_file(config, record_id).unlink(missing_ok=True)


TIME_COLUMNS = ("first_token_ms", "per_token_ms", "latency_ms")


def to_csv(records: Iterable[ExperimentRecord]) -> str:
    """One line for each run, with times in milliseconds. Empty without runs."""
    rows = [_csv_row(record, point) for record in records for point in record.points]
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _csv_row(record: ExperimentRecord, point: MeasuredPoint) -> dict[str, object]:
    counts = {name: value for name, value in point.summary.items() if name not in ("target", *TIME_COLUMNS)}
    times = {f"{name}_p{at}": point.times(name).get(f"p{at}") for name in TIME_COLUMNS for at in PERCENTILES}
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
        **counts,
        **times,
        "first_error": point.first_error or "",
    }
