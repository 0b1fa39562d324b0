"""A person's or a model's words as the label of a Streamlit element, in which every character is only itself.

Streamlit's labels are Markdown, with icons (`:material/delete:`), emoji (`:smile:`) and signs (`->`, `--`, `>=`) added,
which no backslash prevents. An invisible word joiner between their characters does. Characters that turn the direction
of the words after them are left out: those words are often the page's own.
"""

import re
import unicodedata
from typing import Literal

MARKS = frozenset("\\`*_{}[]()#+-.!$:<>~|&=")
REPLACED = re.compile(r"(?<=:)(?=[\w+-])|(?<=[-<>~=])(?=[-<>=])")
WORD_JOINER = "\u2060"
TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])  # Unicode's embeddings, overrides and isolates


def as_label(text: str) -> str:
    joined = REPLACED.sub(WORD_JOINER, " ".join(text.translate(TURNS).split()))
    return "".join(f"\\{letter}" if letter in MARKS else letter for letter in joined)


def direction_of(text: str) -> Literal["ltr", "rtl"]:
    """The direction in which the text is read: that of its first letter, as HTML's `dir="auto"` has it."""
    for letter in text:
        kind = unicodedata.bidirectional(letter)
        if kind in ("L", "R", "AL"):
            return "ltr" if kind == "L" else "rtl"
    return "ltr"
