"""Whether a value that was parsed from JSON can be written as JSON again. Knows nothing of what it means."""

import math

MAX_DEPTH = 300  # levels; Python's encoder fails at about 980, and earlier in a deep call


def json_problem(value: object) -> str:
    """Why parsed JSON cannot be written again: too deep for Python's encoder, or NaN. Nothing if it can."""
    level = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[object] = []
        for part in level:
            if isinstance(part, dict):
                deeper += part.values()
            elif isinstance(part, list):
                deeper += part
            elif isinstance(part, float) and not math.isfinite(part):
                return "has a number that is NaN or infinite, which JSON cannot express"
        if not deeper:
            return ""
        level = deeper
    return f"is nested too deeply: at most {MAX_DEPTH} levels are possible"
