"""What two snapshots of the metrics mean, and whether the metrics of a real server are right."""

import psutil
import pytest

from tests.support.serving import wait_until
from tests.support.wire import CHAT_PATH, chat_body, post
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.metrics import (
    ARRIVED,
    FIRST_TOKEN,
    MetricsSnapshot,
    ProcessSample,
    Series,
    cpu_percent,
    increase,
    mean,
    parse_metrics,
    percentile,
    rate,
    scrape,
    used_lines,
)

TOKENS = "llamacpp_completion_tokens_total"

TEXT = """\
# TYPE llamacpp_wait_seconds_total counter
llamacpp_wait_seconds_total{ModelName="llamacpp",WorkerName="0",Reason="slot",Hostname="vm",} 3.0
llamacpp_wait_seconds_total{ModelName="llamacpp",WorkerName="0",Reason="prefill",Hostname="vm",} 1.0
# TYPE llamacpp_prefix_lookups_total counter
llamacpp_prefix_lookups_total{ModelName="llamacpp",WorkerName="0",Source="own",Hostname="vm",} 6.0
# HELP MemoryUsed Torchserve prometheus gauge metric with unit: Megabytes
# TYPE MemoryUsed gauge
# TYPE ts_inference_requests_total counter
ts_inference_requests_total{model_name="llamacpp",model_version="1.0",hostname="vm",} 54.0
# TYPE ts_queue_latency_microseconds counter
ts_queue_latency_microseconds{model_name="llamacpp",model_version="1.0",hostname="vm",} 1.45E8
# TYPE llamacpp_slots_busy gauge
llamacpp_slots_busy{ModelName="llamacpp",WorkerName="0",Hostname="vm",} 4.0
llamacpp_slots_busy{ModelName="llamacpp",WorkerName="1",Hostname="vm",} 3.0
# TYPE llamacpp_worker_id gauge
llamacpp_worker_id{ModelName="llamacpp",WorkerName="0",Hostname="vm",} 9004.0
llamacpp_worker_id{ModelName="llamacpp",WorkerName="1",Hostname="vm",} 9001.0
# TYPE llamacpp_time_to_first_token_seconds histogram
llamacpp_time_to_first_token_seconds_bucket{ModelName="llamacpp",WorkerName="0",Hostname="vm",le="0.1",} 2.0
llamacpp_time_to_first_token_seconds_bucket{ModelName="llamacpp",WorkerName="0",Hostname="vm",le="0.5",} 8.0
llamacpp_time_to_first_token_seconds_bucket{ModelName="llamacpp",WorkerName="0",Hostname="vm",le="+Inf",} 10.0
llamacpp_time_to_first_token_seconds_count{ModelName="llamacpp",WorkerName="0",Hostname="vm",} 10.0
llamacpp_time_to_first_token_seconds_sum{ModelName="llamacpp",WorkerName="0",Hostname="vm",} 4.0
"""
NOTHING = MetricsSnapshot(100.0, {})
TEN_SECONDS_LATER = MetricsSnapshot(110.0, parse_metrics(TEXT))


def counted(at: float, **workers: float) -> MetricsSnapshot:
    """A snapshot in which only tokens were counted, by workers of these names."""
    return MetricsSnapshot(at, {Series(TOKENS, worker): value for worker, value in workers.items()})


def test_only_the_metrics_of_engine_and_torchserve_are_parsed() -> None:
    assert TEN_SECONDS_LATER.total(ARRIVED) == 54
    assert {series.name for series in TEN_SECONDS_LATER.series if "llamacpp" not in series.name} == {
        "ts_inference_requests_total"
    }


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({"a": 10, "b": 5}, {"a": 14, "b": 6}, 5, id="workers are summed"),
        pytest.param({"a": 10}, {"a": 10, "b": 7}, 7, id="a new worker counts from zero"),
        pytest.param({"a": 100, "b": 5}, {"a": 3, "b": 9}, 7, id="one worker's count starts again"),
        pytest.param({"a": 10, "b": 5}, {"a": 12}, 2, id="a worker's count is gone"),
    ],
)
def test_increase_of_a_counter_is_the_sum_over_its_workers(
    before: dict[str, float], after: dict[str, float], expected: float
) -> None:
    assert increase(counted(0, **before), counted(2, **after), TOKENS) == expected
    assert rate(counted(0, **before), counted(2, **after), TOKENS) == expected / 2


@pytest.mark.parametrize(
    ("name", "detail", "expected"),
    [
        ("llamacpp_wait_seconds_total", "slot", 3),
        ("llamacpp_wait_seconds_total", "prefix", 0),
        ("llamacpp_wait_seconds_total", None, 4),
        ("llamacpp_prefix_lookups_total", "own", 6),
    ],
)
def test_waits_and_prefix_lookups_are_counted_by_their_label(name: str, detail: str | None, expected: float) -> None:
    assert increase(NOTHING, TEN_SECONDS_LATER, name, detail=detail) == expected


def test_series_of_ended_workers_are_not_parsed() -> None:
    """TorchServe adds these for each new worker, and never forgets one."""
    ended = "".join(
        f'{name}{{WorkerName="W-{worker}-llamacpp_1.0",Level="Host",Hostname="vm",}} 812.0\n'
        for name in ("WorkerLoadTime", "WorkerThreadTime")
        for worker in range(9000, 14000)
    )
    text = f"# TYPE WorkerLoadTime gauge\n{ended}{TEXT}"
    assert len(text.splitlines()) > 10_000
    assert used_lines(text) == used_lines(TEXT)
    assert parse_metrics(text) == TEN_SECONDS_LATER.series


def test_mean_is_of_the_observations_in_between() -> None:
    assert mean(NOTHING, TEN_SECONDS_LATER, FIRST_TOKEN) == 0.4
    assert mean(TEN_SECONDS_LATER, TEN_SECONDS_LATER, FIRST_TOKEN) is None


@pytest.mark.parametrize(
    ("percent", "seconds"),
    [
        pytest.param(10, 0.05, id="half of the first bucket"),
        pytest.param(50, 0.3, id="half of the second bucket"),
        pytest.param(80, 0.5, id="a bucket's very end"),
        pytest.param(95, 0.5, id="above the last bound"),
    ],
)
def test_percentile_is_interpolated_within_its_bucket(percent: float, seconds: float) -> None:
    assert percentile(NOTHING, TEN_SECONDS_LATER, FIRST_TOKEN, percent) == pytest.approx(seconds)


def test_percentile_of_no_observation_is_none() -> None:
    assert percentile(TEN_SECONDS_LATER, TEN_SECONDS_LATER, FIRST_TOKEN, 50) is None
    assert percentile(NOTHING, NOTHING, FIRST_TOKEN, 50) is None


def process(worker: str, pid: int = 1, started: float = 0.0, cpu_seconds: float = 0.0) -> ProcessSample:
    return ProcessSample(worker, pid, started, cpu_seconds, memory_bytes=0)


def test_gauge_of_a_worker_that_has_ended_does_not_count() -> None:
    """TorchServe keeps reporting its last value."""
    alive = MetricsSnapshot(110.0, TEN_SECONDS_LATER.series, (process(""), process("9004")))
    assert alive.gauge_sum("llamacpp_slots_busy") == 4


def test_gauge_is_of_the_worker_that_has_the_number_now() -> None:
    values = {worker: TEN_SECONDS_LATER.gauge("llamacpp_slots_busy", worker) for worker in ("9000", "9001", "9004")}
    assert values == {"9000": 0, "9001": 3, "9004": 4}


def test_cpu_share_is_known_for_the_same_process_only() -> None:
    before = MetricsSnapshot(0, {}, (process("9000", pid=7, started=1.0, cpu_seconds=10),))
    after = MetricsSnapshot(4, {})
    assert cpu_percent(before, after, process("9000", pid=7, started=1.0, cpu_seconds=16)) == 150
    assert cpu_percent(before, after, process("9000", pid=7, started=3.0, cpu_seconds=1)) is None


def test_metrics_of_a_real_server_match_its_answer_and_processes(server: ServerConfig) -> None:
    before = scrape(server)
    usage = post(server, chat_body("Count to ten.", max_tokens=20, ignore_eos=True), CHAT_PATH).json()["usage"]

    def after_all_lines() -> MetricsSnapshot | None:  # TorchServe handles the worker's lines one by one
        now = scrape(server)
        is_all = increase(before, now, f"{FIRST_TOKEN}_count") == 1 and increase(before, now, TOKENS) >= 20
        return now if is_all else None

    after = wait_until(after_all_lines, what="the answer to be counted")
    assert after
    assert increase(before, after, TOKENS) == usage["completion_tokens"] == 20
    assert increase(before, after, "llamacpp_prompt_tokens_total") == usage["prompt_tokens"]
    assert increase(before, after, ARRIVED) == 1

    model = ManagementClient(server).describe()
    assert model
    assert [(each.worker, each.pid) for each in after.workers] == [(each.id, each.pid) for each in model.workers]
    assert [psutil.Process(each.pid).name() for each in after.processes if not each.worker] == ["java"]
    assert all((cpu_percent(before, after, each) or 0) > 0 for each in after.workers)


def test_a_later_worker_goes_on_with_the_series_of_the_one_before(server: ServerConfig) -> None:
    """Otherwise TorchServe's metrics, which are parsed every two seconds, would grow with each worker."""

    def answered(before: MetricsSnapshot) -> MetricsSnapshot:
        def after_all_lines() -> MetricsSnapshot | None:
            now = scrape(server)
            return now if increase(before, now, f"{FIRST_TOKEN}_count") and increase(before, now, TOKENS) >= 5 else None

        assert post(server, chat_body("Count.", max_tokens=5, ignore_eos=True), CHAT_PATH).status_code == 200
        snapshot = wait_until(after_all_lines, what="the answer to be counted")
        assert snapshot
        return snapshot

    management = ManagementClient(server)
    model = management.describe()
    assert model
    before = answered(scrape(server))
    management.unregister()
    management.register(model.settings, model.archive)
    after = answered(before)
    assert {each.worker for each in before.workers}.isdisjoint(each.worker for each in after.workers)
    assert set(after.series) == set(before.series)
    assert increase(before, after, TOKENS) == 5
    assert after.gauge_sum("llamacpp_slots") == before.gauge_sum("llamacpp_slots") > 0
