"""The assistant's side of a conversation: an answer with its figures and buttons, redrawn while it is generated."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from apps.chat.answering import Answers
from apps.chat.context import left_out
from apps.chat.markdown_text import is_right_to_left, text_as_markdown, with_direction
from apps.chat.messages import Message, MessageTree, tokens_of
from apps.chat.pending_actions import NEW
from apps.chat.session import queue, session_pending
from apps.chat.turns import Chat
from apps.shared.copy_button import draw_copy_button

REDRAW_SECONDS = 0.1  # Streamlit handles a click only when the script calls it
STORE_POLL_SECONDS = 0.5  # between two queries for changes by other tabs, while an answer streams
ENDINGS = {
    "stop": "ended by itself",
    "length": "length limit reached",
    "full": "context window full",
    "stopped": "stopped by you",
    "cut": "cut",
}
PHASE_LABELS = {
    "waiting": "waits for the answer before it",
    "starting": "waits for TorchServe to start",
    "loading": "waits for the model to load",
    "queued": "queued",
    "prefill": "reading the prompt",
    "decode": "writing",
}


@dataclass(slots=True)
class AnswerView:
    """The elements of an unfinished answer on the page, and the message that they show."""

    message: Message
    prompt: str  # of a raw answer, which continues it
    text: DeltaGenerator
    caption: DeltaGenerator
    _text: str = ""
    _caption: str = ""

    def draw(self, message: Message) -> None:
        """Draws what has changed."""
        text, caption = self.prompt + message.text, caption_of(message)
        if text != self._text:
            draw_text(self.text, text)
        if caption != self._caption:
            self.caption.caption(caption)
        self.message, self._text, self._caption = message, text, caption


def draw_text(element: DeltaGenerator, text: str) -> None:
    alignment: Any = "right" if is_right_to_left(text) else "left"
    element.markdown(with_direction(text_as_markdown(text)), text_alignment=alignment)


def draw_answer(
    message: Message, prompt: str, tree: MessageTree, is_last: bool, in_group: bool = False
) -> AnswerView | None:
    """One answer; returns its view if it is unfinished.

    It always has the same number of elements. Streamlit removes surplus elements of the page before only when the run
    ends, and a run that streams an answer ends with it.
    """
    view = AnswerView(message, prompt, st.empty(), st.empty())
    problem, choice, buttons = st.empty(), st.empty(), st.empty()
    if not message.ended:
        with buttons:
            action_button(f"stop_{message.id}", "stop_circle", Chat.stop, [message.id], "Stop")
        return view
    view.draw(message)
    if message.problem:
        problem.error(text_as_markdown(message.problem))
    if message.ended == "too long" and is_last and left_out(tree.path()[:-2]) < len(tree.path()) - 2:
        with choice.container(horizontal=True, gap="small"):
            _draw_choice(message, question=tree.messages[message.parent_id or 0].text)
    with buttons.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
        _draw_buttons(message, prompt, is_last)
        if not in_group:
            draw_branches(message, tree)
    return None


def draw_branches(message: Message, tree: MessageTree) -> None:
    """Which of several branches is shown, and buttons for its neighbours."""
    branches = [branch.id for branch in tree.siblings(message)]
    if len(branches) < 2:
        return
    at = branches.index(message.id)
    for step, icon, name in ((-1, "chevron_left", "earlier"), (1, "chevron_right", "later")):
        if step == 1:
            st.caption(f"{at + 1}/{len(branches)}", width="content")
        neighbour, is_end = branches[(at + step) % len(branches)], not 0 <= at + step < len(branches)
        action_button(f"{name}_{message.id}", icon, Chat.show, neighbour, about=f"The {name} version", disabled=is_end)


def action_button(
    key: str,
    icon: str,
    action: Callable[[Chat, Any], None],
    argument: object,
    label: str = "",
    about: str | None = None,
    disabled: bool = False,
) -> None:
    """Queues `action(chat, argument)`. Without a label the button is only an icon, which `about` explains."""
    kind: Any = "secondary" if label else "tertiary"
    icon = f":material/{icon}:"
    st.button(label, key, about, queue, (action, argument), type=kind, icon=icon, disabled=disabled)


def _draw_buttons(message: Message, prompt: str, is_last: bool) -> None:
    if message.text:
        draw_copy_button(prompt + message.text, key=f"copy_{message.id}")
    has_failed = message.ended in ("failed", "cut", "too long") and is_last
    label, about = ("Try again", None) if has_failed else ("", "Another answer")
    action_button(f"again_{message.id}", "refresh", Chat.answer_again, message.id, label, about)
    with st.empty():
        if message.text and message.ended in ("length", "stopped", "cut", "failed") and is_last:
            action_button(f"continue_{message.id}", "resume", Chat.continue_answer, message.id, "Continue")


def _draw_choice(message: Message, question: str) -> None:
    """What a person can do when a conversation does not fit the context window."""
    label, key = "Leave out the oldest turns", f"leave_out_{message.id}"
    st.button(label, key, on_click=queue, args=(Chat.leave_out_oldest, message.id))
    st.button("Start anew with this question", key=f"anew_{message.id}", on_click=_start_anew, args=(question,))


def _start_anew(question: str) -> None:
    """Callback."""
    pending = session_pending()
    pending.to_open = NEW
    pending.add_question(question, NEW)


def caption_of(message: Message) -> str:
    """An answer's phase, token count, speed, time to first token, cached tokens and the reason of its end."""
    if not message.ended:
        phase = message.phase or ("decode" if message.text else "queued")  # another process's phase is not stored
        parts = [PHASE_LABELS[phase] + (f", {message.percent} %" if message.percent is not None else "")]
        if phase == "decode":
            parts += counts_of(message)
        else:
            parts.append(f"{max(0.0, time.time() - message.figures.get('asked_at', time.time())):.0f} s")
        return " · ".join(parts)
    parts = counts_of(message)
    cached = message.figures.get("usage", {}).get("prompt_tokens_details", {}).get("cached_tokens")
    if cached is not None:
        parts.append(f"{cached:,} of {message.figures['usage'].get('prompt_tokens', 0):,} prompt tokens cached")
    return " · ".join([*parts, ENDINGS[message.ended]] if message.ended in ENDINGS else parts)


def counts_of(message: Message) -> list[str]:
    """Tokens, tokens per second, time to the first token, as far as they are known."""
    parts = []
    if tokens := tokens_of(message.figures):
        parts.append(f"{tokens:,} tokens")
    if speed := message.figures.get("timings", {}).get("predicted_per_second"):
        parts.append(f"{speed:.1f} tokens/s")
    if (seconds := message.figures.get("first_token_seconds")) is not None:
        parts.append(f"first token after {seconds:.2f} s")
    return parts


def stream_answers(
    answers: Answers,
    views: Sequence[AnswerView],
    is_outdated: Callable[[], bool],
    draw_total: Callable[[Sequence[Message]], object] | None = None,
) -> None:
    """Redraws these answers as they grow, until one has ended or the page `is_outdated`: then the page must be redrawn.

    If the run is aborted meanwhile (a click, a reload), the answers go on.
    """
    version, next_poll = -1, time.monotonic() + STORE_POLL_SECONDS
    while not any(view.message.ended for view in views):
        version = answers.wait(version, REDRAW_SECONDS)
        session_pending()  # touching session_state lets Streamlit abort this run even when nothing is drawn
        for view in views:
            view.draw(answers.latest(view.message))
        if draw_total is not None:
            draw_total([view.message for view in views])
        if time.monotonic() > next_poll:
            if is_outdated():
                return
            next_poll = time.monotonic() + STORE_POLL_SECONDS


def total_of(group: Sequence[Message]) -> str:
    """The figures of simultaneous answers together; the time is from the first request to the last end."""
    tokens = sum(tokens_of(message.figures) for message in group)
    starts = [message.figures["asked_at"] for message in group if "asked_at" in message.figures]
    ends = [message.figures.get("ended_at", time.time()) for message in group]
    seconds = max(ends) - min(starts) if starts else 0.0
    parts = [f"{len(group)} answers", f"{tokens:,} tokens in {seconds:.1f} s"]
    if seconds > 0:
        parts.append(f"{tokens / seconds:.1f} tokens/s together")
    firsts = [message.figures["first_token_seconds"] for message in group if "first_token_seconds" in message.figures]
    if firsts:
        parts.append(f"first tokens after {min(firsts):.2f} to {max(firsts):.2f} s")
    return " · ".join(parts)
