"""Names, defaults and bounds of every sampling parameter of a request.

Standard library only, so that the worker, the client and the apps share one truth.
Knows nothing of HTTP, TorchServe or llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256  # characters; a stop string is held back while it may still match


class InvalidParameter(ValueError):
    """A parameter that cannot be used; `name` says which, the message says why and what would do."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")
        self.name = name


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be: its type, and both ends included."""

    kind: type
    low: float
    high: float

    def check(self, name: str, value: object) -> int | float:
        """`value` as this kind of number; raises InvalidParameter for anything else."""
        expected = f"must be {'an integer' if self.kind is int else 'a number'} from {self.low} to {self.high}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameter(name, f"{expected}, not {_shown(value)}")
        in_range = math.isfinite(value) if isinstance(value, float) else True
        if not in_range or not self.low <= value <= self.high or self.kind(value) != value:
            raise InvalidParameter(name, f"{expected}, not {_shown(value)}")
        return self.kind(value)


BOUNDS = {
    "temperature": Bounds(float, 0.0, 5.0),
    "top_p": Bounds(float, 0.0, 1.0),
    "top_k": Bounds(int, 0, 1_000_000),
    "min_p": Bounds(float, 0.0, 1.0),
    "repeat_penalty": Bounds(float, 0.1, 10.0),
    "max_tokens": Bounds(int, 1, 1_000_000),
    "seed": Bounds(int, 0, 2**32 - 2),  # 2**32 - 1 is llama.cpp's "choose one for me"
}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when a completion ends.

    temperature: 0 takes the likeliest token, 1 samples as the model was trained, more is wilder.
    top_p: only the likeliest tokens that together reach this probability; 1 turns it off.
    top_k: only that many of the likeliest tokens; 0 turns it off.
    min_p: only tokens at least this probable relative to the likeliest; 0 turns it off.
    repeat_penalty: above 1, tokens among the last 64 become less likely; 1 turns it off.
    max_tokens: tokens to generate at most; None lets the context window decide.
    seed: the same seed gives the same choices for the same logits; None draws one.
    stop: strings that end the completion and are not part of it.

    Raises InvalidParameter (a ValueError) for a value out of bounds or of the wrong type.
    """

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in ("max_tokens", "seed"):
                object.__setattr__(self, name, bounds.check(name, value))
        object.__setattr__(self, "stop", _checked_stop(self.stop))

    @classmethod
    def from_request(cls, body: Mapping[str, object]) -> SamplingParams:
        """The sampling parameters among `body`'s keys; null means the default, other keys are not looked at."""
        given: dict[str, Any] = {name: body[name] for name in PARAMETER_NAMES if body.get(name) is not None}
        return cls(**given)

    def to_request(self) -> dict[str, object]:
        """The same as JSON keys and values, without those that are None."""
        values = asdict(self) | {"stop": list(self.stop)}
        return {name: value for name, value in values.items() if value is not None}


PARAMETER_NAMES = tuple(parameter.name for parameter in fields(SamplingParams))


def _checked_stop(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise InvalidParameter("stop", f"must be a string or a list of strings, not {_shown(stop)}")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidParameter("stop", f"takes at most {MAX_STOP_STRINGS} strings, not {len(strings)}")
    if not all(0 < len(string) <= MAX_STOP_LENGTH for string in strings):
        raise InvalidParameter("stop", f"each string must have 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
