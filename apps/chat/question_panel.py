"""The person's side of a conversation: a question exactly as it was typed, and its editor."""

import streamlit as st

from apps.chat.answer_panel import draw_branches
from apps.chat.messages import Message, MessageTree
from apps.chat.session import queue
from apps.chat.turns import Chat

NOT_SENT = "Not sent to the model any more."


def draw_question(message: Message, tree: MessageTree) -> None:
    """Like an answer, a question always has the same number of elements."""
    shown, editor, note = st.empty(), st.empty(), st.empty()
    if st.session_state.get("editing") == message.id:
        with editor.container():
            _draw_editor(message)
    else:
        with shown.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
            st.text(message.text, width="stretch")
            key, icon, about = f"edit_{message.id}", ":material/edit:", "Edit and send again"
            st.button("", key, about, _edit, (message.id,), type="tertiary", icon=icon)
            draw_branches(message, tree)
    if message.is_left_out:
        note.caption(NOT_SENT)


def _draw_editor(message: Message) -> None:
    """The text area ignores changes: a script run when it loses the focus would replace the button being pressed."""
    key = f"edited_{message.id}"
    st.text_area("Question", message.text, key=key, label_visibility="collapsed", on_change="ignore")
    with st.container(horizontal=True, gap="small"):
        key = f"resend_{message.id}"
        st.button("Send", key=key, type="primary", on_click=_send_edited, args=(message.id,))
        st.button("Cancel", key=f"cancel_{message.id}", on_click=_edit, args=(None,))


def _send_edited(message_id: int) -> None:
    """Callback. The editor stays open if its text is empty."""
    text = st.session_state[f"edited_{message_id}"]
    if text.strip():
        queue(Chat.edit_question, message_id, text)
        _edit(None)


def _edit(message_id: int | None) -> None:
    """Callback."""
    st.session_state.editing = message_id
