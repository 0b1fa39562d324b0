r"""A text that grows: only its last block changes, and nothing that is shown looks different a moment later."""

import pytest

from apps.chat.growing_text import GrowingText, held_back
from apps.chat.markdown_html import render
from tests.support.model_texts import model_texts

LONG = "".join(
    f"## {number}\n\nSome **text**, `code`, $x_{number}$ and a list:\n\n- one\n- two\n\n```py\nx = {number}\n```\n\n"
    for number in range(300)
)


def blocks_of(text: str) -> list[str]:
    return [block.html for block in render(text, is_unfinished=True)]


def test_blocks_that_are_final_never_change() -> None:
    for text in model_texts(150, "http://a/b", seed=3):
        growing = GrowingText()
        final: list[str] = []
        for end in range(1, len(text) + 1, 3):
            growing.update(text[:end])
            assert growing.blocks[: len(final)] == final, text[:end]
            final = growing.blocks[: growing.final]
        expected = blocks_of(text)
        assert final == expected[: len(final)], text


def test_a_grown_text_is_the_same_as_one_that_came_at_once() -> None:
    for text in model_texts(150, "http://a/b", seed=4):
        growing = GrowingText()
        for end in range(0, len(text), 7):
            growing.update(text[:end])
        growing.update(text)
        shown = text[: len(text) - len(held_back(text))] if not growing.final else None
        if shown is not None:
            assert growing.blocks == blocks_of(shown), text


def test_only_the_last_block_is_sent_again() -> None:
    growing = GrowingText()
    changed = []
    for end in range(0, len(LONG), 40):
        before = list(growing.blocks)
        growing.update(LONG[:end])
        first = next((at for at, html in enumerate(before) if growing.blocks[at : at + 1] != [html]), len(before))
        changed.append(sum(map(len, growing.blocks[first:])))
        assert first >= len(before) - 2
    assert max(changed) < 2000, "of more than 30,000"
    assert growing.final > 1000


@pytest.mark.parametrize(
    ("tail", "held"),
    [
        pytest.param("text\n``", "``", id="half a fence"),
        pytest.param("text\n```py", "```py", id="a fence whose line goes on"),
        pytest.param("```py\nx\n``", "``", id="half of its end"),
        pytest.param("| a | b |", "| a | b |", id="the head of a table"),
        pytest.param("text\n\n| a | b |\n|--", "| a | b |\n|--", id="half of the line below it"),
        pytest.param("| a |\n|---|\n| b", "", id="a row of a table"),
        pytest.param("see [this](http://a", "[this](http://a", id="half a link"),
        pytest.param("so \\( x^2", "\\( x^2", id="a formula without its end"),
        pytest.param("\\[\na\n- b", "\\[\na\n- b", id="a long formula without its end"),
        pytest.param("so \\( x \\) and", "", id="a formula"),
        pytest.param("it costs $5 and", "", id="a price"),
        pytest.param("text\n```py\n\\( x", "", id="in a block of code"),
        pytest.param("\\( never ends\n\nbut here", "", id="a formula that no paragraph ends"),
        pytest.param("\\( " + "x" * 1000, "", id="too long for a formula"),
        pytest.param("some **bo", "", id="bold"),
    ],
)
def test_what_would_look_different_when_it_is_complete_is_held_back(tail: str, held: str) -> None:
    assert held_back(tail) == held


def test_a_block_in_a_block_stays_in_it_while_it_is_written() -> None:
    text = "```markdown\n# Plan\n\n```text\nDONE\n```\n\n## Notes\n```\n\nAfter it."
    growing = GrowingText()
    for end in range(len("```markdown\n"), text.index("```\n\nAfter")):
        growing.update(text[:end])
        assert len(growing.blocks) == 1, text[:end]
    growing.update(text)
    assert growing.blocks == blocks_of(text)
    assert len(growing.blocks) == 2


def test_another_text_is_rendered_from_its_start() -> None:
    growing = GrowingText()
    growing.update("one\n\ntwo\n\nthree\n")
    growing.update("four")
    assert (growing.blocks, growing.final) == (['<p dir="auto">four</p>'], 0)


def test_line_breaks_of_windows_are_line_breaks() -> None:
    growing = GrowingText()
    growing.update("one\r\n\r\ntwo\r\n\r\nthree\r\n")
    assert growing.final == 2
    assert growing.blocks == blocks_of("one\n\ntwo\n\nthree\n")
