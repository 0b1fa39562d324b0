"""When the autoscaler acts: on recorded loads (tests/support/record_load_curves.py), on edges, on any observations."""

import csv
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.policy import (
    OVERLOAD_SECONDS,
    Arrivals,
    Decision,
    Observation,
    Policy,
    Trend,
    decide,
    oldest_wait_seconds,
    still_waiting,
)

CURVES = Path(__file__).resolve().parent / "load_curves"
RECORDED_WITH = Policy(min_workers=1, max_workers=3, max_memory_percent=90, calm_seconds=10, pause_seconds=4)
GB = 2**30
IDLE = Observation(
    at=0,
    workers=2,
    ready_workers=2,
    busy_workers=0,
    is_newest_busy=False,
    batch_size=4,
    queued=0,
    oldest_wait_seconds=0,
    worker_bytes=GB,
    used_bytes=4 * GB,
    total_bytes=16 * GB,
)
FULL = replace(IDLE, busy_workers=2, is_newest_busy=True, queued=8, oldest_wait_seconds=3.0)


def read_curve(name: str) -> list[Observation]:
    with (CURVES / f"{name}.csv").open(newline="") as file:
        return [_observation(row) for row in csv.DictReader(file)]


def _observation(row: dict[str, str]) -> Observation:
    values: dict[str, float | bool] = {}
    for field in fields(Observation):
        text = row[field.name]
        values[field.name] = text == "True" if field.type is bool else float(text)
        if field.type is int:
            values[field.name] = int(text)
    return Observation(**values)  # type: ignore[arg-type]


def replay(policy: Policy, curve: list[Observation]) -> list[Decision]:
    """The decision for each observation. The number of workers is always the recorded one."""
    trend, decisions = Trend(), []
    for before, now in zip([curve[0], *curve], curve, strict=False):
        if now.workers != before.workers:
            trend = Trend(changed_at=now.at)
        trend = trend.after(now, policy)
        decisions.append(decide(policy, trend, now))
    return decisions


def changes(curve: list[Observation], decisions: list[Decision]) -> list[tuple[int, int]]:
    """Each change of the number of workers, once."""
    found: list[tuple[int, int]] = []
    for now, decision in zip(curve, decisions, strict=True):
        change = (now.workers, decision.workers)
        if decision.workers != now.workers and change not in found[-1:]:
            found.append(change)
    return found


def lasting(now: Observation, policy: Policy, seconds: float, changed_at: float | None = None) -> Decision:
    """The decision after `seconds` with the same observation."""
    trend = Trend(changed_at=changed_at).after(now, policy)
    now = replace(now, at=now.at + seconds)
    return decide(policy, trend.after(now, policy), now)


# Recorded under real load.


def test_burst_leads_to_three_workers_and_back_to_one() -> None:
    curve = read_curve("burst")
    assert changes(curve, replay(RECORDED_WITH, curve)) == [(1, 2), (2, 3), (3, 2), (2, 1)]


@pytest.mark.parametrize("name", ["hiccup", "trickle"])
def test_load_that_one_worker_answers_in_time_changes_nothing(name: str) -> None:
    curve = read_curve(name)
    assert max(now.busy_workers for now in curve) == 1  # else the curve has the wrong load
    assert changes(curve, replay(RECORDED_WITH, curve)) == []


def test_hiccup_had_a_whole_batch_in_the_queue() -> None:
    assert max(now.queued for now in read_curve("hiccup")) >= 4


def test_burst_on_a_machine_without_memory_changes_nothing() -> None:
    curve = [now for now in read_curve("burst") if now.workers == 1]
    decisions = replay(replace(RECORDED_WITH, max_memory_percent=1), curve)
    assert changes(curve, decisions) == []
    assert "another worker needs about 1," in next(each.reason for each in decisions if each.blocker == "memory")


def test_oldest_wait_is_longer_in_the_burst_than_in_the_trickle() -> None:
    longest = {name: max(now.oldest_wait_seconds for now in read_curve(name)) for name in ("burst", "trickle")}
    assert longest["burst"] > 2 > longest["trickle"]


# Edges.


@pytest.mark.parametrize(
    ("observation", "seconds", "workers"),
    [
        pytest.param(FULL, OVERLOAD_SECONDS, 3, id="long overload"),
        pytest.param(FULL, OVERLOAD_SECONDS - 0.1, 2, id="shorter overload"),
        pytest.param(replace(FULL, queued=1), OVERLOAD_SECONDS, 3, id="one request waits too long"),
        pytest.param(replace(FULL, queued=4, oldest_wait_seconds=0), OVERLOAD_SECONDS, 3, id="a whole batch waits"),
        pytest.param(replace(FULL, queued=3, oldest_wait_seconds=1.9), 999, 2, id="few requests wait for a short time"),
        pytest.param(IDLE, 30, 1, id="long calm"),
        pytest.param(IDLE, 29.9, 2, id="shorter calm"),
        pytest.param(replace(IDLE, busy_workers=1), 30, 1, id="one of two workers is free"),
        pytest.param(replace(IDLE, busy_workers=2), 999, 2, id="both busy, queue empty"),
        pytest.param(replace(IDLE, workers=1, ready_workers=1), 999, 1, id="the minimum"),
        pytest.param(replace(FULL, workers=3, ready_workers=3), 999, 3, id="the maximum"),
        pytest.param(replace(FULL, ready_workers=1), 999, 2, id="a worker is loading"),
        pytest.param(replace(IDLE, workers=4, ready_workers=4), 0, 3, id="above a new maximum"),
        pytest.param(replace(IDLE, workers=0, ready_workers=0), 0, 1, id="below the minimum"),
    ],
)
def test_decision_depends_on_load_and_limits(observation: Observation, seconds: float, workers: int) -> None:
    assert lasting(observation, Policy(), seconds).workers == workers


def test_pause_after_a_change_is_reported() -> None:
    policy = Policy(pause_seconds=15)
    paused = lasting(FULL, policy, 10, changed_at=0.0)
    assert paused.workers == 2
    assert "Next change in 5 s" in paused.reason
    assert lasting(FULL, policy, 15, changed_at=0.0).workers == 3


@pytest.mark.parametrize(
    ("used_bytes", "workers", "blocker"),
    [pytest.param(11 * GB, 3, "", id="12 of 16 GB"), pytest.param(12 * GB, 2, "memory", id="13 of 16 GB")],
)
def test_worker_is_added_only_within_the_memory_limit(used_bytes: int, workers: int, blocker: str) -> None:
    decision = lasting(replace(FULL, used_bytes=used_bytes), Policy(max_memory_percent=75), 10)
    assert (decision.workers, decision.blocker) == (workers, blocker)


def test_busy_worker_is_not_removed() -> None:
    decision = lasting(replace(IDLE, busy_workers=1, is_newest_busy=True), Policy(), 30)
    assert (decision.workers, decision.blocker) == (2, "answers")


def test_reasons_name_the_numbers() -> None:
    assert lasting(FULL, Policy(), 10).reason == "8 requests wait, the first for 3 s."
    assert lasting(IDLE, Policy(), 30).reason == "For 30 s nobody waited and a worker was free."
    assert "3 workers are the maximum" in lasting(replace(FULL, workers=3, ready_workers=3), Policy(), 10).reason


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Policy(min_workers=3, max_workers=2), id="minimum above maximum"),
        pytest.param(Policy(min_workers=0), id="no worker"),
        pytest.param(Policy(max_workers=5), id="too many workers"),
        pytest.param(Policy(max_memory_percent=100), id="all memory"),
    ],
)
def test_impossible_policy_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=r"^m(in|ax)_\w+.* must"):
        policy.check()


# Any observations.

observations = st.builds(
    Observation,
    at=st.floats(0, 1e4),
    workers=st.integers(0, 4),
    ready_workers=st.integers(0, 4),
    busy_workers=st.integers(0, 4),
    is_newest_busy=st.booleans(),
    batch_size=st.integers(1, 8),
    queued=st.integers(0, 30),
    oldest_wait_seconds=st.floats(0, 100),
    worker_bytes=st.integers(0, 8 * GB),
    used_bytes=st.integers(0, 16 * GB),
    total_bytes=st.just(16 * GB),
)
policies = st.builds(Policy, st.integers(1, 2), st.integers(2, 4), st.integers(1, 95))


@given(policies, st.lists(observations, min_size=1, max_size=8))
def test_each_decision_is_one_step_within_all_limits(policy: Policy, curve: list[Observation]) -> None:
    curve.sort(key=lambda now: now.at)
    for now, decision in zip(curve, replay(policy, curve), strict=True):
        assert abs(decision.workers - now.workers) <= 1
        if decision.workers > now.workers:
            assert decision.workers <= policy.max_workers
            assert 100 * (now.used_bytes + now.worker_bytes) / now.total_bytes <= policy.max_memory_percent
        if decision.workers < now.workers:
            assert decision.workers >= policy.min_workers and not now.is_newest_busy
        assert decision.reason


# The wait of the first request in the queue.


def arrivals(*counts: int) -> tuple[Arrivals, ...]:
    """The counts of all requests that have arrived, every two seconds."""
    return tuple(Arrivals(2.0 * number, count) for number, count in enumerate(counts))


@pytest.mark.parametrize(
    ("counts", "queued", "seconds"),
    [
        pytest.param((5, 9, 9, 9), 0, 0, id="empty queue"),
        pytest.param((5, 9, 9, 9), 4, 4, id="all four arrived before the second count"),
        pytest.param((5, 9, 9, 12), 3, 0, id="all in the queue are new"),
        pytest.param((5, 9, 10, 12), 3, 2, id="the first one arrived before the third count"),
        pytest.param((900, 3, 3), 2, 2, id="restarted TorchServe"),
    ],
)
def test_oldest_wait_is_counted_from_the_arrival(counts: tuple[int, ...], queued: int, seconds: float) -> None:
    assert oldest_wait_seconds(still_waiting(arrivals(*counts), queued)) == seconds
