"""Grammar and parser together: what follows the grammar is taken apart into valid calls. No real model."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from llguidance import LLTokenizer, TokenizerWrapper

from llama_cpp_worker.answer_grammar import CallRules, SpecialTokens, ThoughtRules, answer_grammar
from llama_cpp_worker.constraint import Constraint, compile_constraint
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.reasoning import THINK, ReasoningParser
from llama_cpp_worker.sampling_params import SamplingParams
from llama_cpp_worker.tool_formats import FORMATS, HERMES, LLAMA, MISTRAL, PROMPTED, CallFormat
from llama_cpp_worker.tools import CallParser, read_tools

END = 256
NAMES = ["<end>", "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "<other>"]
LONG = [b'"}}\n</', b'{"name": "', b'"}}', b"}\n</tool_call>\n<tool_call>\n{", b".<tool_call>", b"\n\n"]


class Vocabulary:
    """A vocabulary of the 256 bytes, special tokens, and tokens of several bytes that cross the borders of marks."""

    eos_token_id = END
    bos_token_id = None
    tokens: Sequence[bytes] = [
        *(bytes([byte]) for byte in range(256)),
        *(b"\xff" + name.encode() for name in NAMES),
        *LONG,
    ]
    special_token_ids: Sequence[int] = list(range(END, END + len(NAMES)))

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


TOKENIZER = LLTokenizer(TokenizerWrapper(Vocabulary()))
SPECIAL = SpecialTokens(
    frozenset(range(END + 1, END + len(NAMES))),
    {name: END + place for place, name in enumerate(NAMES) if 0 < place < 6},
)
NONE = SpecialTokens()

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["°C", "F"]}},
    "required": ["city"],
}
TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 99},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
            },
            "required": ["value", "tags"],
        }
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": WEATHER,
    "get_weather_2": {"type": "object", "properties": {}},
    "wetter_für_🌍": TREE,
    'a "quoted" name': {
        "type": "object",
        "properties": {"text": {"enum": ["</tool_call>", "}]", '\\"', "[TOOL_CALLS]"]}},
    },
}


def rules(form: CallFormat, choice: object = "auto", **more: object) -> CallRules:
    tools = [{"function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
    read = read_tools({"tools": tools, "tool_choice": choice, **more})
    assert read is not None
    return read.rules(form)


def tokens_of(text: str, special: SpecialTokens) -> list[int]:
    """Special tokens as such, the rest byte by byte."""
    for mark, token in special.marks.items():
        before, found, after = text.partition(mark)
        if found:
            return [*tokens_of(before, special), token, *tokens_of(after, special)]
    return list(text.encode())


def follows(grammar: str | None, tokens: Sequence[int]) -> bool:
    """Whether the answer may be these tokens."""
    assert grammar is not None
    constraint = Constraint(TOKENIZER, grammar)
    for token in tokens:
        if not constraint.allows(token):
            return False
        constraint.accept(token)
    return constraint.is_complete


def walk(grammar: str | None, chance: random.Random, n_tokens: int = 2000) -> str:
    """A random answer; at most `n_tokens`. It ends as soon as it may with a chance of one half."""
    assert grammar is not None
    constraint, piece = Constraint(TOKENIZER, grammar), Vocabulary.tokens
    text = b""
    for _ in range(n_tokens):
        if constraint.is_complete and chance.random() < 0.5:
            break
        allowed = [token for token in constraint.allowed_tokens().tolist() if token != END]
        if not allowed:
            break
        usual = [token for token in allowed if token > END or chr(token) in 'abc"\\{}[]:, \n<']
        token = chance.choice(usual or allowed)
        constraint.accept(token)
        constraint._seconds_left = 1.0  # the budget is for likely tokens, not for random ones
        text += piece[token].removeprefix(b"\xff")
    return text.decode(errors="ignore")


def taken_apart(parser: CallParser | ReasoningParser, text: str, chance: random.Random | None = None) -> list[Delta]:
    """The deltas of a text in random pieces, or character by character."""
    deltas, place = [], 0
    while place < len(text):
        size = 1 if chance is None else chance.randint(1, 12)
        deltas += parser.push(text[place : place + size])
        place += size
    return [*deltas, *parser.finish()]


def calls_in(deltas: Sequence[Delta]) -> list[tuple[str, str]]:
    """Name and arguments of each call."""
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallBegin):
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        elif isinstance(delta, ToolCallArguments):
            name, arguments = calls[delta.index]
            assert delta.index == len(calls) - 1
            calls[-1] = (name, arguments + delta.text)
    return calls


def text_in(deltas: Sequence[Delta], kind: type[Text] | type[Reasoning] = Text) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, kind))


@pytest.mark.parametrize("special", [NONE, SPECIAL], ids=["marks are text", "marks are tokens"])
@pytest.mark.parametrize("form", FORMATS, ids=["Hermes", "Mistral", "Llama"])
def test_every_forced_answer_is_valid_calls(form: CallFormat, special: SpecialTokens) -> None:
    chance = random.Random(5)
    required = rules(form, "required")
    grammar = answer_grammar(required, None, None, special)
    for _ in range(40):
        text = walk(grammar, chance)
        deltas = taken_apart(CallParser(required), text, chance)
        calls = calls_in(deltas)
        assert calls and text_in(deltas) == ""
        for name, arguments in calls:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        assert calls_in(taken_apart(CallParser(required), text)) == calls


@pytest.mark.parametrize("form", FORMATS, ids=["Hermes", "Mistral", "Llama"])
def test_a_cut_answer_shows_no_mark_and_the_arguments_so_far(form: CallFormat) -> None:
    chance = random.Random(6)
    required = rules(form, {"type": "function", "function": {"name": "wetter_für_🌍"}})
    text = walk(answer_grammar(required, None, None, NONE), chance)
    ((_, whole),) = calls_in(taken_apart(CallParser(required), text))
    for length in range(len(text)):
        deltas = taken_apart(CallParser(required), text[:length])
        assert text_in(deltas) == ""
        assert all(whole.startswith(arguments) for _, arguments in calls_in(deltas))


CALL = '{"name": "get_weather", "arguments": {"city":"</tool_call>"}}'
CALLS = {
    "Hermes": (HERMES, f"<tool_call>\n{CALL}\n</tool_call>", f"\n<tool_call>\n{CALL}\n</tool_call>"),
    "Mistral": (MISTRAL, f"[TOOL_CALLS][{CALL}]", ""),
    "Llama": (LLAMA, CALL.replace("arguments", "parameters"), ""),
}


@pytest.mark.parametrize("special", [NONE, SPECIAL], ids=["marks are text", "marks are tokens"])
@pytest.mark.parametrize(("form", "call", "another"), CALLS.values(), ids=CALLS)
def test_an_answer_may_be_text_or_calls(form: CallFormat, call: str, another: str, special: SpecialTokens) -> None:
    grammar = answer_grammar(rules(form), None, None, special)

    def is_right(text: str) -> bool:
        # Only the marks at the borders of calls are tokens, not those within arguments.
        before, quoted, after = text.partition('"</tool_call>"')
        return follows(grammar, [*tokens_of(before, special), *quoted.encode(), *after.encode()])

    assert (
        is_right("") and is_right("Any text: é <tool {\n\n ") and is_right('{"a": 1}') and is_right('{"name": "Ann"}')
    )
    assert is_right(call) and is_right(call + another)
    assert not is_right(call + " more") and not is_right(call[:-1])
    assert not is_right(call.replace("city", "town"))
    if form.mark:
        assert not is_right(call.replace("get_weather", "get_time"))
        assert is_right("Let me see.\n" + call)
        assert not is_right(f"Let me see.\n{form.mark}x")


def test_parallel_tool_calls_false_allows_one_call() -> None:
    _, call, another = CALLS["Hermes"]
    for choice in ("auto", "required"):
        grammar = answer_grammar(rules(HERMES, choice, parallel_tool_calls=False), None, None, NONE)
        assert follows(grammar, list(call.encode())) and not follows(grammar, list((call + another).encode()))


def test_an_answer_in_auto_mode_may_have_any_special_token_before_a_call() -> None:
    grammar = answer_grammar(rules(HERMES), None, None, SPECIAL)
    other, mark = END + NAMES.index("<other>"), END + NAMES.index("<tool_call>")
    assert follows(grammar, [*b"a", other, other, *b"b", other])
    assert follows(grammar, [other, *b"a", mark, *CALLS["Hermes"][1].encode()[len("<tool_call>") :]])
    assert not follows(grammar, [other, *b"a", mark, *b"x"])


def test_a_token_across_the_border_of_a_mark_begins_a_call() -> None:
    grammar = answer_grammar(rules(HERMES), None, None, NONE)
    long = END + len(NAMES) + LONG.index(b".<tool_call>")
    assert follows(grammar, [*b"Yes", long, *CALLS["Hermes"][1].encode()[len("<tool_call>") :]])
    assert not follows(grammar, [*b"Yes", long, *b"x"])


def test_with_a_format_the_text_follows_it_and_calls_follow_their_schemas() -> None:
    form = SamplingParams(response_format={"type": "json_object", "schema": {"type": "array", "items": {"enum": [1]}}})
    for special in (NONE, SPECIAL):
        for call_format, call, _ in CALLS.values():
            grammar = answer_grammar(rules(call_format), None, compile_constraint(form), special)
            assert follows(grammar, list(b"[1,1]"))
            assert follows(grammar, list(call.encode()))
            assert not follows(grammar, list(b"text")) and not follows(grammar, list(b"[2]"))


def test_with_a_grammar_the_text_follows_it() -> None:
    text = compile_constraint(SamplingParams(grammar='root ::= "yes" | "no"'))
    for call_format, call, _ in CALLS.values():
        grammar = answer_grammar(rules(call_format), None, text, SPECIAL)
        assert follows(grammar, list(b"no")) and not follows(grammar, list(b"maybe"))
        assert follows(grammar, list(call.encode()))


@pytest.mark.parametrize("special", [NONE, SPECIAL], ids=["marks are text", "marks are tokens"])
def test_reasoning_comes_before_calls_and_formats(special: SpecialTokens) -> None:
    call = CALLS["Hermes"][1]
    thought = "\nThe user <b>wants</b> weather.\n"
    array = compile_constraint(SamplingParams(response_format={"type": "json_object", "schema": {"type": "array"}}))

    def is_right(grammar: str | None, text: str) -> bool:
        before, quoted, after = text.partition('"</tool_call>"')
        return follows(grammar, [*tokens_of(before, special), *quoted.encode(), *after.encode()])

    for is_open in (False, True):
        opening = "" if is_open else "<think>"
        marks = ThoughtRules(*THINK, is_open=is_open)
        for choice in ("auto", "required"):
            grammar = answer_grammar(rules(HERMES, choice), marks, None, special)
            assert is_right(grammar, f"{opening}{thought}</think>\n\n{call}")
            assert is_right(grammar, call) is not is_open
            assert is_right(grammar, f"{opening}{thought}</think>\n\nText") is (choice == "auto")
        grammar = answer_grammar(None, marks, array, special)
        assert is_right(grammar, f"{opening}{thought}</think>\n\n[]")
        assert not is_right(grammar, f"{opening}{thought}</think>\n\nText")


def test_a_mark_within_reasoning_begins_no_call() -> None:
    text = f"<think>I could write <tool_call> here.</think>\n\nText\n{CALLS['Hermes'][1]}"
    marks = ThoughtRules(*THINK, is_open=False)
    before, quoted, after = text.partition('"</tool_call>"')
    tokens = [*tokens_of(before, SPECIAL), *quoted.encode(), *after.encode()]
    assert follows(answer_grammar(rules(HERMES), marks, None, SPECIAL), tokens)
    for chance in (None, random.Random(1)):
        deltas = taken_apart(ReasoningParser(CallParser(rules(HERMES))), text, chance)
        assert text_in(deltas, Reasoning) == "I could write <tool_call> here."
        assert text_in(deltas) == "Text"
        assert calls_in(deltas) == [("get_weather", '{"city":"</tool_call>"}')]


def test_reasoning_that_stays_in_the_text_may_come_before_a_required_call() -> None:
    marks = ThoughtRules(*THINK, is_open=True, is_text=True)
    grammar = answer_grammar(rules(HERMES, "required"), marks, None, NONE)
    text = f"I think.\n</think>\n\n{CALLS['Hermes'][1]}"
    assert follows(grammar, list(text.encode())) and not follows(grammar, list(b"I think.\n</think>\n\nText"))
    deltas = taken_apart(CallParser(rules(HERMES, "required")), text)
    assert (text_in(deltas), len(calls_in(deltas))) == ("I think.\n</think>", 1)


def test_a_model_that_learns_the_notation_from_the_prompt_makes_one_call() -> None:
    _, call, another = CALLS["Hermes"]
    for form, is_right in ((HERMES, True), (PROMPTED, False)):
        grammar = answer_grammar(rules(form, "required"), None, None, NONE)
        assert follows(grammar, list(call.encode()))
        assert follows(grammar, list((call + another).encode())) is is_right
