"""What one can do with the server, one action at a time, each in a thread of its own. Knows nothing of Streamlit.

An action goes on when the page that began it is reloaded or closed, and every page sees it and how it ended. It ends
with the app. Threads: begin() is called by pages; an action's thread writes `stage` and, last of all, `outcome`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torchserve_client import process as torchserve_process
from torchserve_client.archives import package_demo
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import LETTING, drain
from torchserve_client.management import ArchiveMissing, DrainPolicy, ManagementClient, ServingSettings
from torchserve_client.process import StartFailed

LOG_LINES = 40
STOP_SECONDS = 300.0  # the longest that a stop lets requests finish

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
    """How an action ended at `at`, in seconds since the epoch. log: TorchServe's, where it explains a failure."""

    is_success: bool
    sentence: str
    log: str = ""
    needs_archive: bool = False
    at: float = field(default_factory=time.time)


@dataclass(slots=True, eq=False)
class Action:
    """An action under way or ended. `stage` says what it is doing; `hurry` ends its waiting for requests."""

    name: Name
    number: int
    begun: float = field(default_factory=time.time)
    stage: str = ""
    hurry: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None

    @property
    def lets_finish(self) -> bool:
        """Whether it is waiting for requests and could be hurried."""
        return self.stage.startswith(LETTING) and not self.hurry.is_set()

    def tell(self, sentence: str) -> None:
        self.stage = sentence


class Actions:
    """The actions on one server. Pages may share it."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._management = ManagementClient(config)
        self._lock = threading.Lock()
        self._begun = 0
        self.latest: Action | None = None

    @property
    def current(self) -> Action | None:
        """The action under way."""
        latest = self.latest
        return latest if latest and latest.outcome is None else None

    @property
    def latest_state(self) -> tuple[int, bool]:
        """Changes when an action begins, ends or is dismissed."""
        latest = self.latest
        return (latest.number, latest.outcome is None) if latest else (0, False)

    def dismiss(self) -> None:
        """Forgets how the last action ended."""
        with self._lock:
            if not self.current:
                self.latest = None

    def start(self) -> None:
        self._begin("start", lambda action: torchserve_process.start(self._config, action.tell))

    def stop(self, lets_finish: bool) -> None:
        self._begin("stop", lambda action: self._stop(action, lets_finish))

    def register(self, settings: ServingSettings, archive: str) -> None:
        self._begin("register", lambda action: self._register(settings, archive))

    def unregister(self) -> None:
        self._begin("unregister", self._unregister)

    def apply(self, settings: ServingSettings, archive: str) -> None:
        self._begin("apply", lambda action: self._apply(action, settings, archive))

    def make_default(self, archive: str) -> None:
        self._begin("make_default", lambda action: self._make_default(action, archive))

    def end_version(self, version: str) -> None:
        self._begin("end_version", lambda action: self._end_version(action, version))

    def package(self) -> None:
        self._begin("package", lambda action: package_demo(self._config, action.tell))

    def _begin(self, name: Name, act: Callable[[Action], str]) -> None:
        """Does nothing while another action is under way, which every page shows."""
        with self._lock:
            if self.current:
                return
            self._begun += 1
            self.latest = Action(name, self._begun)
            threading.Thread(target=_perform, args=(self._config, self.latest, act), daemon=True).start()

    def _stop(self, action: Action, lets_finish: bool) -> str:
        if lets_finish:
            drain_policy = DrainPolicy(STOP_SECONDS, action.hurry.is_set, action.tell)
            drain(self._config, self._management.describe, drain_policy)
        action.tell("Ending TorchServe and its workers")
        torchserve_process.stop(self._config)
        return "TorchServe has stopped; nothing of it is running any more."

    def _register(self, settings: ServingSettings, archive: str) -> str:
        status = self._management.describe()
        if status:
            return f"Registered model: it already serves with {status.settings}. Press Apply to change that."
        self._management.register(settings, archive)
        return "Registered model"

    def _unregister(self, action: Action) -> str:
        self._management.unregister(_patience(action))
        return "The model is unregistered and its workers have ended."

    def _apply(self, action: Action, settings: ServingSettings, archive: str) -> str:
        self._management.apply(settings, archive, _patience(action))
        return f"Applied {settings}."

    def _make_default(self, action: Action, archive: str) -> str:
        self._management.make_default(archive, _patience(action))
        now, *others = self._management.registered()
        left = "".join(f" Version {each.version} still has requests: end it on the page later." for each in others)
        return f"Version {now.version} is the default and answers.{left}"

    def _end_version(self, action: Action, version: str) -> str:
        self._management.end_version(version, _patience(action))
        return f"Version {version} has ended; its archive stays in the model store."


def _patience(action: Action) -> DrainPolicy:
    return DrainPolicy(is_cancelled=action.hurry.is_set, tell=action.tell)


def _perform(config: ServerConfig, action: Action, act: Callable[[Action], str]) -> None:
    outcome = Outcome(False, "That ended with an error of this app: the terminal it runs in shows it.")
    try:
        outcome = Outcome(True, act(action))
    except TorchServeError as error:
        log = torchserve_process.log_tail(config, LOG_LINES) if isinstance(error, StartFailed) else ""
        outcome = Outcome(False, str(error), log, isinstance(error, ArchiveMissing))
    finally:
        action.outcome = outcome
