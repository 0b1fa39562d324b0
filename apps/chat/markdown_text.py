"""A model's or a server's text as Markdown for a page: formulas are drawn; images, colours and prices stay text.

Knows how Streamlit's Markdown interprets `$`, `![`, `:red[`; Streamlit shows HTML as text anyway. Knows nothing of
pages.

Not covered: indented code blocks show `\\$` for `$` (fenced ones are right). Code shows `![` with an invisible
character in it; the answer's copy button has the original.
"""

import re
import unicodedata

MARKDOWN = re.compile(
    r"^[ \t>]*(?P<fence>`{3,}|~{3,}).*?(?:^[ \t>]*(?P=fence)|\Z)"  # a block of code, also an unfinished one
    r"|(?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\n).){1,4000}?(?<!`)(?P=ticks)(?!`)"  # code in a line
    # LaTeX's own \[ \] and \( \). A second opening ends the attempt: without it, many openings cost quadratic time.
    r"|\\\[(?P<display>(?:(?!\n\n|(?<!\\)\\\[).)+?)\\\]|\\\((?P<inline>(?:(?!\n\n|(?<!\\)\\\().)+?)\\\)"
    r"|\\."  # an escaped character
    r"|(?P<block>\$\$(?:(?!\n\n|\$\$).)+\$\$)"
    r"|\$(?P<dollars>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?![\w$])"  # as in pandoc: no blank inside, nothing beside
    r"|(?P<active>\$|:(?=[a-z-]+\[))",  # money, coloured text
    re.MULTILINE | re.DOTALL,
)
# What stands between two dollars is a formula if it has a command or an operator, or is one letter, number or f(x).
OPERATOR = re.compile(r"\\[a-zA-Z]|[\^_=<>+]")
ATOM = re.compile(r"[a-zA-Z]'?|-?\d+(?:\.\d+)?|[a-zA-Z]\([a-zA-Z, ]+\)")
PRICE = re.compile(r"\d[\d.,]*\s+[a-z]{2,}")  # an amount with words after it: "5 a day, or" between two dollars
BLOCK_START = re.compile(r"^(?P<mark>(?:[ \t]*(?:[-*+]|\d+[.)]|#{1,6}|>)(?=[ \t]))*[ \t]*)(?=\S)", re.MULTILINE)
RIGHT_TO_LEFT_ISOLATE = "\u2067"
IMAGE, NO_IMAGE = "![", "!\u200b["


def text_as_markdown(text: str) -> str:
    """Prices and `:red[` stay text, formulas become Streamlit's `$` and `$$`, code is not changed, except for `![`.

    Images are disabled everywhere, because an image's URL can send the conversation to a stranger's server. Where code
    begins and ends is up to the browser's parser, which disagrees with these rules in rare cases.
    """
    return MARKDOWN.sub(_replaced, text).replace(IMAGE, NO_IMAGE)


def is_right_to_left(text: str) -> bool:
    """Whether the first letter is of a script written from right to left."""
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            return kind != "L"
    return False


def with_direction(text: str) -> str:
    """Markdown whose right-to-left lines are marked: else the page's direction misplaces their punctuation."""
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
