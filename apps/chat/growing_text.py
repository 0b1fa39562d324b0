r"""A text that a model is writing, as HTML blocks: only its last block is rendered again when it grows.

A block is final once the next one has begun with a complete line: until then a list may go on, and an incomplete line
may turn out to be something else (`2` begins a paragraph, `2.` an item of the list above it).

What would change its look when it is complete is held back meanwhile: half a fence, the head of a table, a formula
without its end, half a link. Knows nothing of pages.
"""

import re

from apps.chat.markdown_html import render

LONGEST_HELD = 600  # characters; after that the text is shown as it is
HALF_FENCE = re.compile(r"(?:^|\n)[ \t>]*(?:`+|~{2,})[^`\n]*\Z")  # a line that begins a block of code, or ends one
TABLE_HEAD = re.compile(r"(?:^|\n)[ \t>]*\|[^\n]*(?:\n[ \t>]*[|:-][ |:-]*)?\Z")
HALF_LINK = re.compile(r"!?\[[^\[\]\n]*(?:\](?:\([^()\s]*)?)?\Z")
HALF_MARK = re.compile(r"(?:\\|\$|[*_~]{1,3})\Z")
# A formula's opening marks, and code, where they mean nothing.
FORMULA = re.compile(r"(?P<code>`+).*?(?P=code)|\\\\|\\[^()\[\]]|(?P<mark>\\\(|\\\[|\$\$)", re.DOTALL)
ENDS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}


class GrowingText:
    """blocks: the HTML of all blocks so far; all but the last are final. final: how many of them."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.final = 0
        self._text = ""
        self._start = 0  # of the first block that is not final

    def update(self, text: str) -> None:
        """Renders what is new. A text that does not begin with the one before it is rendered anew."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # as the parser counts lines
        if not text.startswith(self._text):
            self.final, self._start, self.blocks = 0, 0, []
        self._text = text
        tail = text[self._start :]
        shown = tail[: len(tail) - len(held_back(tail))]
        blocks = list(render(shown, is_unfinished=True))
        self.blocks[self.final :] = [block.html for block in blocks]
        complete = tail[: tail.rfind("\n") + 1].count("\n")  # lines
        last = max((index for index, block in enumerate(blocks) if block.line < complete), default=0)
        if last > 0 and len(shown) == len(tail):
            lines = shown.split("\n")
            self._start += sum(len(line) + 1 for line in lines[: blocks[last].line])
            self.final += last


def held_back(tail: str) -> str:
    """The end of a text that is not to be shown yet."""
    window = tail[-LONGEST_HELD:]
    if is_in_code_block(tail):
        found = HALF_FENCE.search(window)
        return found[0].removeprefix("\n") if found else ""
    for pattern in (HALF_FENCE, TABLE_HEAD, HALF_LINK, HALF_MARK):
        found = pattern.search(window)
        if found and (pattern is not TABLE_HEAD or _begins_paragraph(tail, len(tail) - len(found[0]))):
            return found[0].removeprefix("\n")
    return _unfinished_formula(tail)


def is_in_code_block(tail: str) -> bool:
    """Whether the text is in a fence that is still open, as its last block. Nested fences are counted."""
    opening = ""
    depth = 0
    for line in tail.split("\n")[:-1]:
        found = re.match(r"[ \t>]*(`{3,}|~{3,})[ \t]*([^`\n]*)$", line)
        if not found:
            continue
        if not opening:
            opening, depth = found[1], 1
        elif found[1][0] == opening[0] and len(found[1]) >= len(opening) and not found[2].strip():
            depth -= 1
            opening = opening if depth else ""
    return bool(opening)


def _begins_paragraph(tail: str, start: int) -> bool:
    """Whether the line before this place is empty, so that a table can begin here."""
    return not tail[:start].rstrip(" \t").rpartition("\n")[2].strip(" \t>")


def _unfinished_formula(tail: str) -> str:
    """Of the last paragraph: a formula ends with its paragraph."""
    position = tail.rfind("\n\n") + 1
    while found := FORMULA.search(tail, position):
        position = found.end()
        if mark := found["mark"]:
            position = tail.find(ENDS[mark], position) + 2
            if position < 2:
                return tail[found.start() :] if len(tail) - found.start() <= LONGEST_HELD else ""
    return ""
