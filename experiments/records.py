"""What an experiment is to do and what it has measured, kept as one JSON file each. Knows no server and no page.

The files are in `experiment_runs` beside config.properties, the newest KEPT of them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from experiments.load_test import PERCENTILES, Run, Sample
from experiments.prompts import PROMPT_SETS
from llama_cpp_worker.sampling_params import Bounds, InvalidParameter
from torchserve_client.archives import ENDING, dynamic_archive_name
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.status import SERVING_BOUNDS, ModelStatus, ServingSettings

KEPT = 50
Batching = Literal["continuous", "dynamic"]
State = Literal["done", "cancelled", "failed"]
Value = int | str

SWEEPS = {
    "batch_size": "Batch size",
    "max_batch_delay_ms": "Max batch delay",
    "workers": "Workers",
    "batching": "Batching",
}
BATCHINGS: tuple[Batching, ...] = ("continuous", "dynamic")
TWIN_ENDING = dynamic_archive_name(ENDING)
MAX_VALUES = 8
PLAN_BOUNDS = {
    "clients": Bounds(int, 1, 64),
    "requests": Bounds(int, 1, 500),
    "max_tokens": Bounds(int, 1, 1000),
}


@dataclass(frozen=True, slots=True)
class Setup:
    """How the model is served: its settings, the archive it is loaded from, and how that batches requests."""

    settings: ServingSettings
    archive: str
    batching: Batching

    @classmethod
    def of(cls, status: ModelStatus) -> Setup:
        return cls(status.settings, status.archive, status.batching)

    def varied(self, sweep: str, value: Value) -> Setup:
        """The same but for one of SWEEPS. Two or more workers batch dynamically; batchings compare with one worker."""
        if sweep == "batching":
            return self._batching("dynamic" if value == "dynamic" else "continuous", replace(self.settings, workers=1))
        settings = replace(self.settings, **{sweep: int(value)})
        return self._batching("dynamic" if settings.workers > 1 else self.batching, settings)

    def _batching(self, batching: Batching, settings: ServingSettings) -> Setup:
        archive = self.archive
        if batching != self.batching:
            archive = dynamic_archive_name(archive) if batching == "dynamic" else archive.replace(TWIN_ENDING, ENDING)
        return Setup(settings, archive, batching)

    def __str__(self) -> str:
        return f"{self.settings}, {self.batching} batching"


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment is to do.

    clients: numbers of clients to try, one run each.
    requests: of each run, shared among its clients.
    prompts: one of PROMPT_SETS.
    max_tokens: of each answer, exactly.
    sweep, values: one of SWEEPS and what it is set to, in this order; None and () leave the server as it is.
    """

    clients: tuple[int, ...]
    requests: int
    prompts: str
    max_tokens: int
    sweep: str | None = None
    values: tuple[Value, ...] = ()

    def check(self) -> None:
        """Raises InvalidParameter (a ValueError) for what cannot be done."""
        _check_list("clients", self.clients, PLAN_BOUNDS["clients"])
        for name in ("requests", "max_tokens"):
            PLAN_BOUNDS[name].check(name, getattr(self, name))
        if self.requests < max(self.clients):
            raise InvalidParameter("requests", f"{self.requests} leave some of {max(self.clients)} clients idle")
        if self.prompts not in PROMPT_SETS:
            raise InvalidParameter("prompts", f"must be one of {', '.join(PROMPT_SETS)}")
        if self.sweep == "batching":
            if not self.values or len(set(self.values) & set(BATCHINGS)) != len(self.values):
                raise InvalidParameter("batching", f"must be of {', '.join(BATCHINGS)}, each at most once")
        elif self.sweep:
            if self.sweep not in SWEEPS:
                raise InvalidParameter("sweep", f"must be one of {', '.join(SWEEPS)}")
            _check_list(self.sweep, self.values, SERVING_BOUNDS[self.sweep])

    @property
    def steps(self) -> tuple[Value | None, ...]:
        """What the setting is set to, one after the other; None is as it is."""
        return self.values if self.sweep else (None,)

    @property
    def runs(self) -> int:
        return len(self.steps) * len(self.clients)

    def step_name(self, value: Value | None) -> str:
        """ "Batch size 4"; the settings as they are have no name."""
        if self.sweep is None or value is None:
            return ""
        if self.sweep == "batching":
            return f"{value} batching".capitalize()
        if self.sweep == "workers":
            return "1 worker" if value == 1 else f"{value} workers"
        return f"{SWEEPS[self.sweep]} {value}{' ms' if self.sweep == 'max_batch_delay_ms' else ''}"

    def run_name(self, value: Value | None, clients: int) -> str:
        """ "Batch size 4, 8 clients"."""
        return ", ".join(filter(None, (self.step_name(value), _clients(str(clients)))))

    def __str__(self) -> str:
        swept = f"{SWEEPS[self.sweep]} {_listed(self.values)} · " if self.sweep else ""
        return f"{swept}{_clients(_listed(self.clients))} · {PROMPT_SETS[self.prompts].lower()}"


def values_from(sweep: str, text: str) -> tuple[Value, ...]:
    """What a person typed: "1, 4, 8", and words for batching. Raises InvalidParameter (a ValueError)."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if sweep == "batching":
        return tuple(parts)
    if not all(part.isdecimal() for part in parts):
        raise InvalidParameter(sweep, f"must be whole numbers with commas between them, like 1, 4, 8, not {text!r}")
    return tuple(int(part) for part in parts)


def _check_list(name: str, values: tuple[Value, ...], bounds: Bounds) -> None:
    for value in values:
        bounds.check(name, value)
    if not 1 <= len(set(values)) == len(values) <= MAX_VALUES:
        raise InvalidParameter(name, f"must be 1 to {MAX_VALUES} different numbers")


def _clients(numbers: str) -> str:
    return f"{numbers} client{'' if numbers == '1' else 's'}"


def _listed(values: Iterable[Value]) -> str:
    return ", ".join(str(value) for value in values)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of an experiment: `value` of the setting that varies, None where none does; `summary` as Run's."""

    value: Value | None
    clients: int
    setup: Setup
    summary: dict[str, Any]
    samples: tuple[Sample, ...]

    @classmethod
    def of(cls, value: Value | None, clients: int, setup: Setup, run: Run) -> Point:
        # Texts and the times of their pieces are most of a sample, and nothing shows them.
        samples = tuple(replace(sample, events=(), text="") for sample in run.samples)
        return cls(value, clients, setup, run.summary(), samples)

    @property
    def first_error(self) -> str | None:
        return next((sample.error for sample in self.samples if sample.error), None)

    @property
    def has_answers(self) -> bool:
        return bool(self.summary["errors"] < self.summary["requests"])


@dataclass(frozen=True, slots=True)
class Record:
    """An experiment that has ended. `reason` says why it failed, or what to know about its end."""

    id: str
    started: datetime
    model: str
    plan: Plan
    base: Setup
    points: tuple[Point, ...]
    state: State
    reason: str = ""

    @property
    def title(self) -> str:
        ended = "" if self.state == "done" else f" ({self.state})"
        return f"{self.started.astimezone():%d %b %H:%M:%S} · {self.plan}{ended}"

    @property
    def answered(self) -> tuple[Point, ...]:
        """The points about which there is something to say."""
        return tuple(point for point in self.points if point.has_answers)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"started": self.started.isoformat()}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Raises ValueError, KeyError or TypeError for what to_json() did not write."""
        raw = json.loads(text)
        return cls(
            **raw
            | {
                "started": datetime.fromisoformat(raw["started"]),
                "plan": Plan(**raw["plan"] | {name: tuple(raw["plan"][name]) for name in ("clients", "values")}),
                "base": setup_from(raw["base"]),
                "points": tuple(_point_from(point) for point in raw["points"]),
            }
        )


def setup_from(raw: dict[str, Any]) -> Setup:
    """The Setup of which `raw` is asdict()."""
    return Setup(**raw | {"settings": ServingSettings(**raw["settings"])})


def _point_from(raw: dict[str, Any]) -> Point:
    samples = tuple(Sample(**sample | {"events": tuple(sample["events"])}) for sample in raw["samples"])
    return Point(**raw | {"setup": setup_from(raw["setup"]), "samples": samples})


def new_id() -> str:
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S-%f}"


def folder_of(config: ServerConfig) -> Path:
    return config.home / "experiment_runs"


def file_of(config: ServerConfig, record_id: str) -> Path:
    return folder_of(config) / f"run-{record_id}.json"


def save(config: ServerConfig, record: Record) -> None:
    """Keeps a record, and removes the oldest beyond KEPT."""
    file = file_of(config, record.id)
    write(file, record.to_json())
    for oldest in sorted(folder_of(config).glob("run-*.json"))[:-KEPT]:
        oldest.unlink(missing_ok=True)


def write(file: Path, text: str) -> None:
    """All or nothing: a program that is killed while it writes leaves the file as it was."""
    try:
        file.parent.mkdir(exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(text)
        unfinished.replace(file)
    except OSError as error:
        raise TorchServeError(f"{file} cannot be written ({error.strerror}): make that place writable.") from error


def kept_ids(config: ServerConfig) -> list[str]:
    """Newest first."""
    return sorted((file.stem.removeprefix("run-") for file in folder_of(config).glob("run-*.json")), reverse=True)


def load(config: ServerConfig, record_id: str) -> Record:
    file = file_of(config, record_id)
    try:
        return Record.from_json(file.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TorchServeError(f"{file} cannot be read ({error}): delete it.") from error


def delete(config: ServerConfig, record_id: str) -> None:
    file_of(config, record_id).unlink(missing_ok=True)


def to_csv(records: Iterable[Record]) -> str:
    """One line for each run; times in milliseconds."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        for point in record.points:
            writer.writerow(_csv_row(record, point))
    return text.getvalue()


TIMES = ("first_token_ms", "per_token_ms", "latency_ms")
COUNTS = ("requests", "errors", "seconds", "tokens_per_second", "prompt_tokens", "cached_tokens", "completion_tokens")
CSV_COLUMNS = (
    *("experiment", "started", "model", "state", "prompts", "max_tokens", "clients"),
    *SWEEPS,
    *COUNTS,
    *(f"{name}_p{percent}" for name in TIMES for percent in PERCENTILES),
    "first_error",
)


def _csv_row(record: Record, point: Point) -> dict[str, object]:
    times = {f"{name}_{at}": value for name in TIMES for at, value in point.summary[name].items()}
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
        **{name: point.summary[name] for name in COUNTS},
        **times,
        "first_error": point.first_error or "",
    }
