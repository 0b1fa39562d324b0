"""The prompts of a load test. Every request differs from the others, so that no server can reuse an answer.

Knows nothing of servers.
"""

import random
from typing import Any

PROMPT_SETS = {
    "short": "Short questions",
    "shared": "Short questions under one long system prompt",
    "long": "Long prompts",
}
QUESTIONS = (
    "What is the closest star to Earth?",
    "Why is the sky blue?",
    "How does a bicycle stay upright?",
    "What makes bread rise?",
    "Why do leaves change their colour in autumn?",
    "How do ships float?",
    "What is the difference between weather and climate?",
    "Why do cats purr?",
)
SENTENCES = (
    "The harbour was built two hundred years ago, when the old one had filled with sand.",
    "Every morning the ferry leaves at six and carries the workers to the island.",
    "A lighthouse with a red lantern stands at the end of the longer pier.",
    "The market hall sells fish, apples, rope, paint and secondhand books.",
    "In winter the storms bring driftwood, which the children sell as firewood.",
    "A brass clock above the station shows the time of the capital, not the local one.",
    "The library keeps the logbooks of all the ships that were built here.",
    "Nobody remembers who painted the whale on the wall of the school.",
    "The baker opens before sunrise and closes when the last loaf is gone.",
    "Two bridges cross the river, and only the narrow one is free of charge.",
    "The museum shows a compass that always points to the south.",
    "On the hill above the town, sheep graze between the ruins of a fort.",
)
LONG_PROMPT_SENTENCES = 30  # about 500 tokens
SHARED_PROMPT_SENTENCES = 20


def make_bodies(prompts: str, requests: int, max_tokens: int, tag: str) -> list[dict[str, Any]]:
    """So many chat requests with prompts of one of PROMPT_SETS. Each answer has exactly `max_tokens` tokens.

    Every prompt begins with `tag`. With a new tag, no prefix of it is in the server's cache.
    """
    shared = [{"role": "system", "content": f"{tag}. Answer from this text: {_story(SHARED_PROMPT_SENTENCES, tag)}"}]
    bodies = []
    for number in range(requests):
        name = f"{tag}-{number}"
        question = f"{name}. {QUESTIONS[number % len(QUESTIONS)]}"
        if prompts == "long":
            question = f"{name}. {_story(LONG_PROMPT_SENTENCES, name)} What is this town known for?"
        messages = [*(shared if prompts == "shared" else []), {"role": "user", "content": question}]
        bodies.append({"messages": messages, "max_tokens": max_tokens, "seed": number, "ignore_eos": True})
    return bodies


def _story(sentences: int, seed: str) -> str:
    dice = random.Random(seed)
    return " ".join(dice.choice(SENTENCES) for _ in range(sentences))
