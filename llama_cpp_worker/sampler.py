"""How the next token is chosen: llama.cpp's sampler chains, a constraint beside them, and log probabilities.

Knows logits and llama.cpp's samplers; nothing of batches, caches or text. Not thread-safe, like the model it serves.
"""

import ctypes
import secrets
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np

from llama_cpp_worker.constraint import Constraint, ConstraintError, compile_constraint
from llama_cpp_worker.sampling_params import InvalidParameter, SamplingParams
from llama_cpp_worker.tokenizer import Tokenizer

PENALTY_LAST_TOKENS = 64  # repeat_penalty: the prompt's end included
COUNTED_TOKENS = 32_768  # frequency_penalty and presence_penalty: of what has been generated, as OpenAI has it
RANDOM_SEED = 2**32 - 1  # llama.cpp's seeds have 32 bits, and this one means "choose one"
LEAST_TEMPERATURE = 1e-6  # below it, logits divided by it overflow: the likeliest token is taken, as at 0

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
assert ctypes.sizeof(llama_cpp.llama_token_data) == _CANDIDATE.itemsize


class SamplingError(RuntimeError):
    """No token can be chosen; the message says why."""


class Sampler:
    """A sampler chain of one sequence, and its constraint. The links have the order of llama.cpp's own server.

    constraint: a grammar for llguidance; None: the one that `params` ask for.
    Raises SamplingError if the constraint cannot be met.
    """

    def __init__(
        self, params: SamplingParams, tokenizer: Tokenizer, prompt: Sequence[int], constraint: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        try:
            grammar = compile_constraint(params) if constraint is None else constraint
            self._constraint = None if grammar is None else Constraint(tokenizer.grammar_tokenizer, grammar)
        except (InvalidParameter, ConstraintError) as error:
            raise SamplingError(str(error)) from error
        self._chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        for link in _links(params, tokenizer.n_vocab, prompt):
            llama_cpp.llama_sampler_chain_add(self._chain, link)

    def sample(self, context: object, index: int) -> int:
        """Chooses and accepts a token from the logits at batch `index` of the last decode; raises SamplingError."""
        if self._constraint is None:
            return int(llama_cpp.llama_sampler_sample(self._chain, context, index))
        logits = llama_cpp.llama_get_logits_ith(context, index)
        try:
            return self._sample_within(self._constraint, np.ctypeslib.as_array(logits, (self._tokenizer.n_vocab,)))
        except ConstraintError as error:
            raise SamplingError(f"the grammar: {error}") from error

    def close(self) -> None:
        """Frees the chain; the sampler is unusable afterwards."""
        llama_cpp.llama_sampler_free(self._chain)

    def _sample_within(self, constraint: Constraint, logits: np.ndarray) -> int:
        """Chooses freely first, as llama.cpp's common_sampler_sample does: most choices of a model fit anyway."""
        token = self._choose(np.arange(len(logits)), logits)
        is_end = token in self._tokenizer.end_tokens
        if not (constraint.is_complete if is_end else constraint.allows(token)):
            allowed = constraint.allowed_tokens()
            possible = allowed[logits[allowed] > -np.inf]
            if len(possible) == 0:  # only an end token may follow, also with ignore_eos
                possible = np.array(sorted(self._tokenizer.end_tokens.intersection(allowed.tolist())))
            if len(possible) == 0:
                raise ConstraintError("it cannot be continued with any token of this model")
            token = self._choose(possible, np.maximum(logits[possible], np.finfo(np.float32).min))
        llama_cpp.llama_sampler_accept(self._chain, token)
        if token not in self._tokenizer.end_tokens:
            constraint.accept(token)
        return token

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
    seed = (secrets.randbits(32) if params.seed is None else params.seed) % RANDOM_SEED
    return [*links, llama_cpp.llama_sampler_init_dist(seed)]
