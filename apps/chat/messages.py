"""What a conversation is made of: questions and answers, and the tree of branches they form.

A conversation is a tree, because a question can be edited and an answer asked for again; one leaf says which branch is
shown. Knows nothing of files, servers and pages.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TITLE_LENGTH = 60  # characters


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer.

    ended: "" while an answer is being written, then why it ended: "stop", "length", "full" (the context window),
    "stopped", "cut", "failed", "too long" (it did not fit the context window); a question's is "sent".
    figures: usage, timings and times of an answer. is_left_out: shown, but not sent to the model any more.
    together: the same for all answers of one simultaneous question.
    """

    id: int
    parent_id: int | None
    role: str
    text: str
    ended: str
    problem: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    is_raw: bool = False
    is_left_out: bool = False
    together: str | None = None
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its messages; times are seconds since 1970."""

    id: str
    title: str
    settings: dict[str, Any]
    leaf_id: int | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of the list; `excerpt` is where a search found its words."""

    id: str
    title: str
    updated_at: float
    excerpt: str = ""


class Tree:
    """The messages of a conversation and how they follow each other."""

    def __init__(self, messages: Sequence[Message], leaf_id: int | None) -> None:
        self.messages = {message.id: message for message in messages}
        self.leaf_id = leaf_id
        self._children: dict[int | None, list[int]] = {}
        for message in messages:
            self._children.setdefault(message.parent_id, []).append(message.id)

    def map(self, change: Callable[[Message], Message]) -> Tree:
        return Tree([change(message) for message in self.messages.values()], self.leaf_id)

    def path(self, leaf_id: int | None = None) -> list[Message]:
        """From the first message to `leaf_id`, or to the leaf of the branch that is shown."""
        path = []
        place = self.leaf_id if leaf_id is None else leaf_id
        while place is not None:
            path.append(self.messages[place])
            place = self.messages[place].parent_id
        return path[::-1]

    def siblings(self, message: Message) -> list[Message]:
        """The branches at this place, itself included, oldest first."""
        return [self.messages[other] for other in self._children[message.parent_id]]

    def group(self, message: Message) -> list[Message]:
        """The answers to one simultaneous question; of any other message, the message alone."""
        if message.together is None:
            return [message]
        return [other for other in self.siblings(message) if other.together == message.together]

    def newest_leaf(self, message_id: int) -> int:
        """The last message that was written below this one: where the branch through it was left."""
        below = {message_id}
        for message in sorted(self.messages.values(), key=lambda message: message.id):
            if message.parent_id in below:
                below.add(message.id)
        return max(below)  # nothing follows it: a message is younger than the one it follows


def new_id() -> str:
    """Of a conversation, or of the answers to one simultaneous question; nobody can guess it."""
    return secrets.token_urlsafe(6)


def title_from(question: str) -> str:
    """A question's first line, shortened at a word; never empty."""
    line = next((line.strip() for line in question.splitlines() if line.strip()), "") or "Untitled"
    if len(line) <= TITLE_LENGTH:
        return line
    head = line[: TITLE_LENGTH - 1]
    return (head.rsplit(" ", 1)[0] if " " in head[20:] else head) + "…"
