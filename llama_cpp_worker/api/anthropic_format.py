"""The answers of Anthropic's Messages API: a message of content blocks, whole or as the events that build it."""

import json
from collections.abc import Sequence
from typing import Any

from llama_cpp_worker.api.anthropic import error_body
from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.reply import EVENTS_TYPE, JSON_TYPE, Choice, Head
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.usage import token_counts
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SampledToken

Block = dict[str, Any]


class AnthropicFormat:
    """One message. Its first event comes before the prefill, so only the last ones have the final counts.

    A thinking block has no signature: nothing here checks it when it comes back.
    """

    def __init__(self, request: GenerationRequest, head: Head) -> None:
        self.content_type = EVENTS_TYPE if request.stream else JSON_TYPE
        self._request = request
        self._head = head
        self._n_blocks = 0
        self._open: str | None = None  # the type of the block that is not ended

    def begin(self, choice: Choice) -> str:
        return _event("message_start", message=self._message([], choice.request))

    def progress(self, choice: Choice, progress: dict[str, float]) -> str:
        return ""

    def update(
        self, choice: Choice, deltas: Sequence[Delta], tokens: Sequence[SampledToken], timings: dict[str, object]
    ) -> str:
        return "".join(self._add(delta) for delta in deltas)

    def end_choice(self, choice: Choice, timings: dict[str, object]) -> str:
        return self._close()

    def end(self, choices: Sequence[Choice]) -> str:
        (choice,) = choices
        usage = _usage(choice.request)
        return _event("message_delta", delta=self._stop(choice), usage=usage) + _event("message_stop")

    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str:
        (choice,) = choices
        output = choice.output
        blocks: list[Block] = []
        if output.reasoning:
            blocks.append({"type": "thinking", "thinking": output.reasoning, "signature": ""})
        if output.text:
            blocks.append({"type": "text", "text": output.text})
        blocks += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)}
            for call in output.tool_calls
        ]
        return json.dumps(self._message(blocks, choice.request) | self._stop(choice))

    def failure(self, error: ApiError) -> str:
        body = error_body(error)
        return _data("error", body) if self._request.stream else json.dumps(body)

    def _add(self, delta: Delta) -> str:
        match delta:
            case Text():
                events = "" if self._open == "text" else self._start({"type": "text", "text": ""})
                return events + self._delta({"type": "text_delta", "text": delta.text})
            case Reasoning():
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                events = "" if self._open == "thinking" else self._start(empty)
                return events + self._delta({"type": "thinking_delta", "thinking": delta.text})
            case ToolCallBegin():
                return self._start({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
            case ToolCallArguments():
                return self._delta({"type": "input_json_delta", "partial_json": delta.text})

    def _start(self, block: Block) -> str:
        """Begins a block, and ends the one before it."""
        events = self._close()
        self._open = block["type"]
        self._n_blocks += 1
        return events + _event("content_block_start", index=self._n_blocks - 1, content_block=block)

    def _delta(self, delta: dict[str, object]) -> str:
        return _event("content_block_delta", index=self._n_blocks - 1, delta=delta)

    def _close(self) -> str:
        if self._open is None:
            return ""
        self._open = None
        return _event("content_block_stop", index=self._n_blocks - 1)

    def _message(self, blocks: list[Block], request: Request) -> dict[str, object]:
        return {
            "id": f"msg_{self._head.request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(request),
        }

    def _stop(self, choice: Choice) -> dict[str, object]:
        stop_string = choice.request.stop_string
        reason = {"stop": "end_turn", "tool_calls": "tool_use"}.get(choice.finish_reason or "")
        if choice.finish_reason == "length" and stop_string is None:
            is_limit = len(choice.request.completion) == self._request.params.max_tokens
            reason = "max_tokens" if is_limit else "model_context_window_exceeded"
        elif choice.finish_reason != "tool_calls" and stop_string is not None:
            reason = "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": stop_string if reason == "stop_sequence" else None}


def _usage(request: Request) -> dict[str, object]:
    """Anthropic counts the reused tokens of the prompt apart from the others."""
    n_prompt, n_cached, n_completion = token_counts([request])
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_read_input_tokens": n_cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": n_completion,
    }


def _arguments(text: str) -> dict[str, object]:
    """The arguments of a call; none if the answer was cut before their end."""
    try:
        arguments = json.loads(text)
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


def _event(kind: str, **values: object) -> str:
    return _data(kind, {"type": kind, **values})


def _data(kind: str, event: dict[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(event)}\n\n"
