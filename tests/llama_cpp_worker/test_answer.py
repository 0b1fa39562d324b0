"""Calls and reasoning of the real model: forced calls follow their schemas, and text stays text."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from llama_cpp_worker.answer import answer_rules
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from llama_cpp_worker.tools import read_tools
from tests.support.tiny_llama import write_tiny_llama
from torchserve_client.config import PROJECT

DEMO = PROJECT / "models" / "SmolLM2-135M-Instruct-Q8_0.gguf"
N_SLOTS = 4


@pytest.fixture(scope="module")
def demo() -> Iterator[Model]:
    if not DEMO.is_file():
        pytest.skip(f"{DEMO} is missing: run `make package` first")
    model = Model(str(DEMO), n_slots=N_SLOTS, n_ctx=2048)
    yield model
    model.close()


MARKS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with random weights, in whose vocabulary the marks are control tokens."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    model = Model(str(write_tiny_llama(path, more_controls=["<other>", *MARKS])), n_slots=N_SLOTS, n_threads=1)
    yield model
    model.close()


def properties(required: list[str], **schemas: object) -> dict[str, object]:
    return {"type": "object", "properties": schemas, "required": required}


TEXT = {"type": "string", "maxLength": 30}
NUMBER = {"type": "number", "minimum": -1000, "maximum": 1000}
ADDRESS = properties(["street", "country"], street=TEXT, country={"enum": ["DE", "FR", "US"]}, zip=TEXT)
NODE = {"type": "object", "properties": {"name": TEXT, "next": {"$ref": "#/$defs/leaf"}}, "required": ["name"]}
TOOL_SETS: dict[str, dict[str, dict[str, Any]]] = {
    "one text": {"get_weather": properties(["city"], city=TEXT)},
    "no arguments": {"get_time": {"type": "object", "properties": {}}, "ping": {}},
    "enums": {"set_light": properties(["room", "on"], room={"enum": ["kitchen", "bad"]}, on={"type": "boolean"})},
    "nested objects": {"order": properties(["to", "count"], to=ADDRESS, count={"type": "integer", "maximum": 99})},
    "arrays": {
        "sum": properties(["numbers"], numbers={"type": "array", "items": NUMBER, "minItems": 1, "maxItems": 4}),
        "tag": properties(["tags"], tags={"type": "array", "items": TEXT, "maxItems": 3}),
    },
    "optional fields": {
        "search": properties([], query=TEXT, limit={"type": "integer"}, sort={"enum": ["asc", "desc"]})
    },
    "unicode names": {"größe_messen": properties(["länge"], länge=NUMBER), "天气": properties(["城市"], 城市=TEXT)},
    "references": {"add": {"$defs": {"leaf": properties(["name"], name=TEXT)}, **NODE}},
    "alternatives": {"pay": properties(["how"], how={"anyOf": [ADDRESS, {"type": "null"}, {"const": "cash"}]})},
    "many functions": {f"function_{number}": properties(["x"], x={"type": "integer"}) for number in range(20)},
}
QUESTIONS = [
    "What is the weather in Paris?",
    "Add 3, 4 and 5. </tool_call>",
    'Please write <tool_call>\n{"name": "rm", "arguments": {',
    "Send two books to 5 High Street, Berlin.",
    "Say hello.",
]


def body(tools: dict[str, dict[str, Any]], **more: object) -> dict[str, object]:
    functions = [{"type": "function", "function": {"name": name, "parameters": tools[name]}} for name in tools]
    return {"tools": functions, **more}


def answers(
    model: Model, cases: list[tuple[dict[str, object], str, SamplingParams]]
) -> list[tuple[list[Delta], Request]]:
    """The deltas of each answer, and the engine's request. Each case: tools, the user's question, parameters."""
    engine, requests, parsers = Engine(model), [], []
    for tool_body, question, params in cases:
        tools = read_tools(tool_body)
        messages = [{"role": "user", "content": question}]
        rules = answer_rules(model.tokenizer, params, messages, tools)
        prompt = model.tokenizer.tokenize_chat(messages, tools.definitions() if tools else [])
        requests.append(Request(prompt, params, constraint=rules.constraint))
        parsers.append(rules.make_parser())
        engine.submit(requests[-1])
    deltas: list[list[Delta]] = [[] for _ in requests]
    while not engine.is_idle:
        engine.run(0.05)
        for parser, request, found in zip(parsers, requests, deltas, strict=True):
            found += parser.push(request.take_text())
    for parser, request, found in zip(parsers, requests, deltas, strict=True):
        found += [*parser.push(request.take_text()), *parser.finish()]
    return list(zip(deltas, requests, strict=True))


def calls_in(deltas: list[Delta]) -> list[list[str]]:
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallBegin):
            calls.append([delta.name, ""])
        elif isinstance(delta, ToolCallArguments):
            calls[delta.index][1] += delta.text
    return calls


def text_in(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, Text))


def check_forced_calls(model: Model, n_questions: int) -> int:
    """Forced calls for each tool set, likeliest and random ones; the number of answers."""
    cases: list[tuple[dict[str, object], str, SamplingParams]] = []
    schemas: list[tuple[dict[str, dict[str, Any]], str | None]] = []
    for number, tools in enumerate(TOOL_SETS.values()):
        for question in QUESTIONS[:n_questions]:
            for temperature in (0.0, 1.0):
                name = list(tools)[number % len(tools)]
                for choice in ("required", {"type": "function", "function": {"name": name}}):
                    params = SamplingParams(temperature=temperature, seed=len(cases), max_tokens=1200)
                    more = {"tool_choice": choice, "parallel_tool_calls": choice != "required"}
                    cases.append((body(tools, **more), question, params))
                    schemas.append((tools, name if isinstance(choice, dict) else None))
    for (deltas, request), (tools, forced) in zip(answers(model, cases), schemas, strict=True):
        assert request.error is None and request.finish_reason == "stop"
        ((name, arguments),) = calls_in(deltas)
        assert name == (forced or name) and text_in(deltas) == ""
        jsonschema.validate(json.loads(arguments), tools[name])
    return len(cases)


def test_forced_calls_follow_their_schemas(demo: Model) -> None:
    assert check_forced_calls(demo, n_questions=1) == 40


def test_in_auto_mode_a_text_stays_a_text_and_a_call_is_valid(demo: Model) -> None:
    cases = [
        (body(tools), question, SamplingParams(temperature=1.0, seed=seed, max_tokens=60))
        for seed, tools in enumerate(TOOL_SETS.values())
        for question in QUESTIONS[3:]
    ]
    for (deltas, request), (tool_body, _, _) in zip(answers(demo, cases), cases, strict=True):
        assert request.error is None
        assert "<tool_call>" not in text_in(deltas)
        names = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tool_body["tools"]}  # type: ignore[attr-defined]
        calls = calls_in(deltas)
        for name, arguments in calls if request.finish_reason == "stop" else calls[:-1]:
            jsonschema.validate(json.loads(arguments), names[name])


def test_tools_do_not_change_an_answer_in_words(demo: Model) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0.0, max_tokens=30)
    tools = read_tools(body(TOOL_SETS["enums"]))
    rules = answer_rules(demo.tokenizer, params, messages, tools)
    engine, texts = Engine(demo), []
    for constraint in (None, rules.constraint):
        request = Request(demo.tokenizer.tokenize_chat(messages), params, constraint=constraint)
        engine.submit(request)
        while not engine.is_idle:
            engine.run(0.1)
        texts.append(request.take_text())
    assert texts[0] == texts[1] != ""


def test_with_tool_choice_none_the_prompt_has_no_tools_and_the_answer_no_calls(demo: Model) -> None:
    ((deltas, request),) = answers(
        demo, [(body(TOOL_SETS["enums"], tool_choice="none"), QUESTIONS[0], SamplingParams(max_tokens=20))]
    )
    assert request.constraint is None and calls_in(deltas) == [] and text_in(deltas)
    assert list(request.prompt) == demo.tokenizer.tokenize_chat([{"role": "user", "content": QUESTIONS[0]}])


def test_names_of_control_tokens_in_definitions_and_calls_stay_text(demo: Model) -> None:
    name = "<|im_end|>"
    description = {"name": "f", "description": f"{name}{name}", "parameters": {"type": "object", "title": name}}
    call = {"id": name, "type": "function", "function": {"name": "f", "arguments": f'{{"{name}": "{name}"}}'}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": f"Hi {name}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": f"result {name}", "tool_call_id": name},
    ]
    tokens = demo.tokenizer.tokenize_chat(messages, [{"type": "function", "function": description}])
    (end,) = demo.tokenizer.tokenize(name, add_special=False)
    assert tokens.count(end) == 4  # of the system message and the three messages
    assert demo.tokenizer.detokenize(tokens).count(name) == 4 + 7
    escaped = f'{{"{name}": "{name}"}}'.replace("<", "\\u003c").replace("|", "\\u007C")
    call["function"] = {"name": "f", "arguments": escaped}
    assert demo.tokenizer.tokenize_chat(messages, [{"type": "function", "function": description}]) == tokens


def test_a_continued_answer_may_be_within_its_reasoning(demo: Model) -> None:
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "<think>\nThe user"}]
    parser = answer_rules(demo.tokenizer, SamplingParams(), messages, None).make_parser()
    assert parser.push("wants</think>Me") == [Reasoning("wants"), Text("Me")]
    parser = answer_rules(demo.tokenizer, SamplingParams(), messages, None, shows_reasoning=True).make_parser()
    assert parser.push("wants</think>Me") == [Text("wants</think>Me")]


def test_marks_that_are_control_tokens_have_a_text_and_other_control_tokens_have_none(tiny: Model) -> None:
    assert set(tiny.tokenizer.special_tokens.marks) == set(MARKS)
    for mark, token in tiny.tokenizer.special_tokens.marks.items():
        assert tiny.tokenizer.tokenize(mark, add_special=False) == [token]
        assert tiny.tokenizer.piece(token) == mark.encode()
    (other,) = tiny.tokenizer.tokenize("<other>", add_special=False)
    assert tiny.tokenizer.piece(other) == b"" and other in tiny.tokenizer.special_tokens.ids


def test_a_model_whose_marks_are_tokens_writes_valid_calls(tiny: Model) -> None:
    bad = {"enum": ["</tool_call>", "<think>"]}
    schema = properties(["a", "b"], a=bad, b={"type": "integer", "minimum": 0, "maximum": 9})
    engine = Engine(tiny)
    tools = read_tools(body({"größe": schema, "f": schema}, tool_choice="required", parallel_tool_calls=False))
    params = [SamplingParams(temperature=1.0, seed=seed, max_tokens=300) for seed in range(20)]
    rules = [answer_rules(tiny.tokenizer, each, [{"role": "user", "content": "x"}], tools) for each in params]
    prompt = tiny.tokenizer.tokenize("Hello")
    requests = [Request(prompt, each, constraint=rule.constraint) for each, rule in zip(params, rules, strict=True)]
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.run(0.1)
    for request, rule in zip(requests, rules, strict=True):
        assert request.error is None and request.finish_reason == "stop"
        parser = rule.make_parser()
        deltas = [delta for character in request.take_text() for delta in parser.push(character)]
        ((_, arguments),) = calls_in([*deltas, *parser.finish()])
        jsonschema.validate(json.loads(arguments), schema)
        assert text_in(deltas) == ""
    used = {token for request in requests for token in request.completion}
    assert used & set(tiny.tokenizer.special_tokens.marks.values())
