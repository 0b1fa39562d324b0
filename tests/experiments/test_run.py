"""Experiments with a real TorchServe and a handler that needs no model. Each experiment must restore the settings."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import records
from experiments.background import BackgroundExperiments
from experiments.plan import Plan, Setup
from experiments.records import ExperimentRecord
from experiments.restore import (
    ExperimentFailed,
    discard_restore_note,
    experiment_lock,
    is_running,
    restore_setup,
    unrestored_setup,
)
from experiments.run import Experiment, ExperimentProgress
from tests.support.chatting_handler import fail_file, write_chatting_archives
from tests.support.serving import make_home, running_server, wait_until
from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.http import MODEL_NAME
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

BASE = ServingSettings(batch_size=2, max_batch_delay_ms=0, workers=1)
PLAN = Plan(clients=(2,), requests=4, prompts="short", max_tokens=10, sweep="batch_size", values=(1, 4))
NO_SWEEP = replace(PLAN, sweep=None, values=())
LONG = replace(NO_SWEEP, requests=500, max_tokens=200)  # longer than any test


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("experiments"))
    write_chatting_archives(config)
    with running_server(config):
        yield config


@pytest.fixture
def server(running: ServerConfig) -> Iterator[ServerConfig]:
    """Serves with BASE before each test, and checks that it does so after the test."""
    management = ManagementClient(running)
    if management.describe() is None:
        management.register(BASE)
    before = management.describe()
    assert before
    assert before.settings == BASE
    yield running
    after = management.describe()
    assert after
    assert (after.settings, after.archive) == (BASE, before.archive)
    assert unrestored_setup(running) is None


def served(config: ServerConfig) -> Setup | None:
    status = ManagementClient(config).describe()
    return Setup.of(status) if status else None


def is_served_with_batch_size(config: ServerConfig, size: int) -> bool:
    setup = served(config)
    return setup is not None and setup.settings.batch_size == size


def run(config: ServerConfig, plan: Plan) -> ExperimentRecord:
    return Experiment(config, plan, lambda progress: None).run()


def test_sweep_measures_each_value_and_saves_the_record(server: ServerConfig) -> None:
    progress: list[ExperimentProgress] = []
    record = Experiment(server, PLAN, progress.append).run()

    assert record.state == "done", record.reason
    assert record.model == MODEL_NAME
    assert [(point.value, point.clients, point.setup.settings.batch_size) for point in record.points] == [
        (1, 2, 1),
        (4, 2, 4),
    ]
    assert all(point.summary["completion_tokens"] == 40 and not point.first_error for point in record.points)
    assert records.load(server, record.id) == record
    assert [progress[-1].answered, progress[-1].requests] == [8, 8]


def test_batchings_are_compared_with_one_worker(server: ServerConfig) -> None:
    record = run(server, replace(PLAN, sweep="batching", values=("continuous", "dynamic")))

    assert record.state == "done", record.reason
    assert [(point.setup.batching, point.setup.settings.workers) for point in record.points] == [
        ("continuous", 1),
        ("dynamic", 1),
    ]


def test_experiment_without_a_sweep_does_not_load_the_model(server: ServerConfig) -> None:
    before = ManagementClient(server).describe()
    record = run(server, replace(NO_SWEEP, clients=(1, 2)))
    after = ManagementClient(server).describe()

    assert [(point.value, point.clients) for point in record.points] == [(None, 1), (None, 2)]
    assert before
    assert after
    assert [worker.pid for worker in before.workers] == [worker.pid for worker in after.workers]


def test_cancelled_experiment_saves_the_finished_runs(server: ServerConfig) -> None:
    plan = replace(PLAN, clients=(2, 3), requests=5, max_tokens=50)
    second_run = threading.Event()

    def on_progress(progress: ExperimentProgress) -> None:
        if progress.answered > 5:
            second_run.set()
            experiment.cancel()

    experiment = Experiment(server, plan, on_progress)
    record = experiment.run()

    assert second_run.is_set()
    assert record.state == "cancelled"
    assert [(point.value, point.clients) for point in record.points] == [(1, 2)]


def test_failed_load_ends_the_experiment_with_the_reason(server: ServerConfig) -> None:
    refuse = server.home / "refuse_batch_size"
    refuse.write_text("4")
    try:
        record = run(server, PLAN)
    finally:
        refuse.unlink()

    assert record.state == "failed"
    assert "batch size 4 does not fit in memory" in record.reason
    assert [point.value for point in record.points] == [1]


def test_failed_warm_up_fails_the_experiment(server: ServerConfig) -> None:
    fail_file(server).touch()
    try:
        record = run(server, NO_SWEEP)
    finally:
        fail_file(server).unlink()

    assert record.state == "failed"
    assert record.points == ()
    assert record.reason == "The model does not answer: HTTP 500: no answer today"


def test_run_without_any_answer_is_saved_and_ends_the_experiment(server: ServerConfig) -> None:
    def on_progress(progress: ExperimentProgress) -> None:
        if progress.activity == NO_SWEEP.run_name(None, 2):
            fail_file(server).touch()

    try:
        record = Experiment(server, NO_SWEEP, on_progress).run()
    finally:
        fail_file(server).unlink()

    assert record.reason == "All 4 requests failed: HTTP 500: no answer today"
    assert record.points[0].summary["errors"] == 4
    assert record.answered == ()


def test_foreign_change_ends_the_experiment_and_its_run_does_not_count(server: ServerConfig) -> None:
    def on_progress(progress: ExperimentProgress) -> None:
        if progress.activity == NO_SWEEP.run_name(None, 2) and progress.answered == 0:
            ManagementClient(server).apply(replace(BASE, max_batch_delay_ms=7))

    record = Experiment(server, NO_SWEEP, on_progress).run()

    assert record.state == "failed"
    assert "Somebody changed the server" in record.reason
    assert record.points == ()


def test_second_experiment_is_refused_while_one_runs(server: ServerConfig) -> None:
    with experiment_lock(server):
        assert is_running(server)
        with pytest.raises(ExperimentFailed, match="running already"):
            run(server, PLAN)
    assert not is_running(server)


def test_missing_model_is_reported_with_the_next_step(server: ServerConfig) -> None:
    management = ManagementClient(server)
    management.unregister()
    try:
        with pytest.raises(ExperimentFailed, match="press Register Llama2"):
            run(server, PLAN)
    finally:
        management.register(BASE)


def test_background_experiment_can_be_cancelled(server: ServerConfig) -> None:
    background = BackgroundExperiments(server)
    background.start(LONG)
    wait_until(lambda: background.progress and background.progress.answered, 120, "an answer")
    background.start(PLAN)  # of another page; one experiment is running already

    background.cancel()
    wait_until(lambda: not background.is_running, timeout=60, what="the end")

    newest = records.load(server, records.record_ids(server)[0])
    assert (newest.state, newest.plan, background.problem) == ("cancelled", LONG, None)


def start_command(config: ServerConfig, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=PROJECT,
        env=os.environ | {"TS_CONFIG_FILE": str(config.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_long_command(config: ServerConfig) -> subprocess.Popen[str]:
    """Returns when the model serves with batch size 1."""
    size = ("--clients", "2", "--requests", "500", "--max-tokens", "200")
    process = start_command(config, "--sweep", "batch_size=1", *size)
    wait_until(lambda: is_served_with_batch_size(config, 1), timeout=120, what="the first value")
    wait_until(lambda: (model := ManagementClient(config).describe()) and model.is_ready, 120, "its worker")
    return process


def test_command_line_measures_and_writes_csv(server: ServerConfig, tmp_path: Path) -> None:
    file = tmp_path / "figures.csv"
    size = ("--clients", "1,2", "--requests", "2", "--max-tokens", "10")
    process = start_command(server, "--sweep", "max_batch_delay_ms=0,5", *size, "--csv", str(file))
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 0, output
    assert "Max batch delay 5 ms, 2 clients" in output
    assert "tokens/s" in output
    assert len(file.read_text().splitlines()) == 1 + 4


def test_interrupted_command_restores_the_settings(server: ServerConfig) -> None:
    process = start_long_command(server)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)

    assert process.returncode == 1
    assert "cancelled" in output


def test_settings_of_a_killed_command_can_be_restored(server: ServerConfig) -> None:
    before = served(server)
    process = start_long_command(server)
    assert is_running(server)
    assert unrestored_setup(server) is None
    process.kill()
    process.communicate(timeout=60)

    assert unrestored_setup(server) == before
    with pytest.raises(ExperimentFailed, match="put them back first"):
        run(server, PLAN)
    assert is_served_with_batch_size(server, 1)

    output, _ = start_command(server, "--restore").communicate(timeout=120)
    assert served(server) == before, output


def test_restore_note_of_a_killed_command_can_be_discarded(server: ServerConfig) -> None:
    process = start_long_command(server)
    process.kill()
    process.communicate(timeout=60)

    discard_restore_note(server)

    assert unrestored_setup(server) is None
    with pytest.raises(ExperimentFailed, match="nothing to put back"):
        restore_setup(server, print)
    ManagementClient(server).apply(BASE)


def test_settings_that_cannot_be_restored_are_remembered(server: ServerConfig) -> None:
    before = served(server)

    def on_progress(progress: ExperimentProgress) -> None:
        if progress.activity == PLAN.run_name(1, 2) and progress.answered == 0:
            torchserve_process.stop(server)

    record = Experiment(server, PLAN, on_progress).run()

    assert record.state == "failed"
    assert "could not be put back: TorchServe does not answer" in record.reason
    assert unrestored_setup(server) == before
    torchserve_process.start(server)
    restore_setup(server, print)
