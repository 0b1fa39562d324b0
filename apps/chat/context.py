"""What of a conversation goes to the model, and how much of the context window that takes.

Counts come from the server with every answer; what it has not counted yet is estimated from the text's length.
Knows nothing of HTTP, files and pages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from apps.chat.messages import Message

CHARACTERS_PER_TOKEN = 4.0  # before anything of this conversation has been counted; English text has about so many
TOKENS_PER_MESSAGE = 5  # what a chat template puts around each


@dataclass(frozen=True, slots=True)
class Gauge:
    """Tokens of the context window that a conversation takes up; about so many if `is_estimate`."""

    used: int
    window: int | None
    is_estimate: bool

    @property
    def available(self) -> int | None:
        return None if self.window is None else max(0, self.window - self.used)

    @property
    def share(self) -> float:
        return min(1.0, self.used / self.window) if self.window else 0.0


def sent_turns(path: Sequence[Message]) -> list[tuple[Message, Message]]:
    """Questions with their answers, as they go to the model: strictly by turns, as chat templates want it.

    Questions without an answer are left out, and so are turns that are marked so.
    """
    pairs = zip(path, path[1:], strict=False)
    return [(one, other) for one, other in pairs if one.role == "user" and other.text and not one.is_left_out]


def messages_for(path: Sequence[Message], system_prompt: str) -> list[dict[str, str]]:
    """The request for the answer that `path` ends with; a text that it has already is to be continued."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    for question, answer in sent_turns(path[:-2]):
        messages += [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer.text}]
    messages.append({"role": "user", "content": path[-2].text})
    if path[-1].text:
        messages.append({"role": "assistant", "content": path[-1].text})
    return messages


def gauge(path: Sequence[Message], system_prompt: str, window: int | None) -> Gauge:
    """What the conversation takes up, from the last answer that was counted and the text since then."""
    for place in range(len(path) - 1, -1, -1):
        message = path[place]
        counted = message.figures.get("usage", {}).get("total_tokens")
        if counted and message.figures.get("left_out", 0) == left_out(path[:place]) and not message.is_raw:
            since = estimate(path[place + 1 :], "", characters_per_token(path))
            return Gauge(counted + since, window, is_estimate=since > 0)
    estimated = estimate(path, system_prompt, characters_per_token(path))
    return Gauge(estimated, window, is_estimate=estimated > 0)


def left_out(path: Sequence[Message]) -> int:
    """How many of these messages are marked as not sent."""
    return sum(message.is_left_out for message in path)


def estimate(path: Sequence[Message], system_prompt: str, characters_per_token: float) -> int:
    """About how many tokens these messages are, without those that are left out."""
    texts = [system_prompt] if system_prompt.strip() else []
    texts += [message.text for message in path if not message.is_left_out and message.text]
    return sum(int(len(text) / characters_per_token) + TOKENS_PER_MESSAGE for text in texts)


def characters_per_token(path: Sequence[Message]) -> float:
    """Measured on this conversation's answers: scripts and models differ."""
    counted = [
        (len(message.text), tokens)
        for message in path
        if (tokens := message.figures.get("usage", {}).get("completion_tokens"))
        and not message.figures.get("earlier_tokens")
    ]
    characters, tokens = (sum(column) for column in zip(*counted, strict=True)) if counted else (0, 0)
    return max(0.5, characters / tokens) if characters and tokens >= 20 else CHARACTERS_PER_TOKEN


def oldest_to_leave_out(path: Sequence[Message], system_prompt: str, window: int, room: int) -> list[int]:
    """The oldest turns' messages without which the rest and an answer of `room` tokens fit; at least one turn.

    `path` ends with the answer that did not fit: the count that its refusal tells corrects the estimate. Empty if there
    is no turn before the last question.
    """
    kept = [message for message in path[:-2] if not message.is_left_out]
    per_token = characters_per_token(path)
    whole = max(1, estimate([*kept, *path[-2:]], system_prompt, per_token))
    correction = max(1.0, told_tokens(path[-1].problem) / whole)
    chosen: list[int] = []
    while kept:
        needed = correction * estimate([*kept, *path[-2:]], system_prompt, per_token)
        if chosen and needed <= window - room:
            break
        n_turn = 2 if len(kept) > 1 and kept[1].role == "assistant" else 1
        chosen += [message.id for message in kept[:n_turn]]
        kept = kept[n_turn:]
    return chosen


def told_tokens(refusal: str) -> int:
    """The prompt's tokens as a refusal tells them beside the window's, which are fewer; 0 if it tells none."""
    return max((int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", refusal)), default=0)
