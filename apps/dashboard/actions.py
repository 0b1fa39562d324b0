"""The actions on a server, such as starting it: one at a time, each in its own thread. Knows nothing of Streamlit.

An action continues when its page is reloaded or closed. All pages show it and its outcome. It ends with the app.
Threads: the pages call the methods of Actions. The thread of an action changes `progress` and `is_draining`, and sets
`outcome` last.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torchserve_client import process as torchserve_process
from torchserve_client.archives import package_demo
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DRAIN_SECONDS, DrainPolicy, drain
from torchserve_client.logs import log_tail
from torchserve_client.management import ArchiveMissing, ManagementClient
from torchserve_client.process import StartFailed
from torchserve_client.status import ServingSettings

LOG_LINES = 40
STOP_DRAIN_SECONDS = 300.0  # before Stop Server cuts the requests in progress

Name = Literal["start", "stop", "register", "unregister", "apply", "make_default", "end_version", "package"]
LABELS: dict[Name, str] = {
    "start": "Starting TorchServe",
    "stop": "Stopping TorchServe and its workers",
    "register": "Registering the model; a large one takes a minute to load",
    "unregister": "Unregistering the model",
    "apply": "Applying the settings",
    "make_default": "Making another version the default; it is loaded first",
    "end_version": "Ending the version that is not the default",
    "package": "Packaging the demo model; fetching it the first time takes a while",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action ended at `at`, in seconds since the epoch. log: TorchServe's, if it explains a failure."""

    is_success: bool
    sentence: str
    log: str = ""
    needs_archive: bool = False
    at: float = field(default_factory=time.time)


@dataclass(slots=True, eq=False)
class Action:
    """A running or ended action. `progress` says what it does now; setting `skip_drain` ends its drain."""

    name: Name
    number: int
    begun: float = field(default_factory=time.time)
    progress: str = ""
    is_draining: bool = False
    skip_drain: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None

    @property
    def can_skip_drain(self) -> bool:
        return self.is_draining and not self.skip_drain.is_set()

    def report(self, sentence: str) -> None:
        self.progress, self.is_draining = sentence, False

    def report_drain(self, sentence: str) -> None:
        self.progress, self.is_draining = sentence, True

    def drain_policy(self, seconds: float = DRAIN_SECONDS) -> DrainPolicy:
        """The policy of a drain that reports to this action and that `skip_drain` ends."""
        return DrainPolicy(seconds, self.skip_drain.is_set, on_progress=self.report, on_drain=self.report_drain)


class Actions:
    """The actions on one server. Pages may share it. A method does nothing while another action runs."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._lock = threading.Lock()
        self._begun = 0
        self.latest: Action | None = None

    @property
    def current(self) -> Action | None:
        """The running action."""
        latest = self.latest
        return latest if latest and latest.outcome is None else None

    @property
    def latest_state(self) -> tuple[int, bool]:
        """Changes when an action begins, ends or is dismissed."""
        latest = self.latest
        return (latest.number, latest.outcome is None) if latest else (0, False)

    def dismiss(self) -> None:
        """Removes the outcome of the last action from the pages."""
        with self._lock:
            if not self.current:
                self.latest = None

    def start(self) -> None:
        self._begin("start", lambda action: torchserve_process.start(self._config, action.report))

    def stop(self, drain_first: bool) -> None:
        def act(action: Action) -> str:
            if drain_first:
                drain(self._config, self._management.describe, action.drain_policy(STOP_DRAIN_SECONDS))
            action.report("Ending TorchServe and its workers")
            torchserve_process.stop(self._config)
            return "TorchServe has stopped; nothing of it is running any more."

        self._begin("stop", act)

    def register(self, settings: ServingSettings, archive: str) -> None:
        def act(action: Action) -> str:
            status = self._management.describe()
            if status:
                return f"Registered model: it already serves with {status.settings}. Press Apply to change that."
            self._management.register(settings, archive)
            return "Registered model"

        self._begin("register", act)

    def unregister(self) -> None:
        def act(action: Action) -> str:
            self._management.unregister(action.drain_policy())
            return "The model is unregistered and its workers have ended."

        self._begin("unregister", act)

    def apply(self, settings: ServingSettings, archive: str) -> None:
        def act(action: Action) -> str:
            self._management.apply(settings, archive, action.drain_policy())
            return f"Applied {settings}."

        self._begin("apply", act)

    def make_default(self, archive: str) -> None:
        def act(action: Action) -> str:
            self._management.make_default(archive, action.drain_policy())
            default, *others = self._management.registered()
            left = "".join(f" Version {each.version} still has requests: end it on the page later." for each in others)
            return f"Version {default.version} is the default and answers.{left}"

        self._begin("make_default", act)

    def end_version(self, version: str) -> None:
        def act(action: Action) -> str:
            self._management.end_version(version, action.drain_policy())
            return f"Version {version} has ended; its archive stays in the model store."

        self._begin("end_version", act)

    def package(self) -> None:
        self._begin("package", lambda action: package_demo(self._config, action.report))

    def _begin(self, name: Name, act: Callable[[Action], str]) -> None:
        """`act` returns the sentence about its success."""
        with self._lock:
            if self.current:
                return
            self._begun += 1
            self.latest = Action(name, self._begun)
            threading.Thread(target=_perform, args=(self._config, self.latest, act), daemon=True).start()


def _perform(config: ServerConfig, action: Action, act: Callable[[Action], str]) -> None:
    outcome = Outcome(False, "That ended with an error of this app: the terminal it runs in shows it.")
    try:
        outcome = Outcome(True, act(action))
    except TorchServeError as error:
        log = log_tail(config, LOG_LINES) if isinstance(error, StartFailed) else ""
        outcome = Outcome(False, str(error), log, isinstance(error, ArchiveMissing))
    finally:
        action.outcome = outcome
