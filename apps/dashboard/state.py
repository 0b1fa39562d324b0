"""The one line of state on the server app's page, the next step, and why a button cannot be pressed.

page_state() derives them from facts; RULES is the table. Plain values: queries nothing and knows nothing of Streamlit.
apps/dashboard/facts.py gathers the facts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from apps.dashboard.actions import LABELS, Name
from apps.dashboard.token_progress import STALL_SECONDS, TokenProgress
from apps.dashboard.wording import counted
from torchserve_client.drain import RequestCounts
from torchserve_client.status import ModelStatus, ServerState

Tone = Literal["ok", "busy", "idle", "warning", "error"]
Subject = Literal["TorchServe", "Model"]
Button = Literal["start", "stop", "register", "unregister", "apply", "package"]
Step = Button | Literal["chat"]


@dataclass(frozen=True, slots=True)
class Changes:
    """What changes the server now.

    action: the running action of this app. is_switching: a program starts or stops TorchServe. is_changing: a program
    changes the model. experiment, autoscaler: what they do, "" if they do not run; two equal Changes may differ in it.
    """

    action: Name | None = None
    is_switching: bool = False
    is_changing: bool = False
    has_experiment: bool = False
    has_autoscaler: bool = False
    experiment: str = field(default="", compare=False)
    autoscaler: str = field(default="", compare=False)

    @property
    def sentence(self) -> str:
        """ "" if nothing changes the server."""
        if self.action:
            return f"{LABELS[self.action]}."
        if self.is_switching:
            return "Another program is starting or stopping TorchServe."
        if self.has_experiment:
            doing = f": {self.experiment}" if self.experiment else " in another program"
            return f"An experiment is running{doing}. It puts the settings back at its end."
        if self.is_changing and self.has_autoscaler:
            return f"The workers are being changed. The autoscaler says: {self.autoscaler}"
        return "Another program is changing the model." if self.is_changing else ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about the server at the time `at`, in seconds since the epoch.

    error: the newest exception in the workers' log, if no worker runs.
    counts: None, like `progress`, if the metrics could not be read.
    change: what the button Apply would change, as a sentence; "" for nothing.
    """

    at: float
    server: ServerState
    changes: Changes = Changes()
    error: str = ""
    counts: RequestCounts | None = None
    progress: TokenProgress | None = None
    tokens_per_second: float = 0.0
    change: str = ""
    has_archive: bool = True

    @property
    def stall(self) -> str:
        return self.progress.stall(self.at) if self.progress else ""


@dataclass(frozen=True, slots=True)
class PageState:
    """`name` is the state of the subject in one or two words. obstacles: why a button is disabled, "" if it is not."""

    subject: Subject
    name: str
    tone: Tone
    sentence: str
    next_step: Step | None = None
    obstacles: dict[Button, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.subject}: {self.name}"


# The states while an action of this app runs.
ACTION_STATES: dict[Name, tuple[Subject, str]] = {
    "start": ("TorchServe", "starting"),
    "stop": ("TorchServe", "stopping"),
    "register": ("Model", "loading"),
    "unregister": ("Model", "unregistering"),
    "apply": ("Model", "changing"),
    "make_default": ("Model", "changing"),
    "end_version": ("Model", "changing"),
    "package": ("Model", "packaging"),
}


def page_state(facts: Facts) -> PageState:
    """The first rule that applies decides."""
    state = next(make(facts) for applies, make in RULES if applies(facts))
    return PageState(state.subject, state.name, state.tone, state.sentence, state.next_step, _obstacles(facts))


def _is_up(facts: Facts) -> bool:
    return facts.server.state == "up"


def _model(facts: Facts) -> ModelStatus:
    assert facts.server.model is not None
    return facts.server.model


def _action(facts: Facts) -> PageState:
    assert facts.changes.action is not None
    subject, name = ACTION_STATES[facts.changes.action]
    return PageState(subject, name, "busy", facts.changes.sentence)


def _changing(subject: Subject) -> Callable[[Facts], PageState]:
    return lambda facts: PageState(subject, "changing", "busy", facts.changes.sentence)


def _experiment(facts: Facts) -> PageState:
    if facts.stall:
        return PageState("Model", "stalled", "warning", f"{facts.stall} {facts.changes.sentence}")
    return PageState("Model", "in an experiment", "busy", facts.changes.sentence)


def _down(facts: Facts) -> PageState:
    problem = f" {facts.server.problem}" if facts.server.problem else ""
    sentence = f"TorchServe is not running. Press Start Server in the sidebar.{problem}"
    return PageState("TorchServe", "down", "idle", sentence, "start")


def _not_registered(facts: Facts) -> PageState:
    if not facts.has_archive:
        sentence = "TorchServe is running without a model, and there is no archive yet. Package the demo model."
        return PageState("Model", "not registered", "idle", sentence, "package")
    sentence = "TorchServe is running without a model. Press Register Llama2 in the sidebar."
    return PageState("Model", "not registered", "idle", sentence, "register")


def _paused(facts: Facts) -> PageState:
    pids = [str(worker.pid) for worker in _model(facts).workers if worker.is_paused]
    which = f"Process {pids[0]} of a worker is" if len(pids) == 1 else f"Processes {', '.join(pids)} of workers are"
    sentence = f"{which} paused and cannot answer. Continue with `kill -CONT {' '.join(pids)}` in a terminal."
    return PageState("Model", "paused", "error", " ".join(filter(None, (sentence, facts.stall))))


def _no_worker(facts: Facts) -> PageState:
    error = f" The newest error in their log: {facts.error}." if facts.error else ""
    sentence = f"Registered model, but no worker is running. TorchServe starts a new one, with growing pauses.{error}"
    return PageState("Model", "failed", "error", sentence)


def _loading(facts: Facts) -> PageState:
    model = _model(facts)
    ready = f"{model.ready_workers} of {model.settings.workers} workers ready"
    sentence = f"Registered model, {ready}. A worker is loading or restarting."
    return PageState("Model", "loading", "warning", " ".join(filter(None, (sentence, facts.stall))))


def _stalled(facts: Facts) -> PageState:
    return PageState("Model", "stalled", "warning", facts.stall)


def _ready(facts: Facts) -> PageState:
    scaled = " The autoscaler sets the number of workers." if facts.changes.has_autoscaler else ""
    step: Step = "apply" if facts.change else "chat"
    tone: Tone = "ok" if _knows_load(facts) else "idle"
    return PageState("Model", "ready", tone, f"Registered model. {_activity(facts)}{scaled}", step)


def _knows_load(facts: Facts) -> bool:
    """Whether there are metrics, and new ones."""
    return facts.progress is not None and facts.at - facts.progress.at <= STALL_SECONDS


def _activity(facts: Facts) -> str:
    """What a ready model does. The age of the last token is not in this line, which would grow and move the page."""
    progress, counts = facts.progress, facts.counts
    if progress is None or counts is None or not _knows_load(facts):
        return "Its metrics cannot be read, so whether it answers is not known."
    if counts.requests == 0:
        return "It waits for requests."
    speed = f", {facts.tokens_per_second:,.0f} tokens/s" if facts.tokens_per_second else ""
    return f"It has {counted(counts.requests, 'request')}{speed}."


RULES: tuple[tuple[Callable[[Facts], bool], Callable[[Facts], PageState]], ...] = (
    (lambda facts: facts.changes.action is not None, _action),
    (lambda facts: facts.changes.is_switching, _changing("TorchServe")),
    # A change may start TorchServe again. It is not down or unhealthy meanwhile.
    (lambda facts: facts.changes.has_experiment and (facts.changes.is_changing or _is_up(facts)), _experiment),
    (lambda facts: facts.changes.is_changing, _changing("Model")),
    (lambda facts: facts.server.state == "down", _down),
    (
        lambda facts: facts.server.state == "starting",
        lambda facts: PageState("TorchServe", "starting", "busy", "TorchServe is starting."),
    ),
    (
        lambda facts: facts.server.state == "unhealthy",
        lambda facts: PageState("TorchServe", "unhealthy", "error", facts.server.problem, "stop"),
    ),
    (lambda facts: facts.server.model is None, _not_registered),
    (lambda facts: any(worker.is_paused for worker in _model(facts).workers), _paused),
    (lambda facts: _model(facts).phase == "failed", _no_worker),
    (lambda facts: not _model(facts).is_ready, _loading),
    (lambda facts: bool(facts.stall), _stalled),
    (lambda facts: True, _ready),
)


def _obstacles(facts: Facts) -> dict[Button, str]:
    """Why each button cannot be pressed now."""
    server, model = facts.server, facts.server.model
    wait = f"Wait. {facts.changes.sentence}" if facts.changes.sentence else ""
    # TorchServe can be stopped during an experiment and during another program's change.
    switching = wait if facts.changes.action or facts.changes.is_switching else ""
    no_answer = (
        ""
        if _is_up(facts)
        else "Press Start Server first."
        if server.state == "down"
        else "TorchServe does not answer."
    )
    not_down = "" if server.state == "down" else "TorchServe is running already."
    registered = "The model is registered already: Apply changes how it is served." if model else ""
    no_archive = "" if facts.has_archive else "There is no archive yet: package a model first."
    no_model = "" if model else "No model is registered."
    no_change = (
        "" if facts.change or (model and not model.is_ready) else "The model serves with these settings already."
    )
    return {
        "start": switching or not_down,
        "stop": switching or ("TorchServe is not running." if server.state == "down" else ""),
        "register": wait or no_answer or registered or no_archive,
        "unregister": wait or no_answer or no_model,
        "apply": wait or no_answer or no_model or no_change,
        "package": wait,
    }
