"""A run's last messages reach the browser, even if a fragment's timer asks for a run just as it ends."""

import asyncio
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime import app_session
from streamlit.runtime.app_session import AppSession
from streamlit.runtime.script_data import ScriptData
from streamlit.runtime.scriptrunner import RerunData, ScriptRunnerEvent
from streamlit.runtime.state.session_state import WStates

from apps.shared import complete_runs

TIMER = ClientState(fragment_id="timer", is_auto_rerun=True)


class Runner:
    """A script runner that accepts requests until it has ended. Like the real one, it sends from another thread."""

    started: ClassVar[list["Runner"]] = []

    def __init__(self, initial_rerun_data: RerunData, **unused: Any) -> None:
        self.requests = [initial_rerun_data]
        self.has_ended = False
        self.on_event = MagicMock()

    def start(self) -> None:
        Runner.started.append(self)

    def request_rerun(self, request: RerunData) -> bool:
        if not self.has_ended:
            self.requests.append(request)
        return not self.has_ended

    def request_stop(self) -> None:
        self.has_ended = True


@pytest.fixture(params=[True, False], ids=["mended", "as Streamlit is"])
def is_mended(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(AppSession, "_create_scriptrunner", complete_runs._create_runner)
    monkeypatch.setattr(app_session, "ScriptRunner", Runner)
    monkeypatch.setattr(AppSession, "has_fragment", lambda session, fragment_id: fragment_id == TIMER.fragment_id)
    Runner.started.clear()
    if request.param:
        complete_runs.complete_runs()
    return bool(request.param)


def new_session() -> AppSession:
    session = AppSession(
        script_data=ScriptData("page.py", is_hello=False),
        uploaded_file_manager=MagicMock(),
        script_cache=MagicMock(),
        message_enqueued_callback=None,
        user_info={},
    )
    session._script_event_loop.close()  # of the script's thread, which no test starts
    return session


def drawn_by(session: AppSession) -> list[str]:
    sent = session.flush_browser_queue()
    return [message.delta.new_element.text.body for message in sent if message.HasField("delta")]


def draw(session: AppSession, runner: Runner, text: str) -> None:
    message = ForwardMsg()
    message.delta.new_element.text.body = text
    session._on_scriptrunner_event(runner, ScriptRunnerEvent.ENQUEUE_FORWARD_MSG, forward_msg=message)  # type: ignore[arg-type]


def test_a_timer_at_the_end_of_a_run_loses_nothing_that_it_has_drawn(is_mended: bool) -> None:
    async def run() -> tuple[list[str], int]:
        session = new_session()
        session.request_rerun(ClientState())
        (runner,) = Runner.started
        draw(session, runner, "the answer's end")
        runner.has_ended = True  # before the event loop has handled the message
        session.request_rerun(TIMER)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return drawn_by(session), len(Runner.started)

    # Without the mend Streamlit loses it: when this fails, Streamlit has mended it, and complete_runs.py can go.
    assert asyncio.run(run()) == (["the answer's end"] if is_mended else [], 2)


@pytest.mark.parametrize("is_mended", [True], indirect=True)
def test_a_click_between_keeps_its_own_run_and_the_timers(is_mended: bool) -> None:
    async def run() -> None:
        session = new_session()
        session.request_rerun(ClientState())
        Runner.started[0].has_ended = True
        session.request_rerun(TIMER)
        session.request_rerun(ClientState(query_string="clicked"))
        await asyncio.sleep(0)

    asyncio.run(run())
    assert len(Runner.started) == 2
    assert [(request.query_string, request.fragment_id) for request in Runner.started[1].requests] == [
        ("clicked", None),
        ("", "timer"),
    ]


@pytest.mark.parametrize("is_mended", [True], indirect=True)
def test_a_closed_tab_gets_no_run_after_its_end(is_mended: bool) -> None:
    async def run() -> None:
        session = new_session()
        session.request_rerun(ClientState())
        Runner.started[0].has_ended = True
        session.request_rerun(TIMER)
        session._state = app_session.AppSessionState.SHUTDOWN_REQUESTED
        await asyncio.sleep(0)

    asyncio.run(run())
    assert len(Runner.started) == 1


def test_a_widget_that_another_run_adds_does_not_end_an_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WStates, "__iter__", WStates.__iter__)  # put back at the end
    complete_runs.complete_runs()
    states = WStates()
    states.set_from_value("first", 1)
    seen = []
    for name in states:
        states.set_from_value(f"beside {name}", 2)
        seen.append(name)
    assert seen == ["first"]
    assert len(states) == 2
