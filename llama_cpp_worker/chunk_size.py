"""How many tokens one step computes before the other requests get their turn.

Knows the speed of a machine only as a number. Knows nothing of models and requests.
"""

# A step that prefills takes about this long, unless the smallest chunk takes longer. So this is about the longest pause
# that a prompt causes in the other answers. `Engine.run` returns at most one step after its deadline.
PREFILL_STEP_SECONDS = 0.4

# The smallest chunk, also on a slow machine. Smaller chunks are slower, at depth up to 2.4 times
# (docs/llama-cpp-facts.md, fact 13), and then a step that was cut because it is slow would become even slower.
MIN_CHUNK_TOKENS = 64
DEEP_TOKENS = 1024  # from this depth on, most of the time goes into attention,
MIN_DEEP_CHUNK_TOKENS = 128  # which needs larger chunks
CHUNK_ALIGNMENT = 64  # llama.cpp's attention computes tiles of this many tokens


def largest_chunk(n_before: int, tokens_per_second: float) -> int:
    """How many tokens a step has time for, behind `n_before` others; never less than the smallest chunk."""
    smallest = MIN_DEEP_CHUNK_TOKENS if n_before >= DEEP_TOKENS else MIN_CHUNK_TOKENS
    return max(smallest, int(tokens_per_second * PREFILL_STEP_SECONDS))


def aligned(n_tokens: int, n_batch: int) -> int:
    """A chunk of at most `n_tokens` that more tokens follow, in whole tiles; `n_batch` may be less than a tile."""
    return n_tokens - n_tokens % min(CHUNK_ALIGNMENT, n_batch)
