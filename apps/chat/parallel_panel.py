"""Simultaneous answers to one question: side by side, each with its figures, and the total of all."""

from collections.abc import Callable, Sequence

import streamlit as st

from apps.chat.answer_panel import AnswerView, action_button, draw_answer, total_of
from apps.chat.messages import Message, MessageTree
from apps.chat.turns import Chat

DrawTotal = Callable[[Sequence[Message]], None]

IN_A_ROW = 4
MOST_ANSWERS = 8


def draw_group(group: Sequence[Message], prompt: str, tree: MessageTree) -> tuple[list[AnswerView], DrawTotal]:
    """All answers in columns. Returns the views of the unfinished ones, and a function that redraws the total."""
    total, stop_all = st.empty(), st.empty()
    finished = [message for message in group if message.ended]
    unfinished = [message for message in group if not message.ended]

    def draw_total(streamed: Sequence[Message]) -> None:
        total.caption(total_of([*finished, *streamed]))

    draw_total(unfinished)
    if unfinished:
        with stop_all:
            action_button("stop_all", "stop_circle", Chat.stop, [message.id for message in unfinished], "Stop all")
    views: list[AnswerView] = []
    for start in range(0, MOST_ANSWERS, IN_A_ROW):
        row = group[start : start + IN_A_ROW]
        if not row:
            st.empty()
            continue
        for column, message in zip(st.columns(min(IN_A_ROW, len(group))), row, strict=False):
            with column, st.container(border=True):
                views += _draw_one(message, prompt, tree, number=group.index(message) + 1)
    return views, draw_total


def _draw_one(message: Message, prompt: str, tree: MessageTree, number: int) -> list[AnswerView]:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Answer {number}**", width="stretch")
        icon = "radio_button_checked" if tree.leaf_id == message.id else "radio_button_unchecked"
        action_button(f"choose_{message.id}", icon, Chat.show, message.id, about="Go on with this answer")
    view = draw_answer(message, prompt, tree, is_last=True, in_group=True)
    return [view] if view else []
