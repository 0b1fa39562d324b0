"""The autoscaler as a process: one for each server, whoever starts it, and it does what its policy says.

Against a real TorchServe with a handler that needs no model; real load is in test_autoscaler_panel.py.
"""

from __future__ import annotations

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
from autoscaler.control import autoscaler_pid, is_on, switch_off, switch_on
from autoscaler.policy import Policy
from autoscaler.state_files import AutoscalerReport, LogEntry, read_policy, read_report, write_policy
from experiments import restore as experiment_guard
from tests.support.serving import make_home, running_server, wait_until, write_echo_archives
from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError
from torchserve_client.file_lock import file_lock
from torchserve_client.management import ManagementClient, ServingSettings

POLICY = Policy(min_workers=1, max_workers=3, max_memory_percent=95, calm_seconds=2, pause_seconds=1)
SETTINGS = ServingSettings(batch_size=4, max_batch_delay_ms=20, workers=1)
WAIT_SECONDS = 120


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("autoscaler"))
    write_echo_archives(config)
    with running_server(config):
        yield config


@pytest.fixture
def config(up: ServerConfig) -> Iterator[ServerConfig]:
    """One worker with continuous batching, and no autoscaler before or after."""
    management = ManagementClient(up)
    if management.describe():
        management.apply(SETTINGS)
    else:
        management.register(SETTINGS)
    yield up
    end_autoscaler(up)


def end_autoscaler(config: ServerConfig) -> None:
    """Patiently: one that waits for a worker ends after that."""

    def has_ended() -> bool:
        try:
            switch_off(config)
        except TorchServeError:
            return False
        return True

    wait_until(has_ended, WAIT_SECONDS, "the end of the autoscaler")


def autoscalers(config: ServerConfig) -> list[int]:
    """The processes that look after this server, by what they are."""
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
    """The newest entry of this kind, with this text, that the autoscaler which is on has made since it was on."""

    def entry() -> LogEntry | None:
        report = read_report(config)
        log = report.log if report and report.pid == autoscaler_pid(config) else ()  # with those of the ones before it
        own = itertools.takewhile(lambda each: each.kind != "on", reversed(log))
        return next((each for each in own if each.kind == kind and text in each.text), None)

    return wait_until(entry, WAIT_SECONDS, f"an entry {kind!r}")


def test_switching_it_on_registers_the_model_with_dynamic_batching_and_the_same_settings(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    model = ManagementClient(config).describe()
    assert model and model.is_ready
    assert (model.batching, model.settings) == ("dynamic", SETTINGS)
    report = read_report(config)
    assert report and [entry.kind for entry in report.log[-2:]] == ["waiting", "on"]


def test_the_command_line_is_refused_while_the_page_has_one(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    pid = autoscaler_pid(config)
    second = command_line(config)
    assert second.wait(WAIT_SECONDS) == 1
    assert second.communicate()[1] == f"The autoscaler is on already (process {pid}).\n"
    assert autoscalers(config) == [autoscaler_pid(config)] == [pid]


def test_of_many_that_are_started_at_once_one_runs(config: ServerConfig) -> None:
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


def test_it_outlives_the_program_that_switched_it_on(config: ServerConfig) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from autoscaler.control import switch_on; from autoscaler.policy import Policy\n"
        "from server.config import ServerConfig\n"
        "switch_on(ServerConfig.load(sys.argv[2]), Policy()); print('on', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(PROJECT), str(config.path)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert program.stdout and program.stdout.readline() == "on\n"
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    report = read_report(config)
    assert report
    later = wait_until(lambda: (now := read_report(config)) and now.at > report.at and now, WAIT_SECONDS, "a look")
    assert later.pid == autoscaler_pid(config) and psutil.pid_exists(later.pid)


def test_a_changed_minimum_and_maximum_count_at_once_and_are_remembered(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    write_policy(config, replace(POLICY, min_workers=2))
    wait_until(lambda: workers(config) == 2, WAIT_SECONDS, "two workers")
    assert wait_for_entry(config, "up").text == "The minimum is 2."

    write_policy(config, replace(POLICY, max_workers=1))
    wait_until(lambda: workers(config) == 1, WAIT_SECONDS, "one worker")
    assert wait_for_entry(config, "down").text == "The maximum is 1."
    assert read_policy(config).max_workers == 1


def test_no_worker_is_added_that_would_take_more_memory_than_allowed(config: ServerConfig) -> None:
    switch_on(config, replace(POLICY, min_workers=2, max_memory_percent=1))
    entry = wait_for_entry(config, "blocked")
    assert entry.text.startswith("The minimum is 2, but another worker needs about ")
    assert "1 % are allowed" in entry.text
    assert workers(config) == 1


def test_a_worker_that_cannot_be_loaded_is_told_and_the_others_serve_on(config: ServerConfig) -> None:
    refuse = config.home / "refuse_batch_size"
    switch_on(config, POLICY)
    refuse.write_text("1")
    try:
        write_policy(config, replace(POLICY, min_workers=2))
        entry = wait_for_entry(config, "failed")
    finally:
        refuse.unlink()
    assert "does not fit in memory" in entry.text and "Next try in" in entry.text
    assert workers(config) == 1


def test_it_keeps_still_while_an_experiment_runs(config: ServerConfig) -> None:
    switch_on(config, POLICY)
    with experiment_guard.experiment_lock(config):
        at = wait_for_entry(config, "waiting", "An experiment is running").at
        write_policy(config, replace(POLICY, min_workers=2))
        wait_until(lambda: (now := read_report(config)) and now.at > at + 3, WAIT_SECONDS, "two more looks")
        assert workers(config) == 1
    wait_for_entry(config, "up")
    assert workers(config) == 2


def test_switched_off_it_leaves_the_workers_as_they_are(config: ServerConfig) -> None:
    switch_on(config, replace(POLICY, min_workers=2))
    wait_for_entry(config, "up")
    command_line(config, "--off").communicate()
    assert not is_on(config)
    wait_until(lambda: not autoscalers(config), WAIT_SECONDS, "the end of the process, a moment after its lock")
    assert workers(config) == 2
    report = read_report(config)
    assert report and report.log[-1].kind == "off"


def test_without_a_model_it_says_what_to_do(config: ServerConfig) -> None:
    ManagementClient(config).unregister()
    with pytest.raises(TorchServeError, match="The model is not registered: press Register Llama2 first."):
        switch_on(config, POLICY)
    assert not is_on(config)


def kill_once_it_has(condition: Callable[[AutoscalerReport], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next autoscaler that is switched on is killed then, before who switches it on looks for the first time."""
    launch = control._launch

    def launch_and_kill(config: ServerConfig) -> subprocess.Popen[bytes]:
        process = launch(config)

        def is_reached() -> object:
            report = read_report(config)
            return report and report.pid == process.pid and condition(report)

        wait_until(is_reached, WAIT_SECONDS, "the autoscaler to get that far")
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr(control, "_launch", launch_and_kill)


def test_one_that_is_killed_right_after_it_was_on_had_been_switched_on(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_once_it_has(lambda report: report.log and report.log[-1].kind == "on", monkeypatch)
    switch_on(config, POLICY)
    assert not is_on(config)


def test_one_that_is_killed_while_it_starts_is_told(config: ServerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_once_it_has(lambda report: report.activity.startswith("Registering the model again"), monkeypatch)
    with (
        file_lock(config.logs / "change.lock", WAIT_SECONDS),  # the model cannot be changed now
        pytest.raises(TorchServeError, match=r"ended from outside \(SIGKILL\) while it started"),
    ):
        switch_on(config, POLICY)
    assert not is_on(config)


def test_the_command_line_refuses_a_policy_that_cannot_be(config: ServerConfig) -> None:
    refused = command_line(config, "--min-workers", "3", "--max-workers", "2")
    assert refused.wait(WAIT_SECONDS) == 1
    assert refused.communicate()[1] == "min_workers must not be more than max_workers, which is 2.\n"


def test_it_ends_with_torchserve(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    write_echo_archives(config)
    with running_server(config):
        ManagementClient(config).register(SETTINGS)
        switch_on(config, POLICY)
        torchserve_process.stop(config)
        wait_until(lambda: not is_on(config), WAIT_SECONDS, "the autoscaler to end")
    report = read_report(config)
    assert report and "TorchServe is not running any more" in report.log[-1].text
