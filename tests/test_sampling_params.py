"""Every value from outside is either usable or refused by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sampling_params import BOUNDS, MAX_STOP_STRINGS, PARAMETER_NAMES, InvalidParameter, SamplingParams


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
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("seed", 2**32 - 1),
        ("stop", 5),
        ("stop", [1]),
        ("stop", [""]),
        ("stop", ["x"] * (MAX_STOP_STRINGS + 1)),
    ],
    ids=repr,
)
def test_an_unusable_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        SamplingParams.from_request({name: value})
    assert refusal.value.name == name
    assert str(refusal.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_both_ends_of_the_bounds_are_allowed(name: str) -> None:
    for value in (BOUNDS[name].low, BOUNDS[name].high):
        assert getattr(SamplingParams(**{name: value}), name) == value


def test_null_and_absence_mean_the_default() -> None:
    assert SamplingParams.from_request(dict.fromkeys(PARAMETER_NAMES)) == SamplingParams()


def test_a_whole_number_is_a_number_and_a_number_without_fraction_an_integer() -> None:
    params = SamplingParams.from_request({"temperature": 1, "top_k": 5.0})
    assert (type(params.temperature), type(params.top_k)) == (float, int)


def test_request_round_trip_keeps_every_value() -> None:
    params = SamplingParams(0.5, 0.9, 10, 0.1, 1.1, 20, 7, ("a", "b"))
    assert SamplingParams.from_request(params.to_request()) == params


@given(
    st.dictionaries(
        st.sampled_from(PARAMETER_NAMES),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text() | st.integers()),
    )
)
def test_whatever_arrives_is_used_or_refused_and_never_crashes(body: dict[str, object]) -> None:
    try:
        params = SamplingParams.from_request(body)
    except InvalidParameter as refusal:
        assert refusal.name in body
    else:
        assert all(
            bounds.low <= getattr(params, name) <= bounds.high
            for name, bounds in BOUNDS.items()
            if name in body and body[name] is not None
        )
