"""The prefix cache: which tokens are computed, in the slots and in saved sequences, and what a new prompt can reuse.

Also chooses the slot of a new prompt, and the swaps that make slots consecutive. Knows nothing of requests and the
schedule. Knows a model only by the methods of `SequenceMemory`.

A prefix is reused by copying a sequence's state through main memory. llama.cpp's own copy between sequences would
move a slot's whole buffer, because each sequence has a separate KV cache (see docs/llama-cpp-facts.md). For 500
tokens of a 135M model on 2 x86 cores: saving takes 9 ms and restoring 2 ms, llama.cpp's copy 31 ms (window of 8,192
tokens), computing the tokens again 1,400 ms (shared VM, 2026-11-27). But a copy always takes the whole state, so a
short prefix of a long sequence can be faster to compute. Both speeds are measured.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

MIN_SHARED_PREFIX_TOKENS = 4  # a shorter prefix is no reason to choose a slot or to copy
MIN_SAVED_TOKENS = 32  # a shorter sequence is not worth the memory


class SequenceMemory(Protocol):
    """What the prefix cache needs of a model: the KV cache of each slot."""

    n_slots: int
    prefilled_tokens_per_second: float
    seconds_per_pass: float  # of a decode of one token

    @property
    def copied_bytes_per_second(self) -> float: ...  # of saving a state, and of restoring one
    def trim(self, slot: int, n_tokens: int) -> None: ...
    def state_size(self, slot: int) -> int: ...  # len() of the state, without a copy
    def save_state(self, slot: int) -> Any: ...  # its len() is its size in bytes
    def restore_state(self, slot: int, state: Any) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class _SavedSequence:
    """A sequence that had to leave its slot; its state is in main memory."""

    tokens: Sequence[int]
    state: Any


class PrefixCache:
    """The tokens of every slot, and saved sequences. If the memory is full, the oldest saved sequence is evicted.

    n_saved_bytes: how much memory the saved sequences may take; 0 turns saving off. They take `used_bytes` now.
    `hits` counts prompts by the source of their reused prefix: "own" (the sequence in their slot), "copied" (another
    slot), "saved" (a saved sequence), or "none". `swaps` counts swaps of two slots' sequences.
    """

    def __init__(self, model: SequenceMemory, n_saved_bytes: int) -> None:
        self._model = model
        self._n_saved_bytes = n_saved_bytes
        self._slots: list[list[int]] = [[] for _ in range(model.n_slots)]
        self._last_uses = [0] * model.n_slots  # a higher number is a later use
        self._uses = itertools.count(1)
        self._saved: list[_SavedSequence] = []  # oldest first
        self.hits = dict.fromkeys(("own", "copied", "saved", "none"), 0)
        self.swaps = 0
        self._extra_seconds = 0.0  # of passes that consecutive slots would not have needed

    @property
    def n_tokens(self) -> int:
        """Tokens in the KV caches of all slots."""
        return sum(map(len, self._slots))

    @property
    def used_bytes(self) -> int:
        """The memory that the saved sequences take now."""
        return sum(len(saved.state) for saved in self._saved)

    def tokens(self, slot: int) -> Sequence[int]:
        """The tokens in the KV cache of a slot."""
        return self._slots[slot]

    def cached_prefix_length(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's first tokens are computed somewhere; at most all but the last one."""
        sequences = [*self._slots, *(saved.tokens for saved in self._saved)]
        return max(_usable_length(tokens, prompt) for tokens in sequences)

    def choose_slot(self, prompt: Sequence[int], free_slots: Sequence[int]) -> int:
        """The free slot for a new prompt.

        1. The slot with the longest prefix of the prompt, if the prompt continues its sequence. So the slot reuses at
           least half of its tokens, and nothing better is copied into it. If it discards MIN_SAVED_TOKENS, no slot
           may be empty, and no other slot may share nearly the whole prefix: that would be a system prompt.
        2. An empty slot, the first one in `free_slots`.
        3. The least recently used slot.
        """
        lengths = [_usable_length(tokens, prompt) for tokens in self._slots]
        empty = [slot for slot in free_slots if not self._slots[slot]]
        oldest_first = sorted(free_slots, key=self._last_uses.__getitem__)
        best = max(oldest_first, key=lengths.__getitem__)
        n_reused, n_discarded = lengths[best], len(self._slots[best]) - lengths[best]
        others = max((length for slot, length in enumerate(lengths) if slot != best), default=0)
        is_unique = n_reused >= others + MIN_SAVED_TOKENS
        if (
            n_reused >= max(MIN_SHARED_PREFIX_TOKENS, n_discarded)
            and (n_discarded < MIN_SAVED_TOKENS or (is_unique and not empty))
            and self._best_source(best, prompt) is None
        ):
            return best
        return empty[0] if empty else oldest_first[0]

    def assign_prefix(self, slot: int, prompt: Sequence[int]) -> int:
        """Puts a computed prefix of `prompt` into `slot` and returns its length.

        The slot's old sequence is saved. The last token of a prompt is never reused: the model must decode it to
        produce the logits of the first completion token.
        """
        source = self._best_source(slot, prompt)
        if source is None:
            length = _usable_length(self._slots[slot], prompt)
            if len(self._slots[slot]) - length >= MIN_SAVED_TOKENS:  # else too little of the old sequence is lost
                self._save(slot)
            self.hits["own" if length >= MIN_SHARED_PREFIX_TOKENS else "none"] += 1
        elif isinstance(source, _SavedSequence):
            length = _usable_length(source.tokens, prompt)
            self._saved.remove(source)
            if length < len(source.tokens):  # else the slot has all of it
                self._saved.append(source)  # now the newest
            self._replace(slot, source.state)
            self.hits["saved"] += 1
        else:
            length = _usable_length(self._slots[source], prompt)
            self._replace(slot, self._model.save_state(source))
            self.hits["copied"] += 1
        self._model.trim(slot, length)
        self._slots[slot] = list(prompt[:length])
        self._last_uses[slot] = next(self._uses)
        return length

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """Records that `tokens` have been decoded in `slot`."""
        self._slots[slot] += tokens
        self._last_uses[slot] = next(self._uses)

    def forget(self, slot: int) -> None:
        """Records that a slot has no known tokens, for instance after a decode that failed half-way.

        Calls no method of the model, which could fail again: the next prompt in the slot trims it.
        """
        self._slots[slot] = []

    def due_swaps(self, slots: Collection[int]) -> list[tuple[int, int]]:
        """The pairs to `swap` now, so that `slots`, those in use, become consecutive. Call it once a step.

        llama.cpp decodes each run of consecutive slots in a separate pass over all the weights. Swaps are due when
        the extra passes have cost as much time as the swaps will: a new request often fills the gap before that.
        """
        gaps = sum(later - earlier > 1 for earlier, later in itertools.pairwise(sorted(slots)))
        if not gaps:
            self._extra_seconds = 0.0
            return []
        self._extra_seconds += gaps * self._model.seconds_per_pass
        plan = self._cheapest_swaps(slots)
        n_bytes = 2 * sum(self._model.state_size(slot) for pair in plan for slot in pair)  # saved, then restored
        return plan if self._extra_seconds >= n_bytes / self._model.copied_bytes_per_second else []

    def _cheapest_swaps(self, slots: Collection[int]) -> list[tuple[int, int]]:
        """The swaps that make `slots` consecutive and move the fewest tokens."""
        plans = []
        for first in range(self._model.n_slots - len(slots) + 1):
            targets = range(first, first + len(slots))
            outside = [slot for slot in slots if slot not in targets]
            gaps = [slot for slot in targets if slot not in slots]
            plans.append(list(zip(outside, gaps, strict=True)))
        return min(plans, key=lambda plan: sum(len(self._slots[slot]) for pair in plan for slot in pair))

    def swap(self, first: int, second: int) -> None:
        """Exchanges the sequences of two slots, through main memory. No sequence is lost, unless a copy fails."""
        states = {slot: self._model.save_state(slot) for slot in (first, second) if self._slots[slot]}
        try:
            for source, target in ((first, second), (second, first)):
                if source in states:
                    self._model.restore_state(target, states[source])
                else:
                    self._model.trim(target, 0)
        except Exception:
            self.forget(first)  # both slots may hold another sequence than is recorded
            self.forget(second)
            raise
        self._slots[first], self._slots[second] = self._slots[second], self._slots[first]
        uses = self._last_uses
        uses[first], uses[second] = uses[second], uses[first]
        self.swaps += 1

    def _best_source(self, slot: int, prompt: Sequence[int]) -> int | _SavedSequence | None:
        """The other slot, or the saved sequence, whose state saves the most seconds in `slot`. None: no copy pays."""
        n_own = _usable_length(self._slots[slot], prompt)
        n_needed = n_own + MIN_SHARED_PREFIX_TOKENS
        if n_needed >= len(prompt):
            return None
        best, best_seconds = None, 0.0
        for source in (*range(self._model.n_slots), *self._saved):
            is_saved = isinstance(source, _SavedSequence)
            tokens = source.tokens if is_saved else self._slots[source]
            # One token decides for nearly all of the saved sequences, of which there are hundreds after an hour.
            if len(tokens) < n_needed or tokens[n_needed - 1] != prompt[n_needed - 1]:
                continue
            length = _usable_length(tokens, prompt)
            if length < n_needed:
                continue
            n_bytes = len(source.state) if is_saved else 2 * self._model.state_size(source)  # saved, then restored
            seconds = (length - n_own) / self._model.prefilled_tokens_per_second
            seconds -= n_bytes / self._model.copied_bytes_per_second
            if seconds > best_seconds:
                best, best_seconds = source, seconds
        return best

    def _replace(self, slot: int, state: Any) -> None:
        self._save(slot)
        self._model.restore_state(slot, state)

    def _save(self, slot: int) -> None:
        """Saves a slot's sequence, unless it is short or too large, or another sequence contains it."""
        tokens = self._slots[slot]
        others: list[Sequence[int]] = [other for index, other in enumerate(self._slots) if index != slot]
        others += [saved.tokens for saved in self._saved]
        if len(tokens) < MIN_SAVED_TOKENS or any(_starts_with(other, tokens) for other in others):
            return
        size = self._model.state_size(slot)
        if size > self._n_saved_bytes:
            return
        self._saved = [saved for saved in self._saved if not _starts_with(tokens, saved.tokens)]
        while self.used_bytes > self._n_saved_bytes - size:
            del self._saved[0]  # before the copy, so that the saved sequences never take more
        self._saved.append(_SavedSequence(tokens, self._model.save_state(slot)))


def _usable_length(tokens: Sequence[int], prompt: Sequence[int]) -> int:
    return min(common_prefix_length(tokens, prompt), len(prompt) - 1)


def _starts_with(tokens: Sequence[int], prefix: Sequence[int]) -> bool:
    length = len(prefix)
    return len(tokens) >= length and tokens[length - 1] == prefix[length - 1] and tokens[:length] == prefix[:length]


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
