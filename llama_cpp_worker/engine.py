"""The engine: continuous batching of requests. Decides which request gets a slot and what goes into each batch.

The order in which prompts are prefilled is decided here: see `Engine`. What a prompt can reuse is decided in
prefix_cache.py.

Knows a model only by the methods of `EngineModel`, so tests can use a scripted model. Knows nothing of HTTP,
TorchServe and llama.cpp, and uses no threads. A request's text and its error stay on the request until the caller
takes them.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from llama_cpp_worker.chunk_size import DEEP_TOKENS, MIN_CHUNK_TOKENS, aligned, largest_chunk
from llama_cpp_worker.embedder import EmbeddingError
from llama_cpp_worker.embedding_queue import EmbeddingModel, EmbeddingQueue, EmbeddingRequest
from llama_cpp_worker.model import Chunk, DecodeError
from llama_cpp_worker.prefix_cache import PrefixCache, SequenceMemory, common_prefix_length
from llama_cpp_worker.sampler import SamplingError
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams
from llama_cpp_worker.text_assembler import TextAssembler

logger = logging.getLogger(__name__)

OLDEST_FIRST_EVERY = 3  # prefill steps

MIN_AWAITED_TOKENS = 32  # of a shared prefix; for a shorter one, a request does not wait
INITIAL_PREFILL_TOKENS_PER_SECOND = 500.0  # a guess, until the speed has been measured
SMOOTHING = 0.3  # weight of the newest measurement

UNEXPECTED_ERROR = "The server failed unexpectedly; its log has the reason."


class EngineModel(SequenceMemory, Protocol):
    """What the engine needs of a model; `Model` describes each method."""

    n_batch: int
    n_outputs: int
    window: int

    @property
    def embedder(self) -> EmbeddingModel | None: ...
    def piece(self, token: int) -> bytes: ...
    def is_end(self, token: int) -> bool: ...
    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None) -> Any: ...  # with close()
    def decode(self, chunks: Sequence[Chunk]) -> list[int]: ...
    def sample(self, sampler: Any, index: int, *, forbid_end: bool) -> int: ...
    def logprobs(self, index: int, token: int, count: int, *, shows_control: bool = False) -> SampledToken: ...


@dataclass(slots=True, eq=False)
class Request:
    """One completion: the prompt, the parameters, and the progress so far.

    A request is waiting until it has a slot. Then it is running until it has a `finish_reason`: "stop" (an end token
    or a stop string), "length" (max_tokens or the context window), "cancelled" or "error". With max_tokens 0 it ends
    after the prefill.
    Times are in seconds of the engine's clock.
    """

    prompt: Sequence[int]
    params: SamplingParams
    logprobs: int | None = None  # how many of the likeliest tokens to report with each token; None: no report
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first
    allows_empty: bool = True  # whether the first token may end the completion
    constraint: str | None = None  # a grammar for llguidance; None: the one that `params` ask for
    api_request: object = None  # whose choice or prompt this is, see rule 1; None: its own
    slot: int | None = None
    is_started: bool = False  # whether it knows its reusable prefix, so that the rest of its prompt can be prefilled
    n_cached: int = 0  # prompt tokens that were reused from the prefix cache
    n_prefilled: int = 0  # prompt tokens in the KV cache, reused ones included
    prompt_tokens: list[SampledToken] = field(default_factory=list)  # as far as prefilled, if `prompt_logprobs`
    completion: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    submitted_at: float = 0.0
    admitted_at: float | None = None  # when it got its slot
    prefix_assigned_at: float | None = None  # when `is_started` became true
    first_chunk_at: float | None = None  # when the step with its first chunk began
    first_token_at: float | None = None
    finished_at: float | None = None
    _prefill_tokens_per_second: float | None = None  # in its last chunk
    _text: str = ""
    _assembler: TextAssembler = field(init=False)
    _sampler: Any = None

    def __post_init__(self) -> None:
        self._assembler = TextAssembler(self.params.stop)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the completion."""
        return self._assembler.stop_string

    @property
    def is_prefilled(self) -> bool:
        return self.n_prefilled == len(self.prompt)

    @property
    def reusable_prompt(self) -> Sequence[int]:
        """The tokens of which a computed prefix may be reused; never the last one.

        A token has a log probability only if the token before it is computed in this request.
        """
        return self.prompt if self.prompt_logprobs is None else self.prompt[:1]

    @property
    def n_to_prefill(self) -> int:
        return len(self.prompt) - self.n_prefilled

    def take_text(self) -> str:
        """The text that was generated since the last call."""
        text, self._text = self._text, ""
        return text

    def take_tokens(self) -> list[SampledToken]:
        """The tokens of that text; empty if `logprobs` is None."""
        return self._assembler.take_tokens()


@dataclass(slots=True)
class Counters:
    """What the engine has done since it was created. No counter ever decreases."""

    requests: int = 0
    prompt_tokens: int = 0  # of requests whose prefill has started; reused ones included
    cached_tokens: int = 0
    completion_tokens: int = 0
    cancelled: int = 0
    failed: int = 0


class StepKind(Enum):
    """What a step computes."""

    PREFILL = auto()
    EMBED = auto()
    DECODE = auto()


class Engine:
    """Continuous batching: a request joins the batch at the next step and leaves it at its own end.

    The schedule:

    1. A free slot goes to the API request with the fewest running choices, and on a tie to the oldest one. So an API
       request with many prompts gets no more slots than others while these wait.
    2. A step either prefills prompts, or computes embeddings, or decodes the next token of every prefilled request.
       While any request decodes, every second step is a decode step; prefill steps and embedding steps share the
       others in turn. So a new prompt or text never stops the other answers for longer than one such step. (One batch
       of prompts and tokens would not be faster: each sequence has a separate KV cache, so llama.cpp computes chunks
       of different lengths one after the other.)
    3. A prefill step takes the prompts with the fewest tokens left: as many whole prompts as it has time for, or one
       chunk of a longer prompt. Every third prefill step begins with the oldest prompt instead.
    4. A prompt that shares a long prefix with a prompt that is being prefilled waits until that prefix is computed.
       Then it reuses the prefix.

    The bounds of rule 3, where B is the number of tokens of the smallest chunk that a step takes, 64 or 128, and a
    prompt of k tokens has ceil(k / B) chunks:

    - A prompt that has the fewest tokens left, and at most B of them, waits for at most one other prefill step, after
      it has a slot and the running step has ended. So a long prompt delays it by a step, however long it is.
    - A prompt is prefilled after at most 3 x (its own chunks and those of all older prompts) prefill steps, however
      many short prompts arrive. A prompt in a slot never starves.

    The chunks of a prompt whose log probabilities are requested have at most `n_outputs` tokens of the model (64, or
    more with more slots), because the model computes no more logits at once. For such a prompt B is 64.
    """

    def __init__(self, model: EngineModel, n_saved_bytes: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self.cache = PrefixCache(model, n_saved_bytes)
        self.counters = Counters()
        self.embeddings = EmbeddingQueue(model.embedder, clock)
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}  # by slot
        self._clock = clock
        self._prefill_tokens_per_second = INITIAL_PREFILL_TOKENS_PER_SECOND
        self._kind = StepKind.DECODE  # of the last step
        self._n_prefill_steps = 0
        self._was_embedding = False  # whether the last step that did not decode computed embeddings
        self._is_urgent = False  # whether this step produced a first token or the end of a request

    @property
    def is_idle(self) -> bool:
        return not self.n_waiting and not self.running

    @property
    def n_waiting(self) -> int:
        """Requests without a slot; embeddings never have one."""
        return len(self.waiting) + len(self.embeddings.waiting)

    def submit(self, request: Request | EmbeddingRequest) -> None:
        """Queues a request. The caller has checked the number of its tokens.

        A prompt must have 1 to `window - 1` tokens, a text for an embedding 1 to `window`.
        """
        self.counters.requests += 1
        if isinstance(request, EmbeddingRequest):
            self.embeddings.submit(request)
            return
        assert 0 < len(request.prompt) < self.model.window, "the prompt does not fit the context window"
        request.submitted_at = self._clock()
        self.waiting.append(request)

    def cancel(self, request: Request | EmbeddingRequest) -> None:
        """Ends a request, waiting or running, and frees its slot. Does nothing if the request has already ended."""
        if request.is_finished:
            return
        self.counters.cancelled += 1
        if isinstance(request, EmbeddingRequest):
            self.embeddings.end(request, "cancelled")
        else:
            self._retire(request, "cancelled")

    @property
    def n_decoding(self) -> int:
        """How many sequences the next step decodes; 0 if it admits a request, or if it may compute anything else."""
        admits = self.waiting and len(self.running) < self.model.n_slots
        is_steady = not admits and not self.embeddings.waiting
        is_steady = is_steady and all(request.is_prefilled for request in self.running.values())
        return len(self.running) if is_steady else 0

    def run(self, seconds: float) -> bool:
        """Runs steps for about `seconds`. Returns early at a first token and at the end of a request: True.

        People notice a delay of these two most. If a step fails unexpectedly, that ends the running requests only.
        """
        deadline = self._clock() + seconds
        while not self.is_idle:
            with self._guard(self.running.values()):
                self.step()
            if self._is_urgent or self._clock() >= deadline:
                return self._is_urgent
        return False

    def step(self) -> bool:
        """Runs one batch through the model. Returns True if a request got its first token or ended."""
        self._is_urgent = False
        self._admit()
        self._close_gaps()
        self._start_prefills()
        self._kind = self._next_kind()
        if self._kind is StepKind.EMBED:
            self._embed()
        else:
            self._run_batch(self._build_batch())
        return self._is_urgent

    # --- the parts of a step, in order

    def _admit(self) -> None:
        """Gives free slots to waiting requests; if the prefix cache has no preference, neighbours."""
        while self.waiting and len(self.running) < self.model.n_slots:
            request = self._next_waiting()
            self.waiting.remove(request)
            with self._guard([request]):  # an unusable grammar ends its own request before it has a slot
                request._sampler = self.model.sampler(request.params, request.prompt, request.constraint)
                free = [slot for slot in range(self.model.n_slots) if slot not in self.running]
                free.sort(key=lambda slot: min((abs(slot - other) for other in self.running), default=0))
                slot = self.cache.choose_slot(request.reusable_prompt, free)
                request.slot = slot
                request.admitted_at = self._clock()
                self.running[slot] = request

    def _next_waiting(self) -> Request:
        """Rule 1 of the schedule."""
        owners = (request.api_request for request in self.running.values())
        n_running = Counter(id(owner) for owner in owners if owner is not None)
        return min(self.waiting, key=lambda request: n_running[id(request.api_request)])  # on a tie, the oldest

    def _close_gaps(self) -> None:
        """Swaps sequences so that the slots in the batch are consecutive. The idle ones in the gaps are not lost.

        They are swapped only when it pays: see PrefixCache.due_swaps.
        """
        started = [slot for slot, request in self.running.items() if request.is_started]
        for pair in self.cache.due_swaps(started):
            with self._guard([self.running[slot] for slot in pair if slot in self.running]):
                self.cache.swap(*pair)
                moved = {slot: self.running.pop(slot) for slot in pair if slot in self.running}
                for source, target in (pair, pair[::-1]):
                    if source in moved:
                        moved[source].slot = target
                        self.running[target] = moved[source]

    def _start_prefills(self) -> None:
        """Lets new requests reuse the longest computed prefix of their prompt, or wait for a longer one."""
        for request in self._by_age():
            if request.is_started:
                continue
            prefilling = [
                other.prompt for other in self.running.values() if other.is_started and not other.is_prefilled
            ]
            reusable = request.reusable_prompt
            shared = max((common_prefix_length(reusable, prompt) for prompt in prefilling), default=0)
            if shared >= MIN_AWAITED_TOKENS:
                n_cached = self.cache.cached_prefix_length(reusable)
                if shared >= n_cached + MIN_AWAITED_TOKENS:
                    continue
            with self._guard([request]):
                assert request.slot is not None
                request.n_cached = request.n_prefilled = self.cache.assign_prefix(request.slot, reusable)
                request.is_started = True
                request.prefix_assigned_at = self._clock()
                self.counters.prompt_tokens += len(request.prompt)
                self.counters.cached_tokens += request.n_cached

    def _next_kind(self) -> StepKind:
        """Rule 2 of the schedule."""
        if self._decoding and self._kind is not StepKind.DECODE:
            return StepKind.DECODE
        if self.embeddings.waiting and not (self._prefilling and self._was_embedding):
            self._was_embedding = True
            return StepKind.EMBED
        if self._prefilling:
            self._was_embedding = False
            return StepKind.PREFILL
        return StepKind.DECODE

    @property
    def _prefilling(self) -> list[Request]:
        return [request for request in self._by_age() if request.is_started and not request.is_prefilled]

    @property
    def _decoding(self) -> list[Request]:
        return [request for request in self.running.values() if request.is_prefilled]

    def _embed(self) -> None:
        """An embedding step. An error ends the text that is being computed; the others go on."""
        try:
            self._is_urgent |= self.embeddings.step()
        except Exception as error:
            logger.exception("1 embedding failed")
            request = self.embeddings.waiting[0]
            request.error = f"The model failed: {error}." if isinstance(error, EmbeddingError) else UNEXPECTED_ERROR
            self.counters.failed += 1
            self.embeddings.end(request, "error")
            self._is_urgent = True

    def _build_batch(self) -> list[Chunk]:
        """The next chunks of the prompts, or the next token of every prefilled request; by slot, see Model.decode."""
        if self._kind is StepKind.PREFILL:
            self._n_prefill_steps += 1
            batch = self._prompt_chunks(self._prefilling)
        else:
            batch = [_next_token(request) for request in self._decoding]
        return sorted(batch, key=lambda chunk: chunk.slot)

    def _prompt_chunks(self, by_age: Sequence[Request]) -> list[Chunk]:
        """Whole prompts that take about PREFILL_STEP_SECONDS together, or one chunk; see rule 3 of the schedule."""
        order = sorted(by_age, key=lambda request: request.n_to_prefill)
        if self._n_prefill_steps % OLDEST_FIRST_EVERY == 0:
            order.sort(key=lambda request: request is not by_age[0])
        chunks: list[Chunk] = []
        share = 1.0  # of the step's time that is left
        room, outputs = self.model.n_batch, self.model.n_outputs
        for request in order:
            wants_all_logits = request.prompt_logprobs is not None
            n_affordable = min(self._largest_chunk(request), room)
            n_tokens = min(request.n_to_prefill, n_affordable, outputs if wants_all_logits else room)
            is_last = n_tokens == request.n_to_prefill
            if chunks and (not is_last or n_tokens > share * n_affordable):
                break
            if not is_last:
                n_tokens = aligned(n_tokens, self.model.n_batch)
            assert request.slot is not None
            tokens = request.prompt[request.n_prefilled : request.n_prefilled + n_tokens]
            wants_logits = is_last and request.params.max_tokens != 0
            chunks.append(Chunk(request.slot, request.n_prefilled, tokens, wants_logits, wants_all_logits))
            if request.first_chunk_at is None:
                request.first_chunk_at = self._clock()
            share -= n_tokens / n_affordable
            room -= n_tokens
            outputs -= n_tokens if wants_all_logits else 1
            if not is_last or room == 0 or outputs == 0:
                break
        return chunks

    def _largest_chunk(self, request: Request) -> int:
        """How many tokens of a prompt a step can take."""
        speed = request._prefill_tokens_per_second
        if speed is None:
            is_deep = request.n_prefilled >= DEEP_TOKENS
            speed = 0.0 if is_deep else self._prefill_tokens_per_second  # nothing is known of the speed at its depth
        return largest_chunk(request.n_prefilled, speed)

    def _by_age(self) -> list[Request]:
        return sorted(self.running.values(), key=lambda request: request.submitted_at)

    def _decode(self, batch: Sequence[Chunk]) -> list[int]:
        """The batch index of each chunk's last token. Empty if the model failed, which ends the batch's requests."""
        indices: list[int] = []
        if not batch:
            return indices
        started = self._clock()
        with self._guard([self.running[chunk.slot] for chunk in batch]):
            indices = self.model.decode(batch)
        if indices and self._kind is StepKind.PREFILL:
            self._note_speed(batch, self._clock() - started)
        return indices

    def _note_speed(self, batch: Sequence[Chunk], seconds: float) -> None:
        n_tokens = sum(len(chunk.tokens) for chunk in batch)
        if n_tokens < MIN_CHUNK_TOKENS:
            return  # small batches are slower for each token
        measured = n_tokens / max(seconds, 1e-6)
        for chunk in batch:
            self.running[chunk.slot]._prefill_tokens_per_second = measured
        if all(chunk.position < DEEP_TOKENS for chunk in batch):
            self._prefill_tokens_per_second += SMOOTHING * (measured - self._prefill_tokens_per_second)

    def _run_batch(self, batch: Sequence[Chunk]) -> None:
        """Decodes a batch and gives each request what it produced."""
        for chunk, index in zip(batch, self._decode(batch), strict=False):  # no indices if the decode failed
            request = self.running[chunk.slot]
            self.cache.append(chunk.slot, chunk.tokens)
            if not request.is_prefilled:
                request.n_prefilled += len(chunk.tokens)
            with self._guard([request]):
                if chunk.wants_all_logits:
                    self._report_prompt(request, chunk, index)
                if chunk.wants_logits:
                    token = self._sample(request, index)
                    self._hand_out(request, token, index)
                if request.is_prefilled and (reason := self._finish_reason(request)):
                    self._retire(request, reason)

    def _report_prompt(self, request: Request, chunk: Chunk, last_index: int) -> None:
        """Adds the log probabilities of the tokens that come after those of a chunk of the prompt."""
        assert request.prompt_logprobs is not None
        following = request.prompt[chunk.position + 1 : chunk.position + 1 + len(chunk.tokens)]
        for index, token in enumerate(following, last_index + 1 - len(chunk.tokens)):
            report = self.model.logprobs(index, token, request.prompt_logprobs, shows_control=True)
            request.prompt_tokens.append(report)

    def _sample(self, request: Request, index: int) -> int:
        """The next token of a request, from the logits at `index` of the batch."""
        is_first = not request.completion
        forbid_end = request.params.ignore_eos or (is_first and not request.allows_empty)
        return self.model.sample(request._sampler, index, forbid_end=forbid_end)

    def _hand_out(self, request: Request, token: int, index: int) -> None:
        """Adds a token to its request: the id, the text that is now certain, and the log probabilities."""
        if not request.completion:
            request.first_token_at = self._clock()
            self._is_urgent = True
        request.completion.append(token)
        self.counters.completion_tokens += 1
        if not self.model.is_end(token):
            n_likeliest = request.logprobs
            report = None if n_likeliest is None else self.model.logprobs(index, token, n_likeliest)
            request._text += request._assembler.push(self.model.piece(token), report)

    def _finish_reason(self, request: Request) -> str | None:
        completion = request.completion
        if completion and (self.model.is_end(completion[-1]) or request._assembler.is_stopped):
            return "stop"
        n_tokens = len(request.prompt) + len(request.completion)
        is_full = len(request.completion) == request.params.max_tokens or n_tokens == self.model.window
        return "length" if is_full else None

    def _retire(self, request: Request, reason: str) -> None:
        """Ends a request and frees its slot. The slot's sequence stays in the prefix cache for the next requests."""
        if request.slot is not None and self.running.get(request.slot) is request:
            del self.running[request.slot]
        elif request in self.waiting:
            self.waiting.remove(request)
        if request._sampler is not None:
            request._sampler.close()
            request._sampler = None
        request._text += request._assembler.finish()
        request.finish_reason = reason
        request.finished_at = self._clock()
        self._is_urgent = True

    @contextmanager
    def _guard(self, requests: Collection[Request]) -> Iterator[None]:
        """Ends `requests` with an error if the block raises; all other requests go on."""
        try:
            yield
        except SamplingError as error:
            self._fail(requests, f"The model failed: {error}.")
        except Exception as error:
            if not requests:
                raise
            logger.exception("%d requests failed", len(requests))
            message = f"The model failed: {error}." if isinstance(error, DecodeError) else UNEXPECTED_ERROR
            slots = [request.slot for request in requests if request.slot is not None]
            self._fail(requests, message)
            for slot in slots:
                self.cache.forget(slot)  # it is unknown which tokens have been computed

    def _fail(self, requests: Collection[Request], message: str) -> None:
        for request in list(requests):  # `requests` may be a view of `running`
            request.error = message
            self.counters.failed += 1
            self._retire(request, "error")


def _next_token(request: Request) -> Chunk:
    """The newest token of a completion; to decode it gives the logits of the next one."""
    assert request.slot is not None
    position = len(request.prompt) + len(request.completion) - 1
    return Chunk(request.slot, position, request.completion[-1:], True)
