"""What the engine's metrics report, and when: a drain must see every request at once."""

import pytest

from llama_cpp_worker.engine import Engine, Request
from llama_cpp_worker.metrics import EngineMetrics
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.metric_cache import MetricCache
from tests.support.scripted_model import ScriptedModel


@pytest.fixture
def engine() -> Engine:
    return Engine(ScriptedModel(n_slots=1))


def test_a_new_request_is_reported_at_once_after_any_last_report(engine: Engine) -> None:
    cache = MetricCache()
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


def test_an_idle_report_has_no_busy_slot_and_no_waiting_request(engine: Engine) -> None:
    cache = MetricCache()
    metrics = EngineMetrics(engine, cache, "llamacpp", "worker")
    engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=3)))
    engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=3)))
    engine.step()
    metrics.report()
    metrics.report(is_idle=True)
    assert (cache.last["llamacpp_slots_busy"], cache.last["llamacpp_requests_waiting"]) == (0, 0)
