"""The person's side of a conversation: a question exactly as it was typed."""

from collections.abc import Sequence
from functools import partial

import streamlit as st

from apps.chat.answer_panel import branch_ids, branch_of, delete_message, neighbour
from apps.chat.editor_panel import draw_editor, is_edited, start_editing
from apps.chat.message_panel import Action, MessageData, draw_message
from apps.chat.messages import Message, MessageTree
from apps.chat.session import queue
from apps.chat.turns import Chat

NOT_SENT = "Not sent to the model any more."


def draw_question(message: Message, tree: MessageTree) -> None:
    """Like an answer, a question always has the same number of elements."""
    shown, note = st.empty(), st.empty()
    if is_edited(message):
        with shown.container():
            draw_editor(message, "Question", "Send", Chat.edit_question)
    else:
        actions = [Action("edit", "Edit and send again"), Action("delete", "Delete the question and its answer")]
        data = MessageData(str(message.id), "question", message.text, actions=actions, branch=branch_of(message, tree))
        with shown:
            draw_message(data, partial(act_on_question, message, branch_ids(message, tree)))
    if message.is_left_out:
        note.caption(NOT_SENT)


def act_on_question(message: Message, ids: Sequence[int], name: str) -> None:
    """Callback: what a button beside the question does."""
    if name == "edit":
        start_editing(message.id)
    elif name == "delete":
        delete_message(message.id)
    elif name in ("earlier", "later"):
        queue(Chat.show, neighbour(message, ids, -1 if name == "earlier" else 1))
