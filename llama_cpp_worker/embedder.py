"""Embeddings: a second llama.cpp context of a model's weights, which gives the hidden states of a text's tokens.

Knows one text at a time, and takes it in chunks: hidden states are pooled here and not by llama.cpp, which would need
the whole text in one batch. Knows nothing of requests. Not thread-safe, like the model that it belongs to.

Not covered: models whose attention is not causal (BERT and its relatives), rerankers.
"""

from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from llama_cpp_worker.weights import metadata

# With embeddings, llama.cpp computes logits and hidden states of every token of a batch, so a batch takes memory:
# twice its tokens x vocabulary x 4 bytes. A larger batch would hardly be faster (docs/llama-cpp-facts.md, fact 13).
MAX_BATCH_TOKENS = 128

# enum llama_pooling_type; a model without this number in its metadata gets the mean, as most clients expect
MEAN = llama_cpp.LLAMA_POOLING_TYPE_MEAN
FIRST = llama_cpp.LLAMA_POOLING_TYPE_CLS
LAST = llama_cpp.LLAMA_POOLING_TYPE_LAST
POOLINGS = {llama_cpp.LLAMA_POOLING_TYPE_NONE: MEAN, MEAN: MEAN, FIRST: FIRST, LAST: LAST}


class EmbeddingError(RuntimeError):
    """The model has no embeddings, or llama.cpp failed."""


class Embedder:
    """The embedding of one text: `begin`, `add` all its tokens in chunks, then `embedding`.

    model: llama.cpp's pointer. window: the most tokens that a text can have. cache_type: as in llama.cpp.
    `size`: how many numbers an embedding has. `n_batch`: the most tokens of a chunk.
    Raises EmbeddingError.
    """

    def __init__(self, model: Any, window: int, n_batch: int, n_threads: int, cache_type: int) -> None:
        pooling = _pooling_type(model)
        if pooling not in POOLINGS:
            raise EmbeddingError("this model is a reranker, which has no embeddings")
        self._pooling = POOLINGS[pooling]
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = window
        params.n_seq_max = 1
        params.n_batch = params.n_ubatch = min(n_batch, MAX_BATCH_TOKENS)
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = cache_type
        params.embeddings = True
        if pooling != llama_cpp.LLAMA_POOLING_TYPE_NONE:  # else llama.cpp would warn: it is the model's own
            params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise EmbeddingError("llama.cpp has no memory for a second context")
        if not llama_cpp.llama_get_causal_attn(self._context):
            raise EmbeddingError("this model has no causal attention, so it cannot take a text in chunks")
        self.size: int = llama_cpp.llama_model_n_embd_out(model)
        self.window: int = llama_cpp.llama_n_ctx_seq(self._context)
        self.n_batch: int = llama_cpp.llama_n_batch(self._context)
        self._n_vocab: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self.begin()

    def begin(self) -> None:
        """Starts a text; what was added before is forgotten."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, -1, -1)
        self._n_tokens = 0
        self._pooled = np.zeros(self.size)

    def add(self, tokens: Sequence[int]) -> None:
        """Adds the next tokens of the text, at most `n_batch`. Raises EmbeddingError."""
        batch = self._batch
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = self._n_tokens + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        batch.n_tokens = len(tokens)
        status = llama_cpp.llama_decode(self._context, batch)
        if status != 0:
            raise EmbeddingError(f"llama_decode returned {status}")
        address = llama_cpp.llama_get_embeddings(self._context)
        self._pool(np.ctypeslib.as_array(address, (len(tokens), self.size)))
        self._n_tokens += len(tokens)

    def embedding(self) -> list[float]:
        """The text's embedding, a vector of length 1."""
        return [float(value) for value in self._pooled / max(float(np.linalg.norm(self._pooled)), 1e-12)]

    def memory_bytes(self, cache_bytes_per_token: float) -> int:
        """What it takes beside the weights: a KV cache, and the logits of a batch twice."""
        return int(cache_bytes_per_token * self.window) + 2 * self.n_batch * self._n_vocab * 4

    def set_threads(self, n_threads: int) -> None:
        llama_cpp.llama_set_n_threads(self._context, n_threads, n_threads)

    def close(self) -> None:
        """Frees the memory; the embedder is unusable afterwards."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)

    def _pool(self, states: np.ndarray) -> None:
        """Takes hidden states (tokens x size). The mean needs no division, because its length becomes 1 anyway."""
        if self._pooling == MEAN:
            self._pooled += states.sum(axis=0, dtype=np.float64)
        elif self._pooling == LAST:
            self._pooled = states[-1].astype(np.float64)
        elif self._n_tokens == 0:
            self._pooled = states[0].astype(np.float64)


def _pooling_type(model: Any) -> int:
    architecture = metadata(model, "general.architecture")
    number = metadata(model, f"{architecture}.pooling_type")
    return int(number) if number.isdigit() else llama_cpp.LLAMA_POOLING_TYPE_NONE
