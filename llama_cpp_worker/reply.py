"""Makes the answer to a request: OpenAI objects and server-sent events, from what the engine has generated.

Knows the shapes of answers as OpenAI's API reference has them, with `timings` and `prompt_progress` as llama-server
sends them. Knows nothing of TorchServe, llama.cpp and the schedule.
"""

import codecs
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llama_cpp_worker.engine import Request
from llama_cpp_worker.request import ApiError, ApiRequest, Route
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
END_OF_STREAM = "data: [DONE]\n\n"
MIN_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity


@dataclass(slots=True)
class _Choice:
    """One choice of an answer: the engine's request for it, and what has been sent of it."""

    index: int
    request: Request
    has_begun: bool = False
    is_ended: bool = False
    n_prefilled: int | None = None  # as last reported
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _text_offset: int = 0

    def text_offset(self, piece: bytes) -> int:
        """Where in the text, in characters, the next token begins, whose bytes are `piece`."""
        offset = self._text_offset
        self._text_offset += len(self._decoder.decode(piece))
        return offset


class Reply:
    """The answer to one request of the API, piece by piece. `requests` are the engine's: one for each choice.

    `n_pieces` counts the pieces taken so far, empty ones included.
    """

    def __init__(
        self, api_request: ApiRequest, prompt: Sequence[int], request_id: str, model_name: str, fingerprint: str
    ) -> None:
        self.n_pieces = 0
        self._api_request = api_request
        self._is_chat = api_request.messages is not None
        self.requests = [
            Request(
                prompt,
                _params_of_choice(api_request.params, index),
                logprobs=api_request.logprobs,
                # Without their template, many instruct models end at once. A raw prompt should get some text.
                allows_empty=self._is_chat,
            )
            for index in range(api_request.n)
        ]
        self._choices = [_Choice(index, request) for index, request in enumerate(self.requests)]
        self._error: str | None = None
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": model_name,
            "system_fingerprint": fingerprint,
        }

    @property
    def content_type(self) -> str:
        if self._api_request.stream:
            return EVENTS_TYPE
        return TEXT_TYPE if self._api_request.route is Route.PREDICT else JSON_TYPE

    @property
    def is_finished(self) -> bool:
        """Whether the next piece is the last one, or the last one has been taken."""
        return self._failure is not None or all(request.is_finished for request in self.requests)

    def next_piece(self) -> str:
        """What can be sent now: the new events of a stream. An answer that is not streamed is one piece, at its end."""
        self.n_pieces += 1
        if self._api_request.stream:
            events = "".join(self._new_events(choice) for choice in self._choices)
            return events + self._end_of_stream()
        if self._failure:
            return self.fail(self._failure)
        return self._whole_answer() if self.is_finished else ""

    def fail(self, message: str) -> str:
        """Ends the answer with an error. The status may have been sent already, so the body reports it."""
        self._error = message
        error = json.dumps(ApiError(message, status=500).body())
        return f"data: {error}\n\n" if self._api_request.stream else error

    @property
    def _failure(self) -> str | None:
        return self._error or next((request.error for request in self.requests if request.error), None)

    # --- a stream

    def _new_events(self, choice: _Choice) -> str:
        if choice.is_ended:
            return ""
        request = choice.request
        text, tokens = request.take_text(), request.take_tokens()
        events = self._begin(choice) + self._progress(choice)
        if text or tokens:
            timings = {"timings": timings_of(self.requests)} if self._api_request.timings_per_token else {}
            events += self._event(self._delta(choice, text, tokens), **timings)
        if request.is_finished and not request.error:
            choice.is_ended = True
            is_last = all(other.is_ended for other in self._choices)
            timings = {"timings": timings_of(self.requests)} if is_last else {}
            events += self._event(self._delta(choice, "", (), request.finish_reason), **timings)
        return events

    def _progress(self, choice: _Choice) -> str:
        """An event that says how far the prompt is prefilled, if the client wants it and there is progress."""
        request = choice.request
        is_prefilling = request.is_started and not request.is_prefilled
        if not self._api_request.return_progress or not is_prefilling or choice.n_prefilled == request.n_prefilled:
            return ""
        assert request.admitted_at is not None
        choice.n_prefilled = request.n_prefilled
        progress = {
            "total": len(request.prompt),
            "cache": request.n_cached,
            "processed": request.n_prefilled,
            "time_ms": _milliseconds(time.monotonic() - request.admitted_at),
        }
        return self._event(self._delta(choice, "", ()), prompt_progress=progress)

    def _begin(self, choice: _Choice) -> str:
        if choice.has_begun:
            return ""
        choice.has_begun = True
        if self._is_chat:
            delta = {"role": "assistant", "content": ""}
            return self._event({"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None})
        return self._event(self._delta(choice, self._echo(), ())) if self._api_request.echo else ""

    def _end_of_stream(self) -> str:
        if self._failure:
            return self.fail(self._failure)
        if not self.is_finished:
            return ""
        usage = self._event(usage=usage_of(self.requests)) if self._api_request.include_usage else ""
        return usage + END_OF_STREAM

    def _delta(
        self, choice: _Choice, text: str, tokens: Sequence[SampledToken], finish_reason: str | None = None
    ) -> dict[str, object]:
        content: dict[str, object] = {"text": text}
        if self._is_chat:
            content = {"delta": {"content": text} if text else {}}
        logprobs = self._logprobs(choice, tokens) if tokens else None
        return {"index": choice.index, **content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _event(self, choice: dict[str, object] | None = None, **extra: object) -> str:
        kind = {"object": "chat.completion.chunk"} if self._is_chat else {}
        return f"data: {json.dumps(self._head | kind | {'choices': [choice] if choice else []} | extra)}\n\n"

    # --- an answer that is not streamed

    def _whole_answer(self) -> str:
        if self._api_request.route is Route.PREDICT:
            return self._echo() + self.requests[0].take_text()
        choices = [self._whole_choice(choice) for choice in self._choices]
        usage = {"usage": usage_of(self.requests), "timings": timings_of(self.requests)}
        return json.dumps(self._head | {"choices": choices} | usage)

    def _whole_choice(self, choice: _Choice) -> dict[str, object]:
        request = choice.request
        text = self._echo() + request.take_text()
        content = {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        logprobs = None if request.logprobs is None else self._logprobs(choice, request.take_tokens())
        return {"index": choice.index, **content, "logprobs": logprobs, "finish_reason": request.finish_reason}

    def _echo(self) -> str:
        return str(self._api_request.prompt) if self._api_request.echo else ""

    def _logprobs(self, choice: _Choice, tokens: Sequence[SampledToken]) -> dict[str, object]:
        return _chat_logprobs(tokens) if self._is_chat else _completion_logprobs(tokens, choice)


def _params_of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """Each choice gets another seed, derived from the request's seed, so that the request can be repeated."""
    if params.seed is None or index == 0:
        return params
    return replace(params, seed=(params.seed + index) % (2**32 - 1))


def usage_of(requests: Sequence[Request]) -> dict[str, object]:
    """OpenAI's token counts of an answer; completion tokens of all choices together."""
    n_prompt = len(requests[0].prompt)
    n_completion = sum(len(request.completion) for request in requests)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": min(request.n_cached for request in requests)},
    }


def timings_of(requests: Sequence[Request]) -> dict[str, float]:
    """llama-server's counts and times of an answer, up to its end or to now, and the time in the queue.

    The time of the first token belongs to the prompt, the time of the others to the prediction. A request without a
    slot has spent all its time in the queue.
    """
    now = time.monotonic()  # the engine's clock
    finished = max(now if request.finished_at is None else request.finished_at for request in requests)
    admitted = min(finished if request.admitted_at is None else request.admitted_at for request in requests)
    first_token = min(finished if request.first_token_at is None else request.first_token_at for request in requests)
    n_cached = min(request.n_cached for request in requests)
    n_computed = len(requests[0].prompt) - n_cached
    n_predicted = sum(len(request.completion) for request in requests)
    return {
        "queue_ms": _milliseconds(admitted - requests[0].submitted_at),
        "cache_n": n_cached,
        "prompt_n": n_computed,
        "prompt_ms": _milliseconds(first_token - admitted),
        "prompt_per_second": _per_second(n_computed, first_token - admitted),
        "predicted_n": n_predicted,
        "predicted_ms": _milliseconds(finished - first_token),
        "predicted_per_second": _per_second(max(0, n_predicted - len(requests)), finished - first_token),
    }


def models_body(model_name: str, created: int, description: Mapping[str, object]) -> dict[str, object]:
    """The list of models: the served one, with its description under `meta`."""
    model = {"id": model_name, "object": "model", "created": created, "owned_by": "llama.cpp"}
    return {"object": "list", "data": [model | {"meta": dict(description)}]}


def _chat_logprobs(tokens: Sequence[SampledToken]) -> dict[str, object]:
    def entry(token: TokenLogprob) -> dict[str, object]:
        return {"token": _text(token), "logprob": _finite(token), "bytes": list(token.piece)}

    content = [entry(token.chosen) | {"top_logprobs": [entry(other) for other in token.likeliest]} for token in tokens]
    return {"content": content, "refusal": None}


def _completion_logprobs(tokens: Sequence[SampledToken], choice: _Choice) -> dict[str, object]:
    """The likeliest tokens are a JSON object by text. It always contains the chosen token."""
    return {
        "tokens": [_text(token.chosen) for token in tokens],
        "token_logprobs": [_finite(token.chosen) for token in tokens],
        "top_logprobs": [
            {_text(one): _finite(one) for one in reversed((*token.likeliest, token.chosen))} for token in tokens
        ],
        "text_offset": [choice.text_offset(token.chosen.piece) for token in tokens],
    }


def _text(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, MIN_LOGPROB)


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _per_second(count: int, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0
