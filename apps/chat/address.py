"""Which conversation a tab shows: the one in its URL, unless a click or a question has opened another one since.

A click brings the URL that the browser knew, which may be older than what a run has put there meanwhile.
"""

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from apps.chat.pending_actions import NEW
from apps.chat.server_panel import recall_server
from apps.chat.session import session_pending
from apps.chat.settings_panel import recall
from apps.chat.store import ChatStore

URL_PARAMETER = "conversation"


def choose_conversation(store: ChatStore) -> None:
    """Opens the conversation to open, or else the one in the URL; with its settings if it is new to this tab."""
    pending = session_pending()
    in_url = st.query_params.get(URL_PARAMETER, NEW)
    if _has_gone_back():
        pending.to_open, pending.in_address = in_url, None  # even if a pending question belongs to another conversation
    elif pending.in_address == in_url and not pending.is_own_run:
        pending.in_address = None
    pending.is_own_run = False
    if pending.to_open == in_url and pending.in_address is None:
        pending.to_open = None
    wanted = in_url if pending.to_open is None else pending.to_open
    conversation = store.get(wanted)
    if conversation and st.session_state.get("opened") != wanted:
        in_address = st.query_params.to_dict()
        recall({name: value for name, value in conversation.settings.items() if name not in in_address})
        recall_server(conversation.settings)
    if wanted != in_url or pending.in_address not in (None, wanted):
        put_into_url(wanted)
    st.session_state.opened = wanted


def _has_gone_back() -> bool:
    """Whether the browser's back or forward button started this run: Streamlit 1.67 has no public name for that."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


def put_into_url(conversation_id: str) -> None:
    """Another entry of the browser's history."""
    pending = session_pending()
    before = pending.in_address
    if conversation_id != NEW:
        st.query_params[URL_PARAMETER] = conversation_id
    elif URL_PARAMETER in st.query_params:
        del st.query_params[URL_PARAMETER]
    elif before:  # the browser gets that one yet; only what is there can be deleted
        st.query_params[URL_PARAMETER] = before
        del st.query_params[URL_PARAMETER]
    pending.in_address = conversation_id
