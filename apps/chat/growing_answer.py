"""An answer that a model is writing, as HTML blocks: those of its thought, then those of the answer itself."""

from functools import lru_cache

from apps.chat.growing_text import GrowingText
from apps.chat.markdown_html import answer_blocks
from apps.chat.thought import BEGIN, END, split_thought

REMEMBERED = 512  # texts


class GrowingAnswer:
    """blocks: the HTML so far; the first `final` do not change any more. n_thought: how many are of the thought."""

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.final = 0
        self.n_thought = 0
        self.is_thinking = False
        self._thought = GrowingText()
        self._answer = GrowingText()
        self._ended_thought: tuple[str, list[str]] = ("", [])

    def update(self, text: str) -> None:
        """Renders what is new."""
        parts = split_thought(text)
        answer = "" if is_begin(parts.answer) else parts.answer
        self._answer.update(answer)
        self.is_thinking = parts.is_open
        if parts.is_open:
            self._thought.update(without_half_end(parts.thought or ""))
            thought, final = self._thought.blocks, self._thought.final
        else:
            thought = self._blocks_of_ended(parts.thought or "")
            final = len(thought) + self._answer.final
        self.blocks = [*thought, *self._answer.blocks]
        self.n_thought, self.final = len(thought), final

    def _blocks_of_ended(self, thought: str) -> list[str]:
        if self._ended_thought[0] != thought:
            self._ended_thought = (thought, finished_blocks(thought))
        return self._ended_thought[1]


@lru_cache(maxsize=REMEMBERED)
def finished_blocks(text: str) -> list[str]:
    """The HTML of a text that does not grow any more. Remembered: a page is drawn again at each click."""
    return [block.html for block in answer_blocks(text)] if text.strip() else []


def is_begin(text: str) -> bool:
    """Whether the text is only the beginning of the mark that begins a thought."""
    start = text.strip()
    return bool(start) and start != BEGIN and BEGIN.startswith(start)


def without_half_end(thought: str) -> str:
    for length in range(len(END) - 1, 0, -1):
        if thought.endswith(END[:length]):
            return thought[:-length]
    return thought
