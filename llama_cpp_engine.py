"""Requests, slots and the schedule: who is read, who writes, in which batch.

Knows a model only by what `Engine` calls on it, so tests drive it with a scripted one. No threads, no llama_cpp,
no HTTP: a request's text and its failure wait on the request until somebody takes them.

Not covered yet: reuse of a prompt's cached prefix.
"""

from __future__ import annotations

import codecs
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llama_cpp_model import Chunk, DecodeError
from sampling_params import SamplingParams

logger = logging.getLogger(__name__)

# While others are writing, a newcomer's prompt may hold up a step for about this long; alone, it may take longer,
# but must come back to the loop now and then, where cancellation and other newcomers wait.
PROMPT_SECONDS_IN_COMPANY = 0.1
PROMPT_SECONDS_ALONE = 1.0
LEAST_PROMPT_TOKENS = 16  # a step reads at least this much of a prompt, however slow the model
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
    def keep(self, slot: int, n_tokens: int) -> None: ...


class TextAssembler:
    """Turns the bytes of tokens into text: whole characters only, and nothing of a stop string.

    What could still become a stop string is held back until it cannot, or until `finish`.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.is_stopped = False

    def push(self, piece: bytes) -> str:
        """The text that is certain now; `is_stopped` tells whether a stop string was reached."""
        self._held += self._decoder.decode(piece)
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            _, start = min(found)  # whichever is complete first, so that it does not matter how the pieces fall
            return self._release(start, drop_rest=True)
        undecided = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        return self._release(len(self._held) - undecided)

    def finish(self) -> str:
        """What was held back, once no token can follow. Bytes of an unfinished character are left out."""
        return self._release(len(self._held))

    def _release(self, length: int, *, drop_rest: bool = False) -> str:
        text, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


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
    allows_empty: bool = True  # whether the very first token may end it
    slot: int | None = None
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


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was made; all of it only ever grows."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0


class Engine:
    """Continuous batching: a request joins at the next step and leaves at its own end.

    The order of things: who came first gets a slot first (the lowest free one, because llama.cpp is fast with
    consecutive slots); in every step all running sequences write one token each, and what is left of the step's
    budget reads prompts, oldest first. So a newcomer never stops the others; it only makes their steps longer, by
    a bounded time.
    """

    def __init__(self, model: _Model, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self.counters = Counters()
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}
        self._clock = clock
        self._prompt_tokens_per_second = FIRST_GUESS_TOKENS_PER_SECOND

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
        batch = self._build_batch()
        outputs = self._decode(batch)
        if outputs is None:
            return True
        is_news = False
        for (request, chunk), index in zip(batch, outputs, strict=True):
            if request.is_reading:
                request.n_read += len(chunk.tokens)
                self.counters.prompt_tokens += len(chunk.tokens)
            if chunk.wants_logits:
                self._write(request, index)
                is_news = is_news or request.is_finished or len(request.completion) == 1
        self.counters.steps += 1
        return is_news

    # --- the parts of a step

    def _admit(self) -> None:
        """Gives free slots to those who wait, first come, first served."""
        free = (slot for slot in range(self.model.n_slots) if slot not in self.running)
        for slot in free:
            if not self.waiting:
                return
            request = self.waiting.popleft()
            request.slot = slot
            request.admitted_at = self._clock()
            request._sampler = self.model.sampler(request.params, request.prompt)
            self.running[slot] = request

    def _build_batch(self) -> list[tuple[Request, Chunk]]:
        """Everybody's next token, then prompts within the budget; in ascending order of slot (see Model.decode)."""
        batch = []
        budget = self._prompt_budget()
        for request in sorted(self.running.values(), key=lambda request: request.submitted_at):
            assert request.slot is not None
            if request.is_reading:
                tokens = request.prompt[request.n_read : request.n_read + budget]
                budget -= len(tokens)
                is_last = request.n_read + len(tokens) == len(request.prompt)
                if tokens:
                    batch.append((request, Chunk(request.slot, request.n_read, tokens, is_last)))
            else:
                position = len(request.prompt) + len(request.completion) - 1
                batch.append((request, Chunk(request.slot, position, request.completion[-1:], True)))
        return sorted(batch, key=lambda pair: pair[1].slot)

    def _prompt_budget(self) -> int:
        """Prompt tokens that this step may read, from the speed measured so far."""
        n_writing = sum(not request.is_reading for request in self.running.values())
        seconds = PROMPT_SECONDS_IN_COMPANY if n_writing else PROMPT_SECONDS_ALONE
        affordable = max(LEAST_PROMPT_TOKENS, int(self._prompt_tokens_per_second * seconds))
        return min(affordable, self.model.n_batch - n_writing)

    def _decode(self, batch: list[tuple[Request, Chunk]]) -> list[int] | None:
        """Batch indices of the last tokens; None if the model failed, which ends the requests in this batch."""
        started = self._clock()
        try:
            outputs = self.model.decode([chunk for _, chunk in batch])
        except DecodeError as error:
            logger.exception("A batch of %d sequences failed", len(batch))
            for request, _ in batch:
                request.error = f"The model failed: {error}."
                self.counters.failed += 1
                self._retire(request, "error")
            return None
        n_prompt = sum(len(chunk.tokens) for request, chunk in batch if request.is_reading)
        if n_prompt >= LEAST_PROMPT_TOKENS:
            measured = n_prompt / max(self._clock() - started, 1e-6)
            self._prompt_tokens_per_second += SMOOTHING * (measured - self._prompt_tokens_per_second)
        return outputs

    def _write(self, request: Request, index: int) -> None:
        """Samples a request's next token, and ends the request if that was its last."""
        is_first = not request.completion
        token = self.model.sample(request._sampler, index, forbid_end=is_first and not request.allows_empty)
        if is_first:
            request.first_token_at = self._clock()
        request.completion.append(token)
        self.counters.completion_tokens += 1
        if self.model.is_end(token):
            self._retire(request, "stop")
            return
        request._text += request._assembler.push(self.model.piece(token))
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
            del self.running[request.slot]
            self.model.keep(request.slot, 0)
        if request._sampler is not None:
            request._sampler.close()
            request._sampler = None
        request._text += request._assembler.finish()
        request.finish_reason = reason
        request.finished_at = self._clock()
