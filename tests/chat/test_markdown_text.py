"""A model's text as Markdown: prices, formulas, code, scripts of both directions, and never an image."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from apps.chat.markdown_text import is_right_to_left, text_as_markdown, with_direction


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        pytest.param("It costs $5 or $6.", r"It costs \$5 or \$6.", id="money is no formula"),
        pytest.param(r"It costs \$5.", r"It costs \$5.", id="an escaped character stays one"),
        pytest.param("Run `echo $HOME` for $5.", r"Run `echo $HOME` for \$5.", id="code in a line"),
        pytest.param("A ` and $5\n\nb ` c", "A ` and \\$5\n\nb ` c", id="lone backticks are no code"),
        pytest.param("$1\n```sh\necho $A `$B`\n```\n$2", "\\$1\n```sh\necho $A `$B`\n```\n\\$2", id="block of code"),
        pytest.param("1. Do\n    ~~~\n    $A\n    ~~~", "1. Do\n    ~~~\n    $A\n    ~~~", id="block in a list"),
        pytest.param("```sh\necho $A", "```sh\necho $A", id="unfinished block"),
        pytest.param("![x](http://a/b.png)", "!\u200b[x](http://a/b.png)", id="an image is not loaded"),
        pytest.param("Then :red[this] at 10:30", r"Then \:red[this] at 10:30", id="no colours"),
        pytest.param("<b>bold</b>", "<b>bold</b>", id="Streamlit shows HTML as text"),
        pytest.param("$5 a day, or $30 a week", r"\$5 a day, or \$30 a week", id="two prices are no formula"),
        pytest.param("US$5, not A$ or $7", r"US\$5, not A\$ or \$7", id="dollars of several countries"),
        pytest.param(r"Euler: $e^{i\pi} = -1$.", r"Euler: $e^{i\pi} = -1$.", id="a formula stays one"),
        pytest.param("Let $x$ be $5", r"Let $x$ be \$5", id="a letter is a formula, a price is not"),
        pytest.param(r"So \(a+b\) and \[x^2\]", "So $a+b$ and $$x^2$$", id="LaTeX's own brackets"),
        pytest.param("$$\n\\int x\n$$", "$$\n\\int x\n$$", id="a block of formula"),
        pytest.param("Half a formula: $e^{i", r"Half a formula: \$e^{i", id="unfinished formula"),
    ],
)
def test_model_output_is_text_before_it_is_markdown(text: str, markdown: str) -> None:
    assert text_as_markdown(text) == markdown


IMAGE = "![x](http://127.0.0.1:9/p.png)"
PIECES = [
    "`",
    "``",
    "```",
    "~~~",
    ">",
    " ",
    "    ",
    "\n",
    "\n\n",
    "- ",
    "1. ",
    "***",
    "# ",
    "$",
    "$$",
    "\\",
    "\\(",
    "\\)",
]
PIECES += [
    "\\[",
    "\\]",
    "!",
    "[",
    "]",
    "![",
    "(http://a/b)",
    "[x]: http://a/b\n",
    "\t",
    "a",
    "|",
    "<b>",
    "&#33;",
    "\u200b",
]


def has_image(markdown: str) -> bool:
    """Whether a CommonMark parser sees an image."""
    return any(token.type == "image" for block in MarkdownIt().parse(markdown) for token in block.children or ())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"> ```\n{IMAGE}", id="a fence in a quotation, which ends with it"),
        pytest.param(f"words\n     ```\n{IMAGE}", id="a fence indented too far"),
        pytest.param(f"``` ```a`\n{IMAGE}", id="a fence with backticks behind it"),
        pytest.param(f"- `a\n- {IMAGE} `", id="code in a line across a list item"),
        pytest.param(f"`a\n***\n{IMAGE} `", id="code in a line across a rule"),
        pytest.param(f"# `a\n{IMAGE} `", id="a backtick in a heading"),
        pytest.param(f"- \\[ a\n- {IMAGE} \\]", id="a formula across a list item"),
        pytest.param(f"\\( a\n***\n{IMAGE} \\)", id="a formula across a rule"),
        pytest.param("![x]\n\n[x]: http://a/b.png", id="an image by reference"),
    ],
)
def test_no_place_lets_an_image_through(text: str) -> None:
    assert has_image(text), "the case has an image before the change"
    assert not has_image(with_direction(text_as_markdown(text)))


@given(st.lists(st.sampled_from([*PIECES, IMAGE]), max_size=30).map("".join))
def test_no_text_becomes_an_image(text: str) -> None:
    assert not has_image(with_direction(text_as_markdown(text)))


@pytest.mark.parametrize("text", ["\\(", "\\[ ", "$", "`", "![", "\\(a\\[b"])
def test_time_grows_no_faster_than_the_text(text: str) -> None:
    def seconds(repetitions: int) -> float:
        started = time.thread_time()  # without the time that other programs take
        text_as_markdown(text * repetitions)
        return time.thread_time() - started

    short, long = (min(seconds(n) for _ in range(5)) for n in (2_000, 16_000))
    assert long < 30 * max(short, 0.0005), "eight times the text; quadratic growth would be 64 times"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Hello", False), ("שלום", True), ("مرحبا", True), ("1. שלום", True), ("你好", False), ("", False), ("42", False)],
)
def test_direction_is_that_of_the_first_letter(text: str, expected: bool) -> None:
    assert is_right_to_left(text) is expected


def test_right_to_left_lines_are_marked_behind_their_markdown_and_code_is_left_alone() -> None:
    text = "שלום!\n- פריט\n## כותרת\nHello\n```\nשלום\n```"
    assert with_direction(text) == "\u2067שלום!\n- \u2067פריט\n## \u2067כותרת\nHello\n```\nשלום\n```"
    assert with_direction("plain") == "plain"
