"""Translates a grammar in GBNF, llama.cpp's notation, into Lark, which llguidance compiles. Knows nothing of tokens.

The syntax is that of llama.cpp's grammars/README.md. Each character becomes a terminal of its own: llguidance's lexer
prefers the longest terminal, so longer ones would lose texts that the grammar allows.

Not covered: token elements such as `<think>` or `!<[5]>`, which are refused.
"""

import re
from collections.abc import Iterator

MAX_DEPTH = 50  # of parentheses
UNBOUNDED = 1_000_000  # characters; a maximum of more is none, because no answer is that long
LAST_CODE, SURROGATES = 0x10FFFF, range(0xD800, 0xE000)

_TOKENS = re.compile(
    r"""
    (?P<space>[ \t]+|\#[^\r\n]*)
    |(?P<newline>\r\n?|\n)
    |(?P<literal>"(?:[^"\\]|\\.)*")
    |(?P<characters>\[\^?(?:[^\]\\]|\\.)+\]|\.)
    |(?P<rule>[a-zA-Z0-9-]+[ \t]*::=)
    |(?P<name>[a-zA-Z0-9-]+)
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

_Alternatives = list[list[str]]  # each a sequence of items in Lark


class GrammarError(ValueError):
    """A grammar that cannot be used; the message says where and why."""


def gbnf_to_lark(text: str) -> str:
    """The same grammar in Lark, where the rule `root` is called `start`. Raises GrammarError."""
    names = {"root": "start"}  # of rules: in GBNF, and in Lark
    rules: dict[str, _Alternatives] = {}
    stack: list[_Alternatives] = []  # the rule that is being parsed, and the groups in parentheses that are open in it
    last = ""
    for kind, token, line in _tokenize(text):
        if kind == "newline":
            if len(stack) == 1 and last not in ("rule", "|"):
                stack = []
            continue
        if kind == "rule":
            name = token.removesuffix("::=").strip()
            if stack or names.setdefault(name, f"r{len(names)}") in rules:
                raise GrammarError(
                    f"line {line}: {name[:40]} {'is not expected here' if stack else 'is defined twice'}"
                )
            stack = [[[]]]
            rules[names[name]] = stack[0]
        elif not stack or (token == ")" and len(stack) == 1):
            raise GrammarError(f"line {line}: {token[:20]} stands where the name of a rule and '::=' are expected")
        elif token == "(":
            stack.append([[]])
            if len(stack) > MAX_DEPTH + 1:
                raise GrammarError(f"line {line}: it is more than {MAX_DEPTH} parentheses deep")
        elif token == ")":
            group = f"g{len(rules)}"  # a rule of its own: llguidance limits how deep parentheses are nested
            rules[group] = stack.pop()
            stack[-1][-1].append(group)
        elif token == "|":
            stack[-1].append([])
        elif kind == "repeat":
            if last in ("rule", "repeat", "(", "|"):
                raise GrammarError(
                    f"line {line}: {token} has nothing to repeat, or repeats a repetition: use parentheses"
                )
            stack[-1][-1][-1] += _repetition(token, line)
        else:
            stack[-1][-1].append(
                names.setdefault(token, f"r{len(names)}") if kind == "name" else _terminals(token, line)
            )
        last = token if kind == "mark" else kind
    if len(stack) > 1:
        raise GrammarError("the end stands where ')' is expected")
    for name, lark_name in names.items():
        if lark_name not in rules:
            raise GrammarError(f"there is no rule named {name[:40]}: it is not defined")
    if not _has_an_end(rules):
        raise GrammarError("no text can ever match it: some rule has no end")
    return "".join(_rule(name, alternatives) for name, alternatives in rules.items())


def _rule(name: str, alternatives: _Alternatives) -> str:
    """A rule in Lark. `x: a x | b` becomes `x: a* b`: so the time for a token does not grow with the text."""
    repeated = [each[:-1] for each in alternatives if each[-1:] == [name] and len(each) > 1]
    ends = [each for each in alternatives if each[-1:] != [name]]
    return f"{name}: {_group(repeated) + '* ' if repeated else ''}{_group(ends)}\n"


def _group(alternatives: _Alternatives) -> str:
    return "(" + " | ".join(" ".join(items) or '""' for items in alternatives) + ")"


def _has_an_end(rules: dict[str, _Alternatives]) -> bool:
    """False if each text of `start` needs a rule that needs itself. Finds the usual cases, not those in repetitions."""
    ended: set[str] = set()
    for _ in range(100):  # a longer chain of rules is taken for one that ends
        found = {
            name
            for name, alternatives in rules.items()
            if any(all(item in ended or item not in rules for item in items) for items in alternatives)
        }
        if found == ended:
            return "start" in ended
        ended = found
    return True


def _tokenize(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and line of each token."""
    position, line = 0, 1
    while position < len(text):
        found = _TOKENS.match(text, position)
        if not found:
            raise GrammarError(f"line {line}: {text[position : position + 20]!r} is not valid in GBNF")
        if found.lastgroup != "space":
            yield str(found.lastgroup), found[0], line
        line += 1 if found.lastgroup == "newline" else found[0].count("\n")
        position = found.end()


def _terminals(token: str, line: int) -> str:
    """A literal or a character class in Lark: one terminal for each character."""
    if token == ".":
        return r"/[\x{0}-\x{10FFFF}]/"
    sign = "^" if token.startswith("[^") and token != "[^]" else ""
    codes = list(_codes(token[1 + len(sign) : -1], line))
    if token.startswith('"'):
        return _group([[_terminal([(code, code)], "", token, line) for code, _ in codes]])
    ranges, position = [], 0
    while position < len(codes):
        code, _ = codes[position]
        is_range = codes[position + 1 : position + 2] == [(ord("-"), True)] and position + 2 < len(codes)
        ranges.append((code, codes[position + 2][0] if is_range else code))
        position += 3 if is_range else 1
    return _terminal(ranges, sign, token, line)


def _terminal(ranges: list[tuple[int, int]], sign: str, token: str, line: int) -> str:
    """A regular expression of one character. Codes that no character has are left out."""
    parts = []
    for low, high in ranges:
        if high < low:
            raise GrammarError(f"line {line}: {token[:20]} has a range that ends before it begins")
        low = SURROGATES.stop if low in SURROGATES else low
        high = min(SURROGATES.start - 1 if high in SURROGATES else high, LAST_CODE)
        parts += [rf"\x{{{low:X}}}-\x{{{high:X}}}"] if low <= high else []
    if not parts:
        raise GrammarError(f"line {line}: {token[:20]} has codes that no character has")
    return f"/[{sign}{''.join(parts)}]/"


def _codes(text: str, line: int) -> Iterator[tuple[int, bool]]:
    """Code points, and whether each is a character without an escape: an escaped "-" is not a range."""
    position = 0
    while position < len(text):
        found = _CHARACTER.match(text, position)
        if not found:
            raise GrammarError(f"line {line}: {text[position : position + 2]} is no escape in GBNF")
        code = found["x"] or found["u"] or found["U"]
        one = found["plain"] or _ESCAPES.get(found["one"], found["one"])
        yield (int(code, 16) if code else ord(one)), found["plain"] is not None
        position = found.end()


def _repetition(token: str, line: int) -> str:
    low, comma, high = {"*": "0,", "+": "1,", "?": "0,1"}.get(token, token.strip("{}")).partition(",")
    least, most = int(low), int(high) if high.strip() else None if comma else int(low)
    if most is not None and most < least:
        raise GrammarError(f"line {line}: {token} has a maximum below its minimum")
    return f"{{{least},{'' if most is None or least < UNBOUNDED <= most else most}}}"
