"""Which chunks of which prompts a prefill step computes: rule 3 of the engine's schedule.

Knows how fast the model has been; knows nothing of slots that wait, decode steps and embeddings.
"""

from collections.abc import Sequence

from llama_cpp_worker.chunk_size import DEEP_TOKENS, MIN_CHUNK_TOKENS, aligned, largest_chunk
from llama_cpp_worker.model import Chunk
from llama_cpp_worker.request import Request

OLDEST_FIRST_EVERY = 3  # prefill steps

INITIAL_TOKENS_PER_SECOND = 500.0  # a guess, until the speed has been measured
SMOOTHING = 0.3  # weight of the newest measurement


class PrefillPlanner:
    """Plans the prefill steps of a model with `n_batch` tokens in a batch and logits of `n_outputs` of them."""

    def __init__(self, n_batch: int, n_outputs: int) -> None:
        self._n_batch = n_batch
        self._n_outputs = n_outputs
        self._tokens_per_second = INITIAL_TOKENS_PER_SECOND
        self._n_steps = 0

    def next_chunks(self, by_age: Sequence[Request]) -> list[Chunk]:
        """Whole prompts that take about PREFILL_STEP_SECONDS together, or one chunk of a longer prompt.

        by_age: the requests that are being prefilled, the oldest first; at least one.
        """
        self._n_steps += 1
        order = sorted(by_age, key=lambda request: request.n_to_prefill)
        if self._n_steps % OLDEST_FIRST_EVERY == 0:
            order.sort(key=lambda request: request is not by_age[0])
        chunks: list[Chunk] = []
        share = 1.0  # of the step's time that is left
        room, outputs = self._n_batch, self._n_outputs
        for request in order:
            wants_all_logits = request.prompt_logprobs is not None
            n_affordable = min(self._largest_chunk(request), self._n_batch)
            limit = min(room, outputs) if wants_all_logits else room
            n_tokens = min(request.n_to_prefill, n_affordable, limit)
            is_last = n_tokens == request.n_to_prefill
            if chunks and (not is_last or n_tokens > share * n_affordable):
                break
            if not is_last:
                n_tokens = aligned(n_tokens, self._n_batch)
            assert request.slot is not None
            tokens = request.prompt[request.n_prefilled : request.n_prefilled + n_tokens]
            wants_logits = is_last and request.params.max_tokens != 0
            chunks.append(Chunk(request.slot, request.n_prefilled, tokens, wants_logits, wants_all_logits))
            share -= n_tokens / n_affordable
            room -= n_tokens
            outputs -= n_tokens if wants_all_logits else 1
            if not is_last or room == 0 or outputs == 0:
                break
        return chunks

    def note_speed(self, computed: Sequence[tuple[Request, Chunk]], seconds: float) -> None:
        """Takes note of how long the chunks of one step took together."""
        n_tokens = sum(len(chunk.tokens) for _, chunk in computed)
        if n_tokens < MIN_CHUNK_TOKENS:
            return  # small batches are slower for each token
        measured = n_tokens / max(seconds, 1e-6)
        for request, _ in computed:
            request.tokens_per_second = measured
        if all(chunk.position < DEEP_TOKENS for _, chunk in computed):
            self._tokens_per_second += SMOOTHING * (measured - self._tokens_per_second)

    def _largest_chunk(self, request: Request) -> int:
        """How many tokens of a prompt a step has time for."""
        speed = request.tokens_per_second
        if speed is None:
            is_deep = request.n_prefilled >= DEEP_TOKENS
            speed = 0.0 if is_deep else self._tokens_per_second  # nothing is known of the speed at its depth
        return largest_chunk(request.n_prefilled, speed)
