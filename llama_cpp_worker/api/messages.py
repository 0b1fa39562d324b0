"""Checks the `messages` of a chat: roles, texts, tool calls and their results. Knows OpenAI's shapes.

Not covered: pictures, sound and files.
"""

import json

from llama_cpp_worker.api.errors import not_one_of, refusal
from llama_cpp_worker.api.fields import encodable
from llama_cpp_worker.api.request import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
OLD_ROLES = {"function": "tool"}  # before there were tool calls
MAX_MESSAGES = 10_000  # a template renders them in 0.1 s, in which no answer goes on
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
UNSUPPORTED = ("audio", "images", "prefix")  # would change the answer


def read_messages(messages: object, place: str = "messages") -> list[Message]:
    """The messages for the chat template: `role` and `content`, for some also `tool_calls`, `tool_call_id`, `name`.

    Fields that only label a message pass, since clients send our answers back with labels of their own.
    Raises ApiError.
    """
    if not isinstance(messages, list) or not messages:
        raise refusal(place, "must be a list of at least one message")
    check_count(messages, place)
    return [_read_message(f"{place}[{index}]", message) for index, message in enumerate(messages)]


def check_count(messages: list[object], place: str) -> None:
    """Raises ApiError for more messages than a template renders in a moment."""
    if len(messages) > MAX_MESSAGES:
        raise refusal(place, f"has {len(messages):,} entries; at most {MAX_MESSAGES:,} are possible")


def _read_message(place: str, message: object) -> Message:
    if not isinstance(message, dict):
        raise refusal(place, "must be an object with role and content")
    sent = message.get("role")
    role = {**ROLES, **OLD_ROLES}.get(sent) if isinstance(sent, str) else None
    if role is None:
        raise refusal(f"{place}.role", not_one_of(ROLES, sent))
    for name in UNSUPPORTED:
        if message.get(name) not in (None, [], False):
            raise refusal(f"{place}.{name}", "this server does not support it")
    calls = _read_tool_calls(place, message) if role == "assistant" else []
    content = message.get("content")
    if content is None and calls:
        content = ""
    read: Message = {"role": role, "content": read_text(content, f"{place}.content")}
    if calls:
        read["tool_calls"] = calls
    reasoning = message.get("reasoning_content")
    if role == "assistant" and isinstance(reasoning, str) and reasoning:
        read["reasoning_content"] = encodable(reasoning, f"{place}.reasoning_content")
    if role == "tool":
        for name in ("tool_call_id", "name"):
            if isinstance(value := message.get(name), str):
                read[name] = encodable(value, f"{place}.{name}")
    return read


def read_text(content: object, place: str) -> str:
    """A text, or text parts, which are joined with line breaks as in llama-server. Raises ApiError."""
    if isinstance(content, list):
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TEXT_PARTS:
                shown = f", not {kind[:40]}" if isinstance(kind, str) else ""
                raise refusal(f"{place}[{index}]", f"must be a part of type text{shown}")
            texts.append(part.get("refusal" if kind == "refusal" else "text"))
        content = "\n".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise refusal(place, "must be a text")
    return encodable(content, place)


def _read_tool_calls(place: str, message: dict[str, object]) -> list[dict[str, object]]:
    calls = message.get("tool_calls")
    if calls is None and message.get("function_call") is not None:
        calls, place = [{"function": message["function_call"]}], f"{place}.function_call"
    else:
        place = f"{place}.tool_calls"
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise refusal(place, "must be a list")
    return [_read_tool_call(f"{place}[{index}]", call) for index, call in enumerate(calls)]


def _read_tool_call(place: str, call: object) -> dict[str, object]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or call.get("type", "function") != "function" or not isinstance(function, dict):
        raise refusal(place, "must be an object with type: function and function")
    name, arguments, identity = function.get("name"), function.get("arguments", "{}"), call.get("id", "")
    if not isinstance(name, str) or not name:
        raise refusal(f"{place}.function.name", "must be a text")
    if not isinstance(identity, str | None):
        raise refusal(f"{place}.id", "must be a text")
    if isinstance(arguments, dict):  # some clients send the object itself
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise refusal(f"{place}.function.arguments", "must be the text of a JSON object")
    encodable(arguments, f"{place}.function.arguments")
    return {
        "id": encodable(identity or "", f"{place}.id"),
        "type": "function",
        "function": {"name": encodable(name, f"{place}.function.name"), "arguments": arguments},
    }
