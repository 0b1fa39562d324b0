"""Turns a JSON schema into a grammar (GBNF). What the grammar lets through is always valid against the schema.

Knows JSON Schema as pydantic and the OpenAI client write it; nothing of llama.cpp. A keyword that cannot be kept is
refused by name, never ignored. Not every valid document can be written: properties come in the schema's order, there
are none beside those it names, and integers have at most 15 digits.

Not covered: pattern, multipleOf, uniqueItems, prefixItems, not, if, references to other documents. oneOf is read as
anyOf. (llama_cpp.llama_grammar has a converter, too: it lets line breaks into strings, loses backslashes in enums,
and ignores minimum, maximum and whatever else it does not know.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from urllib.parse import unquote

MAX_SUBSCHEMAS = 2000
MAX_DEPTH = 40
MAX_LENGTH = 10**9 - 1  # minLength, maxLength, minItems, maxItems
MAX_DECIMALS = 6  # of a number's bounds
LARGEST = 10**15 - 1  # integers that every JSON reader keeps exact

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "discriminator"}
ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions"}
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
}
PYTHON_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}

COMMON_RULES = r"""
ws ::= | " " | "\n" " "{0,20}
value ::= object | array | string | number | boolean | null
object ::= "{" ws (member ("," ws member)*)? "}"
member ::= string ":" ws value ws
array ::= "[" ws (value ws ("," ws value ws)*)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" code | "u" high-half "\\u" low-half)
code ::= ([0-9a-cefA-CEF] hex | [dD] [0-7]) hex hex
high-half ::= [dD] [89abAB] hex hex
low-half ::= [dD] [c-fC-F] hex hex
hex ::= [0-9a-fA-F]
number ::= integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?
integer ::= "-"? ("0" | [1-9] [0-9]{0,14})
boolean ::= "true" | "false"
null ::= "null"
date ::= [0-9]{4} "-" (("0" [13578] | "1" [02]) "-" day31 | ("0" [469] | "11") "-" day30 | "02-" day28)
day28 ::= "0" [1-9] | "1" [0-9] | "2" [0-8]
day30 ::= day28 | "29" | "30"
day31 ::= day30 | "31"
time ::= ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? zone
zone ::= "Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9]
date-time ::= date "T" time
uuid ::= hex{8} "-" hex{4} "-" hex{4} "-" hex{4} "-" hex{12}
""".lstrip()
FORMATS = ("date", "time", "date-time", "uuid")

JSON_OBJECT_GRAMMAR = "root ::= object\n" + COMMON_RULES


class SchemaError(ValueError):
    """A schema that cannot be kept; the message names the place in it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


def json_schema_to_gbnf(schema: object) -> str:
    """A grammar whose texts are JSON that is valid against `schema`; raises SchemaError."""
    converter = _Converter(schema)
    root = converter.visit(schema, "schema", 0)
    rules = {"root": root, **converter.rules}
    return "".join(f"{name} ::= {body}\n" for name, body in rules.items()) + COMMON_RULES


class _Converter:
    """`visit` gives the name of the rule for a schema; the rules it needed are in `rules`."""

    def __init__(self, root: object) -> None:
        self.rules: dict[str, str] = {}
        self._root = root
        self._names: dict[str, str] = {}  # body: name, so that what is equal is written once
        self._references: dict[str, str] = {}
        self._n_subschemas = 0

    def visit(self, schema: object, path: str, depth: int) -> str:
        self._n_subschemas += 1
        if self._n_subschemas > MAX_SUBSCHEMAS or depth > MAX_DEPTH:
            raise SchemaError(path, f"more than {MAX_SUBSCHEMAS:,} schemas, or {MAX_DEPTH} of them nested")
        if schema is True:
            return "value"
        if not isinstance(schema, dict):
            raise SchemaError(path, "must be an object")
        keywords = schema.keys() - ANNOTATIONS
        if not keywords:
            return "value"
        if "$ref" in schema:
            self._refuse(keywords - {"$ref"}, path, "beside $ref")
            return self._reference(schema["$ref"], path, depth)
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                self._refuse(keywords - {name}, path, f"beside {name}")
                return self._combination(name, schema[name], f"{path}.{name}", depth)
        if "enum" in schema or "const" in schema:
            self._refuse(keywords - {"enum", "const", "type"}, path, "beside enum")
            return self._constants(schema, path)
        return self._typed(schema, keywords, path, depth)

    def _typed(self, schema: dict[str, object], keywords: set[str], path: str, depth: int) -> str:
        kind = schema.get("type") or next((kind for kind, known in KEYWORDS.items() if keywords & known), None)
        if isinstance(kind, list) and kind:
            parts = [{**_only(schema, one), "type": one} for one in kind]
            unknown = keywords - {"type"} - set().union(*(KEYWORDS.get(str(one), set()) for one in kind))
            self._refuse(unknown, path)
            return self._define(" | ".join(self.visit(part, path, depth + 1) for part in parts))
        if not isinstance(kind, str) or kind not in KEYWORDS:
            self._refuse(keywords - {"type"}, path)
            raise SchemaError(f"{path}.type", f"must be one of {', '.join(KEYWORDS)}")
        self._refuse(keywords - {"type"} - KEYWORDS[kind], path)
        if kind == "object":
            return self._object(schema, path, depth)
        if kind == "array":
            return self._array(schema, path, depth)
        if kind == "string":
            return self._string(schema, path)
        if kind in ("number", "integer") and keywords & KEYWORDS[kind]:
            return self._define(_number(schema, path, is_integer=kind == "integer"))
        return kind

    def _reference(self, reference: object, path: str, depth: int) -> str:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise SchemaError(f"{path}.$ref", "must point into this schema, as in #/$defs/name")
        if reference not in self._references:
            name = self._references[reference] = f"ref-{len(self._references)}"
            self.rules[name] = self.visit(self._resolve(reference, path), reference, depth + 1)
        return self._references[reference]

    def _resolve(self, reference: str, path: str) -> object:
        target = self._root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key[:9]) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise SchemaError(f"{path}.$ref", f"there is no {reference[:40]}")
        return target

    def _combination(self, name: str, parts: object, path: str, depth: int) -> str:
        if not isinstance(parts, list) or not parts:
            raise SchemaError(path, "must be a list of schemas")
        if name == "allOf" and len(parts) > 1:
            raise SchemaError(path, "is supported with one schema only")
        names = [self.visit(part, f"{path}[{index}]", depth + 1) for index, part in enumerate(parts)]
        return self._define(" | ".join(dict.fromkeys(names)))

    def _constants(self, schema: dict[str, object], path: str) -> str:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list):
            raise SchemaError(f"{path}.enum", "must be a list of values")
        if "const" in schema and "enum" in schema:
            raise SchemaError(f"{path}.enum", "is not possible beside const")
        kinds = schema.get("type", list(KEYWORDS))
        fitting = [
            v for v in values if any(_is_of(v, kind) for kind in (kinds if isinstance(kinds, list) else [kinds]))
        ]
        if not fitting:
            raise SchemaError(f"{path}.enum", "has no value of the type asked for")
        try:
            texts = [json.dumps(value, ensure_ascii=False, allow_nan=False) for value in fitting]
            "".join(texts).encode()
        except (ValueError, RecursionError) as error:  # NaN; half of a surrogate pair; too deep
            raise SchemaError(f"{path}.enum", "has a value that JSON cannot express") from error
        return self._define(" | ".join(map(_literal, dict.fromkeys(texts))))

    def _object(self, schema: dict[str, object], path: str, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        extra = schema.get("additionalProperties", True)
        if not isinstance(properties, dict):
            raise SchemaError(f"{path}.properties", "must be an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise SchemaError(f"{path}.required", "must be a list of names")
        properties = properties | {name: extra for name in required if name not in properties}
        if not properties:
            return self._free_object(extra, path, depth)
        members = []
        for name, part in properties.items():
            value = self.visit(part, f"{path}.properties.{name[:40]}", depth + 1)
            members.append(f"{_literal(_key(name, path) + ':')} ws {value} ws")
        return self._define(f'"{{" ws {self._members(members, [name in required for name in properties])} "}}"')

    def _members(self, members: list[str], is_required: list[bool]) -> str:
        """Two rules a member: what may follow from it on if nothing, or if something, has been written before."""
        first = rest = self._define('""')
        for member, needed in zip(reversed(members), reversed(is_required), strict=True):
            skip_first, skip_rest = ("", "") if needed else (f" | {first}", f" | {rest}")
            first = self._define(f"{member} {rest}{skip_first}")
            rest = self._define(f'"," ws {member} {rest}{skip_rest}')
        return first

    def _free_object(self, extra: object, path: str, depth: int) -> str:
        if extra is False:
            return self._define('"{" ws "}"')
        value = self.visit(extra, f"{path}.additionalProperties", depth + 1)
        if value == "value":
            return "object"
        member = self._define(f'string ":" ws {value} ws')
        return self._define(f'"{{" ws ({member} ("," ws {member})*)? "}}"')

    def _array(self, schema: dict[str, object], path: str, depth: int) -> str:
        item = self.visit(schema.get("items", True), f"{path}.items", depth + 1)
        least, most = _lengths(schema, "minItems", "maxItems", path)
        if most == 0:
            return self._define('"[" ws "]"')
        more = f'("," ws {item} ws){{{max(0, least - 1)},{"" if most is None else most - 1}}}'
        items = f"{item} ws {more}"
        return self._define(f'"[" ws {items if least else f"({items})?"} "]"')

    def _string(self, schema: dict[str, object], path: str) -> str:
        least, most = _lengths(schema, "minLength", "maxLength", path)
        form = schema.get("format")
        if form is None:
            is_free = least == 0 and most is None
            return "string" if is_free else self._define(f'"\\"" char{{{least},{"" if most is None else most}}} "\\""')
        if form not in FORMATS:
            raise SchemaError(f"{path}.format", f"must be one of {', '.join(FORMATS)}")
        if least or most is not None:
            raise SchemaError(f"{path}.format", "is not possible beside minLength and maxLength")
        return self._define(f'"\\"" {form} "\\""')

    def _define(self, body: str) -> str:
        if body not in self._names:
            self._names[body] = f"r{len(self._names)}"
            self.rules[self._names[body]] = body
        return self._names[body]

    def _refuse(self, keywords: set[str], path: str, where: str = "here") -> None:
        if keywords:
            raise SchemaError(f"{path}.{min(keywords)[:40]}", f"is not supported {where}")


def _only(schema: Mapping[str, object], kind: object) -> dict[str, object]:
    return {name: value for name, value in schema.items() if name in KEYWORDS.get(str(kind), set())}


def _is_of(value: object, kind: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "integer":
        return is_number and value == value // 1  # type: ignore[operator]
    return is_number if kind == "number" else isinstance(value, PYTHON_TYPES.get(str(kind), ()))


def _literal(text: str) -> str:
    """JSON text as a GBNF literal; JSON itself has already escaped control characters."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _key(name: str, path: str) -> str:
    try:
        return json.dumps(name.encode().decode(), ensure_ascii=False)
    except UnicodeEncodeError as error:
        raise SchemaError(f"{path}.properties", "a name has half of a surrogate pair") from error


def _lengths(schema: Mapping[str, object], low: str, high: str, path: str) -> tuple[int, int | None]:
    lengths = [schema.get(low, 0), schema.get(high)]
    for name, value in zip((low, high), lengths, strict=True):
        is_length = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LENGTH
        if not is_length and not (name == high and value is None):
            raise SchemaError(f"{path}.{name}", f"must be an integer from 0 to {MAX_LENGTH}")
    least, most = lengths
    assert isinstance(least, int) and isinstance(most, int | None)
    if most is not None and most < least:
        raise SchemaError(f"{path}.{high}", f"is below {low}")
    return least, most


# --- numbers within bounds


def _number(schema: Mapping[str, object], path: str, is_integer: bool) -> str:
    """A number within bounds, its digits spelled out: an integer, or one with a decimal or two more than the bounds."""
    bounds = {name: _bound(schema[name], f"{path}.{name}") for name in KEYWORDS["number"] if name in schema}
    lows = [bounds[name] for name in ("minimum", "exclusiveMinimum") if name in bounds]
    highs = [bounds[name] for name in ("maximum", "exclusiveMaximum") if name in bounds]
    low, high = max(lows, default=Decimal(-LARGEST)), min(highs, default=Decimal(LARGEST))
    excludes_low = bounds.get("exclusiveMinimum") == low
    excludes_high = bounds.get("exclusiveMaximum") == high
    n_bound_decimals = max(_n_decimals(low), _n_decimals(high))
    if n_bound_decimals > MAX_DECIMALS:
        raise SchemaError(path, f"a bound has more than {MAX_DECIMALS} decimals")
    texts = []
    for n_decimals in [0] if is_integer else [0, n_bound_decimals + 1, n_bound_decimals + 2]:
        scaled_low, scaled_high = low.scaleb(n_decimals), high.scaleb(n_decimals)
        least, most = math.ceil(scaled_low), math.floor(scaled_high)
        least += excludes_low and least == scaled_low
        most -= excludes_high and most == scaled_high
        if least < 0 and least <= most:
            texts.append('"-" ' + _magnitudes(max(1, -most), -least, n_decimals))
        if most >= 0 and least <= most:
            texts.append(_magnitudes(max(0, least), most, n_decimals))
    if not texts:
        raise SchemaError(path, "its bounds leave no number")
    return " | ".join(texts)


def _bound(value: object, path: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise SchemaError(path, f"must be a number from {-LARGEST} to {LARGEST}")
    return Decimal(str(value))


def _n_decimals(number: Decimal) -> int:
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(0, -exponent)


def _magnitudes(low: int, high: int, n_decimals: int) -> str:
    """The numbers from `low` to `high`, both scaled by 10 ** n_decimals, by how many digits they have."""
    alternatives = []
    fewest = n_decimals + 1  # one before the point
    for n_digits in range(max(fewest, len(str(low))), max(fewest, len(str(high))) + 1):
        least = max(low, 10 ** (n_digits - 1) if n_digits > fewest else 0)
        most = min(high, 10**n_digits - 1)
        alternatives.append(_between(*(_spelled(end, n_digits, n_decimals) for end in (least, most))))
    return f"({' | '.join(alternatives)})"


def _spelled(number: int, n_digits: int, n_decimals: int) -> str:
    digits = str(number).zfill(n_digits)
    return f"{digits[:-n_decimals]}.{digits[-n_decimals:]}" if n_decimals else digits


def _between(low: str, high: str) -> str:
    """Digits, perhaps with a point at the same place in both, from `low` to `high`."""
    if low == high:
        return f'"{low}"'
    rest_low, rest_high = low[1:], high[1:]
    if low[0] == high[0]:
        return f'"{low[0]}" {_between(rest_low, rest_high)}'
    zeros, nines = (rest_low if not rest_low else "".join(c if c == "." else d for c in rest_low) for d in "09")
    first, last = int(low[0]), int(high[0])
    alternatives = []
    if rest_low > zeros:
        alternatives.append(f'"{first}" {_between(rest_low, nines)}')
        first += 1
    if rest_high < nines:
        alternatives.append(f'"{last}" {_between(zeros, rest_high)}')
        last -= 1
    if first <= last:
        free = " ".join('"."' if character == "." else "[0-9]" for character in rest_low)
        alternatives.append(f"[{first}-{last}] {free}")
    return f"({' | '.join(alternatives)})"
