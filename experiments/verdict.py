"""What an experiment has found, in one sentence. Knows plain records only."""

from experiments.plan import SWEEPS
from experiments.records import ExperimentRecord, MeasuredPoint

SAME = 1.1  # a smaller ratio is no difference: two equal runs differ by some percent


def verdict(record: ExperimentRecord) -> str:
    """Compares the fastest run with the first one; "" without an answer.

    If a setting varies, the runs with the most clients are compared, otherwise all of them.
    """
    points = record.answered
    if not points:
        return ""
    if record.plan.sweep:
        most = max(point.clients for point in points)
        points = tuple(point for point in points if point.clients == most)
    fastest, first = max(points, key=_speed), points[0]
    if len(points) == 1:
        wait = _first_token_ms(first)
        after = f", the first token after {wait:,.0f} ms (median)" if wait is not None else ""
        return f"{record.plan.run_name(first.value, first.clients)}: {_speed(first):,.1f} tokens/s{after}."
    ratio = _speed(fastest) / _speed(first) if _speed(first) else 1.0
    if ratio < SAME:
        varied = SWEEPS[record.plan.sweep].lower() if record.plan.sweep else "number of clients"
        return f"The {varied} makes no difference to the tokens/s: about {_speed(first):,.1f} in the first run."
    faster = f"{_name(record, fastest)}: {ratio:.1f} times the tokens/s of {_in_text(_name(record, first))}"
    return f"{faster}{_first_token(_first_token_ms(first), _first_token_ms(fastest))}."


def _speed(point: MeasuredPoint) -> float:
    return float(point.summary["tokens_per_second"])


def _first_token_ms(point: MeasuredPoint) -> float | None:
    times = point.summary["first_token_ms"]
    return float(times["p50"]) if times else None


def _first_token(before: float | None, after: float | None) -> str:
    """How much sooner or later the median first token came."""
    if not before or not after:
        return ""
    if max(before, after) / min(before, after) < SAME:
        return ", first token as soon"
    how = "sooner" if after < before else "later"
    return f", first token {max(before, after) / min(before, after):.1f} times {how}"


def _name(record: ExperimentRecord, point: MeasuredPoint) -> str:
    return record.plan.step_name(point.value) or record.plan.run_name(None, point.clients)


def _in_text(name: str) -> str:
    return name[0].lower() + name[1:]
