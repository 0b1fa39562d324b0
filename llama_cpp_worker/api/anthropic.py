"""Anthropic's Messages API: the request's fields, and its content blocks as messages of a chat.

Claude Code is one of its clients: https://code.claude.com/docs/en/llm-gateway-protocol lists what it sends.

Not covered: pictures, documents, and tools that run on Anthropic's servers.
"""

import json
from collections.abc import Mapping

from llama_cpp_worker.api.errors import ApiError, checked, not_one_of, refusal
from llama_cpp_worker.api.fields import Fields, encodable
from llama_cpp_worker.api.messages import check_count, read_text
from llama_cpp_worker.api.naming import errors_name
from llama_cpp_worker.api.request import SAMPLING_NAMES, GenerationRequest, Message, read_params
from llama_cpp_worker.tools import ToolSet, read_tools

# Accepted with any value. `thinking` and `output_config.effort`: a model thinks as its template says, and its thoughts
# are blocks of type thinking. `context_management`: nothing is removed from the prompt. The others are about money,
# speed, storage and labels; what is left of them is in fields.py.
HINTS = frozenset(
    [
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "billing_policy",
        "cache_control",
        "context_management",
        "diagnostics",
        "fallback_credit_token",
        "fallbacks",
        "service_tier",
        "speed",
        "thinking",
        "user_profile_id",
        "workspace_id",
    ]
)
NAMES = SAMPLING_NAMES - {"max_completion_tokens", "response_format", "stop"}
NAMES |= HINTS | {"model", "messages", "system", "tools", "tool_choice", "stop_sequences", "stream"}
NAMES |= {"output_config", "output_format"}
ROLES = ("user", "assistant", "system")
CHOICES = ("auto", "any", "tool", "none")
UNSUPPORTED = ("compaction", "container", "mcp_servers", "thread")

# Claude Code begins the system prompt with a block that changes with every request. It is for Anthropic's accounting.
# In a prompt it would make all that follows it new to the prefix cache. llama-server overwrites its changing part.
BILLING_HEADER = "x-anthropic-billing-header:"

CLIENT_NAMES = {
    r"response_format(\.json_schema)?": "output_config.format",
    "stop": "stop_sequences",
    r"(tools\[\d+\])\.parameters": r"\1.input_schema",
}
ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def parse(fields: Fields) -> GenerationRequest:
    """Raises ApiError, which names the parameter."""
    if fields.get("max_tokens") is None:
        raise refusal("max_tokens", "is missing; Anthropic's API needs it")
    return parse_prompt(fields)


def parse_prompt(fields: Fields) -> GenerationRequest:
    """The same without an obligatory max_tokens, to count the tokens of a prompt."""
    for name in UNSUPPORTED:
        if fields.get(name) not in (None, [], {}):
            raise refusal(name, "this server does not support it; leave it out")
    fields.check_names({*NAMES, *UNSUPPORTED})
    fields.text("model")
    chat = {"stop": fields.get("stop_sequences"), "response_format": _response_format(fields)}
    with errors_name(CLIENT_NAMES):
        params = read_params(Fields({**fields.values, **chat}))
        tools = _read_tools(fields)
    return GenerationRequest(
        params=params,
        messages=read_messages(fields.get("messages"), fields.get("system")),
        tools=tools,
        stream=fields.flag("stream"),
    )


def error_body(error: ApiError) -> dict[str, object]:
    """Anthropic's error object. Claude Code shortens a conversation when it reads that the prompt is too long."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    message = str(error)
    if error.code == "context_length_exceeded":
        message = f"prompt is too long: {message.removeprefix(f'{error.param}: ')}"
    return {"type": "error", "error": {"type": kind, "message": message}}


def read_messages(messages: object, system: object) -> list[Message]:
    """The messages for the chat template: a result of a tool becomes a message of its own. Raises ApiError."""
    if not isinstance(messages, list) or not messages:
        raise refusal("messages", "must be a list of at least one message")
    blocks = [block for message in messages if isinstance(message, dict) for block in _blocks(message)]
    check_count([*messages, *blocks], "messages")
    read = _read_system(system)
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict) or role not in ROLES:
            raise refusal(f"{place}.role", not_one_of(ROLES, role))
        content, place = message.get("content"), f"{place}.content"
        if role == "system":
            read.append({"role": "system", "content": read_text(content, place)})
        elif role == "user":
            read += _read_user(content, place)
        else:
            read.append(_read_assistant(content, place))
    return read


def _blocks(message: dict[str, object]) -> list[object]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def _read_system(system: object) -> list[Message]:
    if isinstance(system, list):
        system = [block for block in system if not _is_billing_header(block)]
    if system in (None, "", []):
        return []
    return [{"role": "system", "content": read_text(system, "system")}]


def _is_billing_header(block: object) -> bool:
    text = block.get("text") if isinstance(block, dict) else None
    return isinstance(text, str) and text.startswith(BILLING_HEADER)


def _read_user(content: object, place: str) -> list[Message]:
    if not isinstance(content, list):
        return [{"role": "user", "content": read_text(content, place)}]
    if not content:
        raise refusal(place, "must be a text or a list of at least one block")
    messages: list[Message] = []
    texts: list[object] = []
    for index, block in enumerate(content):
        if isinstance(block, dict) and block.get("type") == "tool_result":
            messages += _joined(texts, place)
            texts = []
            messages.append(_read_result(block, f"{place}[{index}]"))
        else:
            _check_text_block(block, f"{place}[{index}]")
            texts.append(block)
    return messages + _joined(texts, place)


def _joined(texts: list[object], place: str) -> list[Message]:
    return [{"role": "user", "content": read_text(texts, place)}] if texts else []


def _read_result(block: Mapping[str, object], place: str) -> Message:
    identity, content = block.get("tool_use_id"), block.get("content")
    if not isinstance(identity, str) or not identity:
        raise refusal(f"{place}.tool_use_id", "must be a text")
    for index, part in enumerate(content if isinstance(content, list) else []):
        _check_text_block(part, f"{place}.content[{index}]")
    text = "" if content in (None, []) else read_text(content, f"{place}.content")
    if Fields(block, place).flag("is_error") and "error" not in text.lower():
        text = f"Error: {text}"  # chat templates have no other mark for it
    return {"role": "tool", "tool_call_id": encodable(identity, place), "content": text}


def _read_assistant(content: object, place: str) -> Message:
    if not isinstance(content, list):
        return {"role": "assistant", "content": read_text(content, place)}
    texts, calls, thoughts = [], [], []
    for index, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "tool_use":
            calls.append(_read_call(block, f"{place}[{index}]"))
        elif kind == "thinking":
            thoughts.append(read_text(block.get("thinking"), f"{place}[{index}].thinking"))
        elif kind != "redacted_thinking":
            _check_text_block(block, f"{place}[{index}]")
            texts.append(block)
    message: Message = {"role": "assistant", "content": read_text(texts, place)}
    if calls:
        message["tool_calls"] = calls
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    return message


def _read_call(block: Mapping[str, object], place: str) -> dict[str, object]:
    values = {}
    for name in ("id", "name"):
        value = block.get(name)
        if not isinstance(value, str) or not value:
            raise refusal(f"{place}.{name}", "must be a text")
        values[name] = encodable(value, f"{place}.{name}")
    arguments = block.get("input", {})
    if not isinstance(arguments, dict):
        raise refusal(f"{place}.input", "must be an object")
    text = encodable(json.dumps(arguments, ensure_ascii=False), f"{place}.input")
    return {"id": values["id"], "type": "function", "function": {"name": values["name"], "arguments": text}}


def _check_text_block(block: object, place: str) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text":
        shown = f" of type {kind[:40]}" if isinstance(kind, str) else ""
        raise refusal(place, f"this server cannot read a block{shown} here; send text")


def _response_format(fields: Fields) -> object:
    """The schema of an answer, as the field of a chat. `output_format` is its name in older betas."""
    config = fields.object("output_config", ("effort", "format", "task_budget"))
    form = fields.get("output_format") if config.get("format") is None else config.get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise refusal("output_config.format", "must be an object of type json_schema with a schema")
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _read_tools(fields: Fields) -> ToolSet | None:
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    if isinstance(tools, list):
        tools = [_openai_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    if not isinstance(choice, dict | None):
        raise refusal("tool_choice", "must be an object with a type")
    options = Fields(choice or {}, "tool_choice")
    kind = options.text("type") or "auto"
    if kind not in CHOICES:
        raise refusal("tool_choice.type", not_one_of(CHOICES, kind))
    chat = {
        "tools": tools,
        "tool_choice": choice if kind == "tool" else kind,
        "parallel_tool_calls": not options.flag("disable_parallel_tool_use"),
    }
    return checked(read_tools, chat)


def _openai_tool(tool: object, place: str) -> object:
    if not isinstance(tool, dict):
        raise refusal(place, "must be an object with name and input_schema")
    kind = tool.get("type") or "custom"
    if kind != "custom":
        shown = f" {kind[:40]}" if isinstance(kind, str) else ""
        raise refusal(f"{place}.type", f"this server has no tool{shown}; define it with name and input_schema")
    described = {name: tool[name] for name in ("name", "description") if name in tool}
    return {"type": "function", "parameters": tool.get("input_schema"), **described}
