"""What the answer of a chat may look like, and the parser that takes it apart: reasoning first, then text and calls.

Puts the rules of tools.py and reasoning.py together for a model. Knows no wire format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from llama_cpp_worker.answer_grammar import CallRules, ThoughtRules, answer_grammar
from llama_cpp_worker.constraint import compile_constraint, grammar_problem
from llama_cpp_worker.output import OutputParser, PlainParser
from llama_cpp_worker.reasoning import THINK, Marks, ReasoningParser
from llama_cpp_worker.sampling_params import InvalidParameter, SamplingParams
from llama_cpp_worker.tokenizer import Tokenizer
from llama_cpp_worker.tool_formats import Message, ends_with_answer
from llama_cpp_worker.tools import CallParser, ToolSet


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """The grammar for llguidance that the answer follows (None: any text), and a function that makes its parser."""

    constraint: str | None
    make_parser: Callable[[], OutputParser]


def answer_rules(
    tokenizer: Tokenizer,
    params: SamplingParams,
    messages: Sequence[Message],
    tools: ToolSet | None,
    *,
    shows_reasoning: bool = False,
    continues_answer: bool = True,
) -> AnswerRules:
    """The rules for an answer to `messages`. shows_reasoning: it stays a part of the text, with its marks.

    Raises InvalidParameter if the functions and the format together are too much for llguidance.
    """
    template = tokenizer.template
    calls = tools.rules(template.call_format) if tools is not None and tools.is_active else None
    marks = template.reasoning_marks
    is_continued = continues_answer and ends_with_answer(messages)
    is_open = _is_within(messages[-1]["content"], marks or THINK) if is_continued else template.opens_reasoning
    thought = None
    if is_open or (marks is not None and not shows_reasoning and not is_continued):
        thought = ThoughtRules(*(marks or THINK), is_open=is_open, is_text=shows_reasoning)
    constraint = answer_grammar(calls, thought, compile_constraint(params), tokenizer.special_tokens)
    combined = constraint if calls or thought else None
    if combined is not None and (problem := grammar_problem(tokenizer.grammar_tokenizer, combined)):
        raise InvalidParameter("response_format" if calls is None else "tools", problem)
    if shows_reasoning:
        return AnswerRules(constraint, partial(_text_parser, calls))
    return AnswerRules(constraint, partial(_parser, calls, marks or THINK, is_open))


def _text_parser(calls: CallRules | None) -> OutputParser:
    return PlainParser() if calls is None else CallParser(calls)


def _parser(calls: CallRules | None, marks: Marks, is_open: bool) -> OutputParser:
    return ReasoningParser(_text_parser(calls), marks, is_open=is_open)


def _is_within(text: str, marks: Marks) -> bool:
    """Whether an unfinished answer ends within its reasoning."""
    opening, closing = marks
    return text.lstrip().startswith(opening) and closing not in text
