r"""Our changes of CommonMark, as rules of markdown-it: formulas, pictures, web addresses, nested fences, lost text.

A model's answer is meant as Markdown, but not always written as CommonMark wants it. Where CommonMark would drop or
misread text, these rules show it:

- `\(…\)`, `\[…\]`, `$$…$$` and `$…$` are formulas; two prices in a line are not.
- A picture is shown as the text that it is: its address could send the conversation to somebody.
- Definitions of references (`[1]: …`) are text too, and so are HTML tags. (markdown_html.py turns those rules off.)
- A `markdown` block can have blocks in it, each with its own end.
- Text in very deep lists, and cells beyond the last column of a table, are shown.
- `https://…` is a link without any marks.

Source of the rules' interface: markdown-it-py's own rules (rules_block, rules_inline).
"""

import re

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_block.table import escapedSplit, getLine
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline, image
from markdown_it.token import Token

DEEPEST = 24  # blocks within each other; the text below is one paragraph
BESIDE = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}  # a formula's marks
DISPLAY = {"\\[": "\\]", "$$": "$$"}  # a formula on lines of its own
# What stands between two dollars is a formula if it has a command or an operator, or is one letter, number or f(x).
DOLLARS = re.compile(r"\$(?P<inside>(?![\s$])(?:\\.|[^$\\\n]){1,400}?)(?<!\s)\$(?![\w$])")
OPERATOR = re.compile(r"\\[a-zA-Z$]|[\^_=<>+]")
ATOM = re.compile(r"[a-zA-Z]'?|-?\d+(?:\.\d+)?|[a-zA-Z]\([a-zA-Z, ]+\)")
PRICE = re.compile(r"\d[\d.,]*\s+[a-z]{2,}")  # an amount with words after it: "5 a day, or" between two dollars
# No address has Unicode's embeddings, overrides and isolates: they would show `exe.png` for `gnp.exe`.
TURNS = r"\u202a-\u202e\u2066-\u2069"
ADDRESS = re.compile(rf"\bhttps?://[^\s<>\"'`\\|*_~{TURNS}]+[^\s<>\"'`\\|{TURNS}]*", re.IGNORECASE)
CLOSERS = {")": "(", "]": "["}
FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*?)[ \t]*$")
DEEPEST_FENCE = 8
WIDEST = 30  # columns; in a wider table the cells that a row does not have are not added, as they could be 65,536
NESTING = {"markdown", "md", "mdx", "rmd", "qmd"}  # languages whose text has fences


def add_rules(parser: MarkdownIt) -> None:
    parser.block.ruler.before("table", "deep", _deep)
    parser.block.ruler.at("table", _table_with_all_cells, {"alt": ["paragraph", "reference"]})
    parser.block.ruler.before(
        "fence", "nested_fence", _nested_fence, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.block.ruler.before(
        "fence", "formula_block", _formula_block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.at("image", _picture_as_text)
    parser.core.ruler.push("addresses", _link_addresses)


def is_formula(inside: str) -> bool:
    """Whether this is a formula if it stands between two dollars."""
    return bool(ATOM.fullmatch(inside) or (OPERATOR.search(inside) and not PRICE.match(inside)))


# --- blocks


def _deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it drops text that is nested more deeply than its option `maxNesting`."""
    if state.level < DEEPEST:
        return False
    if not silent:
        state.line = end
        opening = state.push("paragraph_open", "p", 1)
        inline = state.push("inline", "", 0)
        state.push("paragraph_close", "p", -1)
        inline.content = state.getLines(start, end, state.blkIndent, False).strip()
        inline.children = []
        opening.map = inline.map = [start, end]
    return True


def _table_with_all_cells(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """The usual rule, but a row's cells beyond the last column are not dropped."""
    first = len(state.tokens)
    if not table(state, start, end, silent):
        return False
    if silent:
        return True
    rows = state.tokens[first:]
    del state.tokens[first:]
    is_wide = sum(token.type == "th_open" for token in rows) > WIDEST
    columns, line, cells = 0, 0, list[str]()
    for token in rows:
        if token.type == "tr_open" and token.map:
            columns, line = 0, token.map[0]
            cells = escapedSplit(getLine(state, line).strip().removeprefix("|"))
            if cells and not cells[-1]:
                cells.pop()
        columns += token.type in ("th_open", "td_open")
        if token.type == "tr_close":
            for cell in cells[columns:]:
                state.tokens += _cell(cell.strip(), line, token.level)
        is_added = columns > len(cells) and token.type in ("td_open", "inline", "td_close")
        if not (is_wide and is_added):
            state.tokens.append(token)
    return True


def _cell(text: str, line: int, level: int) -> list[Token]:
    opening, closing = Token("td_open", "td", 1, level=level), Token("td_close", "td", -1, level=level)
    inline = Token("inline", "", 0, content=text, children=[], level=level + 1, map=[line, line + 1])
    return [opening, inline, closing]


def _nested_fence(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """A `markdown` block in which each fence with a language opens a block of its own, and the next bare one closes it.

    CommonMark would end the outer block with the first bare fence, which models mean as the end of an inner block. If
    the outer block has no end then, it is read as CommonMark does; while an answer is written, it just is not finished.
    """
    opening = _fence_at(state, start)
    if opening is None or opening["info"].split(" ")[0].lower() not in NESTING:
        return False
    depth, is_nested = 1, False
    for line in range(start + 1, end):
        if not state.isEmpty(line) and state.sCount[line] < state.blkIndent:
            return False
        found = _fence_at(state, line)
        if found is None or found["marks"][0] != opening["marks"][0]:
            continue
        if found["info"]:
            depth, is_nested = depth + 1, True
        elif len(found["marks"]) >= len(opening["marks"]) or depth > 1:
            depth -= 1
        if depth > DEEPEST_FENCE:
            return False
        if depth == 0:
            return is_nested and _push_fence(state, start, line, line + 1, silent)
    return is_nested and bool(state.env.get("is_unfinished")) and _push_fence(state, start, end, end, silent)


def _fence_at(state: StateBlock, line: int) -> re.Match[str] | None:
    if state.is_code_block(line):
        return None
    return FENCE.match(getLine(state, line))


def _push_fence(state: StateBlock, start: int, last: int, after: int, silent: bool) -> bool:
    if not silent:
        opening = _fence_at(state, start)
        assert opening
        state.line = after
        token = state.push("fence", "code", 0)
        token.info, token.markup, token.map = opening["info"], opening["marks"], [start, after]
        token.content = state.getLines(start + 1, last, state.sCount[start], True)
    return True


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    r"""A formula on lines of its own: without this, a line of it that begins with `-` or `+` would be a list."""
    if state.is_code_block(start):
        return False
    line = getLine(state, start)
    opener = line[:2]
    closer = DISPLAY.get(opener)
    if closer is None:
        return False
    text = line[2:]
    for last in range(start, end):
        if last > start:
            if state.isEmpty(last) or state.sCount[last] < state.blkIndent:
                return False
            text += "\n" + getLine(state, last)
        at = text.find(closer)
        if at < 0:
            continue
        if text[at + 2 :].strip() or not text[:at].strip():
            return False  # something stands behind it in this line: the paragraph's rule finds the formula
        if not silent:
            state.line = last + 1
            token = state.push("formula", "math", 0)
            token.content, token.markup, token.block, token.map = text[:at], opener, True, [start, last + 1]
        return True
    return False


# --- within a paragraph


def _formula(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)`, `\[…\]`, `$$…$$` and `$…$`."""
    opener = state.src[state.pos : state.pos + 2]
    if opener in BESIDE:
        start = state.pos + 2
        end = _end_of(state, BESIDE[opener], start)
        if end > start and (opener == "$$" or state.src.find(opener, start, end) < 0):
            return _push_formula(state, opener, state.src[start:end], end + 2, silent)
    if opener[0] != "$" or _is_word(state.src[state.pos - 1 : state.pos]):
        return False
    found = DOLLARS.match(state.src, state.pos, state.posMax)
    if found is None or not is_formula(found["inside"]):
        return False
    return _push_formula(state, "$", found["inside"], found.end(), silent)


def _is_word(character: str) -> bool:
    return character.isalnum() or character in {"$", "_"}


def _end_of(state: StateInline, closer: str, start: int) -> int:
    """Where the closing mark is, or -1. What is absent is searched for once: else many openings take quadratic time."""
    absent = state.env.setdefault("without_closer", set())
    if (state.src, closer) in absent:
        return -1
    at = state.src.find(closer, start)
    if at < 0:
        absent.add((state.src, closer))
    return at if at < state.posMax else -1


def _push_formula(state: StateInline, mark: str, inside: str, end: int, silent: bool) -> bool:
    if not inside.strip():
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content, token.markup = inside, mark
    state.pos = end
    return True


def _picture_as_text(state: StateInline, silent: bool) -> bool:
    start = state.pos
    if not image(state, True):
        return False
    if not silent:
        state.append_pending(state.src[start : state.pos])
    return True


# --- afterwards


def _link_addresses(state: StateCore) -> None:
    """Web addresses in the text become links, except inside of other links."""
    for block in state.tokens:
        if block.type != "inline" or "://" not in block.content:
            continue
        children: list[Token] = []
        in_link = 0
        for token in block.children or ():
            in_link += token.nesting if token.type in ("link_open", "link_close") else 0
            if token.type == "text" and not in_link and "://" in token.content:
                children += _split_at_addresses(token.content, state.md)
            else:
                children.append(token)
        block.children = children


def _split_at_addresses(text: str, parser: MarkdownIt) -> list[Token]:
    tokens: list[Token] = []
    done = 0
    for found in ADDRESS.finditer(text):
        if found.start() and text[found.start() - 1] == "(" and text[: found.start()].endswith("]("):
            continue  # of a picture or of a link that is not one
        address = _without_punctuation(found[0])
        href = parser.normalizeLink(address)
        if not parser.validateLink(href):
            continue
        end = found.start() + len(address)
        tokens.append(Token("text", "", 0, content=text[done : found.start()]))
        tokens.append(Token("link_open", "a", 1, attrs={"href": href}))
        tokens.append(Token("text", "", 0, content=address))
        tokens.append(Token("link_close", "a", -1))
        done = end
    tokens.append(Token("text", "", 0, content=text[done:]))
    return [token for token in tokens if token.type != "text" or token.content]


def _without_punctuation(address: str) -> str:
    """As in GitHub's Markdown: the punctuation of the sentence, and a bracket that the address does not open."""
    unopened = {closer: address.count(closer) - address.count(opener) for closer, opener in CLOSERS.items()}
    end = len(address)
    while (last := address[end - 1]) in ".,:;!?)]*_~" and unopened.get(last, 1) > 0:
        if last in unopened:
            unopened[last] -= 1
        end -= 1
    return address[:end]
