"""Requests, slots and the schedule: who is read, who writes, in which batch.

Knows a model only by what `Engine` calls on it, so tests drive it with a scripted one. No threads, no llama_cpp,
no HTTP: a request's text and its failure wait on the request until somebody takes them. What is already computed is
llama_cpp_cache's business.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama_cpp_worker.model import Chunk, DecodeError
from llama_cpp_worker.prefix_cache import KVCache, common_prefix
from llama_cpp_worker.sampler import SamplingError
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams
from llama_cpp_worker.text_assembler import TextAssembler

logger = logging.getLogger(__name__)

# A step reads prompts for about this long. For those who are writing it is the longest pause that a newcomer causes;
# for those who wait it is the time until the loop looks at them; a prompt of 100 tokens fits (135M model, 2 cores).
PROMPT_SECONDS = 0.2
LEAST_PROMPT_TOKENS = 32  # a step reads at least this much, however slow the model: fewer cost a third of the speed
LEAST_AWAITED = 32  # tokens of a shared prefix; for fewer, waiting a step is not worth it
FIRST_GUESS_TOKENS_PER_SECOND = 500.0  # before anything has been measured
SMOOTHING = 0.3  # weight of the newest measurement


class _Model(Protocol):
    n_slots: int
    n_batch: int
    window: int

    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...
    def sampler(self, params: SamplingParams, prompt: Sequence[int]) -> Any: ...  # with close()
    def decode(self, chunks: Sequence[Chunk]) -> list[int]: ...
    def sample(self, sampler: Any, index: int, *, forbid_end: bool) -> int: ...
    def logprobs(self, index: int, token: int, count: int) -> SampledToken: ...
    def keep(self, slot: int, n_tokens: int) -> None: ...
    def save(self, slot: int) -> Any: ...
    def restore(self, slot: int, state: Any) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """One completion: what was asked, and how far it is.

    It is waiting until it has a slot, then running until it has a `finish_reason`:
    "stop" (the model or a stop string ended it), "length" (max_tokens or the context window), "cancelled", "error".
    Times are in seconds of the engine's clock. `reply` belongs to who submitted the request; nobody here looks at it.
    """

    prompt: Sequence[int]
    params: SamplingParams
    reply: Any = None
    logprobs: int | None = None  # how many likeliest tokens to tell of at each place; None tells of none
    allows_empty: bool = True  # whether the very first token may end it
    slot: int | None = None
    is_begun: bool = False  # whether it has looked for a computed prefix
    n_cached: int = 0  # prompt tokens that were already computed
    n_read: int = 0  # prompt tokens in the cache
    completion: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    submitted_at: float = 0.0
    admitted_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    _text: str = ""
    _assembler: TextAssembler = field(init=False)
    _sampler: Any = None

    def __post_init__(self) -> None:
        self._assembler = TextAssembler(self.params.stop)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_reading(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return self.n_read < len(self.prompt)

    def take_text(self) -> str:
        """The text that has come since the last call."""
        text, self._text = self._text, ""
        return text

    def take_tokens(self) -> list[SampledToken]:
        """The tokens of that text, if `logprobs` asked for them."""
        return self._assembler.take_tokens()


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was made; all of it only ever grows."""

    requests: int = 0
    prompt_tokens: int = 0  # of requests that got a slot; cached ones included
    cached_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0


class Engine:
    """Continuous batching: a request joins at the next step and leaves at its own end.

    The order of things: who came first gets a slot first. A step either reads prompts, oldest first and for a bounded
    time, or writes the next token of all running sequences; while there are both, they take turns. So a newcomer
    never stops the others for longer than one reading step. (Both in one batch would not be faster: with a cache of its
    own for each sequence, llama.cpp takes chunks of different lengths through the model one after the other.) Who
    shares the beginning of a prompt with somebody that is reading it right now waits until that has been computed, once
    for all.
    """

    def __init__(self, model: _Model, n_saved_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self.cache = KVCache(model, n_saved_bytes)
        self.counters = Counters()
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}
        self._clock = clock
        self._prompt_tokens_per_second = FIRST_GUESS_TOKENS_PER_SECOND
        self._is_reading_step = False

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def submit(self, request: Request) -> None:
        """Queues a request. Its prompt must have 1 to `window - 1` tokens: who submits has checked and told."""
        assert 0 < len(request.prompt) < self.model.window, "the prompt does not fit the context window"
        request.submitted_at = self._clock()
        self.counters.requests += 1
        self.waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Ends a request wherever it is and frees its slot; nothing happens to one that has already ended."""
        if not request.is_finished:
            self.counters.cancelled += 1
            self._retire(request, "cancelled")

    def run(self, seconds: float) -> None:
        """Steps for a time slice of about `seconds`, or until there is something to tell at once.

        That is a first token or an end: waiting for the slice to pass would delay what people feel most.
        """
        deadline = self._clock() + seconds
        while not self.is_idle:
            if self.step() or self._clock() >= deadline:
                return

    def step(self) -> bool:
        """One batch through the model; True if some request got its first token or ended."""
        self._admit()
        self._close_gaps()
        self._begin_reading()
        batch = self._build_batch()
        outputs = self._decode(batch)
        if outputs is None:
            return True
        is_news = False
        for (request, chunk), index in zip(batch, outputs, strict=True):
            self.cache.extend(chunk.slot, chunk.tokens)
            if request.is_reading:
                request.n_read += len(chunk.tokens)
            if chunk.wants_logits:
                self._write(request, index)
                is_news = is_news or request.is_finished or len(request.completion) == 1
        self.counters.steps += 1
        return is_news

    # --- the parts of a step

    def _admit(self) -> None:
        """Gives free slots, the lowest first, to those who wait, first come, first served."""
        free = (slot for slot in range(self.model.n_slots) if slot not in self.running)
        for slot in free:
            if not self.waiting:
                return
            request = self.waiting.popleft()
            request.slot = slot
            request.admitted_at = self._clock()
            request._sampler = self.model.sampler(request.params, request.prompt)
            self.running[slot] = request

    def _close_gaps(self) -> None:
        """Moves sequences so that the running slots are consecutive.

        llama.cpp decodes each run of consecutive slots in a pass of its own, and a second pass reads all the weights
        again: it takes as long as the first. Moving a sequence is done once, and is cheaper than one such pass.
        """
        lowest = min(self.running, default=0)
        for gap in range(lowest, lowest + len(self.running)):
            if gap not in self.running:
                last = max(self.running)
                request = self.running.pop(last)
                if request.is_begun:
                    self.cache.move(last, gap)
                request.slot = gap
                self.running[gap] = request

    def _begin_reading(self) -> None:
        """Lets newcomers take over the longest prefix of their prompt that is computed, or wait for a longer one."""
        for request in self._by_age():
            if request.is_begun:
                continue
            others = [other.prompt for other in self.running.values() if other.is_begun and other.is_reading]
            coming = max((common_prefix(request.prompt, prompt) for prompt in others), default=0)
            if coming >= self.cache.length_known(request.prompt) + LEAST_AWAITED:
                continue
            assert request.slot is not None
            request.is_begun = True
            request.n_cached = request.n_read = self.cache.claim(request.slot, request.prompt)
            self.counters.prompt_tokens += len(request.prompt)
            self.counters.cached_tokens += request.n_cached

    def _build_batch(self) -> list[tuple[Request, Chunk]]:
        """Prompts within the budget, or everybody's next token: in turn, while there are both."""
        readers = [request for request in self._by_age() if request.is_begun and request.is_reading]
        writers = [request for request in self.running.values() if not request.is_reading]
        self._is_reading_step = bool(readers) and not (writers and self._is_reading_step)
        batch = self._next_prompt_chunks(readers) if self._is_reading_step else [_next_token(each) for each in writers]
        return sorted(batch, key=lambda pair: pair[1].slot)  # see Model.decode

    def _next_prompt_chunks(self, readers: Sequence[Request]) -> list[tuple[Request, Chunk]]:
        batch = []
        budget = self._prompt_budget()
        for request in readers:
            tokens = request.prompt[request.n_read : request.n_read + budget]
            if not tokens:
                break
            budget -= len(tokens)
            assert request.slot is not None
            is_last = request.n_read + len(tokens) == len(request.prompt)
            batch.append((request, Chunk(request.slot, request.n_read, tokens, is_last)))
        return batch

    def _by_age(self) -> list[Request]:
        return sorted(self.running.values(), key=lambda request: request.submitted_at)

    def _prompt_budget(self) -> int:
        """Prompt tokens that this step may read, from the speed measured so far."""
        affordable = int(self._prompt_tokens_per_second * PROMPT_SECONDS)
        return min(max(LEAST_PROMPT_TOKENS, affordable), self.model.n_batch)

    def _decode(self, batch: list[tuple[Request, Chunk]]) -> list[int] | None:
        """Batch indices of the last tokens; None if the model failed, which ends the requests in this batch."""
        started = self._clock()
        try:
            outputs = self.model.decode([chunk for _, chunk in batch])
        except DecodeError as error:
            logger.exception("A batch of %d sequences failed", len(batch))
            for request, chunk in batch:
                request.error = f"The model failed: {error}."
                self.counters.failed += 1
                self._retire(request, "error")
                self.cache.clear(chunk.slot)  # nobody knows what has been computed
            return None
        n_tokens = sum(len(chunk.tokens) for _, chunk in batch)
        if self._is_reading_step and n_tokens >= LEAST_PROMPT_TOKENS:
            measured = n_tokens / max(self._clock() - started, 1e-6)
            self._prompt_tokens_per_second += SMOOTHING * (measured - self._prompt_tokens_per_second)
        return outputs

    def _write(self, request: Request, index: int) -> None:
        """Samples a request's next token, and ends the request if that was its last."""
        is_first = not request.completion
        forbid_end = request.params.ignore_eos or (is_first and not request.allows_empty)
        try:
            token = self.model.sample(request._sampler, index, forbid_end=forbid_end)
        except SamplingError as error:
            request.error = f"The model failed: {error}."
            self.counters.failed += 1
            self._retire(request, "error")
            return
        if is_first:
            request.first_token_at = self._clock()
        request.completion.append(token)
        self.counters.completion_tokens += 1
        if self.model.is_end(token):
            self._retire(request, "stop")
            return
        told = None if request.logprobs is None else self.model.logprobs(index, token, request.logprobs)
        request._text += request._assembler.push(self.model.piece(token), told)
        if request._assembler.is_stopped:
            self._retire(request, "stop")
        elif (
            len(request.completion) == request.params.max_tokens
            or len(request.prompt) + len(request.completion) == self.model.window
        ):
            self._retire(request, "length")

    def _retire(self, request: Request, reason: str) -> None:
        if request.slot is None:
            self.waiting.remove(request)
        else:
            del self.running[request.slot]  # what it computed stays in the slot's cache, for whoever comes next
        if request._sampler is not None:
            request._sampler.close()
            request._sampler = None
        request._text += request._assembler.finish()
        request.finish_reason = reason
        request.finished_at = self._clock()


def _next_token(request: Request) -> tuple[Request, Chunk]:
    """What a writing request adds to a batch: its newest token, to be decoded for the one after it."""
    assert request.slot is not None
    position = len(request.prompt) + len(request.completion) - 1
    return request, Chunk(request.slot, position, request.completion[-1:], True)
