"""The same question answered several times at once: the answers side by side, each with its figures, and the total."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from apps.chat.answer_panel import Place, draw_answer, icon_button, total_of, wish
from apps.chat.answering import Snapshot
from apps.chat.messages import Message, Tree

DrawTotal = Callable[[Sequence[Snapshot]], None]

IN_A_ROW = 4
MOST = 8


def draw_group(group: Sequence[Message], prompt: str, tree: Tree) -> tuple[list[Place], DrawTotal]:
    """All of them in columns; returns the places of those being written, and what draws the total with their news."""
    total, stop_all = st.empty(), st.empty()
    ended = [Snapshot.of(message) for message in group if message.ended]

    def draw_total(written: Sequence[Snapshot]) -> None:
        total.caption(total_of([*ended, *written]))

    draw_total([Snapshot.of(message) for message in group if not message.ended])
    if not all(message.ended for message in group):
        ids = [message.id for message in group if not message.ended]
        stop_all.button("Stop all", key="stop_all", icon=":material/stop_circle:", on_click=wish, args=("stop", *ids))
    places: list[Place] = []
    for start in range(0, MOST, IN_A_ROW):
        row = group[start : start + IN_A_ROW]
        if not row:
            st.empty()
            continue
        for column, message in zip(st.columns(min(IN_A_ROW, len(group))), row, strict=False):
            with column, st.container(border=True):
                places += _draw_one(message, prompt, tree, number=group.index(message) + 1)
    return places, draw_total


def _draw_one(message: Message, prompt: str, tree: Tree, number: int) -> list[Place]:
    is_chosen = tree.leaf_id == message.id
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**Answer {number}**", width="stretch")
        icon = "radio_button_checked" if is_chosen else "radio_button_unchecked"
        icon_button("choose", icon, "Go on with this answer", message, "show", message.id)
    place = draw_answer(message, prompt, tree, is_last=True, in_group=True)
    return [place] if place else []
