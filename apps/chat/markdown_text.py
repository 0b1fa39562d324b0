"""A model's or a server's text as Markdown for a page: text first, formulas where they are meant, nothing active.

Knows what Streamlit's Markdown makes of `$`, `![`, `:red[`; HTML is text for it anyway. Knows nothing of pages.
Not covered: indented code blocks show `\\$` for `$` (fenced ones are right).
"""

from __future__ import annotations

import re
import unicodedata

MARKDOWN = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t>]*(?P=fence)|\Z)"  # a block of code, also one still being written
    r"|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\n).)+?(?<!`)(?P=ticks)(?!`)"  # code in a line
    r"|\\\[(?P<display>(?:(?!\n\n).)+?)\\\]|\\\((?P<inline>(?:(?!\n\n).)+?)\\\)"  # LaTeX's own \[ \] and \( \)
    r"|\\."  # an escaped character
    r"|(?P<block>\$\$(?:(?!\n\n|\$\$).)+\$\$)"
    r"|\$(?P<dollars>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\w$])"  # as pandoc has it: no blank inside, nothing beside
    r"|(?P<active>\$|!(?=\[)|:(?=[a-z-]+\[))",  # money, an image, coloured text
    re.MULTILINE | re.DOTALL,
)
# What stands between two dollars is a formula if it has a command or an operator, or is one letter, number or f(x).
OPERATOR = re.compile(r"\\[a-zA-Z]|[\^_=<>+]")
ATOM = re.compile(r"[a-zA-Z]'?|-?\d+(?:\.\d+)?|[a-zA-Z]\([a-zA-Z, ]+\)")
PRICE = re.compile(r"\d[\d.,]*\s+[a-z]{2,}")  # an amount with words after it: "5 a day, or" between two dollars
BLOCK_START = re.compile(r"^(?P<mark>(?:[ \t]*(?:[-*+]|\d+[.)]|#{1,6}|>)(?=[ \t]))*[ \t]*)(?=\S)", re.MULTILINE)
RIGHT_TO_LEFT_ISOLATE = "\u2067"


def text_as_markdown(text: str) -> str:
    """Prices, images and `:red[` stay as written, code is left alone, formulas become Streamlit's `$` and `$$`."""
    return MARKDOWN.sub(_replaced, text)


def is_right_to_left(text: str) -> bool:
    """Whether the first letter is of a script written from right to left."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            return kind != "L"
    return False


def with_direction(text: str) -> str:
    """Markdown whose right-to-left lines say so, since a page's own direction would misplace their punctuation."""
    if not any(unicodedata.bidirectional(character) in ("R", "AL") for character in text):
        return text
    lines = []
    is_code = False
    for line in text.split("\n"):
        if line.lstrip(" \t>").startswith(("```", "~~~")):
            is_code = not is_code
        elif not is_code and is_right_to_left(line) and not line.lstrip().startswith("|"):
            line = BLOCK_START.sub(lambda found: found["mark"] + RIGHT_TO_LEFT_ISOLATE, line, count=1)
        lines.append(line)
    return "\n".join(lines)


def _replaced(found: re.Match[str]) -> str:
    for name, mark in (("display", "$$"), ("inline", "$")):
        if found[name] is not None:
            return f"{mark}{found[name].strip()}{mark}"
    if found["dollars"] is not None:
        inside = found["dollars"]
        is_formula = ATOM.fullmatch(inside) or (OPERATOR.search(inside) and not PRICE.match(inside))
        return found[0] if is_formula else f"\\${text_as_markdown(inside)}\\$"
    return f"\\{found[0]}" if found["active"] else found[0]
