"""What the engine's metrics report, and when: a drain must see every request at once."""

import threading

import pytest

from llama_cpp_worker.engine import Engine
from llama_cpp_worker.metrics import PREFIX_LOOKUPS, WAIT_SECONDS, WORKER_ID, EngineMetrics
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.metric_cache import MetricCache
from tests.support.scripted_model import ScriptedModel


@pytest.fixture
def engine() -> Engine:
    return Engine(ScriptedModel(n_slots=1))


def metrics_of(engine: Engine, cache: MetricCache) -> EngineMetrics:
    return EngineMetrics(engine, cache, "llamacpp", worker_id=9004, worker_number=0)


def sums(cache: MetricCache, counter: str) -> dict[str, float]:
    """What TorchServe shows for a counter, by its third label."""
    total: dict[str, float] = {}
    for name, labels, value in cache.lines:
        if name == counter:
            total[labels[2]] = total.get(labels[2], 0.0) + value
    return total


def moments(request: Request) -> list[float]:
    times = (request.submitted_at, request.admitted_at, request.prefix_assigned_at, request.first_chunk_at)
    return [time for time in times if time is not None]


def new_request(n_tokens: int = 3) -> Request:
    return Request([1] * n_tokens, SamplingParams(max_tokens=3))


def test_a_new_request_is_reported_at_once_after_any_last_report(engine: Engine) -> None:
    cache = MetricCache()
    metrics = metrics_of(engine, cache)
    metrics.report()
    assert cache.last["llamacpp_requests_waiting"] == 0

    for number in (1, 2):
        engine.submit(new_request())
        metrics.report()
        assert cache.last["llamacpp_requests_waiting"] == number

    engine.step()
    metrics.report()
    assert (cache.last["llamacpp_slots_busy"], cache.last["llamacpp_requests_waiting"]) == (1, 1)


def test_prompts_in_and_before_a_slot_count_as_tokens_that_wait_for_their_prefill(engine: Engine) -> None:
    cache = MetricCache()
    metrics = metrics_of(engine, cache)
    engine.submit(new_request(100))
    engine.submit(new_request(30))
    metrics.report()
    assert cache.last["llamacpp_prefill_tokens_waiting"] == 130
    engine.step()
    metrics.report()
    assert cache.last["llamacpp_prefill_tokens_waiting"] == 130 - engine.model.n_batch
    assert cache.last["llamacpp_requests_prefilling"] == 1


def test_an_idle_report_shows_nothing_busy_until_the_next_report(engine: Engine) -> None:
    cache = MetricCache()
    metrics = metrics_of(engine, cache)
    engine.submit(new_request(100))
    engine.submit(new_request())
    engine.step()
    metrics.report()
    names = ("llamacpp_slots_busy", "llamacpp_requests_waiting", "llamacpp_prefill_tokens_waiting")
    before = {name: cache.last[name] for name in names}
    assert all(before.values())
    metrics.report_idle()
    assert [cache.last[name] for name in names] == [0, 0, 0]
    metrics.report()
    assert {name: cache.last[name] for name in names} == before


def test_an_idle_report_has_the_tokens_of_the_last_steps(engine: Engine) -> None:
    cache = MetricCache()
    metrics = metrics_of(engine, cache)
    engine.submit(new_request())
    engine.step()
    metrics.report()
    engine.step()
    metrics.report()  # too soon after the last one for token counts
    assert engine.counters.completion_tokens == 2
    metrics.report_idle()
    values = [value for name, _, value in cache.lines if name == "llamacpp_completion_tokens_total"]
    assert sum(values) == 2


def test_a_report_is_never_interrupted_by_an_idle_report(engine: Engine) -> None:
    """Reports come from two threads; each must put out whole lines, and not contradict a later report."""
    may_go_on, has_begun = threading.Event(), threading.Event()
    threads: list[str] = []

    class SlowCache(MetricCache):
        def add(self, name: str, labels: list[str], value: float) -> None:
            threads.append(threading.current_thread().name)
            has_begun.set()
            may_go_on.wait()
            super().add(name, labels, value)

    engine.submit(new_request())
    metrics = metrics_of(engine, SlowCache())
    report = threading.Thread(target=metrics.report, name="report")
    idle = threading.Thread(target=metrics.report_idle, name="idle")
    report.start()
    has_begun.wait()
    idle.start()
    idle.join(0.05)  # time in which it could interrupt
    may_go_on.set()
    report.join()
    idle.join()
    assert threads == ["report"] * (len(threads) - 2) + ["idle"] * 2  # a waiting request and its tokens


def test_the_worker_id_follows_the_gauges_and_is_no_label(engine: Engine) -> None:
    cache = MetricCache()
    metrics_of(engine, cache).report()
    names = [name for name, _, _ in cache.lines]
    assert cache.last[WORKER_ID] == 9004
    assert names.index(WORKER_ID) > max(map(names.index, ("llamacpp_slots_busy", "llamacpp_requests_waiting")))
    assert all(labels[:2] == ["llamacpp", "0"] for _, labels, _ in cache.lines)


def test_the_wait_of_an_ended_request_is_counted_by_reason(engine: Engine) -> None:
    cache = MetricCache()
    metrics = metrics_of(engine, cache)
    served, left = new_request(), new_request()
    served.admitted_at, served.prefix_assigned_at, served.first_chunk_at = 2.0, 5.0, 9.0
    left.submitted_at, left.admitted_at, left.finished_at = 10.0, 11.0, 31.0
    metrics.observe(served)
    metrics.observe(left)  # it waited for a prefix to its end
    metrics.report()
    assert sums(cache, WAIT_SECONDS) == {"slot": 2 + 1, "prefix": 3 + 20, "prefill": 4}


def test_the_engine_times_each_wait_and_counts_the_sources_of_prefixes() -> None:
    model = ScriptedModel(n_slots=2)
    engine, cache = Engine(model, clock=model.clock), MetricCache()
    prompts = [[*range(100), last] for last in (1, 2, 3)]  # shared by all; there are two slots
    requests = [Request(prompt, SamplingParams(max_tokens=3), allows_empty=False) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        engine.step()
    metrics = metrics_of(engine, cache)
    for request in requests:
        metrics.observe(request)
    metrics.report()
    waits = [moments(request) for request in requests]
    assert all(sorted(times) == times for times in waits)
    (_, admitted, assigned, _), (_, second_admitted, second_assigned, _), (_, third_admitted, _, _) = waits
    assert admitted == assigned == second_admitted < second_assigned
    assert third_admitted > second_assigned
    assert sums(cache, WAIT_SECONDS)["slot"] == pytest.approx(third_admitted, abs=0.001)
    lookups = sums(cache, PREFIX_LOOKUPS)
    assert lookups["none"] == 1
    assert sum(lookups.values()) == len(requests)
