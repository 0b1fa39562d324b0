"""Prepares a JSON schema for llguidance and refuses by name what cannot be honoured. Knows nothing of tokens.

llguidance ignores keywords that it does not know. So this module visits each subschema, also those that a `$ref` names,
and refuses a keyword that would change which JSON is valid. A name that is no keyword is ignored, as JSON Schema
2020-12 demands (6.5): many schemas have names of other programs. But a name that is nearly a keyword is refused: it is
probably a misspelled one, and without it other JSON would be valid. The module translates what other dialects express
differently (`nullable`, `propertyNames`, a boolean `exclusiveMinimum`) and leaves out what is only a remark.
constraint.py has the other limits: length and processor time.

Not every valid document can be generated. Properties come in the schema's order. An object gets no other properties,
unless the schema mentions them or combines schemas. Numbers with bounds stay within 2**53. `oneOf` of objects means
`anyOf`.
"""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from itertools import permutations
from urllib.parse import unquote

MAX_SUBSCHEMAS = 2000
MAX_DEPTH = 60  # each one adds up to two levels of JSON, and llguidance parses 128
LARGEST = 2**53 - 1  # beyond it, many readers of JSON round integers
MAX_COMBINED_PATTERNS = 8  # llguidance intersects them: 14 took 6 s, and one more each time doubles that
MAX_UNIQUE_VALUES = 5  # of uniqueItems: 326 arrays
MAX_SEARCHED = 50  # subschemas, each compiled, to find the place of an error
MAX_MULTIPLE = 10_000  # of multipleOf without its decimal point; the time of llguidance grows with it

Schema = dict[str, object]

REMARKS = {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema"}
REMARKS |= {"$id", "id", "$comment", "$defs", "definitions", "discriminator", "x-guidance"}
REFUSED = {"not", "if", "then", "else", "contains", "dependentRequired", "dependentSchemas", "dependencies"}
REFUSED |= {"propertyNames", "unevaluatedProperties", "unevaluatedItems", "uniqueItems", "$dynamicRef", "$recursiveRef"}
FORMATS = {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
REFUSED_FORMATS = {"uri-reference", "iri", "iri-reference", "idn-email", "idn-hostname", "uri-template", "regex"}
REFUSED_FORMATS |= {"json-pointer", "relative-json-pointer"}
SUPPORTED = {"type", "properties", "required", "items", "enum", "const", "minimum", "maximum", "multipleOf", "nullable"}
SUPPORTED |= {"minLength", "maxLength", "pattern", "format", "minItems", "maxItems", "minProperties", "maxProperties"}
SUPPORTED |= {"exclusiveMinimum", "exclusiveMaximum", "patternProperties", "additionalProperties", "prefixItems"}
SUPPORTED |= {"additionalItems", "anyOf", "oneOf", "allOf", "$ref"}
KEYWORDS = {name.lower(): name for name in SUPPORTED}
MIN_LIKENESS = 0.84  # of a misspelled keyword, as difflib counts: propertys has 0.842
MAX_COMPARED = 200  # unknown names in a schema; each comparison takes 0.03 ms
COMBINATIONS = {"anyOf", "oneOf", "allOf", "$ref"}
LISTS = {"anyOf", "oneOf", "allOf", "prefixItems", "items"}
MAPS = {"properties", "patternProperties"}
SINGLES = {"items", "additionalProperties", "additionalItems"}

# zod's email has look-aheads, which llguidance has not. This one allows a part of what it allows.
PATTERNS = {
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@([A-Za-z0-9][A-Za-z0-9-]*\.)+[A-Za-z]{2,}$"
    )
}


class SchemaError(ValueError):
    """A schema that cannot be honoured: `place` says where, the message says why."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(problem)
        self.place = place


def map_subschemas(schema: Schema, change: Callable[[object, str], object]) -> Schema:
    """A copy of a schema. `change` replaces each subschema directly in it, and gets its place, too."""
    copy = dict(schema)
    for name, value in schema.items():
        if name in LISTS and isinstance(value, list):
            copy[name] = [change(part, f"{name}[{index}]") for index, part in enumerate(value)]
        elif name in MAPS and isinstance(value, dict):
            copy[name] = {key: change(part, f"{name}.{key[:40]}") for key, part in value.items()}
        elif name in SINGLES:
            copy[name] = change(value, name)
    return copy


class PreparedSchema:
    """`document` is the schema for llguidance, each `$ref` in it one to `$defs`. Raises SchemaError."""

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._definitions: Schema = {}
        self._names: dict[str, str] = {}  # of definitions, by what a $ref says
        self._visited: list[tuple[str, Schema]] = []
        self._combined: str | None = None  # the first place that combines schemas
        self._multiples: list[str] = []  # places of multipleOf
        self._patterns: list[str] = []  # places of pattern and format
        self._one_of: str | None = None  # the first place of a oneOf that is not of objects alone
        self._n_compared = 0
        document = self._visit(schema, "schema", 0, frozenset())
        if not isinstance(document, dict):
            raise SchemaError("schema", "allows nothing")
        if self._combined and len(self._multiples) > 1:
            raise SchemaError(self._multiples[1], "is supported once in a schema that combines schemas")
        if self._combined and len(self._patterns) > MAX_COMBINED_PATTERNS:
            problem = f"is supported {MAX_COMBINED_PATTERNS} times in a schema that combines schemas"
            raise SchemaError(self._patterns[MAX_COMBINED_PATTERNS], problem)
        for _, part in self._visited:
            required = part.get("required")
            names = part.get("properties")
            is_known = (
                isinstance(names, dict)
                and isinstance(required, list | None)
                and all(name in names for name in map(str, required or ()))
            )
            if is_known and not self._combined and not part.keys() & {"additionalProperties", "patternProperties"}:
                part["additionalProperties"] = False
        self.document = document | {"$defs": self._definitions}

    def refusal(self, problem: str, problem_of: Callable[[Schema], str]) -> SchemaError:
        """The error for what llguidance says of `document`, with its place. `problem_of` compiles a smaller schema."""
        if problem.startswith("oneOf"):
            return SchemaError(f"{self._one_of}.oneOf", "has alternatives that may overlap; anyOf is supported")
        for place, part in self._visited[:MAX_SEARCHED]:
            alone = {name: value for name, value in part.items() if name not in COMBINATIONS}
            if found := problem_of(map_subschemas(alone, lambda child, _: False if child is False else {})):
                return SchemaError(place, found)
        return SchemaError("schema", problem)

    def _visit(self, schema: object, place: str, depth: int, needed: frozenset[str]) -> object:
        """The prepared schema. `needed`: the $refs that each value here must contain. One of them again has no end."""
        if len(self._visited) >= MAX_SUBSCHEMAS or depth > MAX_DEPTH:
            raise SchemaError(place, f"has more than {MAX_SUBSCHEMAS:,} schemas, or {MAX_DEPTH} of them nested")
        if schema is True:
            return {}
        if schema is False or schema == {"not": {}}:
            return False
        if not isinstance(schema, dict):
            raise SchemaError(place, "must be an object")
        if schema.get("nullable") is True:
            rest = {name: value for name, value in schema.items() if name != "nullable"}
            return self._visit({"anyOf": [rest, {"type": "null"}]}, place, depth + 1, frozenset())
        prepared = {name: value for name, value in schema.items() if name not in REMARKS}
        self._translate(prepared, place)
        for name in sorted(prepared.keys() & REFUSED):
            raise SchemaError(f"{place}.{name}", "is not supported")
        self._check_spelling(prepared, place)
        self._note_combinations(prepared, place)
        if "$ref" in prepared:
            prepared["$ref"] = self._definition(prepared["$ref"], f"{place}.$ref", depth, needed)
        required = prepared.get("required")
        certain = {f"properties.{str(name)[:40]}" for name in required} if isinstance(required, list) else set()

        def visit_part(part: object, name: str) -> object:
            is_certain = name in certain or name.startswith("allOf")
            return self._visit(part, f"{place}.{name}", depth + 1, needed if is_certain else frozenset())

        self._visited.append((place, prepared))
        prepared |= map_subschemas(prepared, visit_part)
        return prepared

    def _check_spelling(self, schema: Schema, place: str) -> None:
        for name in schema:
            if name in SUPPORTED:
                continue
            self._n_compared += 1
            if self._n_compared <= MAX_COMPARED and (keyword := _misspelled(name)):
                raise SchemaError(f"{place}.{name}", f"is no keyword; write {keyword}, or x-{name} for a remark")

    def _note_combinations(self, schema: Schema, place: str) -> None:
        parts = schema.get("allOf", [])
        has_several = isinstance(parts, list) and len(parts) > 1
        if has_several or "patternProperties" in schema or (len(schema) > 1 and schema.keys() & COMBINATIONS):
            self._combined = self._combined or place
        parts = schema.get("oneOf")
        if isinstance(parts, list) and "anyOf" not in schema and all(self._is_object(part) for part in parts):
            schema["anyOf"] = schema.pop("oneOf")
        elif parts is not None:
            self._one_of = self._one_of or place

    def _is_object(self, schema: object) -> bool:
        for _ in range(MAX_DEPTH):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = self._resolve(schema["$ref"], "schema")
        return isinstance(schema, dict) and (schema.get("type") == "object" or "properties" in schema)

    def _definition(self, reference: object, place: str, depth: int, needed: frozenset[str]) -> str:
        target = self._resolve(reference, place)
        assert isinstance(reference, str)
        if reference in needed:
            itself = "the schema" if reference == "#" else reference[:40]
            raise SchemaError(place, f"{itself} requires itself without end; leave it out of required, or allow null")
        if reference not in self._names:
            target_place = "schema" + reference[1:200].replace("/", ".")
            name = self._names[reference] = f"d{len(self._names)}"
            self._definitions[name] = self._visit(target, target_place, depth + 1, needed | {reference})
        return f"#/$defs/{self._names[reference]}"

    def _resolve(self, reference: object, place: str) -> object:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise SchemaError(place, "must point into this schema, as in #/$defs/name")
        target = self._root
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and len(key) < 10 and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                raise SchemaError(place, f"there is no {reference[:40]}")
        return target

    def _translate(self, schema: Schema, place: str) -> None:
        """Changes a schema of this or another dialect into what llguidance knows."""
        if "uniqueItems" in schema:
            self._translate_unique_items(schema, place)
        if isinstance(pattern := schema.get("pattern"), str) and pattern in PATTERNS:
            schema["pattern"] = PATTERNS[pattern]
        form = schema.get("format")
        if isinstance(form, str) and form in REFUSED_FORMATS:
            raise SchemaError(f"{place}.format", f"{form} is not supported; {', '.join(sorted(FORMATS))} are")
        if not isinstance(form, str) or form not in FORMATS:  # int32, password: a remark
            schema.pop("format", None)
        for name, limit in (("minimum", -LARGEST), ("maximum", LARGEST)):
            exclusive = "exclusive" + name.capitalize()
            if isinstance(schema.get(exclusive), bool) and schema.pop(exclusive) and name in schema:  # draft 4
                schema[exclusive] = schema.pop(name)
            for bound in (name, exclusive):
                value = schema.get(bound)
                if isinstance(value, int | float) and value * limit > LARGEST * LARGEST:
                    schema[bound] = limit
        self._patterns += [f"{place}.{name}" for name in ("pattern", "format") if name in schema]
        self._patterns += [f"{place}.patternProperties"] * len(_mapping(schema.get("patternProperties")))
        multiple = schema.get("multipleOf")
        if isinstance(multiple, int) or (isinstance(multiple, float) and math.isfinite(multiple)):
            self._multiples.append(f"{place}.multipleOf")
            digits = Decimal(multiple if isinstance(multiple, int) else str(multiple)).normalize().as_tuple().digits
            if int("".join(map(str, digits))) > MAX_MULTIPLE:
                raise SchemaError(f"{place}.multipleOf", f"is supported up to {MAX_MULTIPLE:,}")
        if "propertyNames" in schema:
            self._translate_property_names(schema, place)

    def _translate_unique_items(self, schema: Schema, place: str) -> None:
        """Lists every array of different values, if there are few values. Otherwise uniqueItems is refused."""
        items = schema.get("items")
        if isinstance(items, dict) and "$ref" in items:
            items = self._resolve(items["$ref"], f"{place}.items")
        known = {name: value for name, value in items.items() if name not in REMARKS} if isinstance(items, dict) else {}
        fewest, most = schema.get("minItems", 0), schema.get("maxItems", MAX_UNIQUE_VALUES)
        if schema["uniqueItems"] is False or most in (0, 1):
            del schema["uniqueItems"]
        elif isinstance(values := known.get("enum"), list) and known.keys() <= {"enum", "type"}:
            different = list({json.dumps(value): value for value in values}.values())
            is_simple = schema.keys() <= {"type", "items", "uniqueItems", "minItems", "maxItems"}
            is_simple = is_simple and schema.get("type") == "array" and len(different) <= MAX_UNIQUE_VALUES
            if is_simple and isinstance(fewest, int) and isinstance(most, int):
                counts = range(max(0, fewest), min(most, len(different)) + 1)
                schema.clear()
                schema["enum"] = [list(array) for count in counts for array in permutations(different, count)]

    def _translate_property_names(self, schema: Schema, place: str) -> None:
        names = schema["propertyNames"]
        if isinstance(names, dict) and "$ref" in names:
            names = self._resolve(names["$ref"], f"{place}.propertyNames")
        if not isinstance(names, dict):
            return  # it is refused
        known = {name: value for name, value in names.items() if name not in REMARKS and value != "string"}
        extra = schema.get("additionalProperties", True)
        if not known:
            del schema["propertyNames"]
        elif not schema.keys() & {"properties", "patternProperties"} and len(known) == 1:
            values, pattern = known.get("enum"), known.get("pattern")
            if isinstance(values, list) and all(isinstance(value, str) for value in values):
                schema["properties"] = dict.fromkeys(values, extra)
            elif isinstance(pattern, str):
                schema["patternProperties"] = {pattern: extra}
            else:
                return
            del schema["propertyNames"]
            schema["additionalProperties"] = False


def _misspelled(name: str) -> str | None:
    """The keyword that `name` is nearly. A longer name that begins with a keyword is another one: requiredIf."""
    written = name.lower().replace("_", "")
    if len(written) > 2 * len("additionalProperties"):
        return None
    close = get_close_matches(written, KEYWORDS, 1, MIN_LIKENESS)
    if not close or (written != close[0] and written.startswith(close[0])):
        return None
    return KEYWORDS[close[0]]


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}
