"""Definitions of functions: what is accepted, what is refused by name; and the parser of calls. No model."""

from typing import Any

import pytest

from llama_cpp_worker.output import Delta, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.sampling_params import InvalidParameter
from llama_cpp_worker.tool_formats import HERMES, LLAMA, MISTRAL, CallFormat
from llama_cpp_worker.tools import MAX_TOOLS, CallParser, ToolSet, read_tools

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


DEEP: dict[str, object] = {}
for _ in range(10_000):
    DEEP = {"default": [DEEP]}


def tool(name: object = "get", parameters: object = CITY, **more: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def read(*tools: object, **body: object) -> ToolSet:
    read = read_tools({"tools": list(tools), **body})
    assert read is not None
    return read


def test_the_definitions_are_those_of_the_client() -> None:
    parameters = {"type": "object", "properties": {"x": {"type": "integer", "description": "n"}}, "title": "T"}
    assert read(tool("größe", parameters, description="Now", strict=True)).definitions() == [
        {"type": "function", "function": {"name": "größe", "description": "Now", "parameters": parameters}}
    ]


@pytest.mark.parametrize(
    "parameters", [None, {}, {"type": "object"}, {"properties": {}}, {"type": "object", "properties": {}}]
)
def test_a_function_may_have_no_arguments(parameters: object) -> None:
    (function,) = read(tool("get", parameters)).functions
    assert function.schema["type"] == "object"


def test_flat_definitions_and_the_old_functions_are_accepted() -> None:
    flat = read({"type": "function", "name": "get", "parameters": CITY, "strict": True})
    old = read_tools({"functions": [{"name": "get", "parameters": CITY}], "function_call": {"name": "get"}})
    assert flat.definitions() == read(tool()).definitions()
    assert old is not None and old.definitions() == flat.definitions()
    assert (old.choice, old.allows_several) == ("required", False)


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"tool_choice": "none"}])
def test_without_functions_there_are_no_tools(body: dict[str, object]) -> None:
    assert read_tools(body) is None


ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}


@pytest.mark.parametrize(
    ("body", "choice", "allowed", "allows_several"),
    [
        ({}, "auto", "abc", True),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, "auto", "abc", False),
        ({"tool_choice": "none"}, "none", "abc", True),
        ({"tool_choice": "required"}, "required", "abc", True),
        ({"tool_choice": {"type": "function", "function": {"name": "b"}}}, "required", "b", False),
        ({"tool_choice": {"type": "function", "name": "b"}}, "required", "b", False),
        ({"tool_choice": ALLOWED | {"mode": "auto"}}, "auto", "b", True),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}}, "required", "b", False),
    ],
    ids=repr,
)
def test_tool_choice_says_which_functions_may_be_called(
    body: dict[str, object], choice: Any, allowed: str, allows_several: bool
) -> None:
    tools = read(tool("a"), tool("b"), tool("c"), **body)
    assert (tools.choice, tools.allowed, tools.allows_several) == (choice, frozenset(allowed), allows_several)
    assert [name for name, _ in tools.rules(HERMES).functions] == list(allowed)
    assert tools.is_active is (choice != "none") and bool(tools.definitions()) is tools.is_active


PLACE = "tools[1].function"


@pytest.mark.parametrize(
    ("body", "name", "problem"),
    [
        ({"tools": {}}, "tools", "must be a list"),
        ({"tools": [tool()] * (MAX_TOOLS + 1)}, "tools", "at most 128"),
        ({"tools": [tool("a"), 5]}, "tools[1]", "must be an object"),
        ({"tools": [tool("a"), {"type": "custom"}]}, "tools[1].type", "must be function"),
        ({"tools": [tool("a"), {"type": "function"}]}, PLACE, "must be an object"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1]", "defined twice"),
        ({"tools": [tool("a"), tool("")]}, f"{PLACE}.name", "1 to 128 printable"),
        ({"tools": [tool("a"), tool("a\nb")]}, f"{PLACE}.name", "1 to 128 printable"),
        ({"tools": [tool("a"), tool("\ud800")]}, f"{PLACE}.name", "1 to 128 printable"),
        ({"tools": [tool("a"), tool(5)]}, f"{PLACE}.name", "1 to 128 printable"),
        ({"tools": [tool("a"), tool("b", description=5)]}, f"{PLACE}.description", "must be a text"),
        ({"tools": [tool("a"), tool("b", description="\ud800")]}, PLACE, "cannot express"),
        ({"tools": [tool("a"), tool("b", DEEP)]}, f"{PLACE}.parameters", "more than 150 levels"),
        ({"tools": [tool("a"), tool("b", [])]}, f"{PLACE}.parameters", "must be a JSON schema"),
        ({"tools": [tool("a"), tool("b", {"type": "string"})]}, f"{PLACE}.parameters.type", "must be object"),
        (
            {"tools": [tool("a"), tool("b", {"type": "object", "properties": {"x": {"not": {"type": "null"}}}})]},
            f"{PLACE}.parameters.properties.x.not",
            "not supported",
        ),
        (
            {"tools": [tool("a"), tool("b", {"type": "object", "properties": {"x": {"pattern": "("}}})]},
            f"{PLACE}.parameters.properties.x",
            "unclosed group",
        ),
        (
            {"tools": [tool("a"), tool("b", {"properties": {"x": {"$ref": "#/$defs/y"}}})]},
            f"{PLACE}.parameters.properties.x.$ref",
            "there is no",
        ),
        ({"functions": [{"name": "a", "parameters": 5}]}, "functions[0].parameters", "must be a JSON schema"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls", "must be true or false"),
        ({"tools": [tool()], "tool_choice": "always"}, "tool_choice", "must be auto, none, required"),
        ({"tools": [tool()], "tool_choice": ["auto"]}, "tool_choice", "must be auto, none, required"),
        ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "tool_choice.type", "must be function"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice", "must have the name"),
        ({"tools": [tool()], "tool_choice": {"name": "put"}}, "tool_choice", "there is no function 'put'"),
        ({"tool_choice": "required"}, "tool_choice", "there is no function to call"),
        ({"tools": [tool()], "tool_choice": ALLOWED}, "tool_choice", "there is no function 'b'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(body: dict[str, Any], name: str, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=problem) as refusal:
        read_tools(body)
    assert refusal.value.name.startswith(name)


# --- the parser

HEAD = '<tool_call>\n{"name": "get", "arguments": '


def deltas_of(text: str, form: CallFormat = HERMES, size: int = 1, choice: str = "auto") -> list[Delta]:
    parser = CallParser(read(tool(), tool("get_2"), tool_choice=choice).rules(form))
    deltas = [delta for start in range(0, len(text), size) for delta in parser.push(text[start : start + size])]
    return deltas + parser.finish()


def shown(deltas: list[Delta]) -> str:
    """Text as it is, a call as (name arguments)."""
    parts = []
    for delta in deltas:
        if isinstance(delta, ToolCallBegin):
            parts.append(f"({delta.name} ")
        else:
            parts.append(delta.text)
    return "".join(parts)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        (HERMES, "Just text < 5 {}\n\n", "Just text < 5 {}\n\n"),
        (HERMES, HEAD + '{"city":"</tool_call>\\"}"}}\n</tool_call>', '(get {"city":"</tool_call>\\"}"}'),
        (HERMES, "Wait.\n\n" + HEAD + "{}}\n</tool_call>", "Wait.(get {}"),
        (HERMES, f"{HEAD}{{}}}}\n</tool_call>\n{HEAD}[1]}}\n</tool_call>", "(get {}(get [1]"),
        (HERMES, HEAD.replace("get", "get_2") + "12}\n</tool_call>", "(get_2 12"),
        (HERMES, HEAD + '{"city": "Pa', '(get {"city": "Pa'),
        (HERMES, "Hm <tool_cal", "Hm"),
        (HERMES, "a < b <", "a < b <"),
        (HERMES, "<tool_calls>", "<tool_calls>"),
        (LLAMA, '{"name": "get", "parameters": {"city":"}"}}', '(get {"city":"}"}'),
        (LLAMA, '{"type": "function", "name": "get_2", "parameters": {}}', "(get_2 {}"),
        (LLAMA, '{"name": "put", "parameters": {}}', '{"name": "put", "parameters": {}}'),
        (LLAMA, 'Text {"name": "get", ', 'Text {"name": "get", '),
        (LLAMA, '{"name": "ge', ""),
        (LLAMA, "{", "{"),
        (
            MISTRAL,
            '[TOOL_CALLS][{"name": "get", "arguments": {}, "id": "abcdefghi"}, {"name": "get_2", "arguments": []}]',
            "(get {}(get_2 []",
        ),
    ],
)
def test_calls_are_found_whatever_the_pieces(form: CallFormat, text: str, expected: str, size: int) -> None:
    assert shown(deltas_of(text, form, size)) == expected


def test_a_call_begins_when_its_name_is_known_and_goes_on_with_each_piece() -> None:
    parser = CallParser(read(tool(), tool("get_2")).rules(HERMES))
    assert parser.push('Yes.<tool_call>\n{"name": "get') == [Text("Yes.")]
    (begin,) = parser.push('"')
    assert isinstance(begin, ToolCallBegin) and (begin.index, begin.name) == (0, "get")
    assert begin.id.startswith("call_") and len(begin.id) == 29 and begin.id[5:].isalnum()
    assert parser.push(', "arguments": ') == []
    assert parser.push('{"city":') == [ToolCallArguments(0, '{"city":')]
    assert parser.push('"A"}}') == [ToolCallArguments(0, '"A"}')]
    assert parser.push("\n</tool_call>") == [] and parser.finish() == []


def test_ids_are_unique_and_calls_are_counted() -> None:
    begins = [delta for delta in deltas_of(f"{HEAD}{{}}}}\n</tool_call>\n" * 3) if isinstance(delta, ToolCallBegin)]
    assert [begin.index for begin in begins] == [0, 1, 2]
    assert len({begin.id for begin in begins}) == 3


def test_text_goes_on_at_once() -> None:
    parser = CallParser(read(tool()).rules(HERMES))
    assert parser.push("Hello") == [Text("Hello")]
    assert parser.push(" ") == [] and parser.push("you<") == [Text(" you")] and parser.push("b>") == [Text("<b>")]


def test_a_required_call_that_was_cut_leaves_no_text() -> None:
    for length in range(len(HEAD) - 20):
        assert shown(deltas_of(HEAD[:length], choice="required")) == ""


def test_schemas_that_are_too_long_together_are_refused_before_the_others_are_compiled() -> None:
    names = [tool(f"f{n}", {"type": "object", "properties": {"a": {"const": "x" * 60_000}}}) for n in range(3)]
    with pytest.raises(InvalidParameter, match="at most 131,072 characters") as refusal:
        read(*names, {"type": "function", "function": {"name": ""}})
    assert refusal.value.name == "tools"
