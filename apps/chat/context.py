"""Which messages of a conversation are sent to the model, and how much of the context window they take.

The server counts the tokens of every answer and its prompt; newer text is estimated by its length. Knows nothing of
HTTP, files and pages.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from apps.chat.messages import Message
from apps.chat.thought import answer_of

CHARACTERS_PER_TOKEN = 4.0  # of English text; used until the server has counted an answer of this conversation
MIN_COUNTED_TOKENS = 20  # an average over fewer tokens says little
TOKENS_PER_MESSAGE = 5  # that a chat template adds to each


@dataclass(frozen=True, slots=True)
class Gauge:
    """Tokens of the context window that a conversation takes; counted by the server unless `is_estimate`."""

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
    """Questions with their answers, strictly in turns: chat templates demand it.

    Questions without an answer are not sent, and neither are thoughts and turns that are marked as left out.
    """
    answered = [(one, replace(other, text=answer_of(other.text))) for one, other in pairwise(path)]
    return [(one, other) for one, other in answered if one.role == "user" and other.text and not one.is_left_out]


def messages_for(path: Sequence[Message], system_prompt: str) -> list[dict[str, str]]:
    """The messages of the request for the last answer of `path`; a text that it has already is continued."""
    messages = [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
    for question, answer in sent_turns(path[:-2]):
        messages += [{"role": "user", "content": question.text}, {"role": "assistant", "content": answer.text}]
    messages.append({"role": "user", "content": path[-2].text})
    if path[-1].text:
        messages.append({"role": "assistant", "content": path[-1].text})
    return messages


def gauge(path: Sequence[Message], system_prompt: str, window: int | None, is_raw: bool = False) -> Gauge:
    """What the conversation takes: the last valid count, and an estimate of the messages after it.

    A raw prompt is sent without what is above it, so only the last one counts.
    """
    if is_raw:
        path, system_prompt = (path[-2:] if path and path[-1].is_raw else []), ""
    for index in range(len(path) - 1, -1, -1):
        message = path[index]
        counted = counted_tokens(message)
        if counted and message.figures.get("left_out", 0) == left_out(path[:index]) and message.is_raw == is_raw:
            per_token = characters_per_token(path)
            newer = estimate(path[index + 1 :], "", per_token)
            not_sent = int((len(message.text) - len(answer_of(message.text))) / per_token) if message.ended else 0
            return Gauge(max(0, counted + newer - not_sent), window, is_estimate=bool(newer or not_sent))
    estimated = estimate(path, system_prompt, characters_per_token(path))
    return Gauge(estimated, window, is_estimate=estimated > 0)


def counted_tokens(message: Message) -> int:
    """Tokens of an answer and its prompt as the server has counted them; 0 if it has not.

    While it writes, it counts in its timings.
    """
    timings = message.figures.get("timings", {})
    so_far = sum(int(timings.get(name, 0)) for name in ("cache_n", "prompt_n", "predicted_n"))
    return int(message.figures.get("usage", {}).get("total_tokens") or (so_far if "prompt_n" in timings else 0))


def left_out(path: Sequence[Message]) -> int:
    """How many of these messages are marked as not sent."""
    return sum(message.is_left_out for message in path)


def estimate(path: Sequence[Message], system_prompt: str, characters_per_token: float) -> int:
    """About how many tokens these messages have, without those that are left out."""
    texts = [system_prompt] if system_prompt.strip() else []
    texts += [text for message in path if not message.is_left_out and (text := answer_of(message.text))]
    return sum(int(len(text) / characters_per_token) + TOKENS_PER_MESSAGE for text in texts)


def characters_per_token(path: Sequence[Message]) -> float:
    """The average of this conversation's answers: scripts and models differ."""
    n_characters = n_tokens = 0
    for message in path:
        counted = message.figures.get("usage", {}).get("completion_tokens")
        if counted and not message.figures.get("earlier_tokens"):  # else the text has tokens that were not counted
            n_characters += len(message.text)
            n_tokens += counted
    return (
        max(0.5, n_characters / n_tokens) if n_characters and n_tokens >= MIN_COUNTED_TOKENS else CHARACTERS_PER_TOKEN
    )


def oldest_to_leave_out(path: Sequence[Message], system_prompt: str, window: int, room: int) -> list[int]:
    """The ids of the oldest turns to leave out, so that the rest and an answer of `room` tokens fit; at least one turn.

    `path` ends with the answer that did not fit; the count in its refusal corrects the estimate. Empty if there is no
    turn before the last question.
    """
    remaining = [message for message in path[:-2] if not message.is_left_out]
    per_token = characters_per_token(path)
    estimated = max(1, estimate([*remaining, *path[-2:]], system_prompt, per_token))
    correction = max(1.0, prompt_tokens_in(path[-1].problem) / estimated)
    chosen: list[int] = []
    while remaining:
        needed = correction * estimate([*remaining, *path[-2:]], system_prompt, per_token)
        if chosen and needed <= window - room:
            break
        n_turn = 2 if len(remaining) > 1 and remaining[1].role == "assistant" else 1
        chosen += [message.id for message in remaining[:n_turn]]
        remaining = remaining[n_turn:]
    return chosen


def too_long(tokens: int, window: int | None) -> str:
    """Says that a prompt does not fit. tokens: 0 if its size is unknown."""
    size = f": {tokens:,} tokens" if tokens else ""
    room = f", and its context window has room for {window:,}, the answer included" if tokens and window else ""
    return f"This is too long for the model{size}{room}."


def prompt_tokens_in(refusal: str) -> int:
    """The size of the prompt that a refusal mentions; 0 if it has no number. The window's size is always less."""
    return max((int(number.replace(",", "")) for number in re.findall(r"\d[\d,]{,15}", refusal)), default=0)
