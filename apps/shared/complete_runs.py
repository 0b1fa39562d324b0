"""Mends two races between two runs of one page in Streamlit 1.67, for both apps.

1. A run sends its messages to the session through the event loop. Those that still wait there are ignored if the
   browser asks for a fragment's run just as the run ends: the session then has a new runner already (the comment in
   `AppSession.request_rerun` describes it, after https://github.com/streamlit/streamlit/issues/9921). A page with a
   timer asks all the time, so rarely an answer that has ended would stay at "writing" until the page is reloaded.
2. A click starts its run while the one before still goes on for a moment, and adds its widgets. The new run fails if it
   iterates over them just then ("dictionary changed size during iteration"), and a question is lost.
"""

from collections.abc import Iterator
from functools import partial

from streamlit.runtime.app_session import AppSession, AppSessionState
from streamlit.runtime.scriptrunner import RerunData
from streamlit.runtime.state.session_state import WStates

_create_runner = AppSession._create_scriptrunner  # the only place that replaces a runner that has ended


def complete_runs() -> None:
    """Changes Streamlit for this process. Called again, it changes nothing."""
    AppSession._create_scriptrunner = _create_after_delivery  # type: ignore[method-assign,assignment]
    WStates.__iter__ = _iterate_over_copy  # type: ignore[method-assign]


def _create_after_delivery(session: AppSession, request: RerunData) -> None:
    if session._scriptrunner is None:
        _create_runner(session, request)
    else:  # it has ended; the event loop calls this after it has handled what the runner has sent
        session._event_loop.call_soon(partial(_ask_again, session, request))


def _ask_again(session: AppSession, request: RerunData) -> None:
    if session._state == AppSessionState.SHUTDOWN_REQUESTED:
        return
    # In between, a click may have started another runner, which then runs the fragment after its own run.
    if session._scriptrunner is None or not session._scriptrunner.request_rerun(request):
        _create_runner(session, request)


def _iterate_over_copy(states: WStates) -> Iterator[str]:
    return iter(list(states.states))
