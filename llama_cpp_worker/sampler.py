"""How the next token is chosen: llama.cpp's sampler chains, a grammar beside them, and log probabilities.

Knows logits and llama.cpp's samplers; nothing of batches, caches or text. Not thread-safe, like the model it serves.
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from llama_cpp_worker.grammar import GrammarError, parse_gbnf
from llama_cpp_worker.matcher import Matcher
from llama_cpp_worker.sampling_params import SamplingParams

PENALTY_LAST_TOKENS = 64  # repeat_penalty: the prompt's end included
COUNTED_TOKENS = 32_768  # frequency_penalty and presence_penalty: of what has been generated, as OpenAI has it
LEAST_TEMPERATURE = 1e-6  # below it, logits divided by it overflow: the likeliest token is taken, as at 0

# When the grammar refuses the token that was chosen, the next choice is among this many of the likeliest that it
# allows, as far as they are among the likeliest N_EXAMINED; only if none of those is allowed, all are examined.
N_ALLOWED = 64
N_EXAMINED = 512

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
assert ctypes.sizeof(llama_cpp.llama_token_data) == _CANDIDATE.itemsize


class SamplingError(RuntimeError):
    """No token can be chosen; the message says why."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a sampler has to know of the model's tokens."""

    n_tokens: int
    end_tokens: frozenset[int]  # that end an answer
    pieces: Callable[[], Sequence[bytes]]  # of all tokens: the bytes of each, nothing for control tokens


class Sampler:
    """A sampler chain of one sequence, and its grammar. Order of the links as in llama.cpp's own server."""

    def __init__(self, params: SamplingParams, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for link in _links(params, vocabulary.n_tokens, prompt):
            llama_cpp.llama_sampler_chain_add(self._chain, link)
        self._matcher = Matcher(parse_gbnf(params.grammar)) if params.grammar else None

    def sample(self, context: object, index: int) -> int:
        """Chooses and accepts a token from the logits at batch `index` of the last decode; raises SamplingError."""
        if self._matcher is None:
            return llama_cpp.llama_sampler_sample(self._chain, context, index)
        logits = llama_cpp.llama_get_logits_ith(context, index)
        try:
            return self._sample_within_grammar(np.ctypeslib.as_array(logits, (self._vocabulary.n_tokens,)))
        except GrammarError as error:
            raise SamplingError(f"the grammar: {error}") from error

    def close(self) -> None:
        """Frees the chain; the sampler is unusable afterwards."""
        llama_cpp.llama_sampler_free(self._chain)

    def _sample_within_grammar(self, logits: np.ndarray) -> int:
        """Chooses freely first, as llama.cpp's common_sampler_sample does: mostly, the model follows by itself."""
        assert self._matcher is not None
        if not self._matcher.can_go_on:
            return self._end()
        token = self._choose(np.arange(len(logits)), logits)
        if not self._is_allowed(token):
            allowed = self._allowed_tokens(logits)
            if not allowed:
                return self._end()
            token = self._choose(np.array(allowed), logits[allowed])
        llama_cpp.llama_sampler_accept(self._chain, token)
        if token not in self._vocabulary.end_tokens:
            self._matcher.advance(self._vocabulary.pieces()[token])
        return token

    def _allowed_tokens(self, logits: np.ndarray) -> list[int]:
        likeliest = np.argsort(-logits, kind="stable")
        allowed: list[int] = []
        for n_examined, token in enumerate(likeliest):
            if logits[token] == -np.inf or len(allowed) == N_ALLOWED or (allowed and n_examined >= N_EXAMINED):
                break
            if self._is_allowed(int(token)):
                allowed.append(int(token))
        return allowed

    def _is_allowed(self, token: int) -> bool:
        assert self._matcher is not None
        if token in self._vocabulary.end_tokens:
            return self._matcher.is_complete
        return self._matcher.allows(self._vocabulary.pieces()[token])

    def _end(self) -> int:
        """Nothing else may follow: an end, even where it is not wanted, if the text is complete."""
        assert self._matcher is not None
        if not self._matcher.is_complete or not self._vocabulary.end_tokens:
            raise SamplingError("the grammar cannot be continued with any token of this model")
        return min(self._vocabulary.end_tokens)

    def _choose(self, tokens: np.ndarray, logits: np.ndarray) -> int:
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"], candidates["logit"] = tokens, logits
        start = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(start, len(candidates), -1, False)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        assert 0 <= array.selected < array.size
        return int(array.data[array.selected].id)


def log_probabilities(logits: np.ndarray, token: int, count: int) -> list[tuple[int, float]]:
    """`token` and then the `count` likeliest ones, likeliest first, each with its natural log of the softmax."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    log_sum = largest + np.log(np.exp(wide - largest).sum())
    top = np.argpartition(wide, -count)[-count:] if count else np.empty(0, int)
    tokens = [token, *top[np.argsort(-wide[top], kind="stable")]]
    return [(int(each), float(wide[each] - log_sum)) for each in tokens]


def _links(params: SamplingParams, n_vocab: int, prompt: Sequence[int]) -> list[Any]:
    links = []
    if params.logit_bias:
        biases = (llama_cpp.llama_logit_bias * len(params.logit_bias))(
            *(llama_cpp.llama_logit_bias(token, bias) for token, bias in params.logit_bias.items())
        )
        links.append(llama_cpp.llama_sampler_init_logit_bias(n_vocab, len(biases), biases))
    if params.repeat_penalty != 1.0:
        repeat = llama_cpp.llama_sampler_init_penalties(n_vocab, PENALTY_LAST_TOKENS, params.repeat_penalty, 0.0, 0.0)
        for token in prompt[-PENALTY_LAST_TOKENS:]:
            llama_cpp.llama_sampler_accept(repeat, token)
        links.append(repeat)
    if params.frequency_penalty or params.presence_penalty:
        both = params.frequency_penalty, params.presence_penalty
        links.append(llama_cpp.llama_sampler_init_penalties(n_vocab, COUNTED_TOKENS, 1.0, *both))
    if params.temperature < LEAST_TEMPERATURE:
        return [*links, llama_cpp.llama_sampler_init_greedy()]
    if params.top_k > 0:
        links.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        links.append(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0:
        links.append(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
    links.append(llama_cpp.llama_sampler_init_temp(params.temperature))
    seed = secrets.randbits(32) if params.seed is None else params.seed
    return [*links, llama_cpp.llama_sampler_init_dist(seed)]
