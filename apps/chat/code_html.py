"""A block of code as HTML with the colours of its language, by Pygments. The text itself is never changed.

Pygments' lexers take quadratic time for some texts (Java: one second for 6,000 empty lines), so each block has a
budget. A single step of a lexer is short if the lines are.
"""

import time
from functools import lru_cache
from html import escape

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Error, Generic, Keyword, Literal, Name, Number, Operator, String, _TokenType

LONGEST = 50_000  # characters; longer code has no colours
LONGEST_LINE = 1000
FIRST = 4000  # characters
BUDGET_SECONDS = 0.05  # of this thread; the code after it has no colours
LANGUAGES = """
bash c c# c++ console cpp csharp css diff docker dockerfile go graphql groovy haskell html ini java javascript
js json jsx julia kotlin latex lua make makefile nginx objc objective-c perl php powershell proto protobuf ps1
py pycon python python3 r rb rs ruby rust scala scss sh shell sql swift terraform tex toml ts tsx typescript vue
xml yaml yml zsh
"""
IS_KNOWN = frozenset(LANGUAGES.split())
CLASSES: dict[_TokenType, str] = {  # the first that contains a token's type; the style sheet has their colours
    Comment: "c",
    Keyword: "k",
    Name.Builtin: "b",
    Name.Function: "f",
    Name.Class: "f",
    Name.Decorator: "f",
    Name.Tag: "k",
    Name.Attribute: "b",
    Name.Exception: "f",
    String: "s",
    Number: "n",
    Literal: "n",
    Operator.Word: "k",
    Generic.Inserted: "s",
    Generic.Deleted: "d",
    Generic.Heading: "f",
    Generic.Subheading: "f",
    Generic.Prompt: "c",
    Error: "",
}


def code_html(code: str, language: str, is_unfinished: bool = False) -> str:
    """The code's HTML, without an element around it. `language` is the first word behind the fence.

    Of a block that is being written only the first lines have colours: they are then made once, not with every update.
    """
    if is_unfinished and len(code) > FIRST:
        end = code.rfind("\n", 0, FIRST) + 1
        return _first_lines_html(code[:end], language) + escape(code[end:], quote=False)
    lexer = _lexer(language)
    if lexer is None or len(code) > LONGEST or max(map(len, code.split("\n"))) > LONGEST_LINE:
        return escape(code, quote=False)
    parts: list[tuple[str, str]] = []
    done, deadline = 0, time.thread_time() + BUDGET_SECONDS
    for position, kind, text in lexer.get_tokens_unprocessed(code):
        if position != done or time.thread_time() > deadline:
            break
        name, done = _class_of(kind), position + len(text)
        if parts and parts[-1][0] == name:
            parts[-1] = (name, parts[-1][1] + text)
        else:
            parts.append((name, text))
    parts.append(("", code[done:]))
    return "".join(
        f'<span class="{name}">{escape(text, quote=False)}</span>' if name else escape(text, quote=False)
        for name, text in parts
    )


@lru_cache(maxsize=64)
def _first_lines_html(code: str, language: str) -> str:
    return code_html(code, language)


def _lexer(language: str) -> Lexer | None:
    name = language.lower()
    return get_lexer_by_name(name) if name in IS_KNOWN else None


@lru_cache(maxsize=512)
def _class_of(kind: _TokenType) -> str:
    return next((name for parent, name in CLASSES.items() if kind in parent), "")
