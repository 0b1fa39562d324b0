"""OpenAI's Responses API: the request's fields, and the items of its input as messages of a chat.

Not covered: stored responses and conversations, tools other than functions, pictures and files.
"""

import json
from collections.abc import Mapping

from llama_cpp_worker.api.errors import checked, not_one_of, refusal
from llama_cpp_worker.api.fields import Fields, encodable
from llama_cpp_worker.api.messages import check_count, read_text
from llama_cpp_worker.api.naming import errors_name
from llama_cpp_worker.api.request import SAMPLING_NAMES, GenerationRequest, Message, read_params
from llama_cpp_worker.sampling_params import Bounds
from llama_cpp_worker.tools import read_tools

TOP_LOGPROBS = Bounds(int, 0, 20)
LOGPROBS = "message.output_text.logprobs"  # a value of `include`; the others are about tools of OpenAI's servers
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}

MAX_LABEL_LENGTH = 16_384  # characters of JSON
LABELS = ("metadata", "reasoning", "user")
SHOWN = ("instructions", "metadata", "parallel_tool_calls", "reasoning", "text", "tool_choice", "tools", "user")
NAMES = SAMPLING_NAMES - {"max_tokens", "max_completion_tokens", "response_format"}
NAMES |= {*SHOWN, "model", "input", "include", "max_output_tokens", "top_logprobs", "truncation"}
NAMES |= {"stream", "stream_options", "max_tool_calls"}  # the last one counts calls of OpenAI's own tools

WHOLE_CONVERSATION = "nothing is stored here; send the whole conversation as input"
UNSUPPORTED = {
    "background": "this server does not support it; leave it out, and stream the answer",
    "context_management": "this server does not shorten the input; leave it out",
    "conversation": WHOLE_CONVERSATION,
    "moderation": "this server does not support it; leave it out",
    "previous_response_id": WHOLE_CONVERSATION,
    "prompt": "no prompts are stored here; send instructions and input",
}

CLIENT_NAMES = {
    r"response_format(\.json_schema)?": "text.format",
    "max_tokens": "max_output_tokens",
    "messages": "input",
}


def parse(fields: Fields) -> GenerationRequest:
    """Raises ApiError, which names the parameter."""
    for name, problem in UNSUPPORTED.items():
        if fields.get(name) not in (None, False, [], {}):
            raise refusal(name, problem)
    fields.check_names(NAMES | UNSUPPORTED.keys())
    fields.text("model")
    if fields.text("truncation") not in (None, "disabled"):
        raise refusal("truncation", "must be disabled: this server does not shorten the input")
    fields.object("stream_options", ("include_obfuscation",))
    for name in LABELS:
        if len(json.dumps(fields.get(name))) > MAX_LABEL_LENGTH:
            raise refusal(name, f"has more than {MAX_LABEL_LENGTH:,} characters, and every answer repeats it")
    if not isinstance(fields.get("reasoning"), dict | None):
        raise refusal("reasoning", "must be an object")
    limits = {"max_tokens": fields.get("max_output_tokens"), "response_format": _response_format(fields)}
    with errors_name(CLIENT_NAMES):
        params = read_params(Fields({**fields.values, **limits}))
    return GenerationRequest(
        params=params,
        messages=read_input(fields.get("input"), fields.text("instructions")),
        tools=checked(read_tools, fields.values),
        logprobs=_read_logprobs(fields),
        continues_answer=False,  # each answer is a message of its own
        stream=fields.flag("stream"),
        shown={name: fields.get(name) for name in SHOWN if fields.get(name) is not None},
    )


def read_input(items: object, instructions: str | None) -> list[Message]:
    """The messages for the chat template. Raises ApiError, which names the place in `input`.

    Instructions and system messages at the beginning become one message, since many templates take only one.
    """
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if not isinstance(items, list) or not items:
        raise refusal("input", "must be a text, or a list of at least one item")
    check_count(items, "input")
    reader = _InputReader()
    if instructions:
        reader.messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(items):
        reader.add(f"input[{index}]", item)
    if not reader.messages:
        raise refusal("input", "has only reasoning; there is nothing to answer")
    return reader.messages


class _InputReader:
    """Collects messages from items. A call belongs to the assistant's message before it, thoughts to the one after."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reasoning = ""

    def add(self, place: str, item: object) -> None:
        if not isinstance(item, dict):
            raise refusal(place, "must be an object")
        kind = item.get("type") or "message"
        if kind == "message":
            self._add_message(place, item)
        elif kind == "function_call":
            self._add_call(place, item)
        elif kind == "function_call_output":
            call = {"tool_call_id": _text(place, item, "call_id")}
            self.messages.append({"role": "tool", **call, "content": read_text(item.get("output"), f"{place}.output")})
        elif kind == "reasoning":
            self._reasoning += _thoughts(place, item)
        elif kind == "item_reference":
            raise refusal(place, "nothing is stored here; send the item itself (clients do so with store: false)")
        else:
            known = ("message", "function_call", "function_call_output", "reasoning")
            raise refusal(f"{place}.type", not_one_of(known, kind))

    def _add_message(self, place: str, item: Mapping[str, object]) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise refusal(f"{place}.role", not_one_of(ROLES, role))
        content = read_text(item.get("content"), f"{place}.content")
        if ROLES[role] == "system" and len(self.messages) == 1 and self.messages[0]["role"] == "system":
            self.messages[0]["content"] += f"\n\n{content}"
        elif role == "assistant":
            self._add_answer(content)
        else:
            self._reasoning = ""
            self.messages.append({"role": ROLES[role], "content": content})

    def _add_call(self, place: str, item: Mapping[str, object]) -> None:
        identity, name, arguments = (_text(place, item, key) for key in ("call_id", "name", "arguments"))
        if not self.messages or self.messages[-1]["role"] != "assistant" or self._reasoning:
            self._add_answer("")
        function = {"name": name, "arguments": arguments}
        self.messages[-1].setdefault("tool_calls", []).append(
            {"id": identity, "type": "function", "function": function}
        )

    def _add_answer(self, content: str) -> None:
        answer: Message = {"role": "assistant", "content": content}
        if self._reasoning:
            answer["reasoning_content"], self._reasoning = self._reasoning, ""
        self.messages.append(answer)


def _thoughts(place: str, item: Mapping[str, object]) -> str:
    """The text of a reasoning item; "" if it has only a summary or is encrypted."""
    parts = item.get("content") or []
    if not isinstance(parts, list):
        raise refusal(f"{place}.content", "must be a list")
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(encodable(text, f"{place}.content") for text in texts if isinstance(text, str))


def _text(place: str, item: Mapping[str, object], name: str) -> str:
    text = item.get(name)
    if not isinstance(text, str) or not text:
        raise refusal(f"{place}.{name}", "must be a text")
    return encodable(text, f"{place}.{name}")


def _response_format(fields: Fields) -> object:
    """`text.format` as the field of a chat, which has the schema one level deeper."""
    form = fields.object("text", ("format", "verbosity")).get("format")
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _read_logprobs(fields: Fields) -> int | None:
    include = fields.get("include") or []
    if not isinstance(include, list) or not all(isinstance(name, str) for name in include):
        raise refusal("include", "must be a list of texts")
    count = fields.number("top_logprobs", TOP_LOGPROBS)
    return (count or 0) if LOGPROBS in include or count else None
