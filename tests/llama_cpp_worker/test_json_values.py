"""What parsed JSON can be written again."""

from typing import Any

import pytest

from llama_cpp_worker.json_values import MAX_DEPTH, json_problem


def nested(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def test_values_of_usual_depth_are_fine() -> None:
    assert json_problem({"a": [1, 2.5, None, "x", {"b": []}]}) == ""
    assert json_problem(nested(MAX_DEPTH - 1)) == ""


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 985, 100_000])
def test_a_value_that_is_too_deep_is_a_problem(levels: int) -> None:
    assert json_problem(nested(levels)) == "is nested too deeply: at most 300 levels are possible"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_json_has_not_is_a_problem(number: float) -> None:
    assert "NaN or infinite" in json_problem({"a": [{"b": number}]})
