"""Settings under a name: the system prompt with all parameters, saved for later conversations, chosen and deleted."""

from collections.abc import Callable, Mapping
from typing import Any

import streamlit as st

from apps.chat.database import StoreError
from apps.chat.store import ChatStore

LONGEST_NAME = 60  # characters


def draw_saved_settings(
    store: ChatStore, current: Callable[[], dict[str, Any]], recall: Callable[[Mapping[str, Any]], None]
) -> None:
    """current: the settings of the sidebar. recall: puts settings into the sidebar, before it is drawn."""
    saved = store.saved_settings()

    def use() -> None:
        if settings := saved.get(st.session_state.saved_settings or ""):
            recall(settings)
            st.session_state.settings_name = st.session_state.saved_settings

    def save() -> None:
        name = " ".join(st.session_state.settings_name.split())
        _attempt(lambda: store.save_under_name(name, current()), "" if name else "Type a name for these settings.")
        st.session_state.saved_settings = name or None

    def delete(name: str) -> None:
        _attempt(lambda: store.delete_saved(name))
        st.session_state.saved_settings = None
        st.session_state.settings_name = ""

    if st.session_state.get("saved_settings") not in saved:  # deleted, perhaps in another tab
        st.session_state.saved_settings = None
    with st.expander("Saved settings"):
        st.caption("The system prompt with all parameters, under a name.")
        chosen = st.selectbox(
            "Use",
            list(saved),
            index=None,
            key="saved_settings",
            placeholder="Choose saved settings" if saved else "Nothing is saved yet",
            disabled=not saved,
            on_change=use,
            label_visibility="collapsed",
        )
        label = "Save the settings as"
        st.text_input(label, key="settings_name", max_chars=LONGEST_NAME, on_change="ignore", placeholder="Name")
        with st.container(horizontal=True, gap="xsmall"):
            st.button("Save", key="save_settings", on_click=save)
            if chosen:
                st.button("Delete", key="delete_settings", on_click=delete, args=(chosen,))
        if problem := st.session_state.pop("settings_problem", ""):
            st.error(problem)


def _attempt(change: Callable[[], None], problem: str = "") -> None:
    """Changes the file, if there is no problem already; a problem is shown by the run that follows."""
    if not problem:
        try:
            change()
        except StoreError as error:
            problem = str(error)
    st.session_state.settings_problem = problem
