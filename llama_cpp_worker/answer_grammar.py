"""The grammar of an answer that may have reasoning, text and calls of functions, in that order.

Writes Lark for llguidance. Free text may contain anything except the mark of a call: from there on, the answer follows
the schema of a function. A mark may be one token of the model (Qwen's <tool_call>) or characters; both are possible.
Knows nothing of messages and samplers.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from llama_cpp_worker.constraint import JSON_OPTIONS
from llama_cpp_worker.json_schema import Schema
from llama_cpp_worker.tool_formats import CallFormat

MAX_CALLS = 16  # in one answer: a small model may repeat a call until its context window is full
ANY_TEXT = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens that are no text for llguidance, end tokens left out. marks: those that are a mark, by their text."""

    ids: frozenset[int] = frozenset()
    marks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallRules:
    """Which functions an answer may call (name and prepared schema of the arguments), and how it writes the call."""

    form: CallFormat
    functions: Sequence[tuple[str, Schema]]
    is_required: bool
    allows_several: bool


@dataclass(frozen=True, slots=True)
class ThoughtRules:
    """The marks of reasoning. is_open: the prompt ends with the opening one. Otherwise reasoning is optional.

    is_text: reasoning is a part of the text, which may also call functions.
    """

    opening: str
    closing: str
    is_open: bool
    is_text: bool = False


def answer_grammar(
    calls: CallRules | None, thought: ThoughtRules | None, text: str | None, special: SpecialTokens
) -> str | None:
    """The grammar for llguidance; None if any text is right.

    text: the compiled grammar of an answer in words; None: any text.
    """
    if calls is None and (text is None or thought is None):
        return text
    grammars = [{"lark_grammar": _Rules(special).lark(calls, thought, has_text=text is not None)}]
    if text is not None:
        # llguidance compiles a JSON schema to JSON, and takes Lark as it is.
        answer = json.loads(text)["grammars"][0] if text.startswith("{") else {"lark_grammar": text}
        grammars.append(answer | {"name": "answer"})
    return json.dumps({"grammars": grammars})


class _Rules:
    """Writes the rules. `special` decides whether a mark is a token."""

    def __init__(self, special: SpecialTokens) -> None:
        self._special = special

    def lark(self, calls: CallRules | None, thought: ThoughtRules | None, *, has_text: bool) -> str:
        rules = ["%llguidance {}", f"TEXT: {ANY_TEXT}"]
        start, answer = "", "@answer"
        if thought is not None and thought.is_text and calls is not None:
            answer = "thought GAP @answer" if thought.is_open else "@answer"
        elif thought is not None:
            start = "thought GAP" if thought.is_open else f"({self._literal(thought.opening)} thought GAP)?"
        if thought is not None:
            rules += self._up_to("thought", thought.closing, self._other_tokens([thought.closing]))
            rules.append(r"GAP: /\n{0,2}/")
        if calls is not None:
            rules += self._calls(calls)
            answer = self._answer(calls, answer if has_text else "free", is_late=not start and thought is not None)
            marks = [calls.form.mark, *([thought.opening] if thought is not None and start else [])]
            rules += self._free(calls.form, self._other_tokens(marks))
        return "\n".join([f"start: {start} {answer}", *rules])

    def _answer(self, calls: CallRules, text: str, *, is_late: bool) -> str:
        """The rule of the answer after reasoning. is_late: even if a call is required, text comes before it."""
        if calls.is_required:
            return "late calls" if is_late else "opening calls"
        return f"({text} | late calls)" if text == "free" or is_late else f"({text} | opening calls)"

    def _free(self, form: CallFormat, others: str) -> list[str]:
        """`free`: text without a call. `late`: any text and what opens the first call."""
        rules = [f"free: {others}TEXT?"]
        if not form.mark:
            return [*rules, 'late: ""']
        return [
            *rules,
            *self._up_to("reached", form.mark, others),
            f"late: reached {self._literal(form.opening.removeprefix(form.mark))}",
        ]

    def _calls(self, calls: CallRules) -> list[str]:
        form = calls.form
        several = calls.allows_several and form.between is not None and not form.one_call
        more = f"({self._literal(form.between or '')} call){{0,{MAX_CALLS - 1}}}" if several else ""
        identity = "(ID)?" if form.ids else ""
        after = self._literal(form.after_arguments)
        names = [f"head_{index} arguments_{index} {identity} {after}" for index in range(len(calls.functions))]
        rules = [
            f"opening: {self._literal(form.opening)}",
            f"calls: call {more} {self._literal(form.closing)}",
            f"call: {' | '.join(names)}",
            r'ID: /, "id": "[a-zA-Z0-9]{9}"/',
        ]
        for index, (name, schema) in enumerate(calls.functions):
            heads = [_quoted(before + json.dumps(name, ensure_ascii=False)) for before in form.before_name]
            rules += [
                f"head_{index}: name_{index} {_quoted(form.before_arguments)}",
                f"name_{index}[lazy]: NAME_{index}",
                f"NAME_{index}: {' | '.join(heads)}",
                f"arguments_{index}: %json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}",
            ]
        return rules

    def _up_to(self, rule: str, mark: str, others: str) -> list[str]:
        """`rule`: any text that ends with the first `mark`."""
        token = self._special.marks.get(mark)
        return [
            f"{rule}: {others}({rule}_text{'' if token is None else f' | TEXT? <[{token}]>'})",
            f"{rule}_text[lazy]: {ANY_TEXT} {_quoted(mark)}",
        ]

    def _other_tokens(self, marks: Collection[str]) -> str:
        """Any text before special tokens other than `marks`, repeated."""
        ids = sorted(self._special.ids - {self._special.marks.get(mark) for mark in marks})
        return f"(TEXT? <[{_ranges(ids)}]>)* " if ids else ""

    def _literal(self, text: str) -> str:
        """`text` in Lark; each mark in it may be its token or its characters."""
        for mark, token in self._special.marks.items():
            before, found, after = text.partition(mark)
            if found:
                return f"{self._literal(before)} ({_quoted(mark)} | <[{token}]>) {self._literal(after)}"
        return _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _ranges(ids: Sequence[int]) -> str:
    """Sorted token ids in llguidance's notation: 1-3,7."""
    ranges: list[list[int]] = []
    for token in ids:
        if ranges and ranges[-1][1] == token - 1:
            ranges[-1][1] = token
        else:
            ranges.append([token, token])
    return ",".join(f"{first}-{last}" for first, last in ranges)
