"""Grammars and JSON schemas, with plain strings: what they let through, what is refused, and that all of it ends."""

from __future__ import annotations

import json
import random
import string
import time

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_cpp_worker.grammar import CharacterSet, GrammarError, parse_gbnf
from llama_cpp_worker.matcher import Matcher
from llama_cpp_worker.schema import JSON_OBJECT_GRAMMAR, MAX_DEPTH, SchemaError, json_schema_to_gbnf


def matches(grammar: str, text: str, piece_size: int = 1) -> bool:
    """Whether the whole text follows the grammar, when it comes in pieces of that many bytes."""
    matcher = Matcher(parse_gbnf(grammar))
    raw = text.encode()
    for start in range(0, len(raw), piece_size):
        piece = raw[start : start + piece_size]
        if not matcher.allows(piece):
            return False
        matcher.advance(piece)
    return matcher.is_complete


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
    ],
    ids=lambda value: repr(value)[:50] if isinstance(value, str) else "",
)
def test_a_grammar_lets_its_texts_through_and_no_others(grammar: str, texts: list[str], others: list[str]) -> None:
    for size in (1, 2, 5):
        assert [text for text in texts if not matches(grammar, text, size)] == []
        assert [text for text in others if matches(grammar, text, size)] == []


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "no rule named root"),
        ('a ::= "b"', "no rule named root"),
        ("root ::= x", "x, which is not defined"),
        ('root ::= "a"{5,3}', "maximum below its minimum"),
        ("root ::= <think>", "cannot be read"),
        ("root ::= " + "(" * 10_000, "parentheses deep"),
        ('root ::= "a', "cannot be read"),
        (r'root ::= "\q"', "no escape"),
        ('root ::= "a" root', "no end"),
        ("root ::= root", "no end"),
        ('root ::= "a"**', "repeats a repetition"),
        ('root ::= "a"\nroot ::= "b"', "defined twice"),
        ('root ::= ("a"', "'\\)' is expected"),
        ('root "a"', "'::=' is expected"),
        ('root ::= "a" )', "not expected"),
        ("root ::= []", "cannot be read"),
        ("root ::= [z-a]", "ends before it begins"),
        ('root ::= "a"{99999999999}', "cannot be read"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_bad_grammar_is_refused_with_the_reason(grammar: str, problem: str) -> None:
    with pytest.raises(GrammarError, match=problem):
        parse_gbnf(grammar)


@given(st.text(alphabet='root:= ab"[]^-(){}0,1|*+?#.\\x\n', max_size=40))
@settings(max_examples=300)
def test_any_text_is_a_grammar_or_refused(text: str) -> None:
    try:
        grammar = parse_gbnf("root ::= " + text)
    except GrammarError:
        return
    Matcher(grammar).allows(b"ab")


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= s\ns ::= "a" s "b" | "a" s "c" | "a"',
        'root ::= s\ns ::= s s | "a" |',
        "root ::= r0\n" + "".join(f'r{i} ::= "a" r{i + 1} "b" | "a" r{i + 1} "c"\n' for i in range(90)) + "r90 ::= .*",
        'root ::= ("a"* "a"*)*',
    ],
    ids=["doubling", "cubic", "chain", "stars"],
)
def test_an_ambiguous_grammar_takes_no_more_than_its_steps(grammar: str) -> None:
    matcher = Matcher(parse_gbnf(grammar))
    started = time.monotonic()
    for _ in range(100):
        assert matcher.allows(b"a")
        matcher.advance(b"a")
    assert time.monotonic() - started < 10


def test_what_takes_too_many_steps_is_an_error() -> None:
    matcher = Matcher(parse_gbnf("root ::= s\ns ::= s s s | [a] |"))
    with pytest.raises(GrammarError, match="too ambiguous"):
        matcher.allows(b"a" * 1000)


@given(st.text(max_size=20), st.integers(1, 7))
def test_characters_may_come_in_any_pieces(text: str, piece_size: int) -> None:
    literal = "".join(f"\\U{ord(character):08X}" for character in text)
    assert matches(f'root ::= "{literal}" [^a]', text + "é", piece_size)
    assert not matches(f'root ::= "{literal}" [^a]', text + "a", piece_size)


def test_half_a_character_is_allowed_only_if_one_of_its_kind_may_come() -> None:
    matcher = Matcher(parse_gbnf("root ::= [à-ÿ]"))
    assert matcher.allows("é".encode()[:1])
    assert not matcher.allows("ж".encode()[:1])
    assert not matcher.allows("€".encode()[:1])
    assert not matcher.allows(b"\xff")
    matcher.advance("é".encode()[:1])
    assert not matcher.is_complete
    assert not matcher.allows(b"a")
    assert matcher.allows("é".encode()[1:])


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=2).map(sorted), max_size=4),
    st.booleans(),
    st.lists(st.integers(0, 30), min_size=2, max_size=2).map(sorted),
)
def test_a_character_set_overlaps_what_it_shares_a_code_with(
    ranges: list[list[int]], is_negated: bool, ends: list[int]
) -> None:
    low, high = ends
    codes = {code for first, last in ranges for code in range(first, last + 1)}
    expected = any((code in codes) != is_negated for code in range(low, high + 1))
    assert CharacterSet(tuple((first, last) for first, last in ranges), is_negated).overlaps(low, high) == expected


# --- JSON

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**14), 10**14)
    | st.floats(-1e9, 1e9).map(lambda number: round(number, 5))
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="ascii")), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text(st.characters(codec="ascii")), json_values),
    st.sampled_from([None, 1]),
)
@settings(max_examples=60, deadline=None)
def test_every_json_object_follows_the_grammar_of_json_objects(value: dict[str, object], indent: int | None) -> None:
    assert matches(JSON_OBJECT_GRAMMAR, json.dumps(value, ensure_ascii=False, indent=indent), 4)
    assert matches(JSON_OBJECT_GRAMMAR, json.dumps(value), 4)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"a"}', '{"a": 01}', '{"a": "\n"}', '{"a": 1,}', '{"a": NaN}', '{"\\ud800": 1}']
)
def test_what_is_no_json_object_does_not(text: str) -> None:
    assert not matches(JSON_OBJECT_GRAMMAR, text)


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
        ({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 12}, ["-2", "0", "11"], ["-3", "12", "-0"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.5", "1", "1.0"], ["1.1", "-0.5", "2"]),
        ({"type": "number", "minimum": 0.05, "exclusiveMaximum": 0.1}, ["0.050", "0.099"], ["0.049", "0.100"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"🙂\\n\\u00e9"'], ['"a"', '"abcd"']),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}, ["[true]"], ["[]", "[1]"]),
        ({"type": "array", "items": {"const": 1}}, ["[]", "[1, 1,1]"], ["[2]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
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
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_schemas_grammar_lets_valid_json_through(schema: object, texts: list[str], others: list[str]) -> None:
    grammar = json_schema_to_gbnf(schema)
    assert [text for text in texts if not matches(grammar, text, 3)] == []
    assert [text for text in others if matches(grammar, text, 3)] == []
    for text in texts:
        jsonschema.validate(json.loads(text), schema)  # type: ignore[arg-type]


DEEP: dict[str, object] = {}
for _ in range(MAX_DEPTH + 5):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (5, "schema: must be an object"),
        (False, "schema: must be an object"),
        ({"type": "thing"}, "schema.type"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a"}}}, "schema.properties.a.pattern"),
        ({"type": "array", "uniqueItems": True}, "schema.uniqueItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "schema.maxItems"),
        ({"type": "string", "minLength": -1}, "schema.minLength"),
        ({"type": "string", "format": "email"}, "schema.format"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "schema: its bounds leave no number"),
        ({"type": "integer", "minimum": "5"}, "schema.minimum"),
        ({"type": "number", "minimum": float("nan")}, "schema.minimum"),
        ({"type": "number", "maximum": 10**400}, "schema.maximum"),
        ({"type": "number", "maximum": 1e-12}, "schema: a bound has more than"),
        ({"enum": []}, "schema.enum"),
        ({"enum": [float("nan")]}, "schema.enum"),
        ({"enum": ["\ud800"]}, "schema.enum"),
        ({"enum": ["a"], "type": "integer"}, "schema.enum"),
        ({"$ref": "https://example.com/x"}, r"schema.\$ref"),
        ({"$ref": "#/$defs/x"}, r"there is no #/\$defs/x"),
        ({"$ref": "#", "minimum": 1}, r"beside \$ref"),
        ({"anyOf": []}, "schema.anyOf"),
        ({"allOf": [{}, {}]}, "schema.allOf"),
        ({"type": "object", "properties": {"\ud800": {}}}, "schema.properties"),
        ({"type": "object", "required": "a"}, "schema.required"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "schema.properties.a"),
        (DEEP, "nested"),
        ({"anyOf": [{"type": "string"}] * 3000}, "more than"),
    ],
    ids=lambda value: json.dumps(value)[:50],
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_is_refused_with_its_place(schema: object, place: str) -> None:
    with pytest.raises(SchemaError, match=place):
        json_schema_to_gbnf(schema)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"properties": {"a": {"$ref": "#"}}, "required": ["a"]}], ids=str)
def test_a_schema_without_an_end_is_refused(schema: object) -> None:
    with pytest.raises(GrammarError, match="no end"):
        parse_gbnf(json_schema_to_gbnf(schema))


def text_of(matcher: Matcher, dice: random.Random) -> str:
    """A text that the grammar lets through, chosen character by character; the shortest way out at the end."""
    text = ""
    alphabet = string.printable
    while matcher.can_go_on and not (matcher.is_complete and dice.random() < 0.3):
        allowed = [character for character in alphabet if matcher.allows(character.encode())]
        closing = [character for character in '"}]' if character in allowed]
        pick = closing[0] if closing and len(text) > 60 else dice.choice(allowed)
        if len(text) > 400:
            return ""
        matcher.advance(pick.encode())
        text += pick
    return text


simple_schemas = st.recursive(
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "string", "maxLength": 4},
            {"type": "string", "format": "time"},
            {"enum": ["a", 1, None]},
        ]
    )
    | st.tuples(st.integers(-999, 999), st.integers(0, 2000)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[0] + ends[1]}
    )
    | st.tuples(st.integers(-999, 999), st.integers(1, 2000)).map(
        lambda ends: {"type": "number", "minimum": ends[0] / 10, "exclusiveMaximum": (ends[0] + ends[1]) / 10}
    ),
    lambda inner: (
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3))
        | st.builds(
            lambda parts, required: {"type": "object", "properties": parts, "required": sorted(set(parts) & required)},
            st.dictionaries(st.sampled_from("abcd"), inner, min_size=1),
            st.sets(st.sampled_from("abcd")),
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=5,
)


@given(simple_schemas, st.integers())
@settings(max_examples=80, deadline=None)
def test_whatever_a_schemas_grammar_lets_through_is_valid(schema: dict[str, object], seed: int) -> None:
    text = text_of(Matcher(parse_gbnf(json_schema_to_gbnf(schema))), random.Random(seed))
    if text:
        jsonschema.validate(json.loads(text), schema)
