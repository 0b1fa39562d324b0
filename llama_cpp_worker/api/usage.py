"""Counts, times and log probabilities of an answer, in the shapes of OpenAI and llama-server. Knows the engine only."""

import codecs
import time
from collections.abc import Sequence
from itertools import chain

from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SampledToken, TokenLogprob

MIN_LOGPROB = -9999.0  # OpenAI's value for "very unlikely"; JSON has no infinity


def usage_of(requests: Sequence[Request]) -> dict[str, object]:
    """OpenAI's token counts of an answer: of all its prompts, each counted once, and of all choices together."""
    n_prompt, n_cached, n_completion = token_counts(requests)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


def token_counts(requests: Sequence[Request]) -> tuple[int, int, int]:
    """Tokens of the prompts, those of them that were reused, and generated tokens.

    The choices of a prompt share it, so it counts once, with the choice that reused the fewest tokens.
    """
    sizes = {id(request.prompt): len(request.prompt) for request in requests}
    reused = dict(sizes)
    for request in requests:
        reused[id(request.prompt)] = min(reused[id(request.prompt)], request.n_cached)
    return sum(sizes.values()), sum(reused.values()), sum(len(request.completion) for request in requests)


def timings_of(requests: Sequence[Request]) -> dict[str, float]:
    """llama-server's counts and times of an answer, up to its end or to now, and the time in the queue.

    The time of the first token belongs to the prompt, the time of the others to the prediction. A request without a
    slot has spent all its time in the queue.
    """
    now = time.monotonic()  # the engine's clock
    finished = max(now if request.finished_at is None else request.finished_at for request in requests)
    admitted = min(finished if request.admitted_at is None else request.admitted_at for request in requests)
    first_token = min(finished if request.first_token_at is None else request.first_token_at for request in requests)
    n_prompt, n_cached, n_predicted = token_counts(requests)
    n_computed = n_prompt - n_cached
    n_timed = max(0, n_predicted - len(requests))  # the first token of each choice belongs to the prompt
    return {
        "queue_ms": milliseconds(admitted - requests[0].submitted_at),
        "cache_n": n_cached,
        "prompt_n": n_computed,
        "prompt_ms": milliseconds(first_token - admitted),
        "prompt_per_token_ms": _ratio(1000 * (first_token - admitted), n_computed),
        "prompt_per_second": _ratio(n_computed, first_token - admitted),
        "predicted_n": n_predicted,
        "predicted_ms": milliseconds(finished - first_token),
        "predicted_per_token_ms": _ratio(1000 * (finished - first_token), n_timed),
        "predicted_per_second": _ratio(n_timed, finished - first_token),
    }


def chat_logprobs(tokens: Sequence[SampledToken]) -> dict[str, object]:
    def entry(token: TokenLogprob) -> dict[str, object]:
        return {"token": _text(token), "logprob": _finite(token), "bytes": list(token.piece)}

    content = [entry(token.chosen) | {"top_logprobs": [entry(other) for other in token.likeliest]} for token in tokens]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The log probabilities of one choice of a completion, piece by piece: it counts where each token begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text_offset = 0

    def of(self, tokens: Sequence[SampledToken], first: bytes | None = None) -> dict[str, object]:
        """OpenAI's object of lists. `first`: the first token of a prompt, which has no probability: null.

        The likeliest tokens are a JSON object by text. It always contains the chosen token.
        """
        pieces = [] if first is None else [first]
        nothing: list[None] = [None] * len(pieces)
        return {
            "tokens": [piece.decode("utf-8", "replace") for piece in pieces]
            + [_text(token.chosen) for token in tokens],
            "token_logprobs": [*nothing, *(_finite(token.chosen) for token in tokens)],
            "top_logprobs": [
                *nothing,
                *({_text(one): _finite(one) for one in reversed((*token.likeliest, token.chosen))} for token in tokens),
            ],
            "text_offset": [self._offset(piece) for piece in chain(pieces, (token.chosen.piece for token in tokens))],
        }

    def _offset(self, piece: bytes) -> int:
        """Where in the text, in characters, the token begins whose bytes are `piece`."""
        offset = self._text_offset
        self._text_offset += len(self._decoder.decode(piece))
        return offset


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _text(token: TokenLogprob) -> str:
    return token.piece.decode("utf-8", "replace")


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, MIN_LOGPROB)


def _ratio(count: float, divisor: float) -> float:
    return round(count / divisor, 3) if divisor > 0 else 0.0
