"""OpenAI's chat completions: the request's fields, and the shapes of the answers."""

from collections.abc import Sequence

from llama_cpp_worker.api.errors import checked, not_one_of, refusal
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.api.messages import read_messages
from llama_cpp_worker.api.openai_format import OpenAIFormat
from llama_cpp_worker.api.reply import Choice, Head
from llama_cpp_worker.api.request import (
    N_CHOICES,
    SAMPLING_NAMES,
    STREAM_NAMES,
    GenerationRequest,
    Message,
    read_params,
    read_stream,
)
from llama_cpp_worker.api.usage import chat_logprobs
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.sampling_params import Bounds, SampledToken
from llama_cpp_worker.tools import read_tools

TOP_LOGPROBS = Bounds(int, 0, 20)
REASONING_FORMATS = ("auto", "deepseek", "none")  # llama-server's

TOOL_NAMES = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"))
NAMES = SAMPLING_NAMES | STREAM_NAMES | TOOL_NAMES
NAMES |= {"model", "messages", "n", "logprobs", "top_logprobs", "reasoning_format"}
NAMES |= {"continue_final_message", "add_generation_prompt"}


def parse(fields: Fields) -> GenerationRequest:
    """Raises ApiError, which names the parameter."""
    fields.check_names(NAMES)
    fields.text("model")
    return read_chat(fields)


def read_chat(fields: Fields) -> GenerationRequest:
    """A chat from fields whose names are checked."""
    if fields.get("messages") is None:
        raise refusal("messages", "is missing; there is nothing to answer")
    messages = read_messages(fields.get("messages"))
    reasoning_format = fields.text("reasoning_format") or "auto"
    if reasoning_format not in REASONING_FORMATS:
        raise refusal("reasoning_format", not_one_of(REASONING_FORMATS, reasoning_format))
    return GenerationRequest(
        params=read_params(fields),
        messages=messages,
        tools=checked(read_tools, fields.values),
        n=fields.number("n", N_CHOICES) or 1,
        logprobs=_read_logprobs(fields),
        continues_answer=_continues_answer(fields, messages),
        reasoning_format=reasoning_format,
        **read_stream(fields),
    )


def _continues_answer(fields: Fields, messages: Sequence[Message]) -> bool:
    """Whether a last message of the assistant is continued; vLLM and Hugging Face have two parameters for it."""
    continues, begins = fields.flag("continue_final_message", default=True), fields.flag("add_generation_prompt", True)
    is_answer = messages[-1]["role"] == "assistant"
    if fields.get("continue_final_message") is True:
        if fields.get("add_generation_prompt") is True:
            raise refusal("add_generation_prompt", "must not be true if continue_final_message is; send one of them")
        if not is_answer:
            raise refusal("continue_final_message", "the last message is not the assistant's")
    if not begins and not (is_answer and continues):
        raise refusal("add_generation_prompt", "must be true, unless a last message of the assistant is continued")
    return continues


def _read_logprobs(fields: Fields) -> int | None:
    count = fields.number("top_logprobs", TOP_LOGPROBS)
    if fields.flag("logprobs"):
        return count or 0
    if count is not None:
        raise refusal("top_logprobs", "is only possible with logprobs: true")
    return None


class ChatFormat(OpenAIFormat):
    """Chat completion objects, or chunks of a stream."""

    def __init__(self, request: GenerationRequest, head: Head) -> None:
        super().__init__(request, head, "chatcmpl", "chat.completion.chunk" if request.stream else "chat.completion")

    def begin(self, choice: Choice) -> str:
        return self.event(_chunk(choice, {"role": "assistant", "content": ""}))

    def progress(self, choice: Choice, progress: dict[str, float]) -> str:
        return self.event(_chunk(choice, {}), prompt_progress=progress)

    def update(
        self, choice: Choice, deltas: Sequence[Delta], tokens: Sequence[SampledToken], timings: dict[str, object]
    ) -> str:
        chunks = [_chunk(choice, _delta(delta)) for delta in deltas] or [_chunk(choice, {})]
        if tokens:
            chunks[0]["logprobs"] = chat_logprobs(tokens)
        return "".join(self.event(chunk, **timings) for chunk in chunks)

    def end_choice(self, choice: Choice, timings: dict[str, object]) -> str:
        return self.event(_chunk(choice, {}, choice.finish_reason), **timings)

    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str:
        objects: list[dict[str, object]] = [
            {
                "index": choice.index,
                "message": _message(choice),
                "logprobs": chat_logprobs(sampled) if self._request.logprobs is not None else None,
                "finish_reason": choice.finish_reason,
            }
            for choice, sampled in zip(choices, tokens, strict=True)
        ]
        return self.body(objects, choices)


def _chunk(choice: Choice, delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
    return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _delta(delta: Delta) -> dict[str, object]:
    match delta:
        case Text():
            return {"content": delta.text}
        case Reasoning():
            return {"reasoning_content": delta.text}
        case ToolCallBegin():
            function = {"name": delta.name, "arguments": ""}
            call = {"index": delta.index, "id": delta.id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case ToolCallArguments():
            return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}


def _message(choice: Choice) -> dict[str, object]:
    output = choice.output
    message: dict[str, object] = {"role": "assistant", "content": output.text}
    if output.reasoning:
        message["reasoning_content"] = output.reasoning
    if output.tool_calls:
        message["content"] = output.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in output.tool_calls
        ]
    return message
