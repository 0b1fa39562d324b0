"""What an answer must follow, a grammar or a JSON schema, and which tokens may come next in it.

llguidance does the work; this module chooses its options and limits. llguidance reports errors as values, apart from
its own defects. A step of an ambiguous grammar can take long, so each answer also has a budget of processor time.
Knows no logits.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from llama_cpp_worker.gbnf import GrammarError, gbnf_to_lark
from llama_cpp_worker.json_schema import PreparedSchema, Schema, SchemaError
from llama_cpp_worker.sampling_params import InvalidParameter, SamplingParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SCHEMA_LENGTH = 65_536  # characters, without remarks; llguidance then compiles it in 0.3 s
LIMITS = LLParserLimits(max_items_in_row=10_000, max_lexer_states=50_000, verbose_errors=False)

# Processor time of one answer's constraint. An answer may use FIRST_SECONDS at any time, and more with each token.
FIRST_SECONDS = 0.5
SECONDS_PER_TOKEN = 0.01

# One blank or one line break with indentation between the parts of JSON: with more, a small model fills its answer.
JSON_OPTIONS: "JsonCompileOptions" = {
    "whitespace_pattern": r" |\n {0,20}",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": True,  # unknown keywords are remarks; json_schema.py refuses the others
    "json_allow_general_unicode_escapes": True,
}


class ConstraintError(RuntimeError):
    """The answer cannot go on within its constraint; the message says why."""


class Constraint:
    """The constraint of one sequence: follows its tokens. All methods raise ConstraintError."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str) -> None:
        self._seconds_left = FIRST_SECONDS
        self._n_tokens = tokenizer.vocab_size
        with _panics_translated():
            self._matcher = _compiled(tokenizer, grammar).deep_copy()
        with self._metered():
            pass

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here."""
        with self._metered():
            return self._matcher.is_accepting()

    def allows(self, token: int) -> bool:
        """Whether `token`, which is no end token, may come next."""
        with self._metered():
            return self._matcher.validate_tokens([token]) == 1

    def allowed_tokens(self) -> np.ndarray:
        """All tokens that may come next, in ascending order; end tokens where the text is complete."""
        with self._metered():
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, bitorder="little")[: self._n_tokens])

    def accept(self, token: int) -> None:
        """Appends an allowed token to the text."""
        self._seconds_left = min(self._seconds_left + SECONDS_PER_TOKEN, FIRST_SECONDS)
        with self._metered():
            self._matcher.consume_token(token)

    @contextmanager
    def _metered(self) -> Iterator[None]:
        started = time.thread_time()
        with _panics_translated():
            yield
        self._seconds_left -= time.thread_time() - started
        if error := self._matcher.get_error():
            raise ConstraintError(_sentence(error))
        if self._seconds_left < 0:
            raise ConstraintError("it is too ambiguous: what may come next takes too long to find out")


def compile_constraint(params: SamplingParams) -> str | None:
    """The grammar for llguidance that `params` ask for; None if they allow any text.

    Raises InvalidParameter. Its `name` goes on into a schema, as in `response_format.json_schema.schema.properties.a`.
    """
    place, schema = ("", None) if params.response_format is None else _schema_of(params.response_format)
    if params.grammar is None:
        return None if schema is None else _compile_schema(schema, place)
    if schema is not None:
        raise InvalidParameter("grammar", "send either grammar or response_format")
    return _compile_grammar(params.grammar)


@lru_cache(maxsize=8)  # checked at the wire, and used by the sampler of each choice
def _compile_grammar(text: str) -> str:
    try:
        text.encode()
        grammar = LLMatcher.grammar_from_lark("%llguidance {}\n" + gbnf_to_lark(text))
    except (GrammarError, UnicodeEncodeError) as error:
        raise InvalidParameter("grammar", str(error)) from error
    if problem := _problem(grammar):
        raise InvalidParameter("grammar", problem)
    return grammar


def _schema_of(form: Mapping[str, object]) -> tuple[str, object]:
    """The place of the schema that a response_format asks for, and the schema; None if any text will do."""
    place = "response_format"
    kind = form.get("type")
    known = {"text": {"type"}, "json_object": {"type", "schema"}, "json_schema": {"type", "json_schema"}}
    if not isinstance(kind, str) or kind not in known:
        raise InvalidParameter(place, "must be an object whose type is text, json_object or json_schema")
    for name in form.keys() - known[kind]:
        raise InvalidParameter(f"{place}.{name[:40]}", "is not known to this server")
    if kind == "text":
        return place, None
    if kind == "json_object":
        return place, form.get("schema", {"type": "object"})
    place, named = f"{place}.json_schema", form.get("json_schema")
    if not isinstance(named, dict) or "schema" not in named:
        raise InvalidParameter(place, "must be an object with name and schema")
    for name, value in named.items():  # with or without `strict`, the answer follows the schema
        expected = {"name": str, "description": str | None, "strict": bool | None, "schema": object}.get(name)
        if expected is None or not isinstance(value, expected):
            raise InvalidParameter(f"{place}.{name[:40]}", "is not possible")
    return place, named["schema"] if named["schema"] is not None else 0


def prepare_schema(schema: object, place: str) -> Schema:
    """A client's JSON schema in the form for llguidance. Raises InvalidParameter; `place` comes first in its name."""
    try:
        prepared = PreparedSchema(schema)
        _check_length(prepared.document)
        if problem := _schema_problem(prepared.document):
            raise prepared.refusal(problem, _schema_problem)
    except SchemaError as error:
        within = error.place.removeprefix("schema")  # empty, or a path
        raise InvalidParameter(f"{place}.{within}".replace("..", ".").rstrip("."), str(error)) from error
    return prepared.document


def _compile_schema(schema: object, place: str) -> str:
    document = prepare_schema(schema, f"{place}.schema")
    return LLMatcher.grammar_from_json_schema(json.dumps(document), overrides=JSON_OPTIONS)


def _check_length(schema: Schema) -> None:
    """Raises SchemaError. Does not write the whole schema: what uniqueItems lists can have gigabytes."""
    length = 0
    try:
        for piece in json.JSONEncoder(allow_nan=False).iterencode(schema):
            length += len(piece)
            if length > MAX_SCHEMA_LENGTH:
                problem = f"is too long: at most {MAX_SCHEMA_LENGTH:,} characters are possible without its remarks"
                raise SchemaError("schema", problem)
    except (ValueError, RecursionError) as error:
        raise SchemaError("schema", f"has a value that JSON cannot express: {error}") from error


def _schema_problem(schema: Schema) -> str:
    """Why llguidance cannot honour a prepared schema; nothing if it can."""
    try:
        text = json.dumps(schema, allow_nan=False)
        return _problem(LLMatcher.grammar_from_json_schema(text, overrides=JSON_OPTIONS))
    except (ValueError, RecursionError) as error:  # NaN, half of a surrogate pair, 128 levels
        return f"has a value that JSON cannot express: {error}"


@lru_cache(maxsize=256)  # a chat with tools sends all their schemas with each message
def _problem(grammar: str) -> str:
    try:
        with _panics_translated():
            _, problems = LLMatcher.validate_grammar_with_warnings(grammar, None, limits=LIMITS)
    except ConstraintError as error:
        return str(error)
    return _sentence(problems[0]) if problems else ""


def grammar_problem(tokenizer: LLTokenizer, grammar: str) -> str:
    """Why no answer can follow a compiled grammar; nothing if one can."""
    try:
        with _panics_translated():
            error = _compiled(tokenizer, grammar).get_error()
    except ConstraintError as panic:
        return str(panic)
    return _sentence(error) if error else ""


@lru_cache(maxsize=8)  # the choices of an answer share one
def _compiled(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)


@contextmanager
def _panics_translated() -> Iterator[None]:
    """Raises ConstraintError for a panic of llguidance, which is a BaseException: it would end the worker.

    llguidance 1.9.1 panics where its error quotes a value that has no character's end at byte 100.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # PyO3's class cannot be imported
            raise
        raise ConstraintError("llguidance cannot process it") from error


def _sentence(error: str) -> str:
    """The line of llguidance's error that says most, without the state of its parser."""
    lines = [line.strip() for line in error.partition("<state>")[0].splitlines() if line.strip()]
    if lines[0].startswith("regex parse error"):
        return f"pattern: {lines[-1].removeprefix('error: ')}"
    if lines[0].startswith("NoExtension"):
        return "it cannot be continued with any token of this model"
    return lines[0][:200]
