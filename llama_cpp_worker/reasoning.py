"""Separates what a model thinks from its answer. Knows the marks of reasoning; nothing of templates and tools.

Reasoning is at the beginning of an answer only. Marks in the answer itself are text.

Not covered: channels of gpt-oss, whose template has marks for each message.
"""

from llama_cpp_worker.output import Delta, OutputParser, Reasoning, StepParser, overlap

Marks = tuple[str, str]  # before and after reasoning

THINK: Marks = ("<think>", "</think>")  # DeepSeek R1, Qwen 3, QwQ, SmolLM3, Nemotron and others
MARKS: tuple[Marks, ...] = (
    THINK,
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command R7B and A
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
)


def marks_in(template: str) -> Marks | None:
    """The marks that a chat template knows."""
    return next((marks for marks in MARKS if marks[1] in template), None)


def opens_reasoning(prompt: str, marks: Marks) -> bool:
    """Whether a prompt ends within reasoning that has just begun."""
    return prompt.rstrip().endswith(marks[0])


class ReasoningParser(StepParser):
    """Passes the text after the reasoning to the parser of the answer. An answer without reasoning is all text.

    is_open: the prompt ended with the opening mark. Without the closing mark, everything stays reasoning.
    Blanks at the beginning and the end of the reasoning, and those after it, are left out.
    """

    def __init__(self, answer: OutputParser, marks: Marks = THINK, *, is_open: bool = False) -> None:
        self._answer = answer
        self._opening, self._closing = marks
        self._step = self._skip_blanks if is_open else self._find_opening

    def finish(self) -> list[Delta]:
        """See OutputParser."""
        if self._step in (self._find_closing, self._skip_blanks):
            thought = self._pending[: len(self._pending) - overlap(self._pending, [self._closing])].rstrip()
            return [Reasoning(thought)] if thought else []
        if self._step in (self._find_opening, self._skip_gap):
            return [*self._answer.push(self._pending), *self._answer.finish()]
        return self._answer.finish()

    # --- the steps

    def _find_opening(self) -> list[Delta] | None:
        begin = self._pending.lstrip()
        if begin.startswith(self._opening):
            self._pending, self._step = begin.removeprefix(self._opening), self._skip_blanks
            return []
        if self._opening.startswith(begin):
            return None
        self._step = self._pass_on
        return []

    def _skip_blanks(self) -> list[Delta] | None:
        self._pending = self._pending.lstrip()
        if self._pending.startswith(self._opening):  # some models repeat the prompt's mark
            self._pending = self._pending.removeprefix(self._opening)
            return []
        if self._opening.startswith(self._pending):
            return None
        self._step = self._find_closing
        return []

    def _find_closing(self) -> list[Delta] | None:
        thought, found, rest = self._pending.partition(self._closing)
        if found:
            self._pending, self._step = rest, self._skip_gap
            return [Reasoning(thought.rstrip())] if thought.rstrip() else []
        certain = self._pending[: len(self._pending) - overlap(self._pending, [self._closing])].rstrip()
        self._pending = self._pending[len(certain) :]
        return [Reasoning(certain)] if certain else None

    def _skip_gap(self) -> list[Delta] | None:
        self._pending = self._pending.lstrip()
        if not self._pending:
            return None
        self._step = self._pass_on
        return []

    def _pass_on(self) -> list[Delta] | None:
        text, self._pending = self._pending, ""
        return self._answer.push(text) if text else None
