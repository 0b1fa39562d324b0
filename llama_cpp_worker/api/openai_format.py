"""What OpenAI's chat completions and completions have in common: the head of an object, events, the end of a stream."""

import json
from collections.abc import Sequence

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.reply import EVENTS_TYPE, JSON_TYPE, Choice, Head
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.usage import timings_of, usage_of

END_OF_STREAM = "data: [DONE]\n\n"


class OpenAIFormat:
    """Answers that are an object with `choices`, or events with one choice each.

    `timings` and `prompt_progress` are as llama-server sends them.
    """

    def __init__(self, request: GenerationRequest, head: Head, id_prefix: str, kind: str) -> None:
        self.content_type = EVENTS_TYPE if request.stream else JSON_TYPE
        self._request = request
        self._head: dict[str, object] = {
            "id": f"{id_prefix}-{head.request_id}",
            "object": kind,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
        }

    def end(self, choices: Sequence[Choice]) -> str:
        usage = ""
        if self._request.include_usage:
            usage = f"data: {json.dumps(self._head | {'choices': []} | _counts(choices))}\n\n"
        return usage + END_OF_STREAM

    def failure(self, error: ApiError) -> str:
        body = json.dumps(error.body())
        return f"data: {body}\n\n" if self._request.stream else body

    def event(self, choice: dict[str, object], **extra: object) -> str:
        return f"data: {json.dumps(self._head | {'choices': [choice]} | extra)}\n\n"

    def body(self, objects: Sequence[dict[str, object]], choices: Sequence[Choice]) -> str:
        return json.dumps(self._head | {"choices": objects} | _counts(choices))


def _counts(choices: Sequence[Choice]) -> dict[str, object]:
    requests = [choice.request for choice in choices]
    return {"usage": usage_of(requests), "timings": timings_of(requests)}
