"""The answers of OpenAI's Responses API: an object with items, whole or as the events that build it.

Not counted: the tokens of reasoning (`reasoning_tokens` is 0).
"""

import json
from collections.abc import Sequence
from typing import Any

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.reply import EVENTS_TYPE, JSON_TYPE, Choice, Head
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.usage import chat_logprobs, token_counts
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SampledToken

Item = dict[str, Any]


class ResponsesFormat:
    """One response. `_items` grows with the answer; only its last item can be open.

    A whole answer takes the same way, and drops the events. As at OpenAI and llama-server, no [DONE] ends the events:
    response.completed, response.incomplete or response.failed does.
    Log probabilities come with the text and include those of reasoning and calls, as in a chat.
    """

    def __init__(self, request: GenerationRequest, head: Head) -> None:
        self.content_type = EVENTS_TYPE if request.stream else JSON_TYPE
        self._request = request
        self._shown = request.shown
        self._head = head
        self._items: list[Item] = []
        self._is_open = False
        self._n_events = 0
        self._new_logprobs: list[object] = []  # of tokens that no event has reported

    def begin(self, choice: Choice) -> str:
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def progress(self, choice: Choice, progress: dict[str, float]) -> str:
        return ""

    def update(
        self, choice: Choice, deltas: Sequence[Delta], tokens: Sequence[SampledToken], timings: dict[str, object]
    ) -> str:
        self._new_logprobs += _logprobs(tokens)
        return "".join(self._add(delta) for delta in deltas)

    def end_choice(self, choice: Choice, timings: dict[str, object]) -> str:
        is_cut = choice.finish_reason == "length"
        events = ""
        if not is_cut and (not self._items or self._items[-1]["type"] == "reasoning"):
            events += self._open_message()  # without a message, many agents ask again
        return events + self._close("incomplete" if is_cut else "completed")

    def end(self, choices: Sequence[Choice]) -> str:
        status = _status(choices[0])
        return self._event(f"response.{status}", response=self._response(status, choices[0].request))

    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str:
        (choice,), (sampled,) = choices, tokens
        output = choice.output
        deltas: list[Delta] = [Reasoning(output.reasoning)] if output.reasoning else []
        deltas += [Text(output.text)] if output.text else []
        for index, call in enumerate(output.tool_calls):
            deltas += [ToolCallBegin(index, call.id, call.name), ToolCallArguments(index, call.arguments)]
        self.update(choice, deltas, sampled, {})
        self.end_choice(choice, {})
        return json.dumps(self._response(_status(choice), choice.request))

    def failure(self, error: ApiError) -> str:
        """Repeats nothing that the client has sent: that may be what has failed."""
        self._shown = {}
        if error.code == "too_long":
            self._items = []
        problem = {"error": {"code": "server_error", "message": str(error)}}
        response = problem | self._response("failed") | problem  # first: a client or proxy looks for it there
        return self._event("response.failed", response=response) if self._request.stream else json.dumps(response)

    # --- the items

    def _add(self, delta: Delta) -> str:
        match delta:
            case Text():
                events = "" if self._is_open_as("message") else self._open_message()
                (part,) = self._items[-1]["content"]
                part["text"] += delta.text
                logprobs, self._new_logprobs = self._new_logprobs, []
                part["logprobs"] += logprobs
                return events + self._part_event("output_text.delta", delta=delta.text, logprobs=logprobs)
            case Reasoning():
                events = "" if self._is_open_as("reasoning") else self._open_reasoning()
                self._items[-1]["content"][0]["text"] += delta.text
                return events + self._part_event("reasoning_text.delta", delta=delta.text)
            case ToolCallBegin():
                call = {"type": "function_call", "call_id": delta.id, "name": delta.name, "arguments": ""}
                return self._open("fc", call)
            case ToolCallArguments():
                self._items[-1]["arguments"] += delta.text
                return self._item_event("function_call_arguments.delta", delta=delta.text)

    def _open_message(self) -> str:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._open("msg", {"type": "message", "role": "assistant", "content": []}, part)

    def _open_reasoning(self) -> str:
        part = {"type": "reasoning_text", "text": ""}
        return self._open("rs", {"type": "reasoning", "summary": [], "content": []}, part)

    def _open(self, prefix: str, item: Item, part: Item | None = None) -> str:
        """Adds an item, with `part` as its content, and ends the item before it."""
        events = self._close("completed")
        identity = f"{prefix}_{self._head.request_id}_{len(self._items)}"
        self._items.append({"id": identity, "status": "in_progress", **item})
        self._is_open = True
        events += self._event("response.output_item.added", output_index=len(self._items) - 1, item=self._items[-1])
        if part is not None:
            self._items[-1]["content"].append(part)
            events += self._part_event("content_part.added", part=part)
        return events

    def _close(self, status: str) -> str:
        """Ends the open item, if there is one."""
        if not self._is_open:
            return ""
        self._is_open = False
        item = self._items[-1]
        item["status"] = status
        match item["type"]:
            case "message":
                (part,) = item["content"]
                text, logprobs = part["text"], part["logprobs"]
                events = self._part_event("output_text.done", text=text, logprobs=logprobs)
                events += self._part_event("content_part.done", part=part)
            case "reasoning":
                (part,) = item["content"]
                events = self._part_event("reasoning_text.done", text=part["text"])
                events += self._part_event("content_part.done", part=part)
            case _:
                arguments = item["arguments"]
                events = self._item_event("function_call_arguments.done", name=item["name"], arguments=arguments)
        return events + self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _is_open_as(self, kind: str) -> bool:
        return self._is_open and bool(self._items[-1]["type"] == kind)

    # --- the events

    def _part_event(self, kind: str, **values: object) -> str:
        return self._item_event(kind, content_index=0, **values)

    def _item_event(self, kind: str, **values: object) -> str:
        item = self._items[-1]
        return self._event(f"response.{kind}", item_id=item["id"], output_index=len(self._items) - 1, **values)

    def _event(self, kind: str, **values: object) -> str:
        event = {"type": kind, "sequence_number": self._n_events, **values}
        self._n_events += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"

    def _response(self, status: str, request: Request | None = None) -> dict[str, object]:
        """OpenAI's response object, with the usage of `request` if it has ended."""
        params, shown = self._request.params, self._shown
        return {
            "id": f"resp_{self._head.request_id}",
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": shown.get("instructions"),
            "max_output_tokens": params.max_tokens,
            "metadata": shown.get("metadata", {}),
            "model": self._head.model,
            "output": self._items,
            "parallel_tool_calls": shown.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": shown.get("reasoning", {"effort": None, "summary": None}),
            "service_tier": "default",
            "store": False,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"}} | shown.get("text", {}),
            "tool_choice": shown.get("tool_choice", "auto"),
            "tools": shown.get("tools", []),
            "top_logprobs": self._request.logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if request is None else _usage(request),
            "user": shown.get("user"),
        }


def _status(choice: Choice) -> str:
    return "incomplete" if choice.finish_reason == "length" else "completed"


def _usage(request: Request) -> dict[str, object]:
    n_prompt, n_cached, n_completion = token_counts([request])
    return {
        "input_tokens": n_prompt,
        "input_tokens_details": {"cached_tokens": n_cached, "cache_write_tokens": 0},
        "output_tokens": n_completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_prompt + n_completion,
    }


def _logprobs(tokens: Sequence[SampledToken]) -> list[object]:
    content = chat_logprobs(tokens)["content"]
    assert isinstance(content, list)
    return content
