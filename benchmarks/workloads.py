"""The workloads of benchmarks.serving: chat requests with fixed seeds and fixed lengths (`ignore_eos`).

`tag` is different in each round, so that no server has a prompt in its cache. Knows no server.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WORDS = [
    "river",
    "stone",
    "lantern",
    "winter",
    "garden",
    "engine",
    "copper",
    "violin",
    "harbour",
    "meadow",
    "candle",
    "thunder",
    "velvet",
    "compass",
    "orchard",
    "marble",
    "falcon",
    "ribbon",
    "anchor",
    "willow",
    "ember",
    "castle",
    "puzzle",
    "saddle",
    "glacier",
    "basket",
    "mirror",
    "tunnel",
    "feather",
    "kettle",
]
GENERATED = 64
TOKENS_PER_WORD = 1.04  # of WORDS, SmolLM2's vocabulary
SYSTEM_MESSAGE = {"role": "system", "content": "You are a poet."}

MOST_RECORD_TOKENS = 256
RECORD_FIELDS: dict[str, dict[str, Any]] = {  # of nearly fixed lengths, so that all answers have about as many tokens
    "name": {"type": "string", "minLength": 24, "maxLength": 24},
    "place": {"type": "string", "minLength": 24, "maxLength": 24},
    "colour": {"enum": ["red", "green", "blue"]},
    "year": {"type": "integer", "minimum": 1000, "maximum": 2999},
    "remark": {"type": "string", "minLength": 32, "maxLength": 32},
}
RECORD_SCHEMA = {
    "type": "object",
    "properties": RECORD_FIELDS,
    "required": list(RECORD_FIELDS),
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Workload:
    """bodies(tag): the requests of a round. clients: each sends its next request after its last answer."""

    name: str
    about: str
    clients: int
    bodies: Callable[[str], list[dict[str, Any]]]


def text(tokens: int, *seed: object) -> str:
    """Words in random order, about `tokens` tokens of the demo model."""
    dice = random.Random(repr(seed))
    return " ".join(dice.choice(WORDS) for _ in range(round(tokens / TOKENS_PER_WORD)))


def body(messages: list[dict[str, str]], seed: int, max_tokens: int = GENERATED) -> dict[str, Any]:
    return {"messages": messages, "max_tokens": max_tokens, "seed": seed, "temperature": 0.8, "ignore_eos": True}


def question(content: str) -> list[dict[str, str]]:
    return [SYSTEM_MESSAGE, {"role": "user", "content": content}]


def distinct(requests: int, max_tokens: int = GENERATED) -> Callable[[str], list[dict[str, Any]]]:
    """Requests with about 100 prompt tokens. They share no text."""

    def bodies(tag: str) -> list[dict[str, Any]]:
        return [body(question(f"{number} {text(68, tag, number)}"), number, max_tokens) for number in range(requests)]

    return bodies


def shared_system_prompt(requests: int) -> Callable[[str], list[dict[str, Any]]]:
    """Different questions after one system prompt of about 500 tokens."""

    def bodies(tag: str) -> list[dict[str, Any]]:
        system = {"role": "system", "content": text(500, tag)}
        return [
            body([system, {"role": "user", "content": f"{number} {text(15, tag, number)}"}], number)
            for number in range(requests)
        ]

    return bodies


def schema_body(request: dict[str, Any]) -> dict[str, Any]:
    """The request with RECORD_SCHEMA. Without `ignore_eos`: the answer ends with the JSON value."""
    form = {"type": "json_schema", "json_schema": {"name": "record", "strict": True, "schema": RECORD_SCHEMA}}
    return {**request, "ignore_eos": False, "max_tokens": MOST_RECORD_TOKENS, "response_format": form}


CLOSED_LOOPS = {
    workload.name: workload
    for workload in (
        Workload("W1", "1 client, 100 prompt tokens, 64 generated", 1, distinct(6)),
        Workload("W8", "8 clients, requests as in W1", 8, distinct(48)),
        Workload("W16", "16 clients, requests as in W1", 16, distinct(64)),
        Workload("WS", "8 clients at the same time, one new system prompt of 500 tokens", 8, shared_system_prompt(8)),
        Workload("WS4", "as WS, with 4 requests of each client", 8, shared_system_prompt(32)),
        Workload("W16x32", "16 clients, 32 generated, as in W256", 16, distinct(64, 32)),
        Workload("W256", "256 clients at the same time, 32 generated", 256, distinct(256, 32)),
    )
}
