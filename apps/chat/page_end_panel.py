"""The end of the page: the row below the composer with the gauge and Stop, and what keeps the page at its end.

Stop is always in the same place, and nothing else ever is there: a second click on it can start nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.chat.context import Gauge
from apps.chat.messages import Message, MessageTree
from apps.chat.session import queue
from apps.chat.turns import Chat
from apps.shared.ordered_data import ordered

FILES = Path(__file__).parent / "page_end_element"
WITH_BAR, NEARLY_FULL = 0.5, 0.8  # of the context window
HINT = "When a question does not fit, you can leave out the oldest turns or start anew."


@st.cache_resource
def _page_end() -> Any:
    css, js = ((FILES / f"page_end.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return st.components.v2.component("chat_page_end", css=css, js=js, isolate_styles=False)


def draw_page_end(conversation_id: str, is_live: bool) -> None:
    """Keeps the page at its end, and the focus in the composer. Above the composer, once in a run."""
    asked = st.session_state.get("n_asked", 0)
    data = {"conversation": conversation_id, "asked": asked, "is_live": is_live}
    _page_end()(key="chat_page_end", data=ordered("chat_page_end", data), height="content")


@dataclass(slots=True)
class GaugeView:
    """The gauge on the page, which can be drawn again at any time."""

    _place: DeltaGenerator
    _shown: str = ""

    def draw(self, now: Gauge) -> None:
        html = gauge_html(now)
        if html != self._shown:
            self._place.html(html)
            self._shown = html


def draw_row_below_composer(tree: MessageTree) -> GaugeView:
    with st.container(horizontal=True, vertical_alignment="center", key="below_composer"):
        gauge_view = GaugeView(st.empty())
        _draw_undo()
        unfinished = first_unfinished(tree)
        if unfinished:
            ids = [message.id for message in unfinished]
            icon = ":material/stop_circle:"
            st.button("Stop", "stop_answers", on_click=queue, args=(Chat.stop, ids), icon=icon, shortcut="Esc")
    return gauge_view


def _draw_undo() -> None:
    """Of a deleted message, until the next question."""
    opened, message_id, asked = st.session_state.get("deleted_message") or (None, 0, 0)
    if opened == st.session_state.opened and asked == st.session_state.get("n_asked", 0):
        st.caption("Message deleted", width="content")
        st.button("Undo", "undelete_message", on_click=_undelete, args=(message_id,), type="tertiary")


def _undelete(message_id: int) -> None:
    """Callback."""
    queue(Chat.undelete_message, message_id)
    st.session_state.deleted_message = None


def first_unfinished(tree: MessageTree) -> list[Message]:
    """The answers that Stop stops: those that are written, not those that wait for them."""
    for message in tree.path():
        if unfinished := [other for other in tree.group(message) if not other.ended]:
            return unfinished
    return []


def gauge_html(now: Gauge) -> str:
    """One line; with a bar once the window is half full."""
    about = "about " if now.is_estimate else ""
    if now.window is None:
        return f'<div class="chat-gauge">{about}{now.used:,} tokens of context</div>'
    words = f"{about}{now.used:,} / {now.window:,} tokens of context"
    level = "full" if now.used > now.window else "near" if now.share >= NEARLY_FULL else ""
    bar = f'<div class="bar"><span style="width: {100 * now.share:.0f}%"></span></div>' if now.share >= WITH_BAR else ""
    about_level = f' title="{HINT}"' if level else ""
    return f'<div class="chat-gauge {level}"{about_level}><span>{words}</span>{bar}</div>'
