"""One node: a continuous-batching engine with a queue. A model of llama_cpp_worker/engine.py and prefill.py.

As there: a step either prefills or decodes; while a sequence decodes, every second step is a decode step; the prompts
with the fewest tokens left are prefilled first, and in every third prefill step the oldest one. Not modelled: prompts
that wait for a shared prefix, gaps between slots, and TorchServe's time slices.

Decode steps in which nothing else happens are one event. So the cost of the simulation grows with the requests and
not with the tokens.
"""

import math
from collections import deque
from collections.abc import Callable
from functools import partial

from benchmarks.cluster_simulation.clock import Clock
from benchmarks.cluster_simulation.costs import StepTimes
from benchmarks.cluster_simulation.node_cache import NodeCache
from benchmarks.cluster_simulation.request import Request
from llama_cpp_worker.chunk_size import PREFILL_STEP_SECONDS

OLDEST_FIRST_EVERY = 3  # prefill steps, as in llama_cpp_worker/prefill.py, which would import llama.cpp


class Node:
    """Calls on_end(request) when a request has its last token."""

    def __init__(self, clock: Clock, times: StepTimes, n_system: int, on_end: Callable[[Request], None]) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the oldest first
        self._clock = clock
        self._times = times
        self._on_end = on_end
        self._cache = NodeCache(times.costs, n_system)
        self._copy_seconds = 0.0  # of sequences, before the next step
        self._is_busy = False
        self._is_prefill = False  # the last step
        self._n_prefill_steps = 0
        self._step = 0  # number of the last event; an event with an older number is void
        self._run_started_at = 0.0
        self._n_run = 0  # decode steps of the run in progress; 0: another step, or none

    def submit(self, request: Request) -> None:
        """Queues a request. It joins at the next step if a slot is free."""
        self.waiting.append(request)
        if not self._is_busy:
            self._begin_step()
        elif self._n_run > 1 and len(self.running) < self._times.costs.slots:
            seconds = self._times.decode(len(self.running))
            n_begun = math.ceil((self._clock.now - self._run_started_at) / seconds - 1e-9)
            self._schedule_run(max(1, n_begun))

    def die(self) -> list[Request]:
        """Forgets everything. Returns the requests that it has cut, the oldest first."""
        cut = [*self.running, *self.waiting]
        self.waiting.clear()
        self.running.clear()
        self._cache.clear()
        self._copy_seconds = 0.0
        self._is_busy = self._is_prefill = False
        self._n_run = 0
        self._step += 1
        return cut

    def _begin_step(self) -> None:
        self._admit()
        self._is_busy = bool(self.running)
        if not self.running:
            return
        prefilling = [request for request in self.running if request.n_to_prefill]
        if prefilling and (not self._is_prefill or len(prefilling) == len(self.running)):
            self._begin_prefill(prefilling)
        else:
            self._is_prefill = False
            self._run_started_at = self._clock.now + self._copy_seconds
            self._copy_seconds = 0.0
            decoding = [request.n_to_decode for request in self.running if not request.n_to_prefill]
            self._schedule_run(1 if prefilling else min(decoding))

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._times.costs.slots:
            request = self.waiting.popleft()
            request.n_cached, seconds = self._cache.assign(request.conversation, request.n_prompt)
            request.n_to_prefill = request.n_prompt - request.n_cached
            request.n_to_decode = request.n_completion
            self._copy_seconds += seconds
            self.running.append(request)

    def _begin_prefill(self, prefilling: list[Request]) -> None:
        """Whole prompts that a step has time for, or one chunk of a longer prompt."""
        self._is_prefill = True
        self._n_prefill_steps += 1
        order = sorted(prefilling, key=lambda request: request.n_to_prefill)
        if self._n_prefill_steps % OLDEST_FIRST_EVERY == 0:
            order.sort(key=lambda request: request is not prefilling[0])
        chunks: list[tuple[Request, int]] = []
        seconds, room = 0.0, self._times.costs.n_batch
        for request in order:
            depth = request.n_prompt - request.n_to_prefill
            n_tokens = self._times.next_chunk(request.n_to_prefill, depth)
            chunk_seconds = self._times.prefill(n_tokens, depth)
            is_whole = n_tokens == request.n_to_prefill
            fits = n_tokens <= room and seconds + chunk_seconds <= PREFILL_STEP_SECONDS
            if chunks and not (is_whole and fits):
                break
            chunks.append((request, n_tokens))
            seconds += chunk_seconds
            room -= n_tokens
        self._step += 1
        self._clock.after(self._copy_seconds + seconds, partial(self._end_prefill, self._step, chunks))
        self._copy_seconds = 0.0

    def _end_prefill(self, step: int, chunks: list[tuple[Request, int]]) -> None:
        if step != self._step:
            return
        for request, n_tokens in chunks:
            request.n_to_prefill -= n_tokens
            if not request.n_to_prefill:  # the last chunk gives the first token
                request.first_token_at = self._clock.now
                request.n_to_decode -= 1
        self._retire()
        self._begin_step()

    def _schedule_run(self, n_steps: int) -> None:
        """Lets the run of decode steps in progress have `n_steps`."""
        self._n_run = n_steps
        self._step += 1
        n_sequences = sum(not request.n_to_prefill for request in self.running)
        ends_at = self._run_started_at + n_steps * self._times.decode(n_sequences)
        self._clock.at(max(ends_at, self._clock.now), partial(self._end_run, self._step))

    def _end_run(self, step: int) -> None:
        if step != self._step:
            return
        for request in self.running:
            if not request.n_to_prefill:
                request.n_to_decode -= self._n_run
        self._n_run = 0
        self._retire()
        self._begin_step()

    def _retire(self) -> None:
        """Ends the requests that have all of their tokens. The last one was sampled, and is not computed."""
        ended = [request for request in self.running if not request.n_to_prefill and not request.n_to_decode]
        for request in ended:
            self.running.remove(request)
            self._cache.release(request.conversation, request.n_prompt + request.n_completion - 1)
            request.ended_at = self._clock.now
        for request in ended:
            self._on_end(request)
