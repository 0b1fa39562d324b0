"""The assistant's side of a conversation: an answer with its figures and buttons, followed while it is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.chat.answering import Answers, Snapshot, tokens_of
from apps.chat.context import left_out
from apps.chat.markdown_text import is_right_to_left, text_as_markdown, with_direction
from apps.chat.messages import Message, Tree
from apps.chat.pending_actions import Wishes
from apps.shared.copy_button import draw_copy_button

TICK_SECONDS = 0.1  # Streamlit honours a click only when the script touches the page
NEWS_SECONDS = 0.5  # between two looks at what other tabs have done, while an answer is followed
ENDINGS = {
    "stop": "ended by itself",
    "length": "length limit reached",
    "full": "context window full",
    "stopped": "stopped by you",
    "cut": "cut",
}
PHASES = {
    "after": "waits for the answer before it",
    "starting": "waits for TorchServe to start",
    "loading": "waits for the model to load",
    "queued": "queued",
    "reading": "reading the prompt",
    "writing": "writing",
}


@dataclass(slots=True)
class Place:
    """Where an answer is on the page, and what of it has been drawn."""

    message: Message
    prompt: str  # a raw answer continues it
    text: DeltaGenerator
    caption: DeltaGenerator
    now: Snapshot = field(default_factory=Snapshot)
    _text: str = ""
    _words: str = ""

    def draw(self, now: Snapshot) -> None:
        """Draws what has changed."""
        text, words = self.prompt + now.text, caption_of(now)
        if text != self._text:
            draw_text(self.text, text)
        if words != self._words:
            self.caption.caption(words)
        self.now, self._text, self._words = now, text, words


def session_wishes() -> Wishes:
    wishes: Wishes = st.session_state.setdefault("wishes", Wishes())
    return wishes


def wish(action: str, *arguments: Any) -> None:
    """Callback: a run's body grants it, with the settings that are in force then."""
    session_wishes().note(action, *arguments)


def draw_text(place: DeltaGenerator, text: str) -> None:
    alignment: Any = "right" if is_right_to_left(text) else "left"
    place.markdown(with_direction(text_as_markdown(text)), text_alignment=alignment)


def draw_answer(message: Message, prompt: str, tree: Tree, is_last: bool, in_group: bool = False) -> Place | None:
    """One answer; returns its place if it is still being written.

    It always takes up the same number of elements, so that nothing of the page before is left standing: Streamlit
    removes that only when the run ends, and a run that follows an answer ends with it.
    """
    place = Place(message, prompt, st.empty(), st.empty())
    problem, choice, buttons = st.empty(), st.empty(), st.empty()
    if not message.ended:
        stop: dict[str, Any] = {"on_click": wish, "args": ("stop", message.id)}
        buttons.button("Stop", key=f"stop_{message.id}", icon=":material/stop_circle:", **stop)
        return place
    place.draw(Snapshot.of(message))
    if message.problem:
        problem.error(text_as_markdown(message.problem))
    if message.ended == "too long" and is_last:
        with choice.container(horizontal=True, gap="small"):
            _draw_choice(message, has_older=left_out(tree.path()[:-2]) < len(tree.path()) - 2)
    with buttons.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        _draw_buttons(message, prompt, is_last)
        if not in_group:
            draw_branches(message, tree)
    return None


def draw_branches(message: Message, tree: Tree) -> None:
    """Which of several branches is shown, and the way to its neighbours."""
    branches = [branch.id for branch in tree.siblings(message)]
    if len(branches) < 2:
        return
    at = branches.index(message.id)
    for step, icon, name in ((-1, "chevron_left", "earlier"), (1, "chevron_right", "later")):
        if step == 1:
            st.caption(f"{at + 1}/{len(branches)}", width="content")
        is_end = not 0 <= at + step < len(branches)
        icon_button(name, icon, f"The {name} version", message, "show", branches[(at + step) % len(branches)], is_end)


def icon_button(
    name: str, icon: str, about: str, message: Message, action: str, argument: Any, disabled: bool = False
) -> None:
    key = f"{name}_{message.id}"
    where: dict[str, Any] = {"type": "tertiary", "icon": f":material/{icon}:", "help": about, "disabled": disabled}
    st.button("", key=key, on_click=wish, args=(action, argument), **where)


def _draw_buttons(message: Message, prompt: str, is_last: bool) -> None:
    if message.text:
        draw_copy_button(prompt + message.text, key=f"copy_{message.id}")
    if message.ended in ("failed", "cut", "too long") and is_last:
        again: dict[str, Any] = {"on_click": wish, "args": ("again", message.id)}
        st.button("Try again", key=f"again_{message.id}", icon=":material/refresh:", **again)
    else:
        icon_button("again", "refresh", "Another answer", message, "again", message.id)
    place = st.empty()
    if message.text and message.ended in ("length", "stopped", "cut", "failed") and is_last:
        go_on: dict[str, Any] = {"on_click": wish, "args": ("continue", message.id)}
        place.button("Continue", key=f"continue_{message.id}", icon=":material/resume:", **go_on)


def _draw_choice(message: Message, has_older: bool) -> None:
    """What can be done when a conversation does not fit the context window."""
    choices = (("Leave out the oldest turns", "leave out"), ("Start anew with this question", "anew"))
    for name, action in choices if has_older else ():
        st.button(name, key=f"{action}_{message.id}", on_click=wish, args=(action, message.id))


def caption_of(now: Snapshot) -> str:
    """What is happening, or how much, how fast, how soon, and why it ended."""
    if not now.ended:
        parts = [PHASES[now.phase] + (f", {now.percent} %" if now.percent is not None else "")]
        if now.phase == "writing":
            parts += counts_of(now)
        else:
            parts.append(f"{max(0.0, time.time() - now.figures.get('asked_at', time.time())):.0f} s")
        return " · ".join(parts)
    parts = counts_of(now)
    cached = now.figures.get("usage", {}).get("prompt_tokens_details", {}).get("cached_tokens")
    if cached is not None:
        parts.append(f"{cached:,} of {now.figures['usage'].get('prompt_tokens', 0):,} prompt tokens cached")
    return " · ".join([*parts, ENDINGS[now.ended]] if now.ended in ENDINGS else parts)


def counts_of(now: Snapshot) -> list[str]:
    """Tokens, tokens per second, time to the first token: what is known of them."""
    parts = []
    if tokens := tokens_of(now.figures):
        parts.append(f"{tokens:,} tokens")
    if speed := now.figures.get("timings", {}).get("predicted_per_second"):
        parts.append(f"{speed:.1f} tokens/s")
    if (seconds := now.figures.get("first_token_seconds")) is not None:
        parts.append(f"first token after {seconds:.2f} s")
    return parts


def follow(
    answers: Answers,
    places: Sequence[Place],
    is_outdated: Callable[[], bool],
    draw_total: Callable[[Sequence[Snapshot]], object] | None = None,
) -> None:
    """Draws these answers as they grow, until one has ended or the page `is_outdated`: then it must be drawn anew.

    Leaving it (a click, a reload) leaves the answers alone.
    """
    version, looks_at = -1, time.monotonic() + NEWS_SECONDS
    while not any(place.now.ended for place in places):
        version = answers.wait(version, TICK_SECONDS)
        session_wishes()  # a run that a click has replaced ends at such a call, also while there is nothing to draw
        for place in places:
            place.draw(answers.look(place.message))
        if draw_total is not None:
            draw_total([place.now for place in places])
        if time.monotonic() > looks_at:
            if is_outdated():
                return
            looks_at = time.monotonic() + NEWS_SECONDS


def total_of(group: Sequence[Snapshot]) -> str:
    """The figures of simultaneous answers together, by the clock from the first question to the last end."""
    tokens = sum(tokens_of(now.figures) for now in group)
    starts = [now.figures["asked_at"] for now in group if "asked_at" in now.figures]
    ends = [now.figures.get("ended_at", time.time()) for now in group]
    seconds = max(ends) - min(starts) if starts else 0.0
    parts = [f"{len(group)} answers", f"{tokens:,} tokens in {seconds:.1f} s"]
    if seconds > 0:
        parts.append(f"{tokens / seconds:.1f} tokens/s together")
    firsts = [now.figures["first_token_seconds"] for now in group if "first_token_seconds" in now.figures]
    if firsts:
        parts.append(f"first tokens after {min(firsts):.2f} to {max(firsts):.2f} s")
    return " · ".join(parts)
