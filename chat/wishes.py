"""What a session's chat input and buttons have asked for and no run of its page has done yet.

A click ends the run that is under way, at that run's next Streamlit call, and with it goes what that run was told and
had not looked at: a question sent a moment before would be lost. Callbacks come before all else in a run, so they note
wishes here, and whichever run gets that far grants them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

NEW = ""  # a conversation without a question


@dataclass(frozen=True, slots=True)
class Wish:
    action: str
    arguments: tuple[Any, ...]


@dataclass(slots=True)
class Wishes:
    """`to_show` is a conversation's id, or NEW: what the page shows until its URL says so; then it is None again.

    Until then the browser may send clicks with the URL of before. Nothing in here is a Streamlit call: who takes a
    wish, grants it and notes `to_show` without one is never cut off.
    """

    to_show: str | None = None
    waiting: deque[Wish] = field(default_factory=deque)


def session_wishes() -> Wishes:
    wishes: Wishes = st.session_state.setdefault("wishes", Wishes())
    return wishes


def wish(action: str, *arguments: Any) -> None:
    """Callback: a run's body does it, with the settings that are in force then."""
    session_wishes().waiting.append(Wish(action, arguments))
