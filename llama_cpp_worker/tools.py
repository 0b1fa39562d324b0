"""Functions that a model may call: checks their definitions, and finds the calls in the text of an answer.

Knows the shapes of OpenAI's `tools` and `tool_choice`. The notation of calls is in tool_formats.py, the grammar that a
call follows in answer_grammar.py. So the parser need not check what the model writes.

Not covered: tools that are no functions, grammars of custom tools.
"""

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llama_cpp_worker.answer_grammar import CallRules
from llama_cpp_worker.constraint import MAX_SCHEMA_LENGTH, prepare_schema
from llama_cpp_worker.json_schema import COMBINATIONS, Schema
from llama_cpp_worker.output import Delta, StepParser, Text, ToolCallArguments, ToolCallBegin, overlap
from llama_cpp_worker.sampling_params import InvalidParameter
from llama_cpp_worker.tool_formats import CallFormat

MAX_TOOLS = 128  # as in OpenAI's API
MAX_NAME_LENGTH = 128
MAX_LEVELS = 150  # of objects and lists in a definition, remarks included
MAX_TOTAL_LENGTH = 2 * MAX_SCHEMA_LENGTH  # characters of all schemas together
NAMED_KINDS = ("function", "tool")  # of tool_choice: OpenAI's and Anthropic's
MARK_CHARACTERS = 5  # an answer that was cut after this much of a mark is one that began a call

_ID_CHARACTERS = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a model may call. `parameters` is the client's schema, `schema` the one for llguidance."""

    name: str
    description: str | None
    parameters: Mapping[str, object]
    schema: Schema

    def definition(self) -> dict[str, Any]:
        """The definition as chat templates take it."""
        described = {} if self.description is None else {"description": self.description}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": dict(self.parameters)}}


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The functions of a request, and how the answer may use them.

    choice: "none" (no call), "auto" (text, calls or both) or "required" (at least one call).
    allowed: the names that may be called. allows_several: whether one answer may have more than one call.
    """

    functions: tuple[Function, ...]
    choice: Literal["none", "auto", "required"] = "auto"
    allowed: frozenset[str] = frozenset()
    allows_several: bool = True

    @property
    def is_active(self) -> bool:
        """Whether the answer may have calls."""
        return self.choice != "none" and bool(self.functions)

    def definitions(self) -> list[dict[str, Any]]:
        """The definitions for the prompt; none if no call is possible."""
        return [function.definition() for function in self.functions] if self.is_active else []

    def rules(self, form: CallFormat) -> CallRules:
        """What the grammar of the answer needs."""
        functions = [(each.name, each.schema) for each in self.functions if each.name in self.allowed]
        return CallRules(form, functions, self.choice == "required", self.allows_several)


def read_tools(body: Mapping[str, object]) -> ToolSet | None:
    """The tools of a request: `tools`, `tool_choice`, `parallel_tool_calls`; or `functions` and `function_call`.

    Definitions may be those of chat completions or the flat ones of OpenAI's responses. None: there are no tools.
    Raises InvalidParameter; its `name` goes on into the schema, as in `tools[2].function.parameters.properties.x`.
    """
    tools, choice, choice_place = body.get("tools"), body.get("tool_choice"), "tool_choice"
    is_old = tools is None and body.get("functions") is not None
    if is_old:
        tools, choice, choice_place = body["functions"], body.get("function_call"), "function_call"
    place = "functions" if is_old else "tools"
    several = body.get("parallel_tool_calls")
    if not isinstance(several, bool | None):
        raise InvalidParameter("parallel_tool_calls", "must be true or false")
    if not isinstance(tools, list | None):
        raise InvalidParameter(place, "must be a list of functions")
    if len(tools or []) > MAX_TOOLS:
        raise InvalidParameter(place, f"has {len(tools or [])} functions; at most {MAX_TOOLS} are possible")
    functions: list[Function] = []
    n_characters = 0
    for index, tool in enumerate(tools or []):
        function = _read_tool(tool, f"{place}[{index}]", is_old=is_old)
        n_characters += len(json.dumps(function.schema))
        if n_characters > MAX_TOTAL_LENGTH:  # before the next one is compiled
            problem = f"the schemas are too long together: at most {MAX_TOTAL_LENGTH:,} characters are possible"
            raise InvalidParameter(place, f"{problem} without their remarks")
        if any(function.name == other.name for other in functions):
            raise InvalidParameter(f"{place}[{index}]", f"{function.name[:40]} is defined twice")
        functions.append(function)
    allowed, mode = _read_choice(choice, choice_place, [function.name for function in functions])
    if not functions:
        return None
    is_named = mode == "required" and len(allowed) == 1 and isinstance(choice, dict)
    return ToolSet(tuple(functions), mode, allowed, several is not False and not is_named and not is_old)


def read_function(name: object, description: object, parameters: object, place: str, schema_place: str) -> Function:
    """A checked function. Raises InvalidParameter; `place` and `schema_place` come first in its name."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidParameter(f"{place}.name", f"must be a text of 1 to {MAX_NAME_LENGTH} printable characters")
    if not isinstance(description, str | None):
        raise InvalidParameter(f"{place}.description", "must be a text")
    schema = {"type": "object", "properties": {}} if parameters in (None, {}) else parameters
    if not isinstance(schema, dict):
        raise InvalidParameter(schema_place, "must be a JSON schema of an object")
    if schema.get("type", "object") != "object":
        raise InvalidParameter(f"{schema_place}.type", "must be object, since arguments have names")
    if not schema.keys() & (COMBINATIONS | {"type"}):
        schema = {"type": "object", **schema}
    if _is_deep(schema):
        raise InvalidParameter(schema_place, f"has more than {MAX_LEVELS} levels")
    try:
        (description or "").encode()
        json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # half of a surrogate pair, NaN
        raise InvalidParameter(place, "has a value that JSON cannot express") from error
    return Function(name, description, schema, prepare_schema(schema, schema_place))


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_LEVELS):
        parts = (part.values() if isinstance(part, dict) else part if isinstance(part, list) else () for part in level)
        level = [child for children in parts for child in children]
    return bool(level)


def _read_tool(tool: object, place: str, *, is_old: bool) -> Function:
    if not isinstance(tool, dict):
        raise InvalidParameter(place, "must be an object with type: function and function")
    function: object = tool
    if not is_old:
        if tool.get("type", "function") != "function":
            raise InvalidParameter(f"{place}.type", "must be function: this server has no other tools")
        function = tool if "function" not in tool and "name" in tool else tool.get("function")
        place = place if function is tool else f"{place}.function"
    if not isinstance(function, dict):
        raise InvalidParameter(place, "must be an object with name and parameters")
    parameters = function.get("parameters")
    return read_function(function.get("name"), function.get("description"), parameters, place, f"{place}.parameters")


def _read_choice(
    choice: object, place: str, names: Sequence[str]
) -> tuple[frozenset[str], Literal["none", "auto", "required"]]:
    """The names of the functions that may be called, and how they may be used."""
    everything = frozenset(names)
    if choice is None or choice == "auto":
        return everything, "auto"
    if choice == "none":
        return everything, "none"
    if not isinstance(choice, str | dict) or (isinstance(choice, str) and choice not in ("required", "any")):
        raise InvalidParameter(place, "must be auto, none, required, or an object with the name of a function")
    if not names:
        raise InvalidParameter(place, "needs tools: there is no function to call")
    if isinstance(choice, str):
        return everything, "required"
    if choice.get("type") == "allowed_tools":
        return _read_allowed(choice, place, everything)
    if choice.get("type", "function") not in NAMED_KINDS:
        raise InvalidParameter(f"{place}.type", "must be function or allowed_tools")
    return frozenset([_known_name(choice, place, everything)]), "required"


def _read_allowed(
    choice: Mapping[str, object], place: str, names: frozenset[str]
) -> tuple[frozenset[str], Literal["auto", "required"]]:
    """OpenAI's {"type": "allowed_tools", "mode", "tools"}, also with the latter two in `allowed_tools`."""
    if isinstance(nested := choice.get("allowed_tools"), dict):
        choice, place = nested, f"{place}.allowed_tools"
    mode, tools = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidParameter(f"{place}.mode", "must be auto or required")
    if not isinstance(tools, list) or not tools:
        raise InvalidParameter(f"{place}.tools", "must be a list of at least one function")
    allowed = frozenset(_known_name(tool, f"{place}.tools[{index}]", names) for index, tool in enumerate(tools))
    return allowed, "required" if mode == "required" else "auto"


def _known_name(choice: object, place: str, names: frozenset[str]) -> str:
    named = choice.get("function", choice) if isinstance(choice, dict) else None
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidParameter(place, "must have the name of a function")
    if name not in names:
        raise InvalidParameter(place, f"there is no function {name[:40]!r} in tools")
    return name


class CallParser(StepParser):
    """Finds the calls in the text of an answer that follows the grammar of `rules`.

    Text after the last call is left out: the grammar has none there, apart from marks.
    """

    def __init__(self, rules: CallRules) -> None:
        self._form = rules.form
        self._is_required = rules.is_required
        self._heads = {
            before + json.dumps(name, ensure_ascii=False): name
            for name, _ in rules.functions
            for before in rules.form.before_name
        }
        self._step = self._find_mark
        self._n_calls = 0
        self._json = _JsonEnd()

    def finish(self) -> list[Delta]:
        """See OutputParser."""
        if self._step != self._find_mark:
            return []
        n_mark = self._overlap()
        if n_mark >= MARK_CHARACTERS or self._is_required:
            return _text_delta(self._pending[: len(self._pending) - n_mark].rstrip())
        return _text_delta(self._pending)

    # --- the steps

    def _find_mark(self) -> list[Delta] | None:
        if not self._form.mark:
            return self._find_first_head()
        text, found, rest = self._pending.partition(self._form.mark)
        if found:
            self._pending, self._step = rest, self._find_name
            return _text_delta(text.rstrip())
        certain = self._pending[: len(self._pending) - self._overlap()].rstrip()  # blanks before a call are no text
        self._pending = self._pending[len(certain) :]
        return [Text(certain)] if certain else None

    def _find_first_head(self) -> list[Delta] | None:
        """For a notation without a mark: an answer that begins like a call is one."""
        begin = self._pending.lstrip()
        if any(begin.startswith(head) for head in self._heads):
            self._step = self._find_name
            return []
        if any(head.startswith(begin) for head in self._heads):
            return None
        self._step = self._copy_text
        return []

    def _copy_text(self) -> list[Delta] | None:
        text, self._pending = self._pending, ""
        return [Text(text)] if text else None

    def _find_name(self) -> list[Delta] | None:
        found = [(start, head) for head in self._heads if (start := self._pending.find(head)) >= 0]
        if not found:
            return None
        start, head = min(found)
        self._pending, self._step = self._pending[start + len(head) :], self._find_arguments
        identity = "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(24))
        self._n_calls += 1
        return [ToolCallBegin(self._n_calls - 1, identity, self._heads[head])]

    def _find_arguments(self) -> list[Delta] | None:
        _, found, rest = self._pending.partition(self._form.before_arguments)
        if not found:
            return None
        self._pending, self._step, self._json = rest, self._copy_arguments, _JsonEnd()
        return []

    def _copy_arguments(self) -> list[Delta] | None:
        end = self._json.find(self._pending)
        text, self._pending = self._pending[:end], self._pending[end:]
        if self._json.is_found:
            self._step = self._find_name
        if text:
            return [ToolCallArguments(self._n_calls - 1, text)]
        return [] if self._json.is_found else None

    def _overlap(self) -> int:
        """Length of the end of the pending text that may begin a mark, or a call."""
        return overlap(self._pending, [self._form.mark] if self._form.mark else self._heads)


class _JsonEnd:
    """Finds the end of a JSON value in pieces of its text: almost always an object, as the schemas want."""

    def __init__(self) -> None:
        self.is_found = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False

    def find(self, piece: str) -> int:
        """The place in `piece` after the value's end; its length if the value goes on."""
        for place, character in enumerate(piece):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
                    if self._depth == 0:
                        return self._end(place + 1)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif self._depth == 0 and character in "},":  # after a number, true, false or null
                return self._end(place)
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return self._end(place + 1)
        return len(piece)

    def _end(self, place: int) -> int:
        self.is_found = True
        return place


def _text_delta(text: str) -> list[Delta]:
    return [Text(text)] if text else []
