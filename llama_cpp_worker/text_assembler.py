"""Tokens to text: which characters of a completion can be sent now, and which must wait for the next token.

Knows UTF-8 and stop strings. Knows nothing of models, requests or HTTP.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from llama_cpp_worker.output import overlap
from llama_cpp_worker.sampling_params import SampledToken


@dataclass(frozen=True, slots=True)
class _PendingToken:
    """A token that can be reported when the text has been released up to `text_end`, in characters."""

    token: SampledToken
    text_end: int


class TextAssembler:
    """Turns the bytes of tokens into text: whole characters only, and nothing of a stop string.

    Text that may be the beginning of a stop string is pending until it cannot be one, or until `finish`. The tokens
    of that text are pending, too.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending_text = ""
        self._n_released = 0  # characters
        self._pending_tokens: deque[_PendingToken] = deque()
        self.stop_string: str | None = None  # the one that ended the text

    @property
    def is_stopped(self) -> bool:
        return self.stop_string is not None

    def push(self, piece: bytes, token: SampledToken | None = None) -> str:
        """Adds a token's bytes and returns the text that is certain now. Sets `stop_string` at a stop string.

        `take_tokens` returns `token` after `push` or `finish` has returned all of the token's text.
        """
        self._pending_text += self._decoder.decode(piece)
        if token is not None:
            is_mid_character = bool(self._decoder.getstate()[0])
            text_end = self._n_released + len(self._pending_text) + is_mid_character
            self._pending_tokens.append(_PendingToken(token, text_end))
        found = [
            (start + len(stop), start, stop) for stop in self._stop if (start := self._pending_text.find(stop)) >= 0
        ]
        if found:
            # The stop string that ends first: the result does not depend on the pieces.
            _, start, self.stop_string = min(found)
            return self._release(start, drop_rest=True)
        undecided = overlap(self._pending_text, self._stop)
        return self._release(len(self._pending_text) - undecided)

    def finish(self) -> str:
        """The pending text, once no token can follow. Bytes of an incomplete character are left out."""
        text = self._release(len(self._pending_text))
        if not self.is_stopped:
            self._n_released += 1  # the incomplete character: its tokens can be reported
        return text

    def take_tokens(self) -> list[SampledToken]:
        """The tokens that became reportable since the last call; never one with a part of a stop string in it."""
        taken = []
        while self._pending_tokens and self._pending_tokens[0].text_end <= self._n_released:
            taken.append(self._pending_tokens.popleft().token)
        return taken

    def _release(self, length: int, *, drop_rest: bool = False) -> str:
        text, rest = self._pending_text[:length], self._pending_text[length:]
        self._pending_text = "" if drop_rest else rest
        self._n_released += length
        return text
