"""Experiments in a thread, for the page, which must not wait for them."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

from experiments.records import Plan
from experiments.restore import ExperimentFailed, put_back
from experiments.run import Experiment, Progress
from torchserve_client.config import ServerConfig, TorchServeError

CLOSE_SECONDS = 60.0  # for the end of a program whose experiment is still running: cancel it, put the settings back


class Background:
    """The experiments of one server, one after the other in a thread, whichever page asked for them.

    Every method may be called from any thread. A program that ends cancels and puts back first.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._experiment: Experiment | None = None
        self.is_cancelled = False
        self.progress: Progress | None = None  # of what runs
        self.problem: TorchServeError | None = None  # why the last one could not even start
        atexit.register(self._close)

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def can_cancel(self) -> bool:
        return self.is_running and self._experiment is not None and not self.is_cancelled

    def start(self, plan: Plan) -> None:
        """Raises InvalidParameter for a plan that cannot be done; does nothing while something else runs."""
        experiment = Experiment(self._config, plan, self._report)
        self._begin(experiment.run, experiment)

    def put_back(self) -> None:
        """What a killed experiment left behind; does nothing while something else runs."""
        self._begin(lambda: put_back(self._config, lambda sentence: self._report(Progress(sentence, 0, 0, None))))

    def cancel(self) -> None:
        if self._experiment:
            self.is_cancelled = True
            self._experiment.cancel()

    def _begin(self, act: Callable[[], object], experiment: Experiment | None = None) -> None:
        with self._lock:
            if self.is_running:
                return
            self._experiment, self.is_cancelled, self.progress, self.problem = experiment, False, None, None
            self._thread = threading.Thread(target=self._perform, args=(act,), daemon=True)
            self._thread.start()

    def _perform(self, act: Callable[[], object]) -> None:
        self.problem = ExperimentFailed("It ended by an error of this program: the terminal it runs in shows it.")
        try:
            act()
            self.problem = None
        except TorchServeError as error:
            self.problem = error

    def _report(self, progress: Progress) -> None:
        self.progress = progress

    def _close(self) -> None:
        self.cancel()
        if self._thread:
            self._thread.join(CLOSE_SECONDS)
