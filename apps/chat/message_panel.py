"""The element that draws a message: its text, and below it one bar with buttons and figures.

One Streamlit component (v2) for each message. Its script and style are loaded once for a page (`draw_style`): Streamlit
sends a component's own script with every one of them. The text is HTML made by markdown_html.py, or plain text.

Streamlit 1.67 draws a component with a key once in a run. So what a growing answer adds goes through a Feed: a hidden
element beside it, which can be drawn again at any time, and whose data the script reads.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.chat.growing_answer import GrowingAnswer
from apps.shared.ordered_data import ordered

FILES = Path(__file__).parent / "message_element"
# A message may be drawn before the page's script is there: then it waits in a list.
_HAND_OVER = """
export default function (component) {
    (globalThis.chatMessages ??= []).push(component);
}
"""
REPEAT_SECONDS = 3.0  # a page that is busy for less misses nothing: a block that is final is sent this long
SLOWEST = 10  # times as long as making and sending an update took is waited before the next one
BYTES_PER_SECOND = 100_000  # of updates, at most


@dataclass(frozen=True, slots=True)
class Action:
    """A button. name: what is done, and the icon. It has a label, or else is explained by `about`."""

    name: str
    about: str = ""
    label: str = ""
    disabled: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """Which of several versions of a message is shown: number `at` of `of`."""

    at: int
    of: int


@dataclass(frozen=True, slots=True)
class MessageData:
    """What the script draws.

    text: of a question, or what an answer's copy button copies. blocks: the HTML of an answer; the first `thought` of
    them are what the model has thought before, under its label. size: the length of the text so far. is_live: more
    comes through a Feed. thinks: the thought goes on. about: the figures' tooltip. problem: why the answer failed.
    """

    id: str
    role: str
    text: str
    blocks: Sequence[str] = ()
    thought: int = 0
    thought_label: str = ""
    size: int = 0
    is_live: bool = False
    thinks: bool = False
    figures: str = ""
    about: str = ""
    problem: str = ""
    actions: Sequence[Action] = ()
    branch: Branch | None = None


@st.cache_resource
def _style() -> Any:
    css, js = ((FILES / f"message.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return st.components.v2.component("chat_messages", css=css, js=js, isolate_styles=False)


@st.cache_resource
def _message() -> Any:
    return st.components.v2.component("chat_message", js=_HAND_OVER, isolate_styles=False)


def draw_style() -> None:
    """Loads the script and style of all messages; once in a run, above them."""
    _style()(key="chat_messages", height="content")


def draw_message(data: MessageData, act: Callable[[str], None]) -> None:
    """act: a callback that gets the pressed action's name."""
    key = f"message_{data.id}"

    def pressed() -> None:
        name = st.session_state[key]["action"]
        if isinstance(name, str):
            act(name)

    _message()(key=key, data=ordered(key, asdict(data)), height="content", on_action_change=pressed)


@dataclass(slots=True)
class Feed:
    """Carries a growing answer to its message: the blocks that are not final, and final ones for REPEAT_SECONDS."""

    id: str
    element: DeltaGenerator
    text: GrowingAnswer
    _finals: list[tuple[float, int]] = field(default_factory=list)  # when, and how many blocks were final by then
    _next_at: float = 0.0
    _last: str = ""

    def is_due(self) -> bool:
        """Whether the next update may be sent: a large last block is sent less often."""
        return time.monotonic() >= self._next_at

    def send(self, text: str, figures: str, thought_label: str) -> None:
        started = time.monotonic()
        before = self.text.final
        self.text.update(text)
        if self.text.final > before:
            self._finals.append((started, before))
        self._finals = [(at, number) for at, number in self._finals if started - at < REPEAT_SECONDS]
        first = self._finals[0][1] if self._finals else self.text.final
        update = {"first": first, "blocks": self.text.blocks[first:], "size": len(text), "figures": figures}
        update |= {"thought": self.text.n_thought, "thought_label": thought_label, "thinks": self.text.is_thinking}
        # Streamlit's sanitizer removes an attribute with `-->` or `</title` in it.
        content = json.dumps(update).replace("<", "\\u003c").replace(">", "\\u003e")
        if content == self._last:
            return
        self._last = content
        self.element.html(
            f'<div hidden class="message-feed" data-message="{self.id}" data-feed="{escape(content)}"></div>'
        )
        now = time.monotonic()
        self._next_at = now + max(SLOWEST * (now - started), len(content) / BYTES_PER_SECOND)
