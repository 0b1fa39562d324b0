"""One experiment: load while one of the server's settings varies, after which the old settings are put back.

They are put back when it is done, failed or cancelled (Ctrl-C). Only a program that is killed cannot do it: it leaves a
note, and the next start offers it (`--restore` on the command line). A lock file sees to it that no two experiments
of a server run at once, in whatever program.

Threads: the one that Experiment.run() is called in, and run_load's.
Not covered: settings that somebody else changes meanwhile; that ends the experiment, and the old ones are put back.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from experiments import records
from experiments.load_test import Run, Sample, run_load, torchserve_target
from experiments.prompts import make_bodies
from experiments.records import Plan, Point, Record, Setup, State, Value
from experiments.restore import ExperimentFailed, forget, note_file, only_one, read_note, serve
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.inference import InferenceClient
from torchserve_client.management import ManagementClient

WARM_UP_TOKENS = 8


class _Cancelled(Exception):
    """Somebody wants it to end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What an experiment does now; `seconds_left` is None until there is something to judge it by."""

    doing: str
    answered: int
    requests: int
    seconds_left: float | None


@dataclass(slots=True)
class Pace:
    """How long the rest will take, judged by the means until now."""

    loads: int
    requests: int
    loaded: int = 0
    answered: int = 0
    loading_seconds: float = 0.0
    asking_seconds: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        loads, requests = self.loads - self.loaded, self.requests - self.answered
        if (loads and not self.loaded) or (requests and not self.answered):
            return None
        per_load = self.loading_seconds / max(1, self.loaded)
        return loads * per_load + requests * self.asking_seconds / max(1, self.answered)


@dataclass(slots=True)
class Experiment:
    """One experiment: run() once, cancel() from any thread. `report` is called in the clients' threads, too."""

    config: ServerConfig
    plan: Plan
    report: Callable[[Progress], None]
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _points: list[Point] = field(default_factory=list)
    _doing: str = ""
    _pace: Pace = field(init=False)
    _base: Setup = field(init=False)

    def __post_init__(self) -> None:
        self.plan.check()
        loads = len(self.plan.values) + 1 if self.plan.sweep else 0
        self._pace = Pace(loads, self.plan.requests * self.plan.runs)

    def cancel(self) -> None:
        """Hangs up on the open requests; a model that is being loaded is waited for."""
        self._stop.set()

    def run(self) -> Record:
        """Measures, puts the old settings back, and keeps the record.

        Raises TorchServeError when it could not even start; what goes wrong later is in the record.
        """
        with only_one(self.config):
            self._base = self._serving_now()
            started, model = datetime.now(timezone.utc), self._model_name()
            records.write(note_file(self.config), json.dumps(asdict(self._base)))
            state: State = "done"
            reason = ""
            try:
                self._measure()
            except _Cancelled:
                state = "cancelled"
            except TorchServeError as error:
                state, reason = "failed", str(error)
            finally:
                problem = self._restore()
            if problem:
                state, reason = "failed", f"{reason} {problem}".strip()
            record = Record(records.new_id(), started, model, self.plan, self._base, tuple(self._points), state, reason)
            records.save(self.config, record)
            return record

    def _serving_now(self) -> Setup:
        if read_note(self.config):
            raise ExperimentFailed("An earlier experiment left the server with its own settings: put them back first.")
        status = ManagementClient(self.config).describe()
        if status is None:
            raise ExperimentFailed("The model is not registered: press Register Llama2 first.")
        if not status.is_ready:
            raise ExperimentFailed("The model is not ready: wait until all its workers are.")
        try:
            status.settings.check()
        except InvalidParameter as error:
            raise ExperimentFailed(f"An experiment could not put the settings back: {error}.") from error
        return Setup.of(status)

    def _model_name(self) -> str:
        return str(InferenceClient(self.config).models()["data"][0]["id"])

    def _measure(self) -> None:
        for value in self.plan.steps:
            setup = self._base
            if self.plan.sweep and value is not None:
                setup = self._base.varied(self.plan.sweep, value)
                self._load(setup, f"Loading the model for {self.plan.step_name(value).lower()}")
            self._warm_up(setup)
            for clients in self.plan.clients:
                self._measure_point(value, clients, setup)

    def _load(self, setup: Setup, doing: str) -> None:
        self._tell(doing)
        started = time.monotonic()
        serve(self.config, setup, self._tell)
        self._pace.loaded += 1
        self._pace.loading_seconds += time.monotonic() - started

    def _warm_up(self, setup: Setup) -> None:
        """A worker's first request pays for what later ones find ready."""
        workers = setup.settings.workers
        run = self._ask(workers, min(WARM_UP_TOKENS, self.plan.max_tokens), workers, lambda sample: None)
        if len(run.errors) == workers:
            raise ExperimentFailed(f"The model does not answer: {run.errors[0]}")

    def _measure_point(self, value: Value | None, clients: int, setup: Setup) -> None:
        self._tell(self.plan.run_name(value, clients))
        started, earlier = time.monotonic(), self._pace.asking_seconds

        def count(sample: Sample) -> None:
            with self._lock:
                self._pace.answered += 1
                self._pace.asking_seconds = earlier + time.monotonic() - started
                self._tell(self._doing)

        run = self._ask(self.plan.requests, self.plan.max_tokens, clients, count)
        point = Point.of(value, clients, setup, run)
        if not point.has_answers:
            self._points.append(point)
            raise ExperimentFailed(f"All {len(run.errors)} requests failed: {run.errors[0]}")
        self._require_unchanged(setup)
        self._points.append(point)

    def _ask(self, requests: int, max_tokens: int, clients: int, on_sample: Callable[[Sample], None]) -> Run:
        bodies = make_bodies(self.plan.prompts, requests, max_tokens, tag=str(random.randrange(10**6)))
        run = run_load(torchserve_target(self.config), bodies, clients, on_sample=on_sample, stop=self._stop)
        if self._stop.is_set():
            raise _Cancelled
        return run

    def _require_unchanged(self, setup: Setup) -> None:
        status = ManagementClient(self.config).describe()
        if status is None or Setup.of(status) != setup:
            now = f"with {Setup.of(status)}" if status else "no model"
            raise ExperimentFailed(
                f"Somebody changed the server while it was measured (it serves {now}): that run does not count."
            )

    def _restore(self) -> str:
        """Puts the old settings back; returns why that failed, if it did."""
        try:
            self._load(self._base, f"Putting back {self._base}")
            forget(self.config)
            return ""
        except TorchServeError as error:
            return f"The old settings ({self._base}) could not be put back: {error}"

    def _tell(self, doing: str) -> None:
        self._doing = doing
        self.report(Progress(doing, self._pace.answered, self._pace.requests, self._pace.seconds_left))
