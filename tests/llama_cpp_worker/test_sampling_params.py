"""Sampling parameters: every value is either used or refused by name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.sampling_params import (
    BOUNDS,
    MAX_GRAMMAR_LENGTH,
    MAX_LOGIT_BIASES,
    MAX_STOP_STRINGS,
    PARAMETER_NAMES,
    InvalidParameter,
    SamplingParams,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", True),
        ("temperature", [1]),
        ("top_p", 1.1),
        ("top_k", 1.5),
        ("top_k", -1),
        ("min_p", 10**400),
        ("repeat_penalty", 0),
        ("max_tokens", -1),
        ("max_tokens", "5"),
        ("seed", 2**63),
        ("stop", 5),
        ("stop", [1]),
        ("stop", [""]),
        ("stop", ["x"] * (MAX_STOP_STRINGS + 1)),
        ("frequency_penalty", 2.1),
        ("presence_penalty", "none"),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": None}),
        ("logit_bias", {str(token): 1 for token in range(MAX_LOGIT_BIASES + 1)}),
        ("grammar", 5),
        ("grammar", ""),
        ("grammar", "x" * (MAX_GRAMMAR_LENGTH + 1)),
        ("ignore_eos", "yes"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_unusable_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        SamplingParams.from_request({name: value})
    assert refusal.value.name == name
    assert str(refusal.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_both_bounds_are_allowed(name: str) -> None:
    for value in (BOUNDS[name].low, BOUNDS[name].high):
        assert getattr(SamplingParams.from_request({name: value}), name) == value


def test_null_and_absence_mean_the_default() -> None:
    assert SamplingParams.from_request(dict.fromkeys(PARAMETER_NAMES)) == SamplingParams()


def test_numbers_are_converted_where_nothing_is_lost() -> None:
    params = SamplingParams.from_request({"temperature": 1, "top_k": 5.0})
    assert (type(params.temperature), type(params.top_k)) == (float, int)


def test_a_round_trip_through_a_request_keeps_every_value() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_p=0.9,
        top_k=10,
        min_p=0.1,
        repeat_penalty=1.1,
        frequency_penalty=0.5,
        presence_penalty=-2,
        max_tokens=20,
        seed=7,
        stop=("a", "b"),
        logit_bias={5: -100, 70: 1.5},
        grammar='root ::= "a"',
        ignore_eos=True,
    )
    assert SamplingParams.from_request(params.to_request()) == params


@given(
    st.dictionaries(
        st.sampled_from(PARAMETER_NAMES),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
    )
)
def test_any_value_is_used_or_refused_and_never_crashes(body: dict[str, object]) -> None:
    try:
        params = SamplingParams.from_request(body)
    except InvalidParameter as refusal:
        if refusal.name not in body:
            raise
        return
    assert all(
        bounds.low <= getattr(params, name) <= bounds.high
        for name, bounds in BOUNDS.items()
        if name in body and body[name] is not None
    )
