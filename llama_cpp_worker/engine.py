"""The engine: continuous batching of requests. Decides which request gets a slot and what goes into each batch.

What a prefill step computes is decided in prefill.py, and what a prompt can reuse in prefix_cache.py.

Knows a model only by the methods of `EngineModel`, so tests can use a scripted model. Knows nothing of HTTP,
TorchServe and llama.cpp, and uses no threads. A request's text and its error stay on the request until the caller
takes them.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from llama_cpp_worker.embedder import EmbeddingError
from llama_cpp_worker.embedding_queue import EmbeddingModel, EmbeddingQueue, EmbeddingRequest
from llama_cpp_worker.model import Chunk, DecodeError
from llama_cpp_worker.prefill import PrefillPlanner
from llama_cpp_worker.prefix_cache import PrefixCache, SequenceMemory, common_prefix_length
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampler import SamplingError
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams

logger = logging.getLogger(__name__)

MIN_AWAITED_TOKENS = 32  # of a shared prefix; for a shorter one, a request does not wait

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
        self._prefill = PrefillPlanner(model.n_batch, model.n_outputs)
        self._kind = StepKind.DECODE  # of the last step
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
                request.sampler = self.model.sampler(request.params, request.prompt, request.constraint)
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
            batch = self._prefill.next_chunks(self._prefilling)
            for chunk in batch:
                request = self.running[chunk.slot]
                request.first_chunk_at = request.first_chunk_at or self._clock()
        else:
            batch = [request.next_token for request in self._decoding]
        return sorted(batch, key=lambda chunk: chunk.slot)

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
            computed = [(self.running[chunk.slot], chunk) for chunk in batch]
            self._prefill.note_speed(computed, self._clock() - started)
        return indices

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
        return self.model.sample(request.sampler, index, forbid_end=forbid_end)

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
            request._text += request.assembler.push(self.model.piece(token), report)

    def _finish_reason(self, request: Request) -> str | None:
        completion = request.completion
        if completion and (self.model.is_end(completion[-1]) or request.assembler.is_stopped):
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
        if request.sampler is not None:
            request.sampler.close()
            request.sampler = None
        request._text += request.assembler.finish()
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
