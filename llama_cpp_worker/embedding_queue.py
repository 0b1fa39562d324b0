"""Texts that wait for their embedding, and the steps that compute them.

Knows a model only by the methods of `EmbeddingModel`. Knows nothing of slots and of the engine's other requests.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llama_cpp_worker.chunk_size import MIN_CHUNK_TOKENS, PREFILL_STEP_SECONDS, aligned, largest_chunk


class EmbeddingModel(Protocol):
    """What the queue needs of a model; `Embedder` describes each method."""

    window: int
    n_batch: int

    def begin(self) -> None: ...
    def add(self, tokens: Sequence[int]) -> None: ...
    def embedding(self) -> list[float]: ...


@dataclass(slots=True, eq=False)
class EmbeddingRequest:
    """One text. It waits until it has a `finish_reason`: "stop" (with an embedding), "cancelled" or "error".

    Times are in seconds of the engine's clock.
    """

    tokens: Sequence[int]
    api_request: object = None  # they take turns; all texts without one take turns together
    n_added: int = 0  # tokens that are computed
    embedding: list[float] | None = None  # a vector of length 1
    finish_reason: str | None = None
    error: str | None = None
    submitted_at: float = 0.0
    finished_at: float | None = None

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None


class EmbeddingQueue:
    """Computes embeddings; API requests take turns, text by text. Nothing can wait in it if `model` is None.

    A step takes at most about PREFILL_STEP_SECONDS, or as long as the smallest chunk takes. A text is finished before
    the next one begins: it has no slot, so there is no place for a text that waits half-way.
    """

    def __init__(self, model: EmbeddingModel | None, clock: Callable[[], float]) -> None:
        self.waiting: deque[EmbeddingRequest] = deque()
        self._model = model
        self._clock = clock
        self._turns: dict[object, int] = {}  # by API request, the number of its last turn
        self._tokens_per_second = MIN_CHUNK_TOKENS / PREFILL_STEP_SECONDS  # a guess; then that of the last chunk

    def submit(self, request: EmbeddingRequest) -> None:
        """Queues a text. It must have 1 to `window` tokens; the caller has checked that."""
        assert self._model is not None, "embeddings are off"
        assert 0 < len(request.tokens) <= self._model.window, "the text does not fit the context window"
        request.submitted_at = self._clock()
        self.waiting.append(request)

    def step(self) -> bool:
        """Computes chunks for a step's time, at least one. Returns whether a request has finished.

        Whatever the model raises belongs to the first request that waits then.
        """
        has_finished = False
        deadline = self._clock() + PREFILL_STEP_SECONDS
        while self.waiting:
            request = self.waiting[0]
            self._add_chunk(request)
            if request.n_added == len(request.tokens):
                assert self._model is not None
                request.embedding = self._model.embedding()
                self.end(request, "stop")
                self._choose_next(request)
                has_finished = True
            if self.waiting and self._clock() + self._seconds_of_next_chunk() > deadline:
                break
        return has_finished

    def end(self, request: EmbeddingRequest, reason: str) -> None:
        """Ends a request that waits, for instance because it was cancelled."""
        self.waiting.remove(request)
        request.finish_reason = reason
        request.finished_at = self._clock()

    def _choose_next(self, last: EmbeddingRequest) -> None:
        """Brings the next text to the front: the first one of the API request whose turn was the longest ago."""
        self._turns[last.api_request] = max(self._turns.values(), default=0) + 1
        waiting = {request.api_request for request in self.waiting}
        self._turns = {api_request: turn for api_request, turn in self._turns.items() if api_request in waiting}
        if self.waiting:
            request = min(self.waiting, key=lambda request: self._turns.get(request.api_request, 0))
            self.waiting.remove(request)
            self.waiting.appendleft(request)

    def _add_chunk(self, request: EmbeddingRequest) -> None:
        assert self._model is not None
        if request.n_added == 0:
            self._model.begin()
        n_tokens = self._next_chunk(request)
        started = self._clock()
        self._model.add(request.tokens[request.n_added : request.n_added + n_tokens])
        self._tokens_per_second = n_tokens / max(self._clock() - started, 1e-6)
        request.n_added += n_tokens

    def _next_chunk(self, request: EmbeddingRequest) -> int:
        assert self._model is not None
        n_left = len(request.tokens) - request.n_added
        n_tokens = min(largest_chunk(request.n_added, self._tokens_per_second), self._model.n_batch)
        return n_left if n_left <= n_tokens else aligned(n_tokens, self._model.n_batch)

    def _seconds_of_next_chunk(self) -> float:
        return self._next_chunk(self.waiting[0]) / self._tokens_per_second
