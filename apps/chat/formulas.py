r"""A LaTeX formula as MathML, which every current browser draws without scripts and fonts of its own.

latex2mathml converts; its result is never used as it is, since it passes `\href`, `\color` and any size on. Only known
elements and attributes are copied. A formula that cannot be converted stays text, with its marks.
"""

import re
from functools import lru_cache
from html import escape
from xml.etree.ElementTree import Element

from latex2mathml import exceptions
from latex2mathml.converter import convert_to_element

LONGEST = 4000  # characters; the time grows with the length: about 30 ms
DEEPEST = 100  # elements within each other
LONGEST_SPACE = 3.0  # em: more would draw a formula's parts over other text
DEFINITIONS = re.compile(r"\\(?:def|let|(?:re)?newcommand|(?:re)?newenvironment|DeclareMathOperator)(?![a-zA-Z])")
# Environments that latex2mathml does not know, and the known ones that look the same.
ENVIRONMENTS = {
    "aligned": "align*",
    "alignat": "align*",
    "eqnarray": "align*",
    "eqnarray*": "align*",
    "gather": "matrix",
    "gather*": "matrix",
    "gathered": "matrix",
    "multline": "matrix",
    "multline*": "matrix",
    "dcases": "cases",
    "align": "align*",  # which would number its lines
}
ENVIRONMENT = re.compile(r"\\(begin|end)\s*\{([a-z]+\*?)\}")
SIMPLE = re.compile(r"\\(?:begin|end)\s*\{(?:equation\*?|displaymath|math|subequations)\}|\\label\{[^{}]*\}")
COMMENT = re.compile(r"(?<!\\)%")  # a model that writes "50% of x" means the sign
CHARACTER = re.compile(r"&#x([0-9A-Fa-f]+);")  # as latex2mathml writes characters
# What latex2mathml raises for a text that is not LaTeX: a class for each fault that it knows, or one of Python's.
FAULTS: tuple[type[Exception], ...] = (
    *(value for value in vars(exceptions).values() if isinstance(value, type) and issubclass(value, Exception)),
    *(AttributeError, IndexError, KeyError, RecursionError, RuntimeError, StopIteration, TypeError, ValueError),
)

N_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
GROUPS = {"mrow", "mstyle", "msqrt", "mtable", "mtr", "mtd", "mpadded", "mphantom", "menclose", *N_CHILDREN}
TEXTS = {"mi", "mn", "mo", "ms", "mtext", "mspace"}
LIMITS = {"lim", "max", "min", "sup", "inf", "argmax", "argmin"}
UNDER = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}
WORDS = {  # attributes and their possible values
    "columnalign": {"left", "center", "right"},
    "displaystyle": {"true", "false"},
    "fence": {"true", "false"},
    "form": {"prefix", "infix", "postfix"},
    "accent": {"true", "false"},
    "accentunder": {"true", "false"},
    "largeop": {"true", "false"},
    "mathvariant": {"normal"},
    "movablelimits": {"true", "false"},
    "notation": {"box"},
    "scriptlevel": {"0", "1", "2"},
    "separator": {"true", "false"},
    "stretchy": {"true", "false"},
    "symmetric": {"true", "false"},
    "linethickness": {"0", "0px", "0em"},
}
LENGTHS = {"width", "height", "depth", "lspace", "rspace", "voffset", "minsize", "maxsize"}
LENGTH = re.compile(r"[+-]?\d*\.?\d+(em|ex|px|pt)?")
EM = {"em": 1.0, "ex": 0.5, "px": 1 / 16, "pt": 1 / 12, None: 1.0}


class NotAFormula(ValueError):
    """The text is not LaTeX, or not LaTeX that can be drawn."""


@lru_cache(maxsize=2048)
def mathml(latex: str, is_display: bool = False) -> str | None:
    """HTML of the formula, with its source as the annotation; None if it cannot be drawn."""
    if len(latex) > LONGEST or DEFINITIONS.search(latex):
        return None
    known = COMMENT.sub(r"\\%", ENVIRONMENT.sub(_known_environment, SIMPLE.sub("", latex)))
    display = "block" if is_display else "inline"
    try:
        (content,) = convert_to_element(known, display=display)
        drawn = _copied(content, is_display, 0)
    except FAULTS:
        return None
    annotation = f'<annotation encoding="application/x-tex">{escape(latex, quote=False)}</annotation>'
    return f'<math dir="ltr" display="{display}"><semantics>{drawn}{annotation}</semantics></math>'


def _known_environment(found: re.Match[str]) -> str:
    return f"\\{found[1]}{{{ENVIRONMENTS.get(found[2], found[2])}}}"


def _copied(element: Element, is_display: bool, depth: int) -> str:
    """The element as HTML, with nothing in it that is not listed above. Raises NotAFormula."""
    tag = element.tag
    if is_display and tag in UNDER and len(element) and element[0].text in LIMITS:
        tag = UNDER[tag]
    if depth > DEEPEST or (tag not in GROUPS and tag not in TEXTS):
        raise NotAFormula(f"{tag} is not drawn")
    if tag in N_CHILDREN and len(element) != N_CHILDREN[tag]:
        raise NotAFormula(f"{tag} has {len(element)} parts")
    text = escape(CHARACTER.sub(_character, element.text or ""), quote=False)
    inside = text + "".join(_copied(child, is_display, depth + 1) for child in element)
    attributes = "".join(
        f' {name}="{escape(value)}"' for name, value in element.attrib.items() if _is_possible(name, value)
    )
    return f"<{tag}{attributes}>{inside}</{tag}>"


def _character(found: re.Match[str]) -> str:
    code = int(found[1], 16)
    if not 0 < code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        raise NotAFormula("not a character")
    return chr(code)


def _is_possible(name: str, value: str) -> bool:
    if name in WORDS:
        return value in WORDS[name]
    found = LENGTH.fullmatch(value) if name in LENGTHS else None
    return found is not None and abs(float(value.rstrip("emxpt"))) * EM[found[1]] <= LONGEST_SPACE
