"""What the KV cache holds: the tokens of every slot, and sequences that had to leave their slot, kept in memory.

Decides which computed prefix a new prompt can start from. Knows nothing of requests and schedules; a model only by
what `KVCache` calls on it.

A prefix is taken over by copying a sequence's state through memory, not by sharing cells: with separate caches per
sequence (faster with several long conversations) llama.cpp's own copy moves a slot's whole buffer. For 500 tokens of a
135M model, 2 x86 cores: saving and restoring takes 1 ms, llama.cpp's copy 12 ms (window 8,192), computing 700 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

LEAST_TAKEN = 4  # tokens; a shorter prefix is computed sooner than copied
LEAST_SAVED = 32  # tokens; a shorter sequence is not worth its place in memory


class _Model(Protocol):
    n_slots: int

    def keep(self, slot: int, n_tokens: int) -> None: ...
    def save(self, slot: int) -> Any: ...  # its len() is its size in bytes
    def restore(self, slot: int, state: Any) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Saved:
    """A sequence outside the slots."""

    tokens: Sequence[int]
    state: Any


class KVCache:
    """Which tokens are computed, in slots and outside. The oldest sequences outside make room first.

    n_saved_bytes: how much memory the sequences outside may take; 0 keeps none.
    """

    def __init__(self, model: _Model, n_saved_bytes: int) -> None:
        self._model = model
        self._limit = n_saved_bytes
        self._slots: list[list[int]] = [[] for _ in range(model.n_slots)]
        self._saved: list[_Saved] = []  # oldest first

    @property
    def n_tokens(self) -> int:
        """Tokens in the slots' caches."""
        return sum(map(len, self._slots))

    def length_known(self, prompt: Sequence[int]) -> int:
        """How much of `prompt`, from its start, is computed somewhere; never all of it: see `claim`."""
        return max(length for length, _ in self._candidates(prompt))

    def claim(self, slot: int, prompt: Sequence[int]) -> int:
        """Makes `slot` hold the longest computed beginning of `prompt` and returns its length.

        What the slot held before is kept outside. The last token of a prompt is never taken over: it must be decoded
        to get the logits of the first completion token.
        """
        length, source = max(self._candidates(prompt), key=lambda candidate: candidate[0])
        own = min(common_prefix(self._slots[slot], prompt), len(prompt) - 1)
        if own >= length or length < LEAST_TAKEN:
            length = own
            if len(self._slots[slot]) - length >= LEAST_SAVED:  # not just the next turn of what is there
                self._save(slot)
        else:
            state = source.state if isinstance(source, _Saved) else self._model.save(source)
            self._save(slot)
            self._model.restore(slot, state)
            if isinstance(source, _Saved) and source in self._saved:
                self._saved.append(self._saved.pop(self._saved.index(source)))
        self._model.keep(slot, length)
        self._slots[slot] = list(prompt[:length])
        return length

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """Notes that `tokens` have been decoded in `slot`."""
        self._slots[slot] += tokens

    def clear(self, slot: int) -> None:
        """Forgets a slot's sequence, for instance when a decode has failed half-way."""
        self._model.keep(slot, 0)
        self._slots[slot] = []

    def move(self, source: int, target: int) -> None:
        """Brings a sequence to another slot; what that slot held is kept outside."""
        state = self._model.save(source)
        self._save(target)
        self._model.restore(target, state)
        self._slots[target] = self._slots[source]
        self.clear(source)

    def _candidates(self, prompt: Sequence[int]) -> list[tuple[int, int | _Saved]]:
        """(usable length, where) of all that is computed."""
        most = len(prompt) - 1
        in_slots = [(min(common_prefix(tokens, prompt), most), slot) for slot, tokens in enumerate(self._slots)]
        return [*in_slots, *((min(common_prefix(saved.tokens, prompt), most), saved) for saved in self._saved)]

    def _save(self, slot: int) -> None:
        """Keeps a slot's sequence outside, unless it is short or another one contains it."""
        tokens = self._slots[slot]
        others: list[Sequence[int]] = [held for other, held in enumerate(self._slots) if other != slot]
        others += [saved.tokens for saved in self._saved]
        if len(tokens) < LEAST_SAVED or any(common_prefix(tokens, other) == len(tokens) for other in others):
            return
        state = self._model.save(slot)
        if len(state) > self._limit:
            return
        self._saved = [saved for saved in self._saved if common_prefix(saved.tokens, tokens) < len(saved.tokens)]
        self._saved.append(_Saved(tokens, state))
        while sum(len(saved.state) for saved in self._saved) > self._limit:
            del self._saved[0]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of what both begin with. Compares slices: in C, not token by token."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low
