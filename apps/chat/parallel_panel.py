"""Simultaneous answers to one question: cards side by side, each with its figures, and the total of all."""

from collections.abc import Callable, Sequence

import streamlit as st

from apps.chat.answer_panel import AnswerView, action_button, draw_answer, total_of
from apps.chat.messages import Message, MessageTree
from apps.chat.origin import NamedServer, is_from, origin_label
from apps.chat.turns import Chat
from apps.shared.labels import as_label

DrawTotal = Callable[[Sequence[Message]], None]

MOST_ANSWERS = 8  # of one server
MOST_CARDS = 2 * MOST_ANSWERS
CARD_WIDTH = 280  # pixels: three fit beside the sidebar of a laptop, one fits a phone; the others begin a new row


def is_group(tree: MessageTree) -> bool:
    """Whether the conversation ends with simultaneous answers of which none has been continued yet."""
    path = tree.path()
    return bool(path) and len(tree.group(path[-1])) > 1


def draw_group(
    group: Sequence[Message], prompt: str, tree: MessageTree, server: NamedServer
) -> tuple[list[AnswerView], DrawTotal]:
    """All answers as cards, which say where they are from unless all are from `server`.

    Returns the views of the unfinished ones, and a function that redraws the total.
    """
    total = st.empty()
    finished = [message for message in group if message.ended]
    unfinished = [message for message in group if not message.ended]

    def draw_total(streamed: Sequence[Message]) -> None:
        total.caption(total_of([*finished, *streamed]))

    draw_total(unfinished)
    is_here = all(is_from(message.figures, server) for message in group)
    views: list[AnswerView] = []
    with st.container(horizontal=True, key="cards"):
        for number, message in enumerate(group, start=1):
            with st.container(border=True, width=CARD_WIDTH, height="stretch"):
                origin = "" if is_here else origin_label(message.figures)
                views += _draw_card(message, prompt, tree, number, origin)
        for _ in range(MOST_CARDS - len(group)):  # cards of a larger group would stay while this one streams
            st.empty()
    return views, draw_total


def _draw_card(message: Message, prompt: str, tree: MessageTree, number: int, origin: str) -> list[AnswerView]:
    st.markdown(f"**Answer {number}**")
    about = st.empty()
    if origin:
        about.caption(as_label(origin))
    view = draw_answer(message, prompt, tree, is_last=True, in_group=True)
    is_used = tree.leaf_id == message.id
    label, icon = ("This answer is used", "check") if is_used else ("Use this answer", "arrow_forward")
    action_button(f"use_{message.id}", icon, Chat.show, message.id, label, disabled=is_used)
    return [view] if view else []
