"""How models write a call of a function as text, and how a model without a notation of its own learns one.

Knows notations and messages. Knows nothing of grammars (see answer_grammar.py), parsers (see tools.py) and templates.
The notations are those of the models' chat templates; llama.cpp (common/chat.cpp) reads the same ones.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from llama_cpp_worker.json_values import json_problem

Message = dict[str, Any]  # role and content, for some also tool_calls, tool_call_id …


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The notation of calls: `opening`, then each call, `between` two of them, and `closing`.

    A call is one of `before_name`, the name as JSON, `before_arguments`, the arguments as JSON, `after_arguments`.
    mark: the beginning of `opening`. Text before it is an answer in words. Empty: calls are possible only at the start.
    between: None if a message has at most one call. one_call: whether the model's own answers have at most one.
    ids: whether a call also has an id of nine characters.
    """

    mark: str
    opening: str
    before_name: tuple[str, ...]
    before_arguments: str
    after_arguments: str
    between: str | None
    closing: str
    ids: bool = False
    one_call: bool = False

    def render(self, calls: Sequence[tuple[str, object]]) -> str:
        """The text of calls, each a name and its arguments, as a model would write it."""
        parts = [
            f"{self.before_name[0]}{_dump(name)}{self.before_arguments}{_dump(arguments)}{self.after_arguments}"
            for name, arguments in calls
        ]
        return f"{self.opening}{(self.between or '').join(parts)}{self.closing}"


# Hermes 2 and 3, Qwen 2.5 and 3, Granite 4.
HERMES = CallFormat(
    mark="<tool_call>",
    opening="<tool_call>\n",
    before_name=('{"name": ',),
    before_arguments=', "arguments": ',
    after_arguments="}",
    between="\n</tool_call>\n<tool_call>\n",
    closing="\n</tool_call>",
)
# Models that learn the notation from the prompt. A small one would repeat its call up to max_tokens.
PROMPTED = replace(HERMES, one_call=True)
# Llama 3.1 to 3.3. Their templates refuse a message with two calls.
LLAMA = CallFormat(
    mark="",
    opening="",
    before_name=('{"name": ', '{"type": "function", "name": '),
    before_arguments=', "parameters": ',
    after_arguments="}",
    between=None,
    closing="",
)
# Mistral 7B v0.3, Nemo, Small 3.1. The model ends each call with an id.
MISTRAL = CallFormat(
    mark="[TOOL_CALLS]",
    opening="[TOOL_CALLS][",
    before_name=('{"name": ',),
    before_arguments=', "arguments": ',
    after_arguments="}",
    between=", ",
    closing="]",
    ids=True,
)
FORMATS = (HERMES, MISTRAL, LLAMA)
CALL_MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")  # some models have tokens for them

# A conversation with a call, to find out how a template writes it.
PROBE_ID = "abcdefghi"
PROBE_ARGUMENTS = {"key": "value"}
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_name",
        "description": "probe_description",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
    },
}
PROBE_CALL = {
    "id": PROBE_ID,
    "type": "function",
    "function": {"name": "probe_name", "arguments": json.dumps(PROBE_ARGUMENTS)},
}
PROBE: list[Message] = [
    {"role": "user", "content": "question"},
    {"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]},
    {"role": "tool", "content": "result", "tool_call_id": PROBE_ID, "name": "probe_name"},
]


def format_in(text: str) -> CallFormat | None:
    """The notation of the call in the rendered PROBE; None if it is not one of ours."""
    for each in FORMATS:
        written = each.render([("probe_name", PROBE_ARGUMENTS)])
        if each.ids:
            written = written.removesuffix("}]") + f', "id": "{PROBE_ID}"}}]'
        if written in text and "probe_description" in text:
            return each
    return None


def for_template(messages: Sequence[Message], form: CallFormat) -> list[Message]:
    """The messages for a template that writes calls itself: arguments are objects, ids as the model has them."""
    converted: list[Message] = []
    for message in messages:
        calls = [_with_object(call, form) for call in message.get("tool_calls", ())]
        if calls:
            per_message = len(calls) if form.between is not None else 1
            groups = [calls[start : start + per_message] for start in range(0, len(calls), per_message)]
            converted += [
                message | {"tool_calls": group, "content": message["content"] if index == 0 else ""}
                for index, group in enumerate(groups)
            ]
        elif message["role"] == "tool" and form.ids:
            converted.append(message | {"tool_call_id": _short_id(message.get("tool_call_id", ""))})
        else:
            converted.append(message)
    return converted


def as_text(
    messages: Sequence[Message], tools: Sequence[Message], form: CallFormat, *, has_system: bool
) -> list[Message]:
    """The messages for a template without tools: definitions, calls and results are a part of the texts.

    has_system: whether the template takes a system message. Otherwise the first message of the user has the
    definitions.
    """
    converted: list[Message] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if calls := message.get("tool_calls"):
            functions = [call["function"] for call in calls]
            written = form.render([(each["name"], _parsed(each["arguments"])) for each in functions])
            content = f"{content}\n{written}" if content else written
        elif role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        if message["role"] in ("tool", "user") and converted and converted[-1].get("is_result"):
            converted[-1]["texts"].append(content)  # templates want user and assistant in turn
        else:
            converted.append({"role": role, "texts": [content], "is_result": message["role"] == "tool"})
    converted = [{"role": message["role"], "content": "\n".join(message["texts"])} for message in converted]
    if tools:
        _describe(converted, tools, form, has_system=has_system)
    return converted


def _describe(messages: list[Message], tools: Sequence[Message], form: CallFormat, *, has_system: bool) -> None:
    example = form.opening + form.before_name[0] + "<name of the function>" + form.before_arguments
    lines = [
        "You can call functions. These are their signatures:",
        "<tools>",
        *map(_dump, tools),
        "</tools>",
        "To call a function, answer with its name and its arguments as JSON, in this form:",
        f"{example}<object of the arguments>{form.after_arguments}{form.closing}",
    ]
    text = "\n".join(lines)
    role = "system" if has_system else "user"
    first = next((message for message in messages[: 1 if has_system else None] if message["role"] == role), None)
    if first is None:
        messages.insert(0, {"role": role, "content": text})
    elif has_system:
        first["content"] = f"{first['content']}\n\n{text}" if first["content"] else text
    else:
        first["content"] = f"{text}\n\n{first['content']}"


def _with_object(call: Message, form: CallFormat) -> Message:
    function = call["function"]
    arguments = {"name": function["name"], "arguments": _parsed(function["arguments"])}
    return call | {"function": arguments} | ({"id": _short_id(call["id"])} if form.ids else {})


def ends_with_answer(messages: Sequence[Message]) -> bool:
    """Whether the last message is an answer that can be continued: words of the assistant, and no call."""
    if not messages or messages[-1]["role"] != "assistant" or "tool_calls" in messages[-1]:
        return False
    return bool(messages[-1]["content"].strip())


def with_parsed_arguments(messages: Sequence[Message]) -> list[Message]:
    """The messages with the arguments of calls as objects; as the text that they are if they are no JSON."""
    parsed = []
    for message in messages:
        if calls := message.get("tool_calls"):
            functions = [call["function"] | {"arguments": _parsed(call["function"]["arguments"])} for call in calls]
            calls = [call | {"function": function} for call, function in zip(calls, functions, strict=True)]
            message = message | {"tool_calls": calls}
        parsed.append(message)
    return parsed


def _parsed(arguments: object) -> object:
    """Arguments that are an object already stay."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):  # a client may have cut it: the model sees what there is
        return arguments
    return arguments if json_problem(value) else value


def _short_id(identity: str) -> str:
    """Nine letters and digits, which Mistral's templates demand; those that have this form stay."""
    if len(identity) == 9 and identity.isascii() and identity.isalnum():
        return identity
    return hashlib.sha256(identity.encode()).hexdigest()[:9]


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
