"""The pending actions of one browser tab, as callbacks and script runs reach them."""

from collections.abc import Callable
from typing import Concatenate, NoReturn, ParamSpec

import streamlit as st

from apps.chat.pending_actions import PendingActions
from apps.chat.turns import Chat

P = ParamSpec("P")


def session_pending() -> PendingActions:
    pending: PendingActions = st.session_state.setdefault("pending_actions", PendingActions())
    return pending


def queue(method: Callable[Concatenate[Chat, P], object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Callback: the next script run calls this method of Chat, with the settings it then has."""
    session_pending().add(lambda chat: method(chat, *args, **kwargs))


def rerun() -> NoReturn:
    """Ends this run of the page and starts the next one."""
    session_pending().is_own_run = True
    st.rerun()
