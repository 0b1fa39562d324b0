"""The model: decodes batches of sequences on llama.cpp, samples, copies sequences.

weights.py loads the GGUF; tokenizer.py has its vocabulary. Samplers and embeddings call llama.cpp themselves.
Knows nothing of requests, the schedule and TorchServe. Not thread-safe: llama.cpp crashes or freezes if two threads
use one context, so only one thread at a time may call a Model.

Not covered: encoder-decoder and recurrent models, images.
"""

import ctypes
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import llama_cpp
import numpy as np

from llama_cpp_worker.devices import physical_cores
from llama_cpp_worker.embedder import Embedder, EmbeddingError
from llama_cpp_worker.sampler import Sampler, log_probabilities
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams, TokenLogprob
from llama_cpp_worker.tokenizer import Tokenizer
from llama_cpp_worker.weights import KV_CACHE_TYPES, ModelLoadError, Weights

NO_ROOM_IN_CACHE = 1  # llama_decode's return value
# Logits of this many tokens can be computed in one decode. Their memory is this x vocabulary x 4 bytes, once for the
# computation and once, when they are first needed, for the results: 2 x 12 MiB for 49,152 tokens.
MIN_OUTPUTS = 64
SPEED_TEST_TOKENS = 32  # 0.1 s for 135M parameters, 2 s for 7B (2 cores)


class DecodeError(RuntimeError):
    """llama_decode refused a batch."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch; `position` is the first token's place in the sequence."""

    slot: int
    position: int
    tokens: Sequence[int]
    wants_logits: bool  # of the last token
    wants_all_logits: bool = False  # of every token


class Model:
    """A GGUF and one llama.cpp context with `n_slots` sequences, each with a separate KV cache of `window` tokens.

    With `kv_unified` instead, attention would read the cells of all sequences.
    n_saved_bytes: memory to leave for saved sequences (see prefix_cache.py). kv_cache_type: one of KV_CACHE_TYPES.
    embeddings: whether there is an `embedder`, else it is None.
    Raises ModelLoadError.
    """

    def __init__(
        self,
        path: str,
        n_slots: int,
        n_ctx: int = 0,
        n_batch: int = 512,
        n_gpu_layers: int = -1,
        n_threads: int = 0,
        n_saved_bytes: int = 0,
        kv_cache_type: str = "f16",
        embeddings: bool = False,
    ) -> None:
        max_slots = llama_cpp.llama_max_parallel_sequences()
        if not 1 <= n_slots <= max_slots:
            raise ModelLoadError(f"The batch size is {n_slots}, but llama.cpp takes 1 to {max_slots} sequences.")
        self.weights = Weights(path, n_gpu_layers)
        self.fingerprint = self.weights.fingerprint(n_ctx)
        self.n_slots = n_slots
        self.n_saved_bytes = n_saved_bytes
        self._cache_bytes_per_token = self.weights.cache_bytes_per_token(kv_cache_type)
        window = self.weights.fitting_window(
            n_ctx, n_slots, self._cache_bytes_per_token, n_saved_bytes, embeddings=embeddings
        )

        params = llama_cpp.llama_context_default_params()
        params.n_ctx = window * n_slots
        params.n_seq_max = n_slots
        params.n_batch = params.n_ubatch = max(n_batch, n_slots)
        params.n_threads = params.n_threads_batch = n_threads or physical_cores()
        # Unset, llama.cpp reserves n_batch x vocabulary floats for logits.
        params.n_outputs_max = min(max(n_slots, MIN_OUTPUTS), params.n_batch)
        params.type_k = params.type_v = KV_CACHE_TYPES[kv_cache_type][0]
        params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self.weights.pointer, params)
        if not self._context:
            raise ModelLoadError(f"llama.cpp has no memory for {n_slots} sequences: choose a smaller batch size.")
        self.window: int = llama_cpp.llama_n_ctx_seq(self._context)
        self.n_batch: int = llama_cpp.llama_n_batch(self._context)
        self.n_outputs = min(max(n_slots, MIN_OUTPUTS), self.n_batch)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self.embedder: Embedder | None = None
        if embeddings:
            try:
                self.embedder = Embedder(
                    self.weights.pointer, self.window, self.n_batch, params.n_threads, params.type_k
                )
            except EmbeddingError as error:
                raise ModelLoadError(f"'{path}': {error}; set embeddings to false.") from error
        self.tokenizer = Tokenizer(self.weights, self.window)
        with ThreadPoolExecutor(1) as thread:  # libgomp has a team of threads for each caller; this one ends here
            thread.submit(self._measure_speeds).result()

    def describe(self) -> dict[str, object]:
        """The model's file, kind, size, parameters, context, template, devices and main memory, for people."""
        return {
            **self.weights.describe(),
            "context_window": self.window,
            "context_train": self.weights.n_ctx_train,
            "slots": self.n_slots,
            "threads": llama_cpp.llama_n_threads(self._context),
            "chat_template": "raw" if self.tokenizer.template.is_raw else "model",
            "embedding_size": self.embedder.size if self.embedder else None,
            "layers": self.weights.placement.n_layers,
            "devices": self.weights.placement.describe(),
            "memory_bytes": self._main_memory(),
            "fingerprint": self.fingerprint,
        }

    def _main_memory(self) -> dict[str, int]:
        """The main memory that a worker needs when its slots and its saved sequences are full, in bytes by use."""
        share = self.weights.placement.main_memory_share
        cache_bytes_per_token = self._cache_bytes_per_token * share
        return {
            "weights": int(self.weights.size_bytes * share),
            "kv_cache": int(cache_bytes_per_token * self.window * self.n_slots),
            "embeddings": self.embedder.memory_bytes(cache_bytes_per_token) if self.embedder else 0,
            "saved_sequences": self.n_saved_bytes,
        }

    def set_threads(self, n_threads: int) -> None:
        """Sets the number of threads, from the next decode on."""
        llama_cpp.llama_set_n_threads(self._context, n_threads, n_threads)
        if self.embedder:
            self.embedder.set_threads(n_threads)

    def close(self) -> None:
        """Frees the memory; the model is unusable afterwards. (A worker need not call this before it ends.)"""
        if self.embedder:
            self.embedder.close()
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        self.weights.close()

    # --- decode and sample

    def sampler(self, params: SamplingParams, prompt: Sequence[int], constraint: str | None = None) -> Sampler:
        """A sampler for one completion of `prompt` (tokens); the caller closes it at the end.

        constraint: a grammar for llguidance; None: the one that `params` ask for.
        """
        return Sampler(params, self.tokenizer, prompt, constraint)

    def decode(self, chunks: Sequence[Chunk]) -> list[int]:
        """Decodes at most `n_batch` tokens, for logits of at most `n_outputs`. Returns the index of each last token.

        The chunks must be in ascending order of their slots: llama.cpp splits any other order into several passes.
        Raises DecodeError; the KV cache may then contain some of the tokens (`trim` removes them).
        """
        batch = self._batch
        last_indices = []
        size = 0
        for chunk in chunks:
            for offset, token in enumerate(chunk.tokens):
                batch.token[size] = token
                batch.pos[size] = chunk.position + offset
                batch.n_seq_id[size] = 1
                batch.seq_id[size][0] = chunk.slot
                batch.logits[size] = chunk.wants_all_logits
                size += 1
            batch.logits[size - 1] = chunk.wants_logits or chunk.wants_all_logits
            last_indices.append(size - 1)
        batch.n_tokens = size
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            full = status == NO_ROOM_IN_CACHE
            raise DecodeError("no room in the KV cache" if full else f"llama_decode returned {status}")
        return last_indices

    def sample(self, sampler: Sampler, index: int, *, forbid_end: bool) -> int:
        """The next token, from the logits at batch `index` of the last decode.

        forbid_end: choose no end token, unless a grammar allows nothing else. Raises SamplingError.
        """
        if not forbid_end:
            return sampler.sample(self._context, index)
        logits = llama_cpp.llama_get_logits_ith(self._context, index)
        end_logits = {token: logits[token] for token in self.tokenizer.end_tokens}
        for token in end_logits:
            logits[token] = float("-inf")
        try:
            return sampler.sample(self._context, index)
        finally:
            for token, logit in end_logits.items():  # `logprobs` reports them
                logits[token] = logit

    def logprobs(self, index: int, token: int, count: int, *, shows_control: bool = False) -> SampledToken:
        """A token after batch `index`, and the `count` likeliest tokens before any sampler changed the logits.

        shows_control: report a control token under its name; the piece of a sampled one is empty, like its text.
        For 49,152 tokens it takes 0.1 ms, or 0.6 ms if `count` is not 0.
        """
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, index), (self.tokenizer.n_vocab,))
        (_, logprob), *likeliest = log_probabilities(logits, token, count)
        return SampledToken(
            TokenLogprob(self.tokenizer.piece(token, shows_control=shows_control), logprob),
            tuple(TokenLogprob(self.tokenizer.piece(other, shows_control=True), value) for other, value in likeliest),
        )

    def piece(self, token: int) -> bytes:
        """The bytes of a token of an answer: see Tokenizer.piece."""
        return self.tokenizer.piece(token)

    def is_end(self, token: int) -> bool:
        """Whether this token ends an answer."""
        return token in self.tokenizer.end_tokens

    # --- the KV cache of a slot

    def trim(self, slot: int, n_tokens: int) -> None:
        """Removes all but the first `n_tokens` of a slot's sequence."""
        llama_cpp.llama_memory_seq_rm(self._memory, slot, n_tokens, -1)

    def state_size(self, slot: int) -> int:
        """The bytes of `save_state`, without a copy."""
        return int(llama_cpp.llama_state_seq_get_size(self._context, slot))

    @property
    def copied_bytes_per_second(self) -> float:
        """The mean speed of `save_state` and `restore_state` until now."""
        return self._copied_bytes / max(self._copy_seconds, 1e-6)

    def save_state(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        """A copy of a slot's sequence, for `restore_state`."""
        started = time.perf_counter()
        size = self.state_size(slot)
        state: ctypes.Array[ctypes.c_uint8] = (ctypes.c_uint8 * size)()
        n_copied = llama_cpp.llama_state_seq_get_data(self._context, state, size, slot)
        assert n_copied == size, f"{n_copied} of {size} bytes of a sequence were copied"
        self._count_copy(size, started)
        return state

    def restore_state(self, slot: int, state: ctypes.Array[ctypes.c_uint8]) -> None:
        """Replaces a slot's sequence by a saved one."""
        started = time.perf_counter()
        self.trim(slot, 0)
        n_copied = llama_cpp.llama_state_seq_set_data(self._context, state, len(state), slot)
        assert n_copied == len(state), "a saved sequence did not fit a slot"
        self._count_copy(len(state), started)

    def _count_copy(self, n_bytes: int, started: float) -> None:
        self._copied_bytes += n_bytes
        self._copy_seconds += time.perf_counter() - started

    # --- speeds

    def _measure_speeds(self) -> None:
        """Decodes one token, then SPEED_TEST_TOKENS, and copies their state, to know what each of them costs."""
        n_tokens = min(SPEED_TEST_TOKENS, self.n_batch)
        self._seconds_to_decode(1)  # the first decode also allocates memory
        self.seconds_per_pass = self._seconds_to_decode(1)
        self.prefilled_tokens_per_second = n_tokens / self._seconds_to_decode(n_tokens)
        self._copied_bytes, self._copy_seconds = 0, 0.0
        self.restore_state(0, self.save_state(0))
        self.trim(0, 0)

    def _seconds_to_decode(self, n_tokens: int) -> float:
        self.trim(0, 0)
        started = time.perf_counter()
        self.decode([Chunk(0, 0, [0] * n_tokens, False)])
        llama_cpp.llama_synchronize(self._context)
        return max(time.perf_counter() - started, 1e-6)
