"""The prefix cache: which tokens are computed, in the slots and in saved sequences, and what a new prompt can reuse.

Knows nothing of requests and the schedule. Knows a model only by the methods of `SequenceMemory`.

A prefix is reused by copying a sequence's state through main memory. llama.cpp's own copy between sequences would
move a slot's whole buffer, because each sequence has a separate KV cache (see docs/llama-cpp-facts.md). For 500
tokens of a 135M model on 2 x86 cores: saving and restoring takes 1 ms, llama.cpp's copy 12 ms (window of 8,192
tokens), computing the tokens again 700 ms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MIN_SHARED_PREFIX_TOKENS = 4  # a shorter prefix is computed faster than copied
MIN_SAVED_TOKENS = 32  # a shorter sequence is not worth the memory


class SequenceMemory(Protocol):
    """What the prefix cache needs of a model: the KV cache of each slot."""

    n_slots: int

    def trim(self, slot: int, n_tokens: int) -> None: ...
    def save_state(self, slot: int) -> Any: ...  # its len() is its size in bytes
    def restore_state(self, slot: int, state: Any) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _SavedSequence:
    """A sequence that had to leave its slot; its state is in main memory."""

    tokens: Sequence[int]
    state: Any


@dataclass(frozen=True, slots=True)
class _Match:
    """The first `length` tokens of a prompt are computed in `source`: a slot, or a saved sequence."""

    length: int
    source: int | _SavedSequence


class PrefixCache:
    """The tokens of every slot, and saved sequences. If the memory is full, the oldest saved sequence is evicted.

    n_saved_bytes: how much memory the saved sequences may take; 0 turns saving off.
    """

    def __init__(self, model: SequenceMemory, n_saved_bytes: int) -> None:
        self._model = model
        self._max_saved_bytes = n_saved_bytes
        self._slots: list[list[int]] = [[] for _ in range(model.n_slots)]
        self._saved: list[_SavedSequence] = []  # oldest first

    @property
    def n_tokens(self) -> int:
        """Tokens in the KV caches of all slots."""
        return sum(map(len, self._slots))

    def cached_prefix_length(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens are computed somewhere; at most all but the last one."""
        return self._longest_match(prompt).length

    def assign_prefix(self, slot: int, prompt: Sequence[int]) -> int:
        """Puts the longest computed prefix of `prompt` into `slot` and returns its length.

        The slot's old sequence is saved. The last token of a prompt is never reused: the model must decode it to
        produce the logits of the first completion token.
        """
        match = self._longest_match(prompt)
        length, source = match.length, match.source
        own = _usable_length(self._slots[slot], prompt)
        if own >= length or length < MIN_SHARED_PREFIX_TOKENS:
            length = own
            if len(self._slots[slot]) - length >= MIN_SAVED_TOKENS:  # else too little of the old sequence is lost
                self._save(slot)
        else:
            state = source.state if isinstance(source, _SavedSequence) else self._model.save_state(source)
            self._save(slot)
            self._model.restore_state(slot, state)
            if isinstance(source, _SavedSequence) and source in self._saved:
                self._saved.remove(source)
                self._saved.append(source)  # now the newest
        self._model.trim(slot, length)
        self._slots[slot] = list(prompt[:length])
        return length

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Records that `tokens` have been decoded in `slot`."""
        self._slots[slot] += tokens

    def clear(self, slot: int) -> None:
        """Empties a slot, for instance after a decode that failed half-way."""
        self._model.trim(slot, 0)
        self._slots[slot] = []

    def move(self, source: int, target: int) -> None:
        """Moves a sequence to another slot. The old sequence of that slot is saved."""
        state = self._model.save_state(source)
        self._save(target)
        self._model.restore_state(target, state)
        self._slots[target] = self._slots[source]
        self.clear(source)

    def _longest_match(self, prompt: Sequence[int]) -> _Match:
        matches = [_Match(_usable_length(tokens, prompt), slot) for slot, tokens in enumerate(self._slots)]
        matches += [_Match(_usable_length(saved.tokens, prompt), saved) for saved in self._saved]
        return max(matches, key=lambda match: match.length)

    def _save(self, slot: int) -> None:
        """Saves a slot's sequence, unless it is short or another sequence contains it."""
        tokens = self._slots[slot]
        others: list[Sequence[int]] = [other for index, other in enumerate(self._slots) if index != slot]
        others += [saved.tokens for saved in self._saved]
        if len(tokens) < MIN_SAVED_TOKENS or any(_starts_with(other, tokens) for other in others):
            return
        state = self._model.save_state(slot)
        if len(state) > self._max_saved_bytes:
            return
        self._saved = [saved for saved in self._saved if not _starts_with(tokens, saved.tokens)]
        self._saved.append(_SavedSequence(tokens, state))
        while sum(len(saved.state) for saved in self._saved) > self._max_saved_bytes:
            del self._saved[0]


def _usable_length(tokens: Sequence[int], prompt: Sequence[int]) -> int:
    return min(common_prefix_length(tokens, prompt), len(prompt) - 1)


def _starts_with(tokens: Sequence[int], prefix: Sequence[int]) -> bool:
    return common_prefix_length(tokens, prefix) == len(prefix)


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both sequences begin with. Compares slices, which is faster than token by token."""
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
