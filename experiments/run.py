"""Runs one experiment: sends load while one of the server's settings varies, then restores the old settings.

The settings are restored when the experiment is done, has failed or was cancelled (Ctrl-C). A killed program leaves a
note instead (experiments/restore.py), and the next start offers to restore the settings.

Threads: the one that calls Experiment.run(), and run_load's.
Not covered: another program's changes during an experiment. They end the experiment, and are lost.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from experiments import restore
from experiments.load_test import Run, Sample, run_load, torchserve_target
from experiments.plan import Plan, Setup, Value
from experiments.prompts import make_bodies
from experiments.records import EndState, ExperimentRecord, MeasuredPoint, new_record_id, save
from experiments.restore import ExperimentFailed
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME
from torchserve_client.management import ManagementClient

WARM_UP_TOKENS = 8


class _Cancelled(Exception):
    """cancel() was called."""


@dataclass(frozen=True, slots=True)
class ExperimentProgress:
    """What an experiment does now, and how much of it is done: loads of the model, and requests."""

    activity: str = ""
    loads: int = 0
    requests: int = 0
    loaded: int = 0
    answered: int = 0
    loading_seconds: float = 0.0
    answering_seconds: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean times so far. None before the first load or the first answer."""
        loads, requests = self.loads - self.loaded, self.requests - self.answered
        if (loads and not self.loaded) or (requests and not self.answered):
            return None
        seconds_per_load = self.loading_seconds / max(1, self.loaded)
        seconds_per_request = self.answering_seconds / max(1, self.answered)
        return loads * seconds_per_load + requests * seconds_per_request


class Experiment:
    """One experiment. Call run() once. Any thread may call cancel().

    `on_progress` is called in the clients' threads, too.
    """

    def __init__(self, config: ServerConfig, plan: Plan, on_progress: Callable[[ExperimentProgress], None]) -> None:
        self._config = config
        self._plan = plan
        self._on_progress = on_progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._points: list[MeasuredPoint] = []
        loads = len(plan.values) + 1 if plan.sweep else 0
        self._progress = ExperimentProgress(loads=loads, requests=plan.requests * plan.runs)

    def cancel(self) -> None:
        """Closes the open requests. A model that is loading is loaded first."""
        self._stop.set()

    def run(self) -> ExperimentRecord:
        """Measures, restores the old settings, and saves the record.

        Raises TorchServeError if the experiment cannot start. The record names every later problem.
        """
        with restore.experiment_lock(self._config):
            base = self._current_setup()
            started = datetime.now(UTC)
            restore.write_restore_note(self._config, base)
            state: EndState = "done"
            reason = ""
            try:
                self._measure(base)
            except _Cancelled:
                state = "cancelled"
            except TorchServeError as error:
                state, reason = "failed", str(error)
            finally:
                problem = self._restore(base)
            if problem:
                state, reason = "failed", f"{reason} {problem}".strip()
            points = tuple(self._points)
            record = ExperimentRecord(new_record_id(), started, MODEL_NAME, self._plan, base, points, state, reason)
            save(self._config, record)
            return record

    def _current_setup(self) -> Setup:
        if restore.read_restore_note(self._config):
            raise ExperimentFailed("An earlier experiment left the server with its own settings: put them back first.")
        status = ManagementClient(self._config).describe()
        if status is None:
            raise ExperimentFailed("The model is not registered: press Register Llama2 first.")
        if not status.is_ready:
            raise ExperimentFailed("The model is not ready: wait until all its workers are.")
        try:
            status.settings.check()
        except InvalidParameter as error:
            raise ExperimentFailed(f"An experiment could not put the settings back: {error}.") from error
        return Setup.of(status)

    def _measure(self, base: Setup) -> None:
        for value in self._plan.steps:
            setup = base
            if self._plan.sweep and value is not None:
                setup = base.varied(self._plan.sweep, value)
                self._load(setup, f"Loading the model for {self._plan.step_name(value).lower()}")
            self._warm_up(setup.settings.workers)
            for clients in self._plan.clients:
                self._measure_point(value, clients, setup)

    def _load(self, setup: Setup, activity: str) -> None:
        self._report(activity=activity)
        started = time.monotonic()
        restore.apply_setup(self._config, setup, lambda sentence: self._report(activity=sentence))
        seconds = self._progress.loading_seconds + time.monotonic() - started
        self._progress = replace(self._progress, loaded=self._progress.loaded + 1, loading_seconds=seconds)

    def _warm_up(self, workers: int) -> None:
        """A worker's first request is slower than the later ones."""
        run = self._send(workers, min(WARM_UP_TOKENS, self._plan.max_tokens), workers, lambda sample: None)
        if len(run.errors) == workers:
            raise ExperimentFailed(f"The model does not answer: {run.errors[0]}")

    def _measure_point(self, value: Value | None, clients: int, setup: Setup) -> None:
        self._report(activity=self._plan.run_name(value, clients))
        started = time.monotonic() - self._progress.answering_seconds

        def count(sample: Sample) -> None:
            with self._lock:
                seconds = time.monotonic() - started
                self._report(answered=self._progress.answered + 1, answering_seconds=seconds)

        run = self._send(self._plan.requests, self._plan.max_tokens, clients, count)
        point = MeasuredPoint.of(value, clients, setup, run)
        if point.has_answers:
            self._require_unchanged(setup)
        self._points.append(point)
        if not point.has_answers:
            raise ExperimentFailed(f"All {len(run.errors)} requests failed: {run.errors[0]}")

    def _send(self, requests: int, max_tokens: int, clients: int, on_sample: Callable[[Sample], None]) -> Run:
        bodies = make_bodies(self._plan.prompts, requests, max_tokens, tag=str(random.randrange(10**6)))
        run = run_load(torchserve_target(self._config), bodies, clients, on_sample=on_sample, stop=self._stop)
        if self._stop.is_set():
            raise _Cancelled
        return run

    def _require_unchanged(self, setup: Setup) -> None:
        status = ManagementClient(self._config).describe()
        if status is None or Setup.of(status) != setup:
            now = f"with {Setup.of(status)}" if status else "no model"
            raise ExperimentFailed(
                f"Somebody changed the server while it was measured (it serves {now}): that run does not count."
            )

    def _restore(self, base: Setup) -> str:
        """Returns the problem, or "" if the old settings are restored."""
        try:
            self._load(base, f"Putting back {base}")
            restore.discard_restore_note(self._config)
            return ""
        except TorchServeError as error:
            return f"The old settings ({base}) could not be put back: {error}"

    def _report(self, **changes: Any) -> None:
        self._progress = replace(self._progress, **changes)
        self._on_progress(self._progress)
