"""Tells whether a text follows a grammar so far, and what may come next. Knows bytes and characters, not tokens.

Earley's algorithm, a character at a time: it takes any grammar, left recursion included, in time that grows with the
cube of the text at worst. And it counts its steps, so that a grammar that is too ambiguous ends in an error.

It is our own because one line of GBNF can stop or end a process that uses llama.cpp's grammar sampler (0.3.36):
`s ::= "a" s "b" | "a" s "c" | "a"` doubles its work with every "a" (tried: no answer within 100 s). And, as read in its
source: `{5,3}` counts to 2**64, left recursion by way of an empty rule fills the memory, and a token that the grammar
does not allow aborts.
"""

from __future__ import annotations

import codecs
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field

from llama_cpp_worker.grammar import CharacterSet, Grammar, GrammarError, Series

MAX_STEPS = 500_000  # between two pieces of the text: some tenths of a second


@dataclass(frozen=True, slots=True, eq=False)
class _Alternative:
    rule: str
    elements: Series


@dataclass(slots=True, eq=False)
class _State:
    """What may come at one place of the text: a set of Earley's, ordered by what its items wait for."""

    by_code: dict[int, list[_Item]] = field(default_factory=lambda: defaultdict(list))  # one certain character
    by_set: list[_Item] = field(default_factory=list)  # one of several characters
    by_rule: dict[str, list[_Item]] = field(default_factory=dict)  # another rule, to be complete
    is_complete: bool = False


# An alternative, how many of its elements are matched, how often the next one is, and the state where it began.
_Item = tuple[_Alternative, int, int, _State]


class Matcher:
    """The text so far, and whether a piece can follow it. Pieces are bytes and may end within a character."""

    def __init__(self, grammar: Grammar) -> None:
        self._alternatives = {
            name: [_Alternative(name, series) for series in alternatives]
            for name, alternatives in grammar.rules.items()
        }
        self._steps_left = MAX_STEPS
        self._begun = b""  # the bytes of a character that is not whole yet
        self._looked_at: dict[tuple[_State, str], _State | None] = {}
        self._start = self._state = _State()
        self._close(self._state, [(alternative, 0, 0, self._state) for alternative in self._alternatives["root"]])

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        return self._state.is_complete and not self._begun

    @property
    def can_go_on(self) -> bool:
        """Whether anything at all may follow."""
        return bool(self._state.by_code or self._state.by_set)

    def allows(self, piece: bytes) -> bool:
        """Whether the text may go on with `piece`; raises GrammarError when that takes too long to find out."""
        return bool(piece) and self._walk(piece) is not None

    def advance(self, piece: bytes) -> None:
        """Adds `piece`, which must be allowed, to the text."""
        end = self._walk(piece)
        assert end is not None, "the grammar does not allow this piece"
        self._state, self._begun = end, _split(self._begun + piece)[1]
        self._looked_at.clear()
        self._steps_left = MAX_STEPS

    def _walk(self, piece: bytes) -> _State | None:
        try:
            text, begun = _split(self._begun + piece)
        except UnicodeDecodeError:
            return None
        state: _State | None = self._state
        for character in text:
            assert state is not None
            place = (state, character)
            if place not in self._looked_at:
                self._looked_at[place] = self._after(state, ord(character))
            state = self._looked_at[place]
            if state is None:
                return None
        assert state is not None
        return state if not begun or _may_follow(state, *_completions(begun)) else None

    def _after(self, state: _State, code: int) -> _State | None:
        self._steps_left -= len(state.by_set)
        items = state.by_code.get(code, []) + [item for item in state.by_set if _awaited(item).overlaps(code, code)]
        if not items:
            return None
        following = _State()
        self._close(following, [_counted(item) for item in items])
        return following

    def _close(self, state: _State, items: list[_Item]) -> None:
        """Earley's prediction and completion: all that follows from these items without reading on."""
        seen = set(items)
        empty_rules = set()  # those that have been complete without reading

        def add(item: _Item) -> None:
            self._steps_left -= 1
            if self._steps_left < 0:
                raise GrammarError("it is too ambiguous: what may come next takes too long to find out")
            if item not in seen:
                seen.add(item)
                items.append(item)

        while items:
            item = items.pop()
            alternative, n_matched, count, origin = item
            if n_matched == len(alternative.elements):
                is_empty = origin is state
                if is_empty:
                    empty_rules.add(alternative.rule)
                if alternative.rule == "root" and origin is self._start:
                    state.is_complete = True
                for parent in origin.by_rule.get(alternative.rule, ()):
                    add(_passed(parent) if is_empty else _counted(parent))
                continue
            element = alternative.elements[n_matched]
            if count >= element.least:
                add(_passed(item))
            if element.most is not None and count >= element.most:
                continue
            if isinstance(element.symbol, CharacterSet):
                only = element.symbol.only_code
                (state.by_set if only is None else state.by_code[only]).append(item)
                continue
            if element.symbol not in state.by_rule:
                state.by_rule[element.symbol] = []
                for predicted in self._alternatives[element.symbol]:
                    add((predicted, 0, 0, state))
            state.by_rule[element.symbol].append(item)
            if element.symbol in empty_rules:
                add(_passed(item))


def _awaited(item: _Item) -> CharacterSet:
    symbol = item[0].elements[item[1]].symbol
    assert isinstance(symbol, CharacterSet)
    return symbol


def _counted(item: _Item) -> _Item:
    """Its next element has come once more. Without a maximum, how often does not matter from the minimum on."""
    alternative, n_matched, count, origin = item
    element = alternative.elements[n_matched]
    return alternative, n_matched, min(count + 1, element.least) if element.most is None else count + 1, origin


def _passed(item: _Item) -> _Item:
    """Its next element has come often enough; one that may be empty always has."""
    alternative, n_matched, _, origin = item
    return alternative, n_matched + 1, 0, origin


def _may_follow(state: _State, low: int, high: int) -> bool:
    """Whether some code point from `low` to `high` may come next."""
    return any(low <= code <= high for code in state.by_code) or any(
        _awaited(item).overlaps(low, high) for item in state.by_set
    )


def _split(piece: bytes) -> tuple[str, bytes]:
    """Whole characters, and the bytes of one that is not whole yet; raises UnicodeDecodeError."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    return decoder.decode(piece), decoder.getstate()[0]


def _completions(begun: bytes) -> tuple[int, int]:
    """The lowest and the highest code point whose UTF-8 begins with these bytes."""
    size = 2 if begun[0] < 0xE0 else 3 if begun[0] < 0xF0 else 4
    codes = []
    for filler in (0x80, 0x90, 0xA0, 0x8F, 0x9F, 0xBF):  # not each of them may follow each first byte
        for rest in (0x80, 0xBF):
            with contextlib.suppress(UnicodeDecodeError):
                codes.append(ord((begun + bytes([filler]) + bytes([rest]) * size)[:size].decode()))
    return min(codes), max(codes)
