"""Tokens to text: what can be handed out of a completion at once, and what has to wait for the next token."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llama_cpp_worker.sampling_params import SampledToken


@dataclass(frozen=True, slots=True)
class _Report:
    """A token to tell of, once the text has been released up to where this token's ends."""

    token: SampledToken
    text_end: int


class TextAssembler:
    """Turns the bytes of tokens into text: whole characters only, and nothing of a stop string.

    What could still become a stop string is held back until it cannot, or until `finish`; so are the tokens it is in.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._n_released = 0
        self._reports: deque[_Report] = deque()
        self.is_stopped = False

    def push(self, piece: bytes, token: SampledToken | None = None) -> str:
        """The text that is certain now; `is_stopped` tells whether a stop string was reached.

        `token` will come out of `take_tokens` when all of its text has come out of here.
        """
        self._held += self._decoder.decode(piece)
        if token is not None:
            is_mid_character = bool(self._decoder.getstate()[0])
            self._reports.append(_Report(token, self._n_released + len(self._held) + is_mid_character))
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            _, start = min(found)  # whichever is complete first, so that it does not matter how the pieces fall
            return self._release(start, drop_rest=True)
        undecided = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        return self._release(len(self._held) - undecided)

    def finish(self) -> str:
        """What was held back, once no token can follow. Bytes of an unfinished character are left out."""
        text = self._release(len(self._held))
        if not self.is_stopped:
            self._n_released += 1  # the unfinished character; its tokens can be told of
        return text

    def take_tokens(self) -> list[SampledToken]:
        """The tokens that can be told of since the last call: never one with a part of a stop string in it."""
        taken = []
        while self._reports and self._reports[0].text_end <= self._n_released:
            taken.append(self._reports.popleft().token)
        return taken

    def _release(self, length: int, *, drop_rest: bool = False) -> str:
        text, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        self._n_released += length
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
