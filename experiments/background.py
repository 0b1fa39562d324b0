"""Runs experiments in a thread, so that a page does not wait for them. Knows nothing of the page."""

import atexit
import threading
from collections.abc import Callable

from experiments.plan import Plan
from experiments.restore import ExperimentFailed, restore_setup
from experiments.run import Experiment, ExperimentProgress
from torchserve_client.config import ServerConfig, TorchServeError

CLOSE_SECONDS = 60.0  # at the end of the program: cancel the experiment and restore the settings


_all: "list[BackgroundExperiments]" = []


def close_all() -> None:
    """Cancels all experiments of this program and waits for the old settings.

    For a program that ends by a signal: Python then calls nothing at its exit.
    """
    for experiments in _all:
        experiments.close()


class BackgroundExperiments:
    """The experiments of one server, one at a time, for all pages.

    Any thread may call any method. When the program ends, it cancels the experiment and waits for the old settings.
    progress: of the current experiment. problem: why the last one could not start.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._experiment: Experiment | None = None
        self.is_cancelled = False
        self.progress: ExperimentProgress | None = None
        self.problem: TorchServeError | None = None
        _all.append(self)
        atexit.register(self.close)

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def can_cancel(self) -> bool:
        return self.is_running and self._experiment is not None and not self.is_cancelled

    def start(self, plan: Plan) -> None:
        """Does nothing while something runs."""
        experiment = Experiment(self._config, plan, self._set_progress)
        self._begin(experiment.run, experiment)

    def restore_setup(self) -> None:
        """Restores the setup that a killed experiment has changed. Does nothing while something runs."""
        self._begin(lambda: restore_setup(self._config, self._set_activity))

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
        # This stays if `act` ends with an error that is not a TorchServeError; Python prints its traceback.
        self.problem = ExperimentFailed("It ended by an error of this program: the terminal it runs in shows it.")
        try:
            act()
            self.problem = None
        except TorchServeError as error:
            self.problem = error

    def _set_progress(self, progress: ExperimentProgress) -> None:
        self.progress = progress

    def _set_activity(self, activity: str) -> None:
        self.progress = ExperimentProgress(activity)

    def close(self) -> None:
        """Cancels the experiment and waits until the old settings are back."""
        self.cancel()
        if self._thread:
            self._thread.join(CLOSE_SECONDS)
