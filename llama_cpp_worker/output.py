"""What the text of a model means: text for the user, reasoning, and calls of tools, piece by piece.

Knows no notation of any model (see tools.py and reasoning.py) and no API (see api/).
"""

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
