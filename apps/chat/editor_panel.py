"""The editor of a message: a text area in the message's place. One message of a tab is edited at a time."""

from collections.abc import Callable
from typing import Literal

import streamlit as st

from apps.chat.messages import Message
from apps.chat.session import queue
from apps.chat.sidebar_panel import focus_on
from apps.chat.turns import Chat

LONG = 2000  # characters
LONG_HEIGHT = 400  # pixels

Save = Callable[[Chat, int, str], None]


def is_edited(message: Message) -> bool:
    return bool(st.session_state.get("editing") == message.id)


def start_editing(message_id: int | None) -> None:
    """Callback; None closes the editor."""
    st.session_state.editing = message_id
    if message_id is not None:
        focus_on(_key(message_id))


def _key(message_id: int) -> str:
    """Of the text area."""
    return f"edited_{message_id}"


def draw_editor(message: Message, name: str, save_label: str, save: Save) -> None:
    """The text area ignores changes: a script run when it loses the focus would replace the button being pressed."""
    height: Literal["content"] | int = "content" if len(message.text) < LONG else LONG_HEIGHT
    key = _key(message.id)
    st.text_area(name, message.text, height, key=key, label_visibility="collapsed", on_change="ignore")
    with st.container(horizontal=True, gap="small"):
        key = f"save_{message.id}"
        st.button(save_label, key=key, type="primary", on_click=_save_edited, args=(message.id, save))
        st.button("Cancel", key=f"cancel_{message.id}", on_click=start_editing, args=(None,))


def _save_edited(message_id: int, save: Save) -> None:
    """Callback. The editor stays open if its text is empty."""
    text = st.session_state[_key(message_id)]
    if text.strip():
        queue(save, message_id, text)
        start_editing(None)
