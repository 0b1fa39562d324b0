"""Plans, saved records and the rows of the charts: plain values and files."""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from experiments import charts, records
from experiments.load_test import Run, Sample
from experiments.plan import BATCHINGS, Plan, Setup, Value, values_from
from experiments.records import ExperimentRecord, MeasuredPoint
from experiments.run import ExperimentProgress
from llama_cpp_worker.sampling_params import InvalidParameter
from tests.support.serving import make_home
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.status import ServingSettings

BASE = Setup(ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1), "llama.tar.gz", "continuous")
PLAN = Plan((1, 8), 16, "short", 32, "batch_size", (1, 4))
TIMINGS = {"queue_ms": 0.0, "prompt_ms": 100.0, "predicted_ms": 400.0}


def point(value: Value | None, clients: int, failed: int = 0, requests: int = 4) -> MeasuredPoint:
    errors = ["HTTP 503: no"] * failed + [None] * (requests - failed)
    samples = [Sample(0.0, 0.1, 0.5, 10, 0, 0 if error else 30, (0.1,), error, "text", TIMINGS) for error in errors]
    return MeasuredPoint.of(value, clients, BASE, Run("torchserve", 0.5, samples))


def record(*points: MeasuredPoint, plan: Plan = PLAN, number: int = 0) -> ExperimentRecord:
    started = datetime(2026, 1, 2, 3, 4, tzinfo=UTC) + timedelta(minutes=number)
    return ExperimentRecord(f"id{number:03}", started, "demo", plan, BASE, points, "done")


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    return make_home(tmp_path)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"clients": ()}, "clients"),
        ({"clients": (4, 4)}, "clients"),
        ({"clients": (0,)}, "clients"),
        ({"clients": (65,)}, "clients"),
        ({"requests": 7}, "requests"),
        ({"requests": 501}, "requests"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompts": "riddles"}, "prompts"),
        ({"sweep": "colour"}, "sweep"),
        ({"values": ()}, "batch_size"),
        ({"values": (1, 129)}, "batch_size"),
        ({"values": tuple(range(1, 10))}, "batch_size"),
        ({"sweep": "workers", "values": (5,)}, "workers"),
        ({"sweep": "batching", "values": ("static",)}, "batching"),
        ({"sweep": "batching", "values": ("dynamic", "dynamic")}, "batching"),
    ],
)
def test_impossible_plan_is_refused_with_the_name_of_the_parameter(change: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        replace(PLAN, **change).check()  # type: ignore[arg-type]

    assert refusal.value.name == name


def test_possible_plans_are_not_refused() -> None:
    for plan in (PLAN, replace(PLAN, sweep=None, values=()), replace(PLAN, sweep="batching", values=BATCHINGS)):
        plan.check()


def test_each_value_runs_with_each_number_of_clients() -> None:
    assert PLAN.runs == 4
    assert replace(PLAN, sweep=None, values=()).runs == 2


@pytest.mark.parametrize(
    ("sweep", "text", "values"),
    [
        ("batch_size", "1, 4,8", (1, 4, 8)),
        ("batch_size", " 16 ", (16,)),
        ("batch_size", "", ()),
        ("batching", "continuous, dynamic", ("continuous", "dynamic")),
    ],
)
def test_typed_values_are_parsed(sweep: str, text: str, values: tuple[Value, ...]) -> None:
    assert values_from(sweep, text) == values


@pytest.mark.parametrize("text", ["1; 4", "one", "-1", "1.5", "²"])
def test_text_without_numbers_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="like 1, 4, 8"):
        values_from("batch_size", text)


@pytest.mark.parametrize(
    ("sweep", "value", "archive", "batching", "workers"),
    [
        ("batch_size", 4, "llama.tar.gz", "continuous", 1),
        ("workers", 1, "llama.tar.gz", "continuous", 1),
        ("workers", 3, "llama-dynamic.tar.gz", "dynamic", 3),
        ("batching", "dynamic", "llama-dynamic.tar.gz", "dynamic", 1),
        ("batching", "continuous", "llama.tar.gz", "continuous", 1),
    ],
)
def test_varied_setup_uses_the_archive_of_its_batching(
    sweep: str, value: Value, archive: str, batching: str, workers: int
) -> None:
    varied = BASE.varied(sweep, value)

    assert (varied.archive, varied.batching, varied.settings.workers) == (archive, batching, workers)


@pytest.mark.parametrize("value", BATCHINGS)
def test_compared_batchings_do_not_depend_on_the_first_setup(value: str) -> None:
    two_workers = Setup(replace(BASE.settings, workers=2), "llama-dynamic.tar.gz", "dynamic")

    assert two_workers.varied("batching", value) == BASE.varied("batching", value)


def test_dynamic_batching_stays_when_another_setting_varies() -> None:
    alone = BASE.varied("batching", "dynamic")

    assert alone.varied("batch_size", 2).archive == "llama-dynamic.tar.gz"


def test_time_left_is_estimated_from_the_mean_times() -> None:
    progress = ExperimentProgress(
        loads=4, requests=30, loaded=1, answered=10, loading_seconds=3.0, answering_seconds=5.0
    )

    assert progress.seconds_left == 3 * 3.0 + 20 * 0.5


def test_time_left_is_unknown_before_the_first_measurement() -> None:
    assert ExperimentProgress(loads=2, requests=10).seconds_left is None
    assert ExperimentProgress(loads=2, requests=10, loaded=1, loading_seconds=3.0).seconds_left is None
    assert ExperimentProgress(loads=0, requests=10, answered=5, answering_seconds=1.0).seconds_left == 1.0


def test_saved_record_is_loaded_unchanged(config: ServerConfig) -> None:
    saved = record(point(1, 8), point("dynamic", 1, failed=1))

    records.save(config, saved)

    assert records.load(config, saved.id) == saved


def test_texts_of_answers_are_not_saved() -> None:
    assert all(not sample.text and not sample.events for sample in point(1, 8).samples)


def test_only_the_newest_records_stay_and_come_first(config: ServerConfig) -> None:
    for number in range(records.MAX_RECORDS + 2):
        records.save(config, record(number=number))

    assert records.record_ids(config) == [f"id{number:03}" for number in range(records.MAX_RECORDS + 1, 1, -1)]


def test_deleted_record_is_gone(config: ServerConfig) -> None:
    records.save(config, record())
    records.delete(config, "id000")

    assert records.record_ids(config) == []


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"plan": 3}'])
def test_invalid_record_file_is_named(config: ServerConfig, text: str) -> None:
    records.records_folder(config).mkdir()
    records.record_file(config, "broken").write_text(text)

    with pytest.raises(TorchServeError, match=r"run-broken\.json cannot be read .*: delete it"):
        records.load(config, "broken")


def test_csv_has_a_line_for_each_run_with_its_settings_and_figures() -> None:
    rows = list(csv.DictReader(io.StringIO(records.to_csv([record(point(1, 8)), record(point(4, 1, failed=1))]))))

    assert [(row["clients"], row["batch_size"], row["batching"]) for row in rows] == [
        ("8", "8", "continuous"),
        ("1", "8", "continuous"),
    ]
    figures = [rows[0][name] for name in ("tokens_per_second", "first_token_ms_p95", "latency_ms_p99")]
    assert figures == ["240.0", "100.0", ""]
    assert (rows[1]["errors"], rows[1]["first_error"]) == ("1", "HTTP 503: no")


def test_run_without_answers_is_not_drawn() -> None:
    saved = record(point(1, 8), point(4, 8, failed=4))

    assert [each.value for each in saved.answered] == [1]
    assert [row["value"] for row in charts.throughput_rows([saved])] == [1]


def test_throughput_rows_have_setting_clients_and_speed() -> None:
    assert charts.throughput_rows([record(point(4, 8))]) == [
        {
            "value": 4,
            "clients": 8,
            "tokens_per_second": 240.0,
            "by_setting": "8 clients",
            "by_clients": "Batch size 4",
        }
    ]


def test_compared_experiments_have_different_series() -> None:
    rows = charts.throughput_rows([record(point(4, 8)), record(point(4, 8), number=1)])

    assert len({row["by_setting"] for row in rows}) == 2


def test_time_rows_are_one_for_each_percentile() -> None:
    rows = charts.time_rows(PLAN, [point(4, 8)], "first_token_ms")

    assert [(row["x"], row["percentile"], row["ms"]) for row in rows] == [(4, p, 100.0) for p in ("p50", "p95")]


def test_99th_percentile_needs_a_hundred_answers() -> None:
    assert list(point(4, 8, requests=100).times("latency_ms")) == ["p50", "p95", "p99"]
    assert list(point(4, 8, failed=1, requests=100).times("latency_ms")) == ["p50", "p95"]


def test_timeline_rows_are_the_phases_in_the_order_of_sending() -> None:
    late, failed = point(4, 8).samples[0], point(4, 8, failed=1).samples[0]
    mixed = replace(point(4, 8), samples=(replace(late, sent=0.3, ended=1.0), failed))

    rows = [(row["request"], row["phase"], row["start"], row["end"]) for row in charts.timeline_rows(mixed)]

    assert rows == [
        (1, "failed", 0.0, 0.5),
        (2, "queued", 0.3, 0.5),
        (2, "prefill", 0.5, 0.6),
        (2, "decode", 0.6, 1.0),
    ]


@pytest.mark.parametrize(
    ("plan", "title"),
    [
        (PLAN, "Batch size"),
        (replace(PLAN, sweep="max_batch_delay_ms", values=(0,)), "Max batch delay, ms"),
        (replace(PLAN, sweep=None, values=()), "Clients"),
    ],
)
def test_axis_titles_have_units(plan: Plan, title: str) -> None:
    saved = record(point(None if plan.sweep is None else 0, 8), plan=plan)
    drawn = charts.times(plan, saved.points, "latency_ms").to_dict()["encoding"]

    assert (drawn["x"]["title"], drawn["y"]["title"]) == (title, "Whole answer, ms")


def test_runs_are_named_in_words() -> None:
    assert PLAN.run_name(4, 8) == "Batch size 4, 8 clients"
    assert replace(PLAN, sweep="max_batch_delay_ms").run_name(50, 1) == "Max batch delay 50 ms, 1 client"
    assert replace(PLAN, sweep="workers").run_name(1, 2) == "1 worker, 2 clients"
    assert replace(PLAN, sweep="batching").run_name("dynamic", 2) == "Dynamic batching, 2 clients"
    assert replace(PLAN, sweep=None).run_name(None, 2) == "2 clients"
