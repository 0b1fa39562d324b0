r"""LaTeX as MathML: what is drawn, what stays text, and that nothing in it is active."""

import time

import pytest

from apps.chat.formulas import mathml
from tests.support.visible_text import attributes_of, tags_of


@pytest.mark.parametrize(
    ("latex", "part"),
    [
        (r"x^2", "<msup><mi>x</mi><mn>2</mn></msup>"),
        (r"\frac12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        (r"\$0.60", "<mi>$</mi><mn>0.60</mn>"),
        (r"50% of x", "%"),
        (r"a < b", "<mo>&lt;</mo>"),
        (r"\begin{aligned} a &= b \\ &= c \end{aligned}", '<mtd columnalign="left">'),
        (r"\begin{cases} 1 \\ 0 \end{cases}", "<mtable>"),
        (r"\boxed{42}", '<menclose notation="box">'),
        (r"\mathbb{R}", "ℝ"),
    ],
)
def test_a_formula_is_drawn(latex: str, part: str) -> None:
    html = mathml(latex)
    assert html and part in html


def test_limits_of_a_display_formula_are_below() -> None:
    for is_display, tag in ((True, "munder"), (False, "msub")):
        html = mathml(r"\lim_{x \to 0} x", is_display)
        assert html and f"<{tag}>" in html


def test_the_source_is_its_annotation() -> None:
    html = mathml(r"a < \alpha")
    assert html and '<annotation encoding="application/x-tex">a &lt; \\alpha</annotation>' in html


@pytest.mark.parametrize(
    "latex",
    [r"\frac{a", "x_", "^", "{" * 60, r"\def\a{\a\a}\a", r"\newcommand{\x}{y}\x", "x" * 5000, r"\unicode{110000}"],
    ids=lambda latex: latex[:20],
)
def test_what_is_not_drawn_is_none(latex: str) -> None:
    assert mathml(latex) is None


@pytest.mark.parametrize(
    "latex",
    [
        r"\href{javascript:alert(1)}{x}",
        r"\color{red}{x}",
        r"\textcolor{red}{x}",
        r"\text{<img src=x onerror=alert(1)>}",
        r"\unicode{3c}script\unicode{3e}",
        r"\style{position:fixed}{x}",
        r"\class{a}{x}",
        r"\rule{50em}{50em}",
        r"\hspace{-50em}x",
        r"&#x3c;img src=x&#x3e;",
    ],
)
def test_nothing_in_a_formula_is_active(latex: str) -> None:
    html = mathml(latex) or ""
    assert tags_of(html) <= {"math", "semantics", "annotation", "mrow", "mstyle", "mi", "mo", "mn", "mtext", "mspace"}
    names = {name for name, _ in attributes_of(html)}
    assert not names & {"href", "style", "class", "mathcolor", "mathbackground", "onerror", "src"}
    assert "50em" not in html.split("<annotation")[0]


@pytest.mark.parametrize("part", ["{}", "x^{", r"\sqrt{", r"\left(", "'", "_", "&", r"\over ", r"\begin{matrix}", "x"])
def test_no_formula_takes_long(part: str) -> None:
    started = time.thread_time()
    mathml((part * 4000)[:4000])
    assert time.thread_time() - started < 1
