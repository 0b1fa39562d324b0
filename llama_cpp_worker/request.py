"""A request of the engine: one completion. What an API calls a request can have many of them (see api/reply.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_cpp_worker.model import Chunk
from llama_cpp_worker.sampling_params import SampledToken, SamplingParams
from llama_cpp_worker.text_assembler import TextAssembler


@dataclass(slots=True, eq=False)
class Request:
    """One completion: the prompt, the parameters, and the progress so far.

    A request is waiting until it has a slot. Then it is running until it has a `finish_reason`: "stop" (an end token
    or a stop string), "length" (max_tokens or the context window), "cancelled" or "error". With max_tokens 0 it ends
    after the prefill.
    Times are in seconds of the engine's clock.
    """

    prompt: Sequence[int]
    params: SamplingParams
    logprobs: int | None = None  # how many of the likeliest tokens to report with each token; None: no report
    prompt_logprobs: int | None = None  # the same for each token of the prompt but the first
    allows_empty: bool = True  # whether the first token may end the completion
    constraint: str | None = None  # a grammar for llguidance; None: the one that `params` ask for
    api_request: object = None  # whose choice or prompt this is, see rule 1; None: its own
    slot: int | None = None
    is_started: bool = False  # whether it knows its reusable prefix, so that the rest of its prompt can be prefilled
    n_cached: int = 0  # prompt tokens that were reused from the prefix cache
    n_prefilled: int = 0  # prompt tokens in the KV cache, reused ones included
    prompt_tokens: list[SampledToken] = field(default_factory=list)  # as far as prefilled, if `prompt_logprobs`
    completion: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    submitted_at: float = 0.0
    admitted_at: float | None = None  # when it got its slot
    prefix_assigned_at: float | None = None  # when `is_started` became true
    first_chunk_at: float | None = None  # when the step with its first chunk began
    first_token_at: float | None = None
    finished_at: float | None = None
    tokens_per_second: float | None = None  # of its last chunk
    _text: str = ""
    assembler: TextAssembler = field(init=False)
    sampler: Any = None

    def __post_init__(self) -> None:
        self.assembler = TextAssembler(self.params.stop)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the completion."""
        return self.assembler.stop_string

    @property
    def is_prefilled(self) -> bool:
        return self.n_prefilled == len(self.prompt)

    @property
    def reusable_prompt(self) -> Sequence[int]:
        """The tokens of which a computed prefix may be reused; never the last one.

        A token has a log probability only if the token before it is computed in this request.
        """
        return self.prompt if self.prompt_logprobs is None else self.prompt[:1]

    @property
    def n_to_prefill(self) -> int:
        return len(self.prompt) - self.n_prefilled

    @property
    def next_token(self) -> Chunk:
        """The newest token of the completion; to decode it gives the logits of the next one."""
        assert self.slot is not None
        position = len(self.prompt) + len(self.completion) - 1
        return Chunk(self.slot, position, self.completion[-1:], True)

    def take_text(self) -> str:
        """The text that was generated since the last call."""
        text, self._text = self._text, ""
        return text

    def take_tokens(self) -> list[SampledToken]:
        """The tokens of that text; empty if `logprobs` is None."""
        return self.assembler.take_tokens()
