"""The answer to one request that generates text: takes it from the engine, and hands it out piece by piece.

Knows the engine's requests. A `Format` of the API family knows the shapes.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from llama_cpp_worker.api.errors import ApiError, too_many_reports
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.usage import milliseconds, timings_of, token_counts
from llama_cpp_worker.output import Delta, OutputParser, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.prompt import Prepared
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Output:
    """What one choice has generated so far, taken apart."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        match delta:
            case Text():
                self.text += delta.text
            case Reasoning():
                self.reasoning += delta.text
            case ToolCallBegin():
                self.tool_calls.append(ToolCall(delta.id, delta.name))
            case ToolCallArguments():
                self.tool_calls[delta.index].arguments += delta.text


@dataclass(slots=True)
class Choice:
    """One choice of an answer. If the request wants an echo: the prompt's text, and the bytes of its first token."""

    index: int
    request: Request
    parser: OutputParser
    prompt_text: str = ""
    first_piece: bytes = b""
    output: Output = field(default_factory=Output)
    has_begun: bool = False
    is_ended: bool = False
    n_prefilled: int | None = None  # as last reported

    @property
    def finish_reason(self) -> str | None:
        """stop, length or tool_calls; None while it is generated. A stop string within a call cuts it: length."""
        reason = self.request.finish_reason
        if reason != "stop" or not self.output.tool_calls:
            return reason
        is_whole = self.request.stop_string is None or is_json(self.output.tool_calls[-1].arguments)
        return "tool_calls" if is_whole else "length"

    def take(self) -> tuple[list[Delta], list[SampledToken]]:
        """What is new since the last call."""
        deltas = self.parser.push(self.request.take_text())
        if self.request.is_finished and not self.is_ended:
            deltas += self.parser.finish()
        for delta in deltas:
            self.output.add(delta)
        return deltas, self.request.take_tokens()


@dataclass(frozen=True, slots=True)
class Head:
    """What every answer says about itself. created: seconds since 1970."""

    request_id: str
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


class Format(Protocol):
    """The shapes of the answers of one API family. Each method returns the text of events or of a body."""

    content_type: str

    def begin(self, choice: Choice) -> str: ...
    def progress(self, choice: Choice, progress: dict[str, float]) -> str: ...
    def update(
        self, choice: Choice, deltas: Sequence[Delta], tokens: Sequence[SampledToken], timings: dict[str, object]
    ) -> str: ...
    def end_choice(self, choice: Choice, timings: dict[str, object]) -> str: ...
    def end(self, choices: Sequence[Choice]) -> str: ...
    def whole(self, choices: Sequence[Choice], tokens: Sequence[Sequence[SampledToken]]) -> str: ...
    def failure(self, error: ApiError) -> str: ...


class Reply:
    """The answer to one request of the API. `requests` are the engine's: `n` choices for each prompt, in order.

    `n_pieces` counts the pieces taken so far, empty ones included.
    """

    def __init__(
        self,
        api_request: GenerationRequest,
        prepared: Prepared,
        make_format: Callable[[GenerationRequest, Head], Format],
        head: Head,
    ) -> None:
        self.n_pieces = 0
        self._api_request = api_request
        self._format = make_format(api_request, head)
        self._error: ApiError | None = None
        self._choices: list[Choice] = []
        params = api_request.params
        if api_request.tools is not None and api_request.tools.choice == "required":
            params = replace(params, stop=())  # the whole answer is a call: a stop string could only break it
        prompt_logprobs = api_request.logprobs if api_request.echo else None
        for prompt, text, first in zip(prepared.prompts, prepared.texts, prepared.first_pieces, strict=True):
            for number in range(api_request.n):
                request = Request(
                    prompt,
                    _params_of_choice(params, number),
                    logprobs=api_request.logprobs,
                    prompt_logprobs=prompt_logprobs,
                    # Without their template, many instruct models end at once. A raw prompt should get some text.
                    allows_empty=bool(api_request.messages),
                    constraint=prepared.constraint,
                    api_request=self,
                )
                choice = Choice(len(self._choices), request, prepared.make_parser())
                if api_request.echo:
                    choice.prompt_text, choice.first_piece = text, first
                self._choices.append(choice)
        self.requests = [choice.request for choice in self._choices]

    @property
    def content_type(self) -> str:
        return self._format.content_type

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
        n_tokens = sum(len(request.completion) for request in self.requests)
        failure = self._failure or too_many_reports(n_tokens, self._api_request.logprobs)
        if failure:
            return self.fail(failure)
        if not self.is_finished:
            return ""
        tokens = [choice.take()[1] for choice in self._choices]
        return self._format.whole(self._choices, tokens)

    def fail(self, error: ApiError) -> str:
        """Ends the answer with an error. The status may have been sent already, so the body reports it."""
        self._error = error
        return self._format.failure(error)

    def summary(self) -> str:
        """Counts, seconds and ends of the answer, for the log."""
        n_prompt, n_cached, n_completion = token_counts(self.requests)
        seconds = max((request.finished_at or request.submitted_at) - request.submitted_at for request in self.requests)
        counts = Counter(str(request.finish_reason) for request in self.requests)
        ends = ", ".join(end if count == 1 else f"{count} x {end}" for end, count in counts.items())
        return f"{n_prompt} prompt tokens, {n_cached} cached, {n_completion} completion tokens, {seconds:.2f} s, {ends}"

    @property
    def _failure(self) -> ApiError | None:
        message = next((request.error for request in self.requests if request.error), None)
        return self._error or (None if message is None else ApiError(message, status=500))

    def _new_events(self, choice: Choice) -> str:
        if choice.is_ended:
            return ""
        request = choice.request
        events = ""
        if not choice.has_begun:
            choice.has_begun = True
            events += self._format.begin(choice)
        events += self._progress(choice)
        deltas, tokens = choice.take()
        if deltas or tokens:
            timings: dict[str, object] = {}
            if self._api_request.timings_per_token:
                timings = {"timings": timings_of(self.requests)}
            events += self._format.update(choice, deltas, tokens, timings)
        if request.is_finished and not request.error:
            choice.is_ended = True
            is_last = all(other.is_ended for other in self._choices)
            events += self._format.end_choice(choice, {"timings": timings_of(self.requests)} if is_last else {})
        return events

    def _progress(self, choice: Choice) -> str:
        """Events that say how far the prompt is prefilled, if the client wants them; the first: what was cached."""
        request = choice.request
        if not self._api_request.return_progress or not request.is_started:
            return ""
        assert request.admitted_at is not None
        assert request.prefix_assigned_at is not None
        events = ""
        if choice.n_prefilled is None:
            events += self._progress_event(choice, request.n_cached, request.prefix_assigned_at - request.admitted_at)
        if choice.n_prefilled != request.n_prefilled:
            events += self._progress_event(choice, request.n_prefilled, time.monotonic() - request.admitted_at)
        return events

    def _progress_event(self, choice: Choice, n_prefilled: int, seconds: float) -> str:
        choice.n_prefilled = n_prefilled
        n_prompt, n_cached = len(choice.request.prompt), choice.request.n_cached
        counts = {"total": n_prompt, "cache": n_cached, "processed": n_prefilled}
        return self._format.progress(choice, counts | {"time_ms": milliseconds(seconds)})

    def _end_of_stream(self) -> str:
        if self._failure:
            return self.fail(self._failure)
        return self._format.end(self._choices) if self.is_finished else ""


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _params_of_choice(params: SamplingParams, number: int) -> SamplingParams:
    """Each choice of a prompt gets another seed, derived from the request's, so that the request can be repeated."""
    if params.seed is None or number == 0:
        return params
    return replace(params, seed=(params.seed + number) % 2**63)
