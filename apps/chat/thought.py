"""What a model has thought before it answers, which is folded on the page and not sent again.

In an answer's text it stands between `<think>` and `</think>`, as models write it (DeepSeek R1, Qwen 3, SmolLM3 and
others). Some chat templates write `<think>` themselves, so that the answer begins with the thought. Knows nothing of
pages.
"""

import re
from dataclasses import dataclass

BEGIN, END = "<think>", "</think>"
END_ALONE = re.compile(rf"(?:\A|\n){END}[ \t]*(?:\n|\Z)")


@dataclass(frozen=True, slots=True)
class SplitText:
    """thought: None if there is none. is_open: its end has not come yet."""

    thought: str | None
    answer: str
    is_open: bool = False


def split_thought(text: str) -> SplitText:
    start = text.lstrip()
    if start.startswith(BEGIN):
        thought, end, answer = start.removeprefix(BEGIN).partition(END)
        return SplitText(thought.strip("\n"), answer.lstrip("\n"), is_open=not end)
    if END in text and BEGIN not in text and (found := END_ALONE.search(text)):
        return SplitText(text[: found.start()], text[found.end() :].lstrip("\n"))
    return SplitText(None, text)


def answer_of(text: str) -> str:
    """The text without the thought; empty if there is only a thought."""
    return split_thought(text).answer


def add_thought(text: str, more: str) -> str:
    """A text that grows by a part of a thought which the server sends apart; unchanged if the answer has begun."""
    if not text:
        return f"{BEGIN}\n{more}"
    return text + more if split_thought(text).is_open else text


def end_thought(text: str) -> str:
    return f"{text}\n{END}\n\n"
