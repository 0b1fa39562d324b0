"""The autoscaler's process: one for each server, in any program that starts it, and it follows its policy.

With a real TorchServe and a handler that needs no model. tests/dashboard/test_autoscaler_panel.py has the real load.
"""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from autoscaler import control
from autoscaler.control import autoscaler_pid, is_on, output_file, switch_off, switch_on
from autoscaler.policy import Policy
from autoscaler.state_files import AutoscalerReport, LogEntry, read_policy, read_report, write_policy
from experiments.restore import experiment_lock
from tests.support.serving import make_home, running_server, wait_until, write_echo_archives
from torchserve_client import process as torchserve_process
from torchserve_client.archives import CONTINUOUS_ARCHIVE, dynamic_archive_name
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.file_lock import file_lock
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

POLICY = Policy(min_workers=1, max_workers=3, max_memory_percent=95, calm_seconds=2, pause_seconds=1)
SETTINGS = ServingSettings(batch_size=4, max_batch_delay_ms=20, workers=1)
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("autoscaler"))
    write_echo_archives(config)
    with running_server(config):
        yield config


@pytest.fixture
def config(server: ServerConfig) -> Iterator[ServerConfig]:
    """One worker with dynamic batching, and no autoscaler before or after."""
    serve(server, dynamic_archive_name(CONTINUOUS_ARCHIVE))
    yield server
    end_autoscaler(server)


@pytest.fixture
def continuous(server: ServerConfig) -> Iterator[ServerConfig]:
    """One worker with continuous batching, and no autoscaler before or after."""
    serve(server, CONTINUOUS_ARCHIVE)
    yield server
    end_autoscaler(server)


def serve(config: ServerConfig, archive: str) -> None:
    management = ManagementClient(config)
    if management.describe():
        management.apply(SETTINGS, archive)
    else:
        management.register(SETTINGS, archive)


def end_autoscaler(config: ServerConfig) -> None:
    """Waits for a change of the workers, too."""

    def has_ended() -> bool:
        try:
            switch_off(config)
        except TorchServeError:
            return False
        return True

    wait_until(has_ended, WAIT_SECONDS, "the end of the autoscaler")


def autoscalers(config: ServerConfig) -> list[int]:
    """The ids of all autoscaler processes of this server."""
    found = []
    for process in psutil.process_iter():
        try:
            is_one = process.cmdline()[1:3] == ["-m", "autoscaler"]
            if is_one and process.environ().get("TS_CONFIG_FILE") == str(config.path):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def command_line(config: ServerConfig, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "autoscaler", *arguments]
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def workers(config: ServerConfig) -> int:
    model = ManagementClient(config).describe()
    assert model
    return model.settings.workers


def wait_for_entry(config: ServerConfig, kind: str, text: str = "") -> LogEntry:
    """The newest entry of this kind with this text, logged by the running autoscaler since it was switched on."""

    def entry() -> LogEntry | None:
        report = read_report(config)
        log = report.log if report and report.pid == autoscaler_pid(config) else ()
        own = itertools.takewhile(lambda each: each.kind != "on", reversed(log))  # earlier autoscalers have logged, too
        return next((each for each in own if each.kind == kind and text in each.text), None)

    found = wait_until(entry, WAIT_SECONDS, f"an entry {kind!r}")
    assert found
    return found


def test_switching_on_changes_the_batching_but_not_the_settings(continuous: ServerConfig) -> None:
    switch_on(continuous, POLICY)
    model = ManagementClient(continuous).describe()
    assert model
    assert model.is_ready
    assert (model.batching, model.settings) == ("dynamic", SETTINGS)
    report = read_report(continuous)
    assert report
    assert [entry.kind for entry in report.log[-2:]] == ["waiting", "on"]


def test_second_autoscaler_is_refused_with_the_id_of_the_first(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    pid = autoscaler_pid(config)
    second = command_line(config)
    assert second.wait(WAIT_SECONDS) == 1
    assert second.communicate()[1] == f"The autoscaler is on already (process {pid}).\n"
    assert autoscalers(config) == [autoscaler_pid(config)] == [pid]


def test_one_of_several_simultaneous_starts_runs(config: ServerConfig) -> None:
    started = [command_line(config, "--calm-seconds", "600") for _ in range(3)]
    with ThreadPoolExecutor(3) as pages:
        for page in [pages.submit(switch_on, config, POLICY) for _ in range(3)]:
            page.result(WAIT_SECONDS)
    wait_until(lambda: len(autoscalers(config)) == 1, WAIT_SECONDS, "the others to give up")
    assert autoscalers(config) == [autoscaler_pid(config)]
    end_autoscaler(config)
    assert sorted(process.wait(WAIT_SECONDS) for process in started) in ([1, 1, 1], [0, 1, 1])
    for process in started:
        process.communicate()


def test_autoscaler_outlives_the_program_that_switched_it_on(config: ServerConfig) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from autoscaler.control import switch_on; from autoscaler.policy import Policy\n"
        "from torchserve_client.config import ServerConfig\n"
        "switch_on(ServerConfig.load(sys.argv[2]), Policy()); print('on', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(PROJECT), str(config.path)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert program.stdout and program.stdout.readline() == "on\n"
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    report = read_report(config)
    assert report
    wait_until(lambda: (now := read_report(config)) and now.at > report.at, WAIT_SECONDS, "a later report")
    assert autoscaler_pid(config) == report.pid
    assert autoscalers(config) == [report.pid]


def test_log_is_for_its_owner_only(config: ServerConfig) -> None:
    output_file(config).unlink(missing_ok=True)
    switch_on(config, POLICY)
    assert output_file(config).stat().st_mode & 0o777 == 0o600


def test_new_minimum_and_maximum_are_followed_at_once(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    write_policy(config, replace(POLICY, min_workers=2))
    wait_until(lambda: workers(config) == 2, WAIT_SECONDS, "two workers")
    assert wait_for_entry(config, "up").text == "The minimum is 2."

    write_policy(config, replace(POLICY, max_workers=1))
    wait_until(lambda: workers(config) == 1, WAIT_SECONDS, "one worker")
    assert wait_for_entry(config, "down").text == "The maximum is 1."
    assert read_policy(config).max_workers == 1


def test_worker_that_needs_too_much_memory_is_not_added(config: ServerConfig) -> None:
    switch_on(config, replace(POLICY, min_workers=2, max_memory_percent=1))
    entry = wait_for_entry(config, "blocked")
    assert entry.text.startswith("The minimum is 2, but another worker needs about ")
    assert "1 % are allowed" in entry.text
    assert workers(config) == 1


def test_failed_load_is_reported_and_the_other_worker_serves_on(config: ServerConfig) -> None:
    refuse = config.home / "refuse_batch_size"
    switch_on(config, POLICY)
    refuse.write_text("1")
    try:
        write_policy(config, replace(POLICY, min_workers=2))
        entry = wait_for_entry(config, "failed")
    finally:
        refuse.unlink()
    assert "does not fit in memory" in entry.text
    assert "Next try in" in entry.text
    assert workers(config) == 1


def test_nothing_changes_while_an_experiment_runs(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    with experiment_lock(config):
        at = wait_for_entry(config, "waiting", "An experiment is running").at
        write_policy(config, replace(POLICY, min_workers=2))
        wait_until(lambda: (now := read_report(config)) and now.at > at + 3, WAIT_SECONDS, "a later observation")
        assert workers(config) == 1
    wait_for_entry(config, "up")
    assert workers(config) == 2


def test_switching_off_leaves_the_workers_as_they_are(config: ServerConfig) -> None:
    switch_on(config, replace(POLICY, min_workers=2))
    wait_for_entry(config, "up")
    command_line(config, "--off").communicate()
    assert not is_on(config)
    wait_until(lambda: not autoscalers(config), WAIT_SECONDS, "the end of the process")
    assert workers(config) == 2
    report = read_report(config)
    assert report
    assert report.log[-1].kind == "off"


def test_missing_model_is_reported_with_the_next_step(config: ServerConfig) -> None:
    ManagementClient(config).unregister()
    with pytest.raises(TorchServeError, match=r"The model is not registered: press Register Llama2 first\."):
        switch_on(config, POLICY)
    assert not is_on(config)


def kill_after(condition: Callable[[AutoscalerReport], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kills the next autoscaler once the condition is true, before switch_on() reads its first report."""
    launch = control._launch

    def launch_and_kill(config: ServerConfig) -> subprocess.Popen[bytes]:
        process = launch(config)

        def is_reached() -> object:
            report = read_report(config)
            return report and report.pid == process.pid and condition(report)

        wait_until(is_reached, WAIT_SECONDS, "the condition of the report")
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(control, "_launch", launch_and_kill)


def test_autoscaler_killed_right_after_its_start_was_switched_on(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(lambda report: report.log and report.log[-1].kind == "on", monkeypatch)
    switch_on(config, POLICY)
    assert not is_on(config)


def test_autoscaler_killed_during_its_start_is_reported(
    continuous: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after(lambda report: report.activity.startswith("Registering the model again"), monkeypatch)
    with (
        file_lock(continuous.logs / "change.lock", WAIT_SECONDS),  # the model cannot be changed now
        pytest.raises(TorchServeError, match=r"ended from outside \(SIGKILL\) while it started"),
    ):
        switch_on(continuous, POLICY)
    assert not is_on(continuous)


def test_command_line_refuses_an_impossible_policy(tmp_path: Path) -> None:
    refused = command_line(make_home(tmp_path), "--min-workers", "3", "--max-workers", "2")
    assert refused.wait(WAIT_SECONDS) == 1
    assert refused.communicate()[1] == "min_workers must not be more than max_workers, which is 2.\n"


def test_autoscaler_ends_with_torchserve(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    write_echo_archives(config)
    with running_server(config):
        ManagementClient(config).register(SETTINGS)
        switch_on(config, POLICY)
        torchserve_process.stop(config)
        wait_until(lambda: not is_on(config), WAIT_SECONDS, "the autoscaler to end")
    report = read_report(config)
    assert report
    assert "TorchServe is not running any more" in report.log[-1].text
