"""What the text of a model means: text for the user, reasoning, and calls of tools, piece by piece.

Knows no notation of any model (see tools.py and reasoning.py) and no API (see api/).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallBegin:
    """The model calls the function `name`. `index` counts the calls of one answer from 0; `id` is unique."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next piece of the arguments of call `index`. All its pieces together are a JSON object."""

    index: int
    text: str


Delta = Text | Reasoning | ToolCallBegin | ToolCallArguments


class OutputParser(Protocol):
    """Takes the text of one answer in pieces of any length. An unfinished mark waits for the next piece."""

    def push(self, text: str) -> list[Delta]:
        """What is certain after one more piece of text, without what was returned before."""

    def finish(self) -> list[Delta]:
        """The rest, when the text has ended or was cut. Nothing may be pushed afterwards."""


class PlainParser:
    """For answers without tools and reasoning: each piece is text."""

    def push(self, text: str) -> list[Delta]:
        return [Text(text)] if text else []

    def finish(self) -> list[Delta]:
        return []


class StepParser:
    """A parser that is a state machine: `_step` takes what it can from `_pending`, and chooses the next step.

    A step returns None to wait for more text.
    """

    _pending: str = ""  # what no delta has been made of
    _step: Callable[[], list[Delta] | None]

    def push(self, text: str) -> list[Delta]:
        """See OutputParser."""
        self._pending += text
        deltas: list[Delta] = []
        while (found := self._step()) is not None:
            deltas += found
        return deltas


def overlap(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of `text` that is a beginning of one of `marks`, but not all of it."""
    lengths = (length for mark in marks for length in range(1, len(mark)) if text.endswith(mark[:length]))
    return max(lengths, default=0)
