"""What is told of the engine, and when: whoever wants to stop a worker must see what it has to do."""

from __future__ import annotations

import pytest

from llama_cpp_worker.engine import Engine, Request
from llama_cpp_worker.metrics import EngineMetrics
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.scripted_model import ScriptedModel


class Cache:
    """TorchServe's metric cache, as far as it is used: the last value of each metric."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def add_metric_to_cache(self, name: str, *_: object) -> Metric:
        return Metric(name, self.last)


class Metric:
    def __init__(self, name: str, last: dict[str, float]) -> None:
        self._name, self._last = name, last

    def add_or_update(self, value: float, _: list[str]) -> None:
        self._last[self._name] = value


@pytest.fixture
def engine() -> Engine:
    return Engine(ScriptedModel(n_slots=1))  # type: ignore[arg-type]


def test_a_newcomer_is_told_at_once_however_short_ago_the_last_report_was(engine: Engine) -> None:
    cache = Cache()
    metrics = EngineMetrics(engine, cache, "llamacpp", "worker")
    metrics.report()
    assert cache.last["llamacpp_requests_waiting"] == 0

    for number in (1, 2):
        engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=3)))
        metrics.report()
        assert cache.last["llamacpp_requests_waiting"] == number

    engine.step()
    metrics.report()
    assert (cache.last["llamacpp_slots_busy"], cache.last["llamacpp_requests_waiting"]) == (1, 1)


def test_silence_is_told_as_nothing_to_do(engine: Engine) -> None:
    cache = Cache()
    metrics = EngineMetrics(engine, cache, "llamacpp", "worker")
    engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=3)))
    engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=3)))
    engine.step()
    metrics.report()
    metrics.report(is_silent=True)
    assert (cache.last["llamacpp_slots_busy"], cache.last["llamacpp_requests_waiting"]) == (0, 0)
