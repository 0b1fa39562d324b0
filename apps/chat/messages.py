"""What a conversation is made of: questions and answers, and the tree of branches they form.

A conversation is a tree, because a person can edit a question and request another answer; one leaf says which branch
is shown. Knows nothing of files, servers and pages.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

TITLE_LENGTH = 60  # characters of a title that is made from a question
LONGEST_TITLE = 200  # characters of a title that a person types
FIGURE_OBJECTS = ("usage", "timings", "prompt_tokens_details")  # of the OpenAI API, with numbers in them
FIGURE_TEXTS = ("server", "model")
LONGEST_FIGURE = 200  # characters of such a text
FIGURE_LEVELS = 2  # of objects in objects
LARGEST_FIGURE = 1e15
Time = Annotated[float, Meta(ge=0, le=1e11)]  # seconds since 1970; Python cannot print times after the year 9999
NOT_STORED = ("phase", "percent")  # fields of Message, of an answer that this process generates


@dataclass(frozen=True, slots=True)
class Message:
    """A question or an answer.

    ended: "" while an answer is generated, then the reason of its end: "stop", "length", "full" (the context window),
    "stopped", "cut", "failed", "edited" (by a person), "too long" (the prompt did not fit the context window); of a
    question always "sent".
    figures: usage and timings as the server reports them, `first_token_seconds`, `earlier_tokens` (of the parts before
    a continuation), `left_out` (messages that were not sent), `thought_seconds`, `asked_at` and `ended_at` in seconds
    since 1970, and the names of the `server` and the `model`.
    is_left_out: the message is shown, but no longer sent to the model.
    together: equal for all answers of one simultaneous question.
    phase, percent: of an answer that this process generates (answering.py).
    """

    id: int
    parent_id: int | None
    role: Literal["user", "assistant"]
    text: str
    ended: str
    problem: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    is_raw: bool = False
    is_left_out: bool = False
    together: str | None = None
    created_at: Time = 0.0
    phase: str = ""
    percent: int | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its messages. is_pinned: it stands before the others in the list."""

    id: str
    title: str
    settings: dict[str, str | int | float | bool | None]
    leaf_id: int | None
    created_at: Time
    updated_at: Time
    is_pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeConversation(Conversation):
    """A conversation with all its branches; every message stands after the one it follows. Of a file: unchecked."""

    messages: list[Message]
    id: str = ""  # an import makes a new one
    settings: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ListEntry:
    """A conversation in the sidebar's list.

    message_id, excerpt: of a search, the newest message with all its words, and the text around them. None and "" if
    the words are in the title only.
    """

    id: str
    title: str
    updated_at: float
    is_pinned: bool = False
    message_id: int | None = None
    excerpt: str = ""


class MessageTree:
    """The messages of a conversation and how they follow each other."""

    def __init__(self, messages: Sequence[Message], leaf_id: int | None) -> None:
        self.messages = {message.id: message for message in messages}
        self.leaf_id = leaf_id
        self._children: dict[int | None, list[int]] = {}
        for message in messages:
            self._children.setdefault(message.parent_id, []).append(message.id)

    def map(self, change: Callable[[Message], Message]) -> "MessageTree":
        return MessageTree([change(message) for message in self.messages.values()], self.leaf_id)

    def path(self, leaf_id: int | None = None) -> list[Message]:
        """From the first message to `leaf_id`, or to the leaf of the branch that is shown."""
        path = []
        message_id = self.leaf_id if leaf_id is None else leaf_id
        while message_id is not None:
            path.append(self.messages[message_id])
            message_id = self.messages[message_id].parent_id
        return path[::-1]

    def siblings(self, message: Message) -> list[Message]:
        """All messages with the parent of this one, itself included, oldest first."""
        return [self.messages[other] for other in self._children[message.parent_id]]

    def group(self, message: Message) -> list[Message]:
        """The answers to one simultaneous question; of any other message, the message alone."""
        if message.together is None:
            return [message]
        return [other for other in self.siblings(message) if other.together == message.together]

    def newest_leaf(self, message_id: int) -> int:
        """The newest message below this one: the end of the branch that was last used."""
        below = {message_id}
        for message in sorted(self.messages.values(), key=lambda message: message.id):
            if message.parent_id in below:
                below.add(message.id)
        return max(below)  # nothing follows it: a message has a higher id than its parent


def without(messages: Sequence[Message], removed: Mapping[int, int | None]) -> list[Message]:
    """The messages without removed ones; what followed a removed one then follows the one before it.

    removed: their ids, and what each of them follows.
    """

    def before(parent_id: int | None) -> int | None:
        while parent_id is not None and parent_id in removed:
            parent_id = removed[parent_id]
        return parent_id

    remaining = (message for message in messages if message.id not in removed)
    return [replace(each, parent_id=before(each.parent_id)) if removed else each for each in remaining]


def random_id() -> str:
    """For a conversation, or for the answers to one simultaneous question; nobody can guess it."""
    return secrets.token_urlsafe(6)


def title_from(question: str) -> str:
    """A question's first line, shortened at a word; never empty."""
    line = next((line.strip() for line in question.splitlines() if line.strip()), "") or "Untitled"
    if len(line) <= TITLE_LENGTH:
        return line
    head = line[: TITLE_LENGTH - 1]
    return (head.rsplit(" ", 1)[0] if " " in head[20:] else head) + "…"


def tokens_of(figures: Mapping[str, Any]) -> int:
    """Tokens generated so far, those before a continuation included."""
    n_generated = figures.get("usage", {}).get("completion_tokens") or figures.get("timings", {}).get("predicted_n")
    return int(n_generated or 0) + int(figures.get("earlier_tokens", 0))


def clean_figures(figures: Mapping[str, Any], levels: int = FIGURE_LEVELS) -> dict[str, Any]:
    """The numbers and names among these figures; all else is dropped: servers and files may contain anything."""
    clean: dict[str, Any] = {}
    for name, value in figures.items():
        if name in FIGURE_OBJECTS:
            if isinstance(value, Mapping) and levels:
                clean[name] = clean_figures(value, levels - 1)
        elif name in FIGURE_TEXTS:
            if isinstance(value, str):
                clean[name] = value[:LONGEST_FIGURE]
        elif isinstance(value, int | float) and abs(value) < LARGEST_FIGURE:
            clean[name] = value
    return clean
