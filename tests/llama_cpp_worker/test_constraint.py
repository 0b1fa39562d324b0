"""Grammars and JSON schemas: what they let through, what is refused, and that hostile ones end. No real model."""

import contextlib
import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer, TokenizerWrapper

from llama_cpp_worker.constraint import (
    FIRST_SECONDS,
    SECONDS_PER_TOKEN,
    Constraint,
    ConstraintError,
    compile_constraint,
)
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.json_schema import COMBINATIONS, LISTS, MAPS, REFUSED, REMARKS, SINGLES
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import InvalidParameter, SamplingParams
from tests.llama_cpp_worker.schemas.sample import sample
from tests.support.tiny_llama import write_tiny_llama

END = 256


class Bytes:
    """A vocabulary of the 256 bytes and an end token, in the form that llguidance wants."""

    eos_token_id = END
    bos_token_id = None
    tokens: Sequence[bytes] = [*(bytes([byte]) for byte in range(256)), b"<end>"]
    special_token_ids: Sequence[int] = [END]

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


BYTES = LLTokenizer(TokenizerWrapper(Bytes()))


def of_schema(schema: object) -> SamplingParams:
    return SamplingParams(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def matches(params: SamplingParams, text: str) -> bool:
    """Whether the whole text follows the constraint, byte by byte."""
    grammar = compile_constraint(params)
    assert grammar is not None
    constraint = Constraint(BYTES, grammar)
    for byte in text.encode():
        if not constraint.allows(byte):
            return False
        constraint.accept(byte)
    return constraint.is_complete


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "ye", "yesno", "Yes"]),
        ('root ::= "a"{2,3}', ["aa", "aaa"], ["a", "aaaa"]),
        ('root ::= "ab"{2}', ["abab"], ["ab", "abb"]),
        ('root ::= "a"+ "b"* "c"?', ["a", "aab", "abbc"], ["b", "acc"]),
        ('root ::= ("a" | "bc"){1,} "!"', ["abca!"], ["!", "b!"]),
        ("root ::= [a-c]", ["a", "c"], ["d", "-"]),
        (r"root ::= [a\-c]", ["a", "-"], ["b"]),
        ("root ::= [a-]", ["a", "-"], ["b"]),
        (r"root ::= [^a-c\]]", ["d", "é", "🙂", "["], ["b", "]", ""]),
        ("root ::= .", ["x", "\n"], [""]),
        (r'root ::= "\x41\u00e9\U0001F642\t\"\\"', ['Aé🙂\t"\\'], []),
        ('root ::= x # a comment\n\n  x ::= "a" |\n  "b"', ["a", "b"], ["c"]),
        ('root ::= ( "a"\n | "b"\n)', ["a", "b"], []),
        ('root ::= ""', [""], ["a"]),
        ('root ::= root "+" root | "1"', ["1", "1+1+1"], ["+", "1+"]),
        ('root ::= empty root "q" | "z"\nempty ::= e e\ne ::= "a" |', ["z", "zq", "aazq", "azqq"], ["q"]),
        ('root ::= (("a"?){0,999999999})*', ["", "aaa"], ["b"]),
        ('root ::= e{3}\ne ::= "a" |', ["", "a", "aaa"], ["aaaa"]),
        ('root ::= "(" root ")" |', ["", "(())"], ["(()", ")"]),
        ("root ::= l\nl ::= [a-z] l | [a-z]", ["a", "abc"], ["", "1"]),
        ('root ::= word "a"\nword ::= [a-z]+', ["ba", "aaa"], ["b"]),
        ('root ::= [a-z]+ ("ab" | "z")', ["xab", "abz", "abab"], ["ab"]),
        (r"root ::= [\ud7ff-\ue000]", ["\ue000"], ["a"]),
        ("root ::= " + "(" * 50 + '"a"' + ")" * 50, ["a"], ["b"]),
    ],
    ids=lambda value: repr(value)[:50] if isinstance(value, str) else "",
)
def test_a_grammar_lets_its_texts_through_and_no_others(grammar: str, texts: list[str], others: list[str]) -> None:
    assert [text for text in texts if not matches(SamplingParams(grammar=grammar), text)] == []
    assert [text for text in others if matches(SamplingParams(grammar=grammar), text)] == []


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ('a ::= "b"', "no rule named root"),
        ("root ::= x", "no rule named x"),
        ('root ::= "a"{5,3}', "maximum below its minimum"),
        ("root ::= [a-z]{5,3}", "maximum below its minimum"),
        ("root ::= <think>", "not valid in GBNF"),
        ("root ::= " + "(" * 10_000, "parentheses deep"),
        ('root ::= "a', "not valid in GBNF"),
        (r'root ::= "\q"', "no escape"),
        ('root ::= "a" root', "no end"),
        ("root ::= root", "no end"),
        ('root ::= "a"**', "repeats a repetition"),
        ('root ::= "a"\nroot ::= "b"', "line 2: root is defined twice"),
        ('root ::= ("a"', "'\\)' is expected"),
        ('root "a"', "'::=' are expected"),
        ('root ::= "a" )', "'::=' are expected"),
        ("root ::= []", "not valid in GBNF"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= "a"{99999999999}', "not valid in GBNF"),
        (r"root ::= [\U00110000-\U00120000]", "no character"),
        ("root ::= \ud800", "surrogates"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_grammar_is_refused_with_the_reason(grammar: str, problem: str) -> None:
    with pytest.raises(InvalidParameter, match=problem) as refusal:
        compile_constraint(SamplingParams(grammar=grammar))
    assert refusal.value.name == "grammar"


@given(st.text(alphabet='root:= ab"[]^-(){}0,1|*+?#.\\x\n', max_size=40))
@settings(max_examples=300)
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    try:
        grammar = compile_constraint(SamplingParams(grammar="root ::= " + text))
    except InvalidParameter:
        return
    assert grammar is not None
    with contextlib.suppress(ConstraintError):
        Constraint(BYTES, grammar).allows(ord("a"))


# --- JSON

PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "description": "in full"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "height": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}], "default": None},
        "kind": {"enum": ['a"b', "c\\d", "é"]},
        "boss": {"$ref": "#"},
    },
    "required": ["age", "name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        (PERSON, ['{"name": "Ann", "age": 5}', '{"name":"A","age":150,"height":1.5,"kind":"a\\"b"}'], ['{"age": 5}']),
        (PERSON, ['{"name":"A","age":0,"kind":"c\\\\d","boss":{"name":"B","age":1}}'], ['{"name":"A","age":151}']),
        (PERSON, ['{"name":"A","age":1,"height":null}'], ['{"name":"A","age":-1}', '{"name":"A","age":1,"height":0}']),
        ({"type": "integer"}, ["0", "-12"], ["1.5", "01", "1e5"]),
        ({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12}, ["-2", "0", "11"], ["-3", "12"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.5", "1", "1.0"], ["1.1", "-0.5", "2"]),
        ({"type": "number", "minimum": 0.05, "exclusiveMaximum": 0.1}, ["0.05", "0.099"], ["0.049", "0.100"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"🙂\\n\\u00e9"'], ['"a"', '"abcd"']),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]"], ["[]", "[1]"]),
        ({"type": "array", "items": {"const": 1}}, ["[]", "[1, 1,1]"], ["[2]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        (
            {"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True, "minItems": 1, "maxItems": 2},
            ["[3,1]", "[2]"],
            ["[]", "[1,1]", "[1,2,3]"],
        ),
        (
            {"$defs": {"c": {"enum": ["a"]}}, "type": "array", "items": {"$ref": "#/$defs/c"}, "uniqueItems": True},
            ["[]", '["a"]'],
            ['["a","a"]'],
        ),
        ({"type": "array", "uniqueItems": True, "maxItems": 1}, ["[1]"], ["[1,1]"]),
        ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ["{}", '{"a": 1}'], ['{"a": "b"}']),
        ({"type": "object", "required": ["a"]}, ['{"a": [1]}'], ["{}"]),
        ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-02-30"', '"2024-13-01"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123"']),
        ({"type": "string", "format": "date-time"}, ['"2024-12-31T23:59:59Z"'], ['"2024-12-31"']),
        (
            {"$defs": {"a/b": {"enum": [1]}}, "allOf": [{"$ref": "#/$defs/a~1b"}], "title": "x"},
            ["1"],
            ["2"],
        ),
        (True, ["null", '{"a": [1, "b"]}'], ["nul"]),
        ({"minimum": 5}, ["5"], ["4"]),
        ({"type": "string", "pattern": "^[a-z]{3}$"}, ['"abc"'], ['"abcd"']),
        ({"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1}, [str(2**53 - 1)], [str(2**53)]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["-5"], [str(2**62)]),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, ["3"], ["2"]),
        ({"type": "object", "patternProperties": {"^a": {"type": "boolean"}}}, ['{"a1": true}'], ['{"a1": 1}']),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, ["[1]"], ["[1, 2]"]),
        ({"type": "object", "minProperties": 1, "additionalProperties": {"type": "boolean"}}, ['{"a": true}'], ["{}"]),
        ({"allOf": [{"$ref": "#/parts/p"}], "nullable": True, "parts": {"p": {"enum": [1]}}}, ["null", "1"], ["2"]),
        ({"type": "integer", "format": "int32", "example": 3, "x-order": 1}, ["5"], ['"5"']),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, ["1"], ["0"]),
        ({"type": "object", "propertyNames": {"enum": ["a"]}}, ['{"a": 1}'], ['{"b": 1}']),
        ({"type": "number", "multipleOf": 0.5}, ["1.5"], ["1.3"]),
        ({"type": "object"}, ['{\n  "a": [\n    1\n  ]\n}', '{"é": "\\ud83d\\ude00"}'], ['{  "a": 1}', '{"a": 1} ']),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_schema_lets_valid_json_through_and_no_other(schema: object, texts: list[str], others: list[str]) -> None:
    assert [text for text in texts if not matches(of_schema(schema), text)] == []
    assert [text for text in others if matches(of_schema(schema), text)] == []


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (5, "schema: must be an object"),
        (False, "schema: allows nothing"),
        ({"type": "thing"}, "schema: Invalid type: thing"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)"}}}, "schema.properties.a: pattern: look-around"),
        ({"properties": {"a": {"not": {"const": 1}}}}, "schema.properties.a.not: is not supported"),
        ({"items": {"properties": {"a": {"if": {}}}}}, "schema.items.properties.a.if: is not supported"),
        ({"$ref": "#/parts/p", "parts": {"p": {"contains": {}}}}, r"schema\.parts\.p\.contains: is not supported"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "array", "items": {"enum": [1, 2, 3, 4, 5, 6]}, "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "schema: .*minItems"),
        ({"type": "string", "minLength": -1}, "schema: .*minLength"),
        ({"type": "string", "format": "iri"}, "schema.format: iri is not supported"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "schema: .*minimum"),
        ({"type": "integer", "minimum": "5"}, "schema: .*minimum"),
        ({"type": "number", "minimum": float("nan")}, "schema: .*JSON cannot express"),
        ({"type": "integer", "multipleOf": 99_991}, "schema.multipleOf: is supported up to"),
        ({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}, "multipleOf: is supported once"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "schema.oneOf: .*overlap"),
        ({"enum": []}, "schema: .*empty"),
        ({"enum": ["\ud800"]}, "schema: .*JSON cannot express"),
        ({"enum": ["a"], "type": "integer"}, "schema: .*incompatible types"),
        ({"$ref": "https://example.com/x"}, r"schema.\$ref"),
        ({"$ref": "#/$defs/x"}, r"there is no #/\$defs/x"),
        ({"$ref": "#"}, "the schema requires itself without end; leave it out of required, or allow null"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, r"schema\.properties\.a\.\$ref: the schema requires"),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}, "required": ["a"]}}},
            r"schema\.\$defs\.n\.properties\.a\.\$ref: #/\$defs/n requires itself",
        ),
        ({"not": {}}, "schema: allows nothing"),
        ({"type": "string", "not": {}}, "schema.not: is not supported"),
        ({"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]}, "schema: .*'a' is unsatisfiable"),
        ({"propertys": {}}, "schema.propertys: is no keyword; write properties, or x-propertys for a remark"),
        ({"items": {"type": "string", "maxlength": 3}}, "schema.items.maxlength: is no keyword; write maxLength"),
        ({"type": "string", "max_length": 3}, "schema.max_length: is no keyword; write maxLength"),
        ({"type": "object", "requierd": []}, "schema.requierd: is no keyword; write required"),
        ({"type": "object", "required": "a"}, "schema: .*required"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema: .*'a'"),
        (nested(70), "nested"),
        ({"anyOf": [{"type": "string"}] * 3000}, "more than"),
        ({"type": "array", "items": {"enum": [c * 20_000 for c in "abcde"]}, "uniqueItems": True}, "at most 65,536"),
        (
            {
                "type": "object",
                "propertyNames": {"enum": [str(n) for n in range(100)]},
                "additionalProperties": {"const": "x" * 50_000},
            },
            "at most 65,536",
        ),
        (
            {"allOf": [{"type": "string", "pattern": f".*a{n}.*"} for n in range(20)]},
            r"schema.allOf\[8\].pattern: is supported 8 times",
        ),
        ({"anyOf": [{"$ref": "#/anyOf/0000000009"}]}, "there is no"),
        ({"enum": ["x" * 1_000_000]}, "at most 65,536"),
        ({"type": {"a": "é" * 60, "b": 1}}, "schema: "),
        ({"pattern": ["aé" * 100]}, "schema: llguidance cannot process it"),
        ({"format": {}, "type": 5}, "schema: "),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_schema_that_cannot_be_honoured_is_refused_with_its_place(schema: object, place: str) -> None:
    with pytest.raises(InvalidParameter, match=place) as refusal:
        compile_constraint(of_schema(schema))
    assert refusal.value.name.startswith("response_format.json_schema.")


@pytest.mark.parametrize(
    "name",
    ["x-type", "x_types", "requiredIf", "enumNames", "note", "id_", "propertyOrdering", "errorMessage", "types", ""],
)
def test_a_name_that_is_no_keyword_is_ignored(name: str) -> None:
    params = of_schema({"type": "string", "maxLength": 3, name: 5})
    assert matches(params, '"abc"') and not matches(params, '"abcd"')


def test_names_that_are_no_keywords_take_no_time() -> None:
    started = time.thread_time()
    compile_constraint(of_schema({"type": "string", **{f"typ{number}": 1 for number in range(3000)}}))
    assert time.thread_time() - started < 0.5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4), part, max_size=3),
    max_leaves=5,
)
keywords = st.sampled_from(
    sorted(
        REMARKS
        | REFUSED
        | LISTS
        | MAPS
        | SINGLES
        | COMBINATIONS
        | {"type", "format", "pattern", "enum", "required"}
        | {"minimum", "exclusiveMinimum", "multipleOf", "nullable"}
    )
)
kinds = st.sampled_from(["object", "string", "integer", "number", "array", "null", "#", "date"])
schemas = st.recursive(
    st.dictionaries(keywords, json_values | kinds, max_size=3),
    lambda part: st.dictionaries(
        keywords,
        json_values
        | kinds
        | part
        | st.lists(part, max_size=2)
        | st.dictionaries(st.text(max_size=3), part, max_size=2),
        max_size=4,
    ),
    max_leaves=6,
)


@given(schemas)
@settings(max_examples=300)
def test_any_schema_is_accepted_or_refused(schema: dict[str, object]) -> None:
    with contextlib.suppress(InvalidParameter):
        assert compile_constraint(of_schema(schema))


def test_options_in_a_schema_do_not_change_ours() -> None:
    schema = {"type": "array", "x-guidance": {"whitespace_pattern": "[ ]*", "item_separator": ";"}}
    assert matches(of_schema(schema), "[1, 2]")
    assert not matches(of_schema(schema), "[1;2]")


def answer(params: SamplingParams, dice: random.Random) -> str:
    """A text within the constraint, of random bytes, which ends as soon as possible after 60 of them."""
    grammar = compile_constraint(params)
    assert grammar is not None
    constraint = Constraint(BYTES, grammar)
    text = b""
    while len(text) < 3000:
        allowed = [int(token) for token in constraint.allowed_tokens()]
        if END in allowed and (allowed == [END] or len(text) > 20 or dice.random() < 0.3):
            return text.decode()
        printable = [token for token in allowed if 32 <= token < 127 and token != ord("\\")] or allowed
        closing = [token for token in printable if token in b'"]}'] if len(text) > 60 or dice.random() < 0.2 else []
        closing = closing if dice.random() < 0.7 else []
        token = dice.choice(closing or [token for token in printable if token != END])
        constraint.accept(token)
        text += bytes([token])
    return pytest.fail(f"no end after {text[:80]!r}")


def test_95_percent_of_the_sample_are_accepted_and_each_answer_is_valid() -> None:
    dice = random.Random(1)
    refusals = []
    for source, schema in sample():
        try:
            texts = [answer(of_schema(schema), dice) for _ in range(2)]
        except InvalidParameter as refusal:
            refusals.append(f"{source}: {refusal}")
            continue
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(
            translated(schema)
        )
        for text in texts:
            assert [error.message for error in validator.iter_errors(json.loads(text))] == [], (schema, text)
    print(f"{400 - len(refusals)} of 400 accepted", *refusals, sep="\n")
    assert len(refusals) <= 20


def translated(schema: Any) -> Any:
    """In JSON Schema: `nullable` and a boolean `exclusiveMinimum` are OpenAPI's."""
    if isinstance(schema, list):
        return [translated(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {name: translated(value) for name, value in schema.items() if name != "nullable"}
    if "prefixItems" not in copy and isinstance(copy.get("items"), list):  # draft 7
        copy["prefixItems"], copy["items"] = copy["items"], copy.pop("additionalItems", True)
    for limit in ("minimum", "maximum"):
        exclusive = "exclusive" + limit.capitalize()
        if isinstance(copy.get(exclusive), bool) and copy.pop(exclusive):
            copy[exclusive] = copy.pop(limit)
    return {"anyOf": [copy, {"type": "null"}]} if schema.get("nullable") is True else copy


# --- hostile ones

HOSTILE = {
    "doubling": 'root ::= s\ns ::= "a" s "b" | "a" s "c" | "a"',
    "left recursion": 'root ::= empty root "q" | "z"\nempty ::= e e\ne ::= "a" |',
    "empty rules": "root ::= " + "e " * 14_000 + "\ne ::= " + '"" | ' * 3000 + '""',
    "optional rules": "root ::= " + "e " * 14_000 + '\ne ::= "" | "a"',
    "right recursion": "root ::= l\nl ::= [a-z] l | [a-z]",
    "cubic": "root ::= s\ns ::= s s s | [a] |",
    "pairs": "root ::= s\ns ::= | x x | [a-z]\nx ::= s",
    "a million": 'root ::= "a"{1000000}',
    "nested repetitions": "root ::= " + "(" * 5 + "[a-z]" + "{0,1000})" * 5,
    "long literal": 'root ::= "' + "a" * 60_000 + '"',
    "500 values": {"enum": [f"value {number}" for number in range(500)]},
    "60 levels": nested(60),
    "1 MB": {"properties": {f"p{number}": {"type": "string", "description": "x" * 60} for number in range(9000)}},
    "pattern": {"type": "string", "pattern": "^(([a-z]{1,1000}){1,1000}){1,1000}$"},
    "patterns": {"allOf": [{"pattern": f"{a}.*{b}"} for a in "abcde" for b in "fghij"]},
    "references": {"$ref": "#/d/0", "d": [{"$ref": f"#/d/{number + 1}"} for number in range(1500)] + [{}]},
    "alternatives": {
        "$ref": "#/d/0",
        "d": [{"anyOf": [{"$ref": f"#/d/{n + 1}"}] * 2} for n in range(30)] + [{"type": "integer"}],
    },
    "products": {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(2)]} for i in range(16)]},
}


def hostile_params(name: str) -> SamplingParams:
    hostile = HOSTILE[name]
    return SamplingParams(grammar=hostile) if isinstance(hostile, str) else of_schema(hostile)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_ends_within_its_processor_time(name: str) -> None:
    dice = random.Random(0)
    used, n_bytes = time.thread_time(), 0
    try:
        grammar = compile_constraint(hostile_params(name))
        assert grammar is not None
        constraint = Constraint(BYTES, grammar)
        for _ in range(400):
            allowed = [int(token) for token in constraint.allowed_tokens() if token != END]
            if not allowed:
                break
            constraint.accept(dice.choice(allowed))
            n_bytes += 1
        outcome = "served"
    except (InvalidParameter, ConstraintError) as error:
        outcome = f"{type(error).__name__}: {str(error)[:60]}"
    used = time.thread_time() - used
    print(f"{name}: {used:.2f} s for {n_bytes} bytes, {outcome}")
    assert used < 1 + 2 * FIRST_SECONDS + n_bytes * SECONDS_PER_TOKEN


def test_8000_characters_of_a_right_recursive_list_are_no_slower_than_the_first() -> None:
    grammar = compile_constraint(hostile_params("right recursion"))
    assert grammar is not None
    constraint = Constraint(BYTES, grammar)
    for _ in range(8000):
        assert constraint.allows(ord("a"))
        constraint.accept(ord("a"))
    assert constraint.is_complete


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")), n_slots=8, n_threads=1)
    yield model
    model.close()


@pytest.mark.parametrize("name", ["optional rules", "nested repetitions", "a million", "patterns"])
def test_a_hostile_request_fails_alone_and_the_next_one_works(tiny: Model, name: str) -> None:
    def request(params: SamplingParams) -> Request:
        return Request(tiny.tokenizer.tokenize("the"), params)

    def run(*requests: Request) -> None:
        engine = Engine(tiny)
        for each in requests:
            engine.submit(each)
        while not engine.is_idle:
            engine.step()

    free = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
    alone = request(free)
    run(alone)
    text = alone.take_text()
    good, poison, following = [request(free) for _ in range(7)], request(hostile_params(name)), request(free)
    run(*good[:3], poison, *good[3:], following)
    assert [each.take_text() for each in [*good, following]] == [text] * 8
    assert poison.finish_reason in (("error", "stop") if name == "optional rules" else ("error",))
    assert (poison.finish_reason == "error") == bool(poison.error)
