"""What an experiment has found, in one sentence."""

from dataclasses import replace

import pytest

from experiments.plan import Plan, Value
from experiments.records import ExperimentRecord, MeasuredPoint
from experiments.verdict import verdict
from tests.experiments.test_records import PLAN, point, record

CLIENTS = Plan((1, 8), 16, "short", 32)


def measured(value: Value | None, clients: int, tokens_per_second: float, first_token_ms: float) -> MeasuredPoint:
    known = point(value, clients)
    times = {"p50": first_token_ms}
    return replace(known, summary={**known.summary, "tokens_per_second": tokens_per_second, "first_token_ms": times})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        pytest.param(
            record(measured(1, 8, 20, 800), measured(4, 8, 48, 100)),
            "Batch size 4: 2.4 times the tokens/s of batch size 1, first token 8.0 times sooner.",
            id="faster and sooner",
        ),
        pytest.param(
            record(measured(1, 8, 20, 100), measured(4, 8, 48, 300)),
            "Batch size 4: 2.4 times the tokens/s of batch size 1, first token 3.0 times later.",
            id="faster and later",
        ),
        pytest.param(
            record(measured(1, 1, 30, 100), measured(1, 8, 20, 100), measured(4, 1, 90, 100), measured(4, 8, 40, 100)),
            "Batch size 4: 2.0 times the tokens/s of batch size 1, first token as soon.",
            id="most clients",
        ),
        pytest.param(
            record(measured(1, 8, 40, 100), measured(4, 8, 41, 100)),
            "The batch size makes no difference to the tokens/s: about 40.0 in the first run.",
            id="no difference",
        ),
        pytest.param(
            record(measured(None, 1, 10, 100), measured(None, 8, 40, 400), plan=CLIENTS),
            "8 clients: 4.0 times the tokens/s of 1 client, first token 4.0 times later.",
            id="clients",
        ),
        pytest.param(
            record(measured(1, 8, 20, 800)),
            "Batch size 1, 8 clients: 20.0 tokens/s, the first token after 800 ms (median).",
            id="one run",
        ),
        pytest.param(record(point(1, 8, failed=4)), "", id="no answer"),
    ],
)
def test_result_is_said_in_one_sentence(given: ExperimentRecord, sentence: str) -> None:
    assert verdict(given) == sentence


def test_runs_without_a_first_token_are_compared_by_speed_only() -> None:
    silent = measured(4, 8, 48, 0)
    silent.summary["first_token_ms"].clear()

    assert verdict(record(measured(1, 8, 20, 800), silent, plan=PLAN)) == (
        "Batch size 4: 2.4 times the tokens/s of batch size 1."
    )
