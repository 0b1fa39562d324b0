"""Sampling parameters: the name, default and bounds of each one; and the report of a sampled token.

Shared by the worker, the client and the apps, so it imports the standard library only.
Knows nothing of HTTP, TorchServe and llama.cpp.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256  # characters; text that may be the beginning of a stop string is not sent yet
MAX_LOGIT_BIASES = 1024
MAX_GRAMMAR_LENGTH = 65_536  # characters


class InvalidParameter(ValueError):
    """A parameter that cannot be used: its `name`, and the `problem` with a hint what is possible."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Bounds:
    """The type of a number and its bounds, both included."""

    kind: type[int] | type[float]
    low: float
    high: float

    def check(self, name: str, value: object) -> int | float:
        """`value` as a number of this type; raises InvalidParameter."""
        if isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high:
            number = self.kind(value)
            if number == value:
                return number
        expected = f"must be {'an integer' if self.kind is int else 'a number'} from {self.low} to {self.high}"
        raise InvalidParameter(name, f"{expected}, not {shown(value)}")


BOUNDS = {
    "temperature": Bounds(float, 0.0, 5.0),
    "top_p": Bounds(float, 0.0, 1.0),
    "top_k": Bounds(int, 0, 1_000_000),
    "min_p": Bounds(float, 0.0, 1.0),
    "repeat_penalty": Bounds(float, 0.1, 10.0),
    "frequency_penalty": Bounds(float, -2.0, 2.0),
    "presence_penalty": Bounds(float, -2.0, 2.0),
    "max_tokens": Bounds(int, 0, 1_000_000),
    "seed": Bounds(int, -(2**63), 2**63 - 1),  # as in OpenAI's API
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when a completion ends.

    temperature: 0 takes the likeliest token, 1 samples with the model's own probabilities, more is more random.
    top_p: only the likeliest tokens that together reach this probability; 1 turns it off.
    top_k: only this number of the likeliest tokens; 0 turns it off.
    min_p: only tokens with at least this share of the likeliest token's probability; 0 turns it off.
    repeat_penalty: above 1, tokens among the last 64 become less likely; 1 turns it off.
    frequency_penalty: above 0, a generated token becomes less likely with each repetition; 0 turns it off.
    presence_penalty: above 0, every generated token becomes less likely, once; 0 turns it off.
    logit_bias: by token id, a number that is added to the token's logit, from -100 (never) to 100.
    grammar: a grammar in GBNF, llama.cpp's notation, that the completion follows; None allows any text.
    response_format: OpenAI's object of that name, for JSON of a given schema. The worker checks what is in it.
    max_tokens: the largest number of tokens to generate; None: up to the end of the context window. 0 only prefills
    the prompt, for the log probabilities of its tokens.
    seed: equal seeds give equal choices for equal logits; None draws a seed.
    stop: strings that end the completion and are not part of it.
    ignore_eos: generate max_tokens even if the model would end earlier; for measurements.

    Raises InvalidParameter (a ValueError) for a value out of bounds or of the wrong type.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: str | None = None
    response_format: Mapping[str, object] | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in ("max_tokens", "seed"):
                object.__setattr__(self, name, bounds.check(name, value))
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "logit_bias", _checked_logit_bias(self.logit_bias))
        _check_grammar(self.grammar)
        if not isinstance(self.response_format, Mapping | None):
            raise InvalidParameter(
                "response_format", f"must be an object with a type, not {shown(self.response_format)}"
            )
        if not isinstance(self.ignore_eos, bool):
            raise InvalidParameter("ignore_eos", f"must be true or false, not {shown(self.ignore_eos)}")

    @classmethod
    def from_request(cls, body: Mapping[str, object]) -> Self:
        """The sampling parameters among `body`'s keys. null means the default; other keys are ignored."""
        given: dict[str, Any] = {name: body[name] for name in PARAMETER_NAMES if body.get(name) is not None}
        return cls(**given)

    def to_request(self) -> dict[str, object]:
        """These parameters as JSON keys and values, without those that are None."""
        biases = {str(token): bias for token, bias in self.logit_bias.items()}
        values = asdict(self) | {"stop": list(self.stop), "logit_bias": biases}
        return {name: value for name, value in values.items() if value is not None}


PARAMETER_NAMES = tuple(parameter.name for parameter in fields(SamplingParams))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's bytes, perhaps a part of a character, and the natural logarithm of its probability."""

    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token of a completion, and the likeliest tokens at its place."""

    chosen: TokenLogprob
    likeliest: tuple[TokenLogprob, ...]


def _checked_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise InvalidParameter("stop", f"must be a string or a list of strings, not {shown(stop)}")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidParameter("stop", f"takes at most {MAX_STOP_STRINGS} strings, not {len(strings)}")
    if not all(0 < len(string) <= MAX_STOP_LENGTH for string in strings):
        raise InvalidParameter("stop", f"each string must have 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


def _checked_logit_bias(biases: object) -> dict[int, float]:
    if not isinstance(biases, Mapping):
        raise InvalidParameter("logit_bias", f"must be an object of token ids and numbers, not {shown(biases)}")
    if len(biases) > MAX_LOGIT_BIASES:
        raise InvalidParameter("logit_bias", f"takes at most {MAX_LOGIT_BIASES} tokens, not {len(biases)}")
    checked = {}
    for token, bias in biases.items():
        if isinstance(token, bool) or not re.fullmatch("[0-9]{1,9}", str(token)):
            raise InvalidParameter("logit_bias", f"{shown(token)} is no token id")
        checked[int(token)] = Bounds(float, -100.0, 100.0).check("logit_bias", bias)
    return checked


def _check_grammar(grammar: object) -> None:
    if grammar is None:
        return
    if not isinstance(grammar, str) or not grammar:
        raise InvalidParameter("grammar", f"must be a text in GBNF, not {shown(grammar)}")
    if len(grammar) > MAX_GRAMMAR_LENGTH:
        raise InvalidParameter(
            "grammar", f"has {len(grammar):,} characters; at most {MAX_GRAMMAR_LENGTH:,} are possible"
        )


def shown(value: object) -> str:
    """A wrong value as the client wrote it: in JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else text[:37] + "..."
