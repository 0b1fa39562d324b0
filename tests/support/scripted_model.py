"""A model whose next token depends on all tokens before it, so that a wrong KV cache changes the text.

A token is a byte; END ends an answer. The model checks what llama.cpp demands: consecutive positions, ascending slots,
at most n_batch tokens. `fail_with` makes the next decode fail. `clock` advances by a fixed time per token.
"""

import hashlib
import itertools
from collections.abc import Sequence

import pytest

from llama_cpp_worker.embedding_queue import EmbeddingModel
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Chunk, DecodeError
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob

END = 256


def logprob_after(tokens: Sequence[int], token: int) -> float:
    """The log probability that a scripted model gives to `token` after `tokens`."""
    return -1.0 - _number([len(tokens), *tokens[-8:], token]) % 1000 / 1000


def run_to_end(engine: Engine) -> None:
    for _ in range(10_000):
        if engine.is_idle:
            return
        engine.step()
    pytest.fail("the engine never became idle")


class ScriptedSampler:
    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "a sampler was closed twice"
        self.is_closed = True


class ScriptedModel:
    def __init__(self, n_slots: int = 2, n_batch: int = 64, window: int = 200, script: bytes | None = None) -> None:
        self.n_slots = n_slots
        self.n_batch = n_batch
        self.n_outputs = min(max(n_slots, 64), n_batch)
        self.window = window
        self.embedder: EmbeddingModel | None = None
        self.cache: dict[int, list[int]] = {slot: [] for slot in range(n_slots)}
        self.batches: list[list[Chunk]] = []
        self.samplers: list[ScriptedSampler] = []
        self.fail_with: DecodeError | None = None
        self.n_copies = 0  # of states that were saved
        self.n_passes = 0  # runs of consecutive slots, each of which reads all the weights
        self.seconds = 0.0
        self.seconds_per_token = 0.001
        self.prefilled_tokens_per_second = 1e3
        self.seconds_per_pass = 1e-3
        self.copied_bytes_per_second = 1e6  # a state has a byte per token
        self._script = script
        self._contexts: dict[int, tuple[int, int]] = {}  # by batch index, if it has logits: slot, number of tokens

    def clock(self) -> float:
        return self.seconds

    def piece(self, token: int, *, shows_control: bool = False) -> bytes:
        return b"" if token == END else bytes([token])

    def is_end(self, token: int) -> bool:
        return token == END

    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None) -> ScriptedSampler:
        self.samplers.append(ScriptedSampler())
        return self.samplers[-1]

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        if self.fail_with:
            error, self.fail_with = self.fail_with, None
            raise error
        slots = [chunk.slot for chunk in chunks]
        assert slots == sorted(set(slots)), "slots must be ascending, each once"
        self.n_passes += 1 + sum(later != earlier + 1 for earlier, later in itertools.pairwise(slots))
        assert 0 < sum(len(chunk.tokens) for chunk in chunks) <= self.n_batch
        outputs = [len(chunk.tokens) if chunk.wants_all_logits else chunk.wants_logits for chunk in chunks]
        assert sum(outputs) <= self.n_outputs
        self._contexts.clear()
        indices, size = [], 0
        for chunk in chunks:
            assert chunk.position == len(self.cache[chunk.slot]), "a gap or an overlap in the cache"
            self.cache[chunk.slot] += chunk.tokens
            size += len(chunk.tokens)
            indices.append(size - 1)
            n_contexts = len(chunk.tokens) if chunk.wants_all_logits else int(chunk.wants_logits)
            for place in range(n_contexts):
                self._contexts[size - 1 - place] = chunk.slot, chunk.position + len(chunk.tokens) - place
        self.batches.append(list(chunks))
        self.seconds += self.seconds_per_token * size
        return indices

    def sample(self, sampler: ScriptedSampler, index: int, *, forbid_end: bool) -> int:
        assert not sampler.is_closed
        token = self._token_after(self._context(index))
        return ord("!") if forbid_end and token == END else token

    def logprobs(self, index: int, token: int, count: int, *, shows_control: bool = False) -> SampledToken:
        chosen = TokenLogprob(self.piece(token), logprob_after(self._context(index), token))
        return SampledToken(chosen, (chosen,) * count)

    def trim(self, slot: int, n_tokens: int) -> None:
        del self.cache[slot][n_tokens:]

    def state_size(self, slot: int) -> int:
        return len(self.cache[slot])

    def save_state(self, slot: int) -> list[int]:
        self.n_copies += 1
        return list(self.cache[slot])

    def restore_state(self, slot: int, state: list[int]) -> None:
        self.cache[slot] = list(state)

    def _context(self, index: int) -> list[int]:
        slot, n_tokens = self._contexts[index]
        return self.cache[slot][:n_tokens]

    def _token_after(self, tokens: list[int]) -> int:
        if self._script is not None:
            position = len(tokens) - tokens.index(ord(">")) - 1
            return self._script[position] if position < len(self._script) else END
        number = _number(tokens)
        return END if number % 40 == 0 else ord("a") + number % 26


def _number(tokens: Sequence[int]) -> int:
    return int.from_bytes(hashlib.sha256(repr(list(tokens)).encode()).digest()[:4], "big")
