"""Reads a grammar in GBNF, llama.cpp's notation, into plain rules. Knows nothing of tokens or of matching.

The syntax is that of llama.cpp's grammars/README.md. Not covered: token elements such as `<think>` or `!<[5]>`, which
are refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

MAX_DEPTH = 50  # of parentheses

_TOKENS = re.compile(
    r"""
    (?P<space>[ \t]+|\#[^\r\n]*)
    |(?P<newline>\r\n?|\n)
    |(?P<literal>"(?:[^"\\]|\\.)*")
    |(?P<characters>\[\^?(?:[^\]\\]|\\.)+\]|\.)
    |(?P<name>[a-zA-Z0-9-]+)
    |(?P<is>::=)
    |(?P<repeat>[*+?]|\{[ \t]*\d{1,9}[ \t]*(?:,[ \t]*(?:\d{1,9}[ \t]*)?)?\})
    |(?P<mark>[|()])
    """,
    re.VERBOSE | re.DOTALL,
)
_CHARACTER = re.compile(
    r'(?P<plain>[^\\])|\\(?:x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<one>[trn\\"\[\]-]))',
    re.DOTALL,
)
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}


class GrammarError(ValueError):
    """A grammar that cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class CharacterSet:
    """Ranges of code points, both ends included; or all but these."""

    ranges: tuple[tuple[int, int], ...]
    is_negated: bool = False

    @property
    def only_code(self) -> int | None:
        """The one code point that is in this set, or None."""
        is_single = len(self.ranges) == 1 and self.ranges[0][0] == self.ranges[0][1] and not self.is_negated
        return self.ranges[0][0] if is_single else None

    def overlaps(self, low: int, high: int) -> bool:
        """Whether a code point from `low` to `high` is in this set."""
        if not self.is_negated:
            return any(first <= high and low <= last for first, last in self.ranges)
        for first, last in sorted(self.ranges):
            if low > high or first > low:
                break
            low = max(low, last + 1)
        return low <= high


@dataclass(frozen=True, slots=True)
class Element:
    """Characters, or the name of another rule, and how often: `most` is None for any number of times."""

    symbol: CharacterSet | str
    least: int = 1
    most: int | None = 1


Series = tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class Grammar:
    """Each rule's name and its alternatives; the text has to match the rule `root`."""

    rules: Mapping[str, tuple[Series, ...]]


@lru_cache(maxsize=64)
def parse_gbnf(text: str) -> Grammar:
    """Raises GrammarError."""
    rules = _Parser(text).parse()
    if "root" not in rules:
        raise GrammarError("there is no rule named root")
    for name, alternatives in rules.items():
        for element in (element for series in alternatives for element in series):
            if isinstance(element.symbol, str) and element.symbol not in rules:
                raise GrammarError(f"rule {name.partition('_')[0]} uses {element.symbol[:40]}, which is not defined")
    if "root" not in _rules_with_an_end(rules):
        raise GrammarError("no text can ever match it: some rule has no end")
    return Grammar({name: tuple(alternatives) for name, alternatives in rules.items()})


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


class _Parser:
    """Recursive descent. A group in parentheses becomes a rule of its own, and so does a repeated literal."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokenize(text))
        self._next = 0
        self._rules: dict[str, list[Series]] = {}
        self._depth = 0

    def parse(self) -> dict[str, list[Series]]:
        while self._peek(skip_newlines=True).kind != "end":
            name = self._expect("name", "the name of a rule").text
            if name in self._rules:
                raise self._error("is defined twice", name)
            self._expect("is", "'::='")
            self._rules[name] = []
            self._rules[name] += self._alternatives(name)
            if self._peek().kind not in ("newline", "end"):
                raise self._error("is not expected here", self._peek().text)
        return self._rules

    def _alternatives(self, name: str) -> list[Series]:
        alternatives = [self._sequence(name)]
        while self._peek().text == "|":
            self._next += 1
            alternatives.append(self._sequence(name))
        return alternatives

    def _sequence(self, name: str) -> Series:
        self._peek(skip_newlines=True)  # after '::=', '|' and '(' the line may be broken
        elements: list[Element] = []
        while (item := self._item(name)) is not None:
            elements += item
        return tuple(elements)

    def _item(self, name: str) -> Series | None:
        """What one literal, character set, name or group stands for, repetition included; None if there is none."""
        token = self._peek()
        if token.kind in ("literal", "characters"):
            item = _read_characters(token)
        elif token.kind == "name":
            item = (Element(token.text),)
        elif token.text == "(":
            item = (Element(self._group(name)),)
        else:
            return None
        self._next += 1
        if self._peek().kind != "repeat":
            return item
        least, most = _read_repetition(self._peek())
        self._next += 1
        if self._peek().kind == "repeat":
            raise self._error("repeats a repetition: use parentheses", self._peek().text)
        symbol = item[0].symbol if len(item) == 1 else self._new_rule(name, [item])
        return (Element(symbol, least, most),)

    def _group(self, name: str) -> str:
        """Reads up to the closing parenthesis, which is left to the caller."""
        self._next += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"is more than {MAX_DEPTH} parentheses deep", "(")
        alternatives = self._alternatives(name)
        self._depth -= 1
        if self._peek().text != ")":
            raise self._error("stands where ')' is expected", self._peek().text)
        return self._new_rule(name, alternatives)

    def _new_rule(self, name: str, alternatives: list[Series]) -> str:
        new = f"{name}_{len(self._rules)}"  # no name in GBNF has a "_"
        self._rules[new] = alternatives
        return new

    def _peek(self, *, skip_newlines: bool = False) -> _Token:
        while self._tokens[self._next].kind == "newline" and (skip_newlines or self._depth):
            self._next += 1
        return self._tokens[self._next]

    def _expect(self, kind: str, what: str) -> _Token:
        token = self._peek()
        if token.kind != kind:
            raise self._error(f"stands where {what} is expected", token.text)
        self._next += 1
        return token

    def _error(self, problem: str, text: str) -> GrammarError:
        return GrammarError(f"line {self._tokens[self._next].line}: {text.strip()[:20] or 'the end'} {problem}")


def _tokenize(text: str) -> Iterator[_Token]:
    position, line = 0, 1
    while position < len(text):
        found = _TOKENS.match(text, position)
        if not found:
            raise GrammarError(f"line {line}: {text[position : position + 20]!r} cannot be read")
        kind = found.lastgroup
        assert kind is not None
        if kind != "space":
            yield _Token(kind, found[0], line)
        line += 1 if kind == "newline" else found[0].count("\n")
        position = found.end()
    yield _Token("end", "", line)


def _read_characters(token: _Token) -> Series:
    if token.text == ".":
        return (Element(CharacterSet((), is_negated=True)),)
    is_negated = token.text.startswith("[^") and token.text != "[^]"
    codes = list(_read_codes(token.text[2 if is_negated else 1 : -1], token))
    if token.kind == "literal":
        return tuple(Element(CharacterSet(((code, code),))) for code, _ in codes)
    ranges, position = [], 0
    while position < len(codes):
        code, _ = codes[position]
        is_range = codes[position + 1 : position + 2] == [(ord("-"), True)] and position + 2 < len(codes)
        last = codes[position + 2][0] if is_range else code
        if last < code:
            raise GrammarError(f"line {token.line}: {token.text[:20]} has a range that ends before it begins")
        ranges.append((code, last))
        position += 3 if is_range else 1
    return (Element(CharacterSet(tuple(ranges), is_negated)),)


def _read_codes(text: str, token: _Token) -> Iterator[tuple[int, bool]]:
    """Code points, each with whether it was written plainly: an escaped "-" is not a range."""
    position = 0
    while position < len(text):
        found = _CHARACTER.match(text, position)
        if not found:
            raise GrammarError(f"line {token.line}: {text[position : position + 2]} is no escape in GBNF")
        code = found["x"] or found["u"] or found["U"]
        one = found["plain"] or _ESCAPES.get(found["one"], found["one"])
        yield (int(code, 16) if code else ord(one)), found["plain"] is not None
        position = found.end()


def _read_repetition(token: _Token) -> tuple[int, int | None]:
    low, comma, high = {"*": "0,", "+": "1,", "?": "0,1"}.get(token.text, token.text.strip("{}")).partition(",")
    least, most = int(low), int(high) if high.strip() else None if comma else int(low)
    if most is not None and most < least:
        raise GrammarError(f"line {token.line}: {token.text} has a maximum below its minimum")
    return least, most


@dataclass(slots=True)
class _Claim:
    rule: str
    n_missing: int


def _rules_with_an_end(rules: Mapping[str, Sequence[Series]]) -> set[str]:
    """The rules with an alternative that needs only rules of this set, in time proportional to their size."""
    waiting: dict[str, list[_Claim]] = defaultdict(list)
    ready = []
    for name, alternatives in rules.items():
        for series in alternatives:
            needed = [element.symbol for element in series if isinstance(element.symbol, str) and element.least > 0]
            claim = _Claim(name, len(needed))
            for other in needed:
                waiting[other].append(claim)
            if not needed:
                ready.append(name)
    found: set[str] = set()
    while ready:
        name = ready.pop()
        if name in found:
            continue
        found.add(name)
        for claim in waiting[name]:
            claim.n_missing -= 1
            if claim.n_missing == 0:
                ready.append(claim.rule)
    return found
