"""The assistant's side of a conversation: an answer with its figures and buttons, redrawn while it is generated."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import streamlit as st

from apps.chat.answering import Answers
from apps.chat.context import left_out
from apps.chat.editor_panel import draw_editor, is_edited, start_editing
from apps.chat.growing_answer import GrowingAnswer, finished_blocks
from apps.chat.message_panel import Action, Branch, Feed, MessageData, draw_message
from apps.chat.messages import Message, MessageTree, tokens_of
from apps.chat.pending_actions import NEW
from apps.chat.session import queue, session_pending
from apps.chat.thought import split_thought
from apps.chat.turns import Chat

REDRAW_SECONDS = 0.1  # Streamlit handles a click only when the script calls it
STORE_POLL_SECONDS = 0.5  # between two queries for changes by other tabs, while an answer streams
ENDINGS = {
    "stop": "ended by itself",
    "length": "length limit reached",
    "full": "context window full",
    "stopped": "stopped by you",
    "cut": "cut",
    "edited": "edited by you",
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
    """An unfinished answer on the page, and the message that it shows."""

    message: Message
    prompt: str  # of a raw answer, which continues it
    feed: Feed

    def draw(self, message: Message) -> None:
        """Draws what has changed, unless the last update was too large for another one already."""
        self.message = message
        if self.feed.is_due():
            self.feed.send(self.prompt + message.text, caption_of(message), thought_label(message))


def draw_answer(
    message: Message, prompt: str, tree: MessageTree, is_last: bool, in_group: bool = False
) -> AnswerView | None:
    """One answer; returns its view if it is unfinished.

    It always has the same number of elements. Streamlit removes surplus elements of the page before only when the run
    ends, and a run that streams an answer ends with it.
    """
    text = prompt + message.text
    parts = split_thought(text)
    data = MessageData(str(message.id), "answer", "", size=len(text), figures=caption_of(message))
    data = replace(data, thought_label=thought_label(message))
    growing = GrowingAnswer()
    if message.ended:
        thought = finished_blocks(parts.thought or "")
        data = replace(
            data,
            text=parts.answer or text,
            blocks=thought + finished_blocks(parts.answer),
            thought=len(thought),
            about=about_figures(message),
            problem=message.problem,
            actions=actions_of(message, is_last),
            branch=None if in_group else branch_of(message, tree),
        )
    else:
        growing.update(text)
        data = replace(data, blocks=growing.blocks, is_live=True, thought=growing.n_thought, thinks=growing.is_thinking)
    shown, below = st.empty(), st.empty()
    if message.ended and is_edited(message):
        with shown.container():
            draw_editor(message, "Answer", "Save", Chat.edit_answer)
        return None
    with shown:
        draw_message(data, partial(act_on_answer, message, branch_ids(message, tree)))
    if message.ended == "too long" and is_last:
        with below.container(horizontal=True, gap="small"):
            has_turns = left_out(tree.path()[:-2]) < len(tree.path()) - 2
            _draw_choice(message, tree.messages[message.parent_id or 0], has_turns)
    return None if message.ended else AnswerView(message, prompt, Feed(data.id, below, growing))


def branch_ids(message: Message, tree: MessageTree) -> list[int]:
    return [branch.id for branch in tree.siblings(message)]


def branch_of(message: Message, tree: MessageTree) -> Branch | None:
    """Which of several branches is shown."""
    ids = branch_ids(message, tree)
    return Branch(ids.index(message.id) + 1, len(ids)) if len(ids) > 1 else None


def neighbour(message: Message, ids: Sequence[int], step: int) -> int:
    return ids[min(max(ids.index(message.id) + step, 0), len(ids) - 1)]


def act_on_answer(message: Message, ids: Sequence[int], name: str) -> None:
    """Callback: what a button of the bar does. "redraw" only starts a run."""
    if name == "again":
        queue(Chat.answer_again, message.id)
    elif name == "continue":
        queue(Chat.continue_answer, message.id)
    elif name == "edit":
        start_editing(message.id)
    elif name == "delete":
        delete_message(message.id)
    elif name in ("earlier", "later"):
        queue(Chat.show, neighbour(message, ids, -1 if name == "earlier" else 1))


def delete_message(message_id: int) -> None:
    """Callback: deletes it and offers its undo (page_end_panel.py)."""
    queue(Chat.delete_message, message_id)
    st.session_state.deleted_message = (st.session_state.opened, message_id, st.session_state.get("n_asked", 0))


def actions_of(message: Message, is_last: bool) -> list[Action]:
    """The buttons of a finished answer. In the middle of a conversation, it is deleted together with its question."""
    actions = [Action("copy", "Copy")] if message.text else []
    has_failed = message.ended in ("failed", "cut", "too long") and is_last
    actions.append(Action("again", label="Try again") if has_failed else Action("again", "Another answer"))
    if message.text:
        actions.append(Action("edit", "Edit"))
    if is_last:
        actions.append(Action("delete", "Delete"))
    if message.text and message.ended in ("length", "stopped", "cut", "failed", "edited") and is_last:
        actions.append(Action("continue", label="Continue"))
    return actions


def action_button(
    key: str,
    icon: str,
    action: Callable[[Chat, Any], None],
    argument: object,
    label: str = "",
    about: str | None = None,
    disabled: bool = False,
) -> None:
    """Queues `action(chat, argument)`. Without a label the button shows only its icon, and `about` is its name."""
    kind: Any = "secondary" if label else "tertiary"
    name, key = (label, key) if label else (about or "", f"icon_{key}")  # apps/shared/page_style.css
    icon = f":material/{icon}:"
    st.button(name, key, about, queue, (action, argument), type=kind, icon=icon, disabled=disabled)


def _draw_choice(message: Message, question: Message, has_turns: bool) -> None:
    """What a person can do when a conversation does not fit the context window."""
    label, key = "Shorten the question", f"shorten_{message.id}"
    st.button(label, key, on_click=start_editing, args=(question.id,))
    if not has_turns:
        return
    label, key = "Leave out the oldest turns", f"leave_out_{message.id}"
    st.button(label, key, on_click=queue, args=(Chat.leave_out_oldest, message.id))
    st.button("Start anew with this question", key=f"anew_{message.id}", on_click=_start_anew, args=(question.text,))


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
    cached, prompt_tokens = cached_tokens(message)
    if cached is not None:
        parts.append(f"{cached:,} of {prompt_tokens:,} cached")
    return " · ".join([*parts, ENDINGS[message.ended]] if message.ended in ENDINGS else parts)


def thought_label(message: Message) -> str:
    seconds = message.figures.get("thought_seconds")
    if seconds is not None:
        return f"Thought for {max(1, round(seconds))} s"
    return "Thought" if message.ended else "Thinking…"


def about_figures(message: Message) -> str:
    """The figures that need words."""
    cached, prompt_tokens = cached_tokens(message)
    if cached is None:
        return ""
    return (
        f"{cached:,} of the prompt's {prompt_tokens:,} tokens were in the server's cache, so it did not read them again"
    )


def cached_tokens(message: Message) -> tuple[int | None, int]:
    """Tokens of the prompt that were in the server's cache, if it says so, and all tokens of the prompt."""
    usage = message.figures.get("usage", {})
    return usage.get("prompt_tokens_details", {}).get("cached_tokens"), usage.get("prompt_tokens", 0)


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
    redraw_totals: Callable[[Sequence[Message]], object],
) -> None:
    """Redraws these answers and their totals as they grow, until one has ended or the page `is_outdated`.

    Then the page must be redrawn.

    If the run is aborted meanwhile (a click, a reload), the answers go on.
    """
    version, next_poll = -1, time.monotonic() + STORE_POLL_SECONDS
    while not any(view.message.ended for view in views):
        version = answers.wait(version, REDRAW_SECONDS)
        session_pending()  # touching session_state lets Streamlit abort this run even when nothing is drawn
        for view in views:
            view.draw(answers.latest(view.message))
        redraw_totals([view.message for view in views])
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
