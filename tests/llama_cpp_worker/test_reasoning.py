"""Reasoning in the text of answers: its marks, wherever the pieces of the text end. No model."""

import itertools

import pytest

from llama_cpp_worker.output import Delta, PlainParser, Reasoning, Text
from llama_cpp_worker.reasoning import MARKS, THINK, ReasoningParser, marks_in


def parts(deltas: list[Delta]) -> list[tuple[str, str]]:
    """Kind and text, neighbours of one kind joined."""
    kinds = itertools.groupby(deltas, type)
    return [(kind.__name__, "".join(str(getattr(delta, "text", "")) for delta in group)) for kind, group in kinds]


def parsed(text: str, size: int, *, is_open: bool = False) -> list[tuple[str, str]]:
    parser = ReasoningParser(PlainParser(), is_open=is_open)
    deltas = [delta for start in range(0, len(text), size) for delta in parser.push(text[start : start + size])]
    deltas += parser.finish()
    assert all(isinstance(delta, Text | Reasoning) and delta.text for delta in deltas)
    return parts(deltas)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
@pytest.mark.parametrize(
    ("text", "is_open", "expected"),
    [
        ("<think>\nA <b>\n\nB\n</think>\n\nC", False, [("Reasoning", "A <b>\n\nB"), ("Text", "C")]),
        ("\n <think>A</think>B", False, [("Reasoning", "A"), ("Text", "B")]),
        ("\nA\n</think>\n\n B\n", True, [("Reasoning", "A"), ("Text", "B\n")]),
        ("<think>\nA</think>B", True, [("Reasoning", "A"), ("Text", "B")]),
        ("<think></think>B", False, [("Text", "B")]),
        ("<think>\n\n</think>\n\nB </think> <think>", False, [("Text", "B </think> <think>")]),
        ("<think>A", False, [("Reasoning", "A")]),
        ("<think>A </thi", False, [("Reasoning", "A")]),
        ("A", True, [("Reasoning", "A")]),
        ("A <think>B</think>", False, [("Text", "A <think>B</think>")]),
        ("<thin", False, [("Text", "<thin")]),
        ("  \n", False, [("Text", "  \n")]),
        ("< think", False, [("Text", "< think")]),
        ("", False, []),
        ("", True, []),
    ],
    ids=repr,
)
def test_reasoning_is_at_the_beginning(text: str, is_open: bool, expected: list[tuple[str, str]], size: int) -> None:
    assert parsed(text, size, is_open=is_open) == expected


def test_text_goes_on_at_once() -> None:
    parser = ReasoningParser(PlainParser())
    assert parser.push("He") == [Text("He")] and parser.push("llo<") == [Text("llo<")]
    parser = ReasoningParser(PlainParser(), is_open=True)
    assert parser.push("Hm,") == [Reasoning("Hm,")] and parser.push(" so") == [Reasoning(" so")]


def test_every_kind_of_marks_is_found_in_its_template_and_its_text() -> None:
    assert marks_in("{{ messages }}") is None
    for marks in MARKS:
        assert marks_in(f"{{% if x %}}{marks[0]}{{% endif %}}{marks[1]}") == marks
        parser = ReasoningParser(PlainParser(), marks)
        assert parser.push(f"{marks[0]}A{marks[1]}B") == [Reasoning("A"), Text("B")]
    assert MARKS[0] == THINK
