"""The wire outwards: OpenAI objects and server-sent events, from the text and tokens of a request's choices.

Knows the shapes of answers as OpenAI's API reference has them, with `timings` as llama-server gives them.
Knows nothing of TorchServe, llama.cpp or the schedule.
"""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llama_cpp_worker.request import ApiError, ApiRequest, Route
from llama_cpp_worker.sampling_params import SampledToken, TokenLogprob

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
END_OF_STREAM = "data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # OpenAI's word for "very unlikely"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and milliseconds of a request; `completion_tokens` of all its choices together."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_ms: float
    prompt_ms: float
    predicted_ms: float
    n_choices: int = 1

    def counts(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def timings(self) -> dict[str, float]:
        """The first token counts as part of the prompt's time, the tokens after it as predicted."""
        n_after_first = max(0, self.completion_tokens - self.n_choices)
        n_read = self.prompt_tokens - self.cached_tokens
        return {
            "queue_ms": round(self.queue_ms, 1),
            "cache_n": self.cached_tokens,
            "prompt_n": n_read,
            "prompt_ms": round(self.prompt_ms, 1),
            "prompt_per_second": _per_second(n_read, self.prompt_ms),
            "predicted_n": self.completion_tokens,
            "predicted_ms": round(self.predicted_ms, 1),
            "predicted_per_second": _per_second(n_after_first, self.predicted_ms),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prompt is read, in tokens; `processed` has the cached ones in it."""

    total: int
    cached: int
    processed: int
    time_ms: float

    def as_json(self) -> dict[str, float]:
        return {
            "total": self.total,
            "cache": self.cached,
            "processed": self.processed,
            "time_ms": round(self.time_ms, 1),
        }


class TextOffset:
    """Where in the text, in characters, the next token's own text begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._n_characters = 0

    def pass_over(self, piece: bytes) -> int:
        """The offset of this piece; the next one comes after it."""
        offset = self._n_characters
        self._n_characters += len(self._decoder.decode(piece))
        return offset


@dataclass(slots=True)
class _Choice:
    """What is known of one choice; `text` and `tokens` only where the answer is not streamed."""

    text: str = ""
    tokens: list[SampledToken] = field(default_factory=list)
    is_begun: bool = False
    n_read: int | None = None  # prompt tokens, as last told
    finish_reason: str | None = None
    offset: TextOffset = field(default_factory=TextOffset)


class Reply:
    """One request's answer, piece by piece; `is_sent` is the sender's note that some piece has gone out."""

    def __init__(self, request: ApiRequest, request_id: str, model_name: str, fingerprint: str) -> None:
        self.is_sent = False
        self._request = request
        self._is_chat = request.messages is not None
        self._choices = [_Choice() for _ in range(request.n)]
        self._last = 0  # the choice that ended last
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }

    @property
    def content_type(self) -> str:
        if self._request.stream:
            return EVENTS_TYPE
        return TEXT_TYPE if self._request.route is Route.PREDICT else JSON_TYPE

    @property
    def wants_timings(self) -> bool:
        """Whether `push` takes the usage so far."""
        return self._request.timings_per_token

    def is_ended(self, index: int) -> bool:
        return self._choices[index].finish_reason is not None

    def tell_progress(self, index: int, progress: Progress) -> str:
        """An event, where the request wants to know how far its prompt is and it is farther than last told."""
        choice = self._choices[index]
        if not self._request.return_progress or choice.n_read == progress.processed:
            return ""
        choice.n_read = progress.processed
        return self._begin(index) + self._event(self._delta(index, "", ()), prompt_progress=progress.as_json())

    def push(
        self, index: int, text: str, tokens: Sequence[SampledToken] = (), usage_so_far: Usage | None = None
    ) -> str:
        """What can be sent now that a choice has more text: events when streaming, nothing otherwise."""
        choice = self._choices[index]
        if not self._request.stream:
            choice.text += text
            choice.tokens += tokens
            return ""
        if self.is_ended(index):
            return ""
        beginning = self._begin(index)
        timings = {"timings": usage_so_far.timings()} if usage_so_far else {}
        return beginning + (self._event(self._delta(index, text, tokens), **timings) if text or tokens else "")

    def end(self, index: int, finish_reason: str) -> str:
        """Ends a choice while others may go on; the last one's end is told by `finish`, which must follow."""
        self._choices[index].finish_reason = finish_reason
        is_last = all(choice.finish_reason for choice in self._choices)
        if not self._request.stream or is_last:
            self._last = index
            return ""
        return self._begin(index) + self._event(self._delta(index, "", (), finish_reason))

    def finish(self, usage: Usage) -> str:
        """The end of the answer, or the whole of it when it is not streamed."""
        if self._request.stream:
            ending = self._delta(self._last, "", (), self._choices[self._last].finish_reason)
            events = self._begin(self._last) + self._event(ending, timings=usage.timings())
            if self._request.include_usage:
                events += self._event(usage=usage.counts())
            return events + END_OF_STREAM
        if self._request.route is Route.PREDICT:
            return self._echo() + self._choices[0].text
        choices = [self._whole(index, choice) for index, choice in enumerate(self._choices)]
        return json.dumps(self._head | {"choices": choices, "usage": usage.counts(), "timings": usage.timings()})

    def fail(self, message: str) -> str:
        """Ends an answer that the engine could not finish; its status has been sent, so the body has to say it."""
        error = json.dumps(ApiError(message, status=500).body())
        return f"data: {error}\n\n" if self._request.stream else error

    def _echo(self) -> str:
        return str(self._request.prompt) if self._request.echo else ""

    def _begin(self, index: int) -> str:
        choice = self._choices[index]
        if choice.is_begun:
            return ""
        choice.is_begun = True
        if self._is_chat:
            delta = {"role": "assistant", "content": ""}
            return self._event({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
        return self._event(self._delta(index, self._echo(), ())) if self._request.echo else ""

    def _delta(
        self, index: int, text: str, tokens: Sequence[SampledToken], finish_reason: str | None = None
    ) -> dict[str, object]:
        content: dict[str, object] = {"text": text}
        if self._is_chat:
            content = {"delta": {"content": text} if text else {}}
        logprobs = self._logprobs(self._choices[index], tokens) if tokens else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _whole(self, index: int, choice: _Choice) -> dict[str, object]:
        text = self._echo() + choice.text
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        logprobs = None if self._request.logprobs is None else self._logprobs(choice, choice.tokens)
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason}

    def _logprobs(self, choice: _Choice, tokens: Sequence[SampledToken]) -> dict[str, object]:
        return _chat_logprobs(tokens) if self._is_chat else _completion_logprobs(tokens, choice.offset)

    def _event(self, choice: dict[str, object] | None = None, **extra: object) -> str:
        kind = {"object": "chat.completion.chunk"} if self._is_chat else {}
        return f"data: {json.dumps(self._head | kind | {'choices': [choice] if choice else []} | extra)}\n\n"


def models_body(model_name: str, created: int, description: Mapping[str, object]) -> dict[str, object]:
    """The list of models: the one that is served, with what is known about it under `meta`."""
    model = {"id": model_name, "object": "model", "created": created, "owned_by": "llama.cpp"}
    return {"object": "list", "data": [model | {"meta": dict(description)}]}


def _chat_logprobs(tokens: Sequence[SampledToken]) -> dict[str, object]:
    def entry(token: TokenLogprob) -> dict[str, object]:
        return {"token": _text(token), "logprob": _finite(token), "bytes": list(token.piece)}

    content = [entry(token.chosen) | {"top_logprobs": [entry(other) for other in token.likeliest]} for token in tokens]
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: Sequence[SampledToken], offset: TextOffset) -> dict[str, object]:
    """The likeliest tokens are a JSON object by text, in which the chosen one always is, too."""
    return {
        "tokens": [_text(token.chosen) for token in tokens],
        "token_logprobs": [_finite(token.chosen) for token in tokens],
        "top_logprobs": [
            {_text(one): _finite(one) for one in reversed((*token.likeliest, token.chosen))} for token in tokens
        ],
        "text_offset": [offset.pass_over(token.chosen.piece) for token in tokens],
    }


def _text(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST_LOGPROB)


def _per_second(count: int, milliseconds: float) -> float:
    return round(1000 * count / milliseconds, 2) if milliseconds > 0 else 0.0
