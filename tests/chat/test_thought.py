"""A model's thought is told apart from its answer, complete or growing."""

import pytest

from apps.chat.growing_answer import GrowingAnswer
from apps.chat.thought import SplitText, split_thought


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("It is Sol.", SplitText(None, "It is Sol.")),
        ("<think>\nHm.\n</think>\n\nSol.", SplitText("Hm.", "Sol.")),
        ("\n<think>Hm.", SplitText("Hm.", "", is_open=True)),
        ("<think></think>Sol.", SplitText("", "Sol.")),
        pytest.param("Hm.\n</think>\n\nSol.", SplitText("Hm.", "Sol."), id="the template has begun the thought"),
        ("`</think>` ends a thought.", SplitText(None, "`</think>` ends a thought.")),
        ("Write\n<think>\n</think>\nfirst.", SplitText(None, "Write\n<think>\n</think>\nfirst.")),
    ],
)
def test_thought_is_what_stands_before_the_answer(text: str, parts: SplitText) -> None:
    assert split_thought(text) == parts


@pytest.mark.parametrize("text", ["<think>\nOne.\n\nTwo.\n</think>\n\nSol.\n\nYes.", "One.\n</think>\n\nSol.\n"])
def test_marks_never_appear_while_the_text_grows(text: str) -> None:
    growing = GrowingAnswer()
    for end in range(1, len(text) + 1):
        growing.update(text[:end])
        shown = "".join(growing.blocks)
        assert "think" not in shown or not text.startswith("<think>")
        assert growing.final <= len(growing.blocks)
    assert growing.n_thought == text.partition("</think>")[0].count(".")
    assert not growing.is_thinking
    assert "Sol." in growing.blocks[growing.n_thought]
