"""Starting, finding and stopping a real TorchServe. Each test has its own home and its own ports."""

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support.serving import free_ports, make_home, running_server, start_by_hand, wait_until, write_echo_archives
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.logs import log_tail
from torchserve_client.management import ManagementClient
from torchserve_client.process import StartFailed
from torchserve_client.running_server import find_server, is_listening, key_file, runtime_dir
from torchserve_client.status import DEFAULT_SETTINGS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Runs in a folder with a space in its name and too deep for a worker's socket."""
    home = tmp_path_factory.mktemp("process") / ("deep" * 15) / ("er" * 30) / "my home"
    with running_server(make_home(home)) as config:
        yield config


def test_started_server_answers_on_every_port(server: ServerConfig) -> None:
    assert [port for _, host, port in server.ports if not is_listening(host, port)] == []


def test_start_of_a_running_server_says_so(server: ServerConfig) -> None:
    process = find_server(server)

    sentence = torchserve_process.start(server)

    assert process and sentence == f"TorchServe is already running (process {process.pid})."


def test_server_is_found_without_its_pid_file(server: ServerConfig) -> None:
    by_file = find_server(server)
    (runtime_dir(server) / ".model_server.pid").unlink()

    assert by_file is not None and find_server(server) == by_file


def test_server_of_another_config_is_not_ours(server: ServerConfig, tmp_path: Path) -> None:
    assert find_server(make_home(tmp_path)) is None


def test_keys_logs_and_temporary_files_are_for_their_owner_only(server: ServerConfig) -> None:
    logs = [server.logs, *server.logs.iterdir()]
    assert {"console.log", "start.lock", "ts_log.log"} <= {path.name for path in logs}
    assert [path for path in (key_file(server), runtime_dir(server), *logs) if path.stat().st_mode & 0o077] == []


def test_taken_port_is_reported_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as listener:
        port = listener.getsockname()[1]
        config = make_home(tmp_path, metrics_address=f"http://127.0.0.1:{port}")

        with pytest.raises(TorchServeError, match=rf"Port {port} \(metrics\) is taken by .*\(process {os.getpid()}\)"):
            torchserve_process.start(config)

    assert find_server(config) is None


def test_start_reports_its_steps(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    sentences: list[str] = []
    try:
        torchserve_process.start(config, sentences.append)
    finally:
        torchserve_process.stop(config)

    assert "Looking for Java" in sentences
    assert any(sentence.startswith("Waiting for the ports") for sentence in sentences)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("number_of_netty_threads", "many", id="not-a-number"),
        pytest.param("inference_address", "http://192.0.2.1:8080", id="address-of-another-machine"),
    ],
)
def test_setting_that_torchserve_refuses_fails_the_start_with_its_reason(tmp_path: Path, name: str, value: str) -> None:
    config = make_home(tmp_path, **{name: value})

    with pytest.raises(StartFailed, match=r"Exception|Error|Invalid"):
        torchserve_process.start(config)

    assert find_server(config) is None


def test_failed_start_gives_the_reason(tmp_path: Path) -> None:
    config = make_home(tmp_path, vmargs="-Xmx1nonsense")

    with pytest.raises(StartFailed, match="Invalid maximum heap size"):
        torchserve_process.start(config)

    assert "Invalid maximum heap size" in log_tail(config)
    assert not runtime_dir(config).exists()


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
        assert not runtime_dir(config).exists()


def test_stop_where_nothing_runs_is_fine(tmp_path: Path) -> None:
    torchserve_process.stop(make_home(tmp_path))


def test_stop_removes_the_folder_of_a_killed_server(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    folder = runtime_dir(config)
    folder.mkdir(mode=0o700, exist_ok=True)

    torchserve_process.stop(config)

    assert not folder.exists()


def test_second_of_two_starts_returns_when_the_server_answers(tmp_path: Path) -> None:
    config = make_home(tmp_path)

    def start() -> tuple[str, list[int]]:
        sentence = torchserve_process.start(config)
        return sentence, [port for _, host, port in config.ports if not is_listening(host, port)]

    try:
        with ThreadPoolExecutor(2) as both:
            started = list(both.map(lambda _: start(), range(2)))
    finally:
        torchserve_process.stop(config)

    assert [missing for _, missing in started] == [[], []]
    assert sorted(sentence.split(" (")[0] for sentence, _ in started)[0] == "TorchServe is already running"


def test_server_starts_again_after_it_was_killed(tmp_path: Path) -> None:
    config = make_home(tmp_path)
    with running_server(config):
        killed = find_server(config)
        assert killed
        killed.send_signal(signal.SIGKILL)
        wait_until(lambda: find_server(config) is None, what="the killed server is gone")

        assert "TorchServe is running with Java" in torchserve_process.start(config)


@pytest.mark.parametrize("folder", [pytest.param("home", id="home"), pytest.param("elsewhere", id="elsewhere")])
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
    folder = runtime_dir(config)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / ".model_server.pid").write_text(str(os.getpid()))
    assert find_server(config) is None

    with running_server(config):
        assert find_server(config)
