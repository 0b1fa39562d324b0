r"""A model's Markdown as HTML for a page: exactly the characters that the model wrote, without its marks.

One parser decides what is code, a link or a formula: markdown-it (CommonMark with tables and `~~`), with the changes of
markdown_rules.py. The HTML has no picture, script, style, form or colour, whatever the text is; its links lead to http,
https and mailto only. `white-space: pre-wrap` is expected of the page: line breaks and blanks are in the text.

Knows nothing of pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.common.utils import unescapeAll
from markdown_it.token import Token

from apps.chat.code_html import code_html
from apps.chat.formulas import mathml
from apps.chat.markdown_rules import BESIDE, DEEPEST, add_rules

COPY = (
    '<button type="button" class="copy" aria-label="Copy the code" title="Copy the code">'
    '<svg viewBox="0 0 24 24" aria-hidden="true"><rect x="9" y="9" width="11" height="12" rx="1.5"/>'
    '<path d="M15 5V4a1 1 0 0 0-1-1H5a1 1 0 0 0-1 1v12h1"/></svg></button>'
)
TAGS = {"em": "em", "strong": "strong", "s": "del"}
SCHEMES = ("http", "https", "mailto")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list, table … that is in no other. line: where it begins in the text, counted from 0."""

    line: int
    html: str


@lru_cache(maxsize=512)
def answer_blocks(text: str) -> tuple[Block, ...]:
    """The blocks of a finished text. A page draws them in every run, so they are remembered."""
    return tuple(render(text))


def render(text: str, is_unfinished: bool = False) -> Iterator[Block]:
    """The blocks of a text, of which more will come if it `is_unfinished`."""
    tokens = _parser().parse(text, {"is_unfinished": is_unfinished})
    start = 0
    for index, token in enumerate(tokens):
        if token.level == 0 and token.nesting <= 0:  # the end of a block, or one that is a single token
            block = tokens[start : index + 1]
            line = block[0].map[0] if block[0].map else 0
            is_last = index == len(tokens) - 1
            yield Block(line, "".join(_block_html(block, is_unfinished and is_last)))
            start = index + 1


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "maxNesting": DEEPEST + 10})
    parser.enable(["table", "strikethrough"]).disable(["html_block", "html_inline", "reference"])
    add_rules(parser)
    parser.validateLink = _is_harmless  # type: ignore[method-assign]
    return parser


def _is_harmless(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in SCHEMES and (parts.scheme == "mailto" or bool(parts.hostname))
    except ValueError:  # as in http://[
        return False


def _block_html(tokens: Sequence[Token], is_unfinished: bool) -> Iterator[str]:
    for token in tokens:
        # A list or a table has one direction, that of its first letter; so has what is in it.
        direction = ' dir="auto"' if token.level == 0 else ""
        match token.type:
            case "inline":
                yield _inline_html(token.children or [])
            case "paragraph_open" | "paragraph_close" if token.hidden:
                pass  # of a list without empty lines
            case "fence" | "code_block":
                yield _code_block_html(token, is_unfinished)
            case "formula":
                yield _formula_html(token, "div")
            case "hr":
                yield "<hr>"
            case "table_open":
                yield f'<div class="table"><table{direction}>'
            case "table_close":
                yield "</table></div>"
            case "list_item_open":
                yield f"<li{_number(token)}>"
            case "th_open" | "td_open":
                side = str(token.attrs.get("style", "")).removeprefix("text-align:")
                yield f'<{token.tag} class="{side}">' if side else f"<{token.tag}>"
            case _:
                yield f"<{token.tag}{direction}>" if token.nesting == 1 else f"</{token.tag}>"


def _number(item: Token) -> str:
    """A list item's number as the model wrote it: HTML would count on from the first one."""
    if not item.info:
        return ""
    marker = f"{item.info}{item.markup}"
    value = int(item.info)
    return f' value="{value}"' + ("" if marker == f"{value}." else f' data-marker="{marker} "')


def _code_block_html(token: Token, is_unfinished: bool) -> str:
    label = unescapeAll(token.info).strip() if token.type == "fence" else ""
    code = code_html(token.content, label.split(" ")[0], is_unfinished)
    head = f'<div class="head" data-ui><span>{escape(label)}</span>{COPY}</div>'
    return f'<div class="code" dir="ltr">{head}<pre><code>{code}</code></pre></div>'


def _formula_html(token: Token, tag: str) -> str:
    is_display = token.markup in ("\\[", "$$")
    drawn = mathml(token.content.strip(), is_display)
    if drawn is None:
        source = token.markup + token.content + BESIDE.get(token.markup, token.markup)
        return f'<{tag} class="source" dir="ltr">{escape(source, quote=False)}</{tag}>'
    return f'<{tag} class="formula">{drawn}</{tag}>' if is_display else drawn


def _inline_html(tokens: Sequence[Token]) -> str:
    parts: list[str] = []
    for index, token in enumerate(tokens):
        match token.type:
            case "text" | "text_special":
                parts.append(escape(token.content, quote=False))
            case "softbreak" | "hardbreak":
                parts.append("\n")
            case "code_inline":
                parts.append(f'<code dir="ltr">{escape(token.content, quote=False)}</code>')
            case "formula":
                parts.append(_formula_html(token, "span"))
            case "link_open":
                parts.append(_link_html(str(token.attrs["href"]), tokens[index + 1 :]))
            case "link_close":
                parts.append("</a>")
            case _:
                parts.append(f"<{TAGS[token.tag]}>" if token.nesting == 1 else f"</{TAGS[token.tag]}>")
    return "".join(parts)


def _link_html(url: str, following: Sequence[Token]) -> str:
    """A link that says where it leads: its address as the title, and its host unless the text is the address."""
    text = ""
    for token in following:
        if token.type == "link_close":
            break
        text += token.content
    host = urlsplit(url).hostname or url.removeprefix("mailto:")
    written = text.lower().removeprefix("https://").removeprefix("http://").split("/")[0]
    shown = "" if written == host else f' data-host="{escape(host)}"'
    href = escape(url)
    return f'<a href="{href}" title="{href}"{shown} target="_blank" rel="noopener noreferrer">'
