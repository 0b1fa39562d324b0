"""Registering, scaling and changing the model on a real TorchServe, with a handler that needs no model."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from llama_cpp_worker.sampling_params import InvalidParameter, SamplingParams
from tests.support.serving import make_home, running_server, wait_until, write_echo_archives
from torchserve_client import status
from torchserve_client.config import ServerConfig
from torchserve_client.drain import DrainPolicy
from torchserve_client.file_lock import file_lock
from torchserve_client.http import RequestRefused, fetch
from torchserve_client.inference import InferenceClient
from torchserve_client.keys import Keys
from torchserve_client.logs import worker_exceptions
from torchserve_client.management import ChangeFailed, ManagementClient
from torchserve_client.metrics import ARRIVED, scrape
from torchserve_client.running_server import find_server, key_file
from torchserve_client.status import ModelStatus, ServingSettings

ONE = ServingSettings(batch_size=4, max_batch_delay_ms=0, workers=1)
TWO = replace(ONE, workers=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("management"))
    write_echo_archives(config)
    with running_server(config):
        yield config


@pytest.fixture
def management(server: ServerConfig) -> Iterator[ManagementClient]:
    """A server without a model."""
    client = ManagementClient(server)
    client.unregister()
    yield client
    (server.home / "refuse_batch_size").unlink(missing_ok=True)


@pytest.fixture
def one(server: ServerConfig) -> ManagementClient:
    """A server whose model serves with ONE; left as it is where it already does, because loading takes seconds."""
    (server.home / "refuse_batch_size").unlink(missing_ok=True)
    client = ManagementClient(server)
    status = client.describe()
    if not (status and status.is_ready and status.settings == ONE):
        client.unregister()
        client.register(ONE)
    return client


def described(management: ManagementClient) -> ModelStatus:
    status = management.describe()
    assert status is not None
    return status


def answer_of(server: ServerConfig) -> str:
    return "".join(event.text for event in InferenceClient(server).complete("hello", SamplingParams()))


def refuse(server: ServerConfig, batch_size: int) -> None:
    """From now on a worker with that batch size or more fails to load."""
    (server.home / "refuse_batch_size").write_text(str(batch_size))


def test_torchserve_answers_while_a_worker_loads(server: ServerConfig, management: ManagementClient) -> None:
    pipe = server.home / "refuse_batch_size"
    os.mkfifo(pipe)  # the worker waits until the test writes into it
    loading = threading.Thread(target=management.register, args=(ONE,))
    client, inference = InferenceClient(server), Keys(server, "inference")
    loading.start()
    writer = wait_until(lambda: open_for_writing(pipe), 120, "the worker to load")
    assert writer
    try:
        for _ in range(24):  # new connections, which TorchServe hands to its threads in turn
            answer = inference.use(lambda key: fetch("GET", f"{server.inference_url}/ping", key, 10))
            assert answer == {"status": "Healthy"}
        assert client.state() == "loading"
    finally:
        os.write(writer, b"999")
        os.close(writer)
        loading.join()
    assert client.state() == "ready"
    management.unregister()
    assert client.state() == "no model"


def open_for_writing(pipe: Path) -> int | None:
    """A file descriptor; None as long as no process reads the pipe."""
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


@pytest.mark.parametrize("workers", [1, 2])
def test_request_in_a_batch_that_still_fills_is_answered_before_the_end(
    server: ServerConfig, management: ManagementClient, workers: int
) -> None:
    management.register(ServingSettings(batch_size=4, max_batch_delay_ms=3000, workers=workers))
    before = scrape(server).total(ARRIVED)
    sentences: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(answer_of, server)
        wait_until(lambda: scrape(server).total(ARRIVED) > before, what="its arrival")
        management.unregister(DrainPolicy(on_drain=sentences.append))

        assert answer.result(60) == "hello"
    assert any("max batch delay" in sentence for sentence in sentences)


def test_one_worker_gets_continuous_batching(server: ServerConfig, management: ManagementClient) -> None:
    management.register(ONE)

    status = described(management)

    assert (status.settings, status.batching, status.is_ready) == (ONE, "continuous", True)
    assert status.workers[0].memory_bytes > 0 and status.workers[0].started
    assert answer_of(server) == "hello"


def test_two_workers_get_dynamic_batching(server: ServerConfig, management: ManagementClient) -> None:
    management.register(TWO)

    status = described(management)

    assert (status.settings, status.batching, status.is_ready) == (TWO, "dynamic", True)
    assert answer_of(server) == "hello"


@pytest.mark.parametrize("settings", [pytest.param(ONE, id="continuous"), pytest.param(TWO, id="dynamic")])
def test_failed_load_gives_the_cause_and_leaves_nothing(
    server: ServerConfig, management: ManagementClient, settings: ServingSettings
) -> None:
    refuse(server, 4)

    with pytest.raises(ChangeFailed, match="batch size 4 does not fit in memory"):
        management.register(settings)

    assert management.describe() is None
    process = find_server(server)
    assert process
    wait_until(lambda: not process.children(recursive=True), what="no worker is left")
    management.register(replace(settings, batch_size=3))
    assert described(management).is_ready


def test_second_registration_is_refused_and_changes_nothing(one: ManagementClient) -> None:
    with pytest.raises(ChangeFailed, match="already registered"):
        one.register(TWO)

    assert described(one).settings == ONE


def test_apply_changes_batch_size_and_delay(one: ManagementClient) -> None:
    wanted = replace(ONE, batch_size=7, max_batch_delay_ms=50)

    one.apply(wanted)

    assert described(one).settings == wanted


def test_apply_of_more_workers_does_not_restart_the_others(management: ManagementClient) -> None:
    management.register(TWO)
    before = {worker.pid for worker in described(management).workers}

    management.apply(replace(TWO, workers=3))

    after = described(management)
    assert before < {worker.pid for worker in after.workers} and after.is_ready


def test_apply_of_a_second_worker_changes_the_batching(one: ManagementClient) -> None:
    one.apply(TWO)

    assert described(one).batching == "dynamic"


def test_failed_apply_restores_the_old_settings(server: ServerConfig, management: ManagementClient) -> None:
    management.register(TWO)
    refuse(server, 64)

    with pytest.raises(ChangeFailed, match=r"batch size 64 does not fit in memory.*serves again with 2 workers"):
        management.apply(replace(ONE, batch_size=64))

    assert (described(management).settings, described(management).is_ready) == (TWO, True)
    assert answer_of(server) == "hello"


def test_failed_scale_leaves_the_old_workers(server: ServerConfig, management: ManagementClient) -> None:
    management.register(TWO)
    before = described(management).workers
    refuse(server, 1)

    with pytest.raises(ChangeFailed, match=r"does not fit in memory.*serves on with 2 workers"):
        management.scale(3)

    wait_until(lambda: described(management).is_ready, timeout=120, what="two workers as before")
    assert {worker.pid for worker in described(management).workers} == {worker.pid for worker in before}


def test_scale_refuses_a_second_worker_for_continuous_batching(one: ManagementClient) -> None:
    with pytest.raises(ChangeFailed, match="one worker only"):
        one.scale(2)


def test_apply_without_a_model_says_to_register(management: ManagementClient) -> None:
    with pytest.raises(ChangeFailed, match="press Register Llama2"):
        management.apply(ONE)


def test_missing_archive_is_named_and_the_model_serves_on(server: ServerConfig, one: ManagementClient) -> None:
    archive = server.model_store / "llamacpp-dynamic.tar.gz"
    hidden = archive.rename(archive.with_suffix(".hidden"))
    try:
        with pytest.raises(ChangeFailed, match=r"llamacpp-dynamic\.tar\.gz is missing .*package_llama\.sh"):
            one.apply(TWO)
    finally:
        hidden.rename(archive)

    assert described(one).is_ready


def test_killed_worker_is_reported_and_restarted(server: ServerConfig, one: ManagementClient) -> None:
    pid = described(one).workers[0].pid

    psutil.Process(pid).kill()

    wait_until(lambda: not described(one).is_ready, what="the killed worker is shown")
    wait_until(lambda: described(one).is_ready, 60, "a new worker")
    assert described(one).workers[0].pid != pid
    assert answer_of(server) == "hello"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(replace(ONE, batch_size=0), id="batch-size-0"),
        pytest.param(replace(ONE, max_batch_delay_ms=-1), id="negative-delay"),
        pytest.param(replace(ONE, workers=5), id="five-workers"),
    ],
)
def test_settings_out_of_bounds_are_refused(management: ManagementClient, settings: ServingSettings) -> None:
    with pytest.raises(InvalidParameter):
        management.register(settings)


@pytest.mark.parametrize("workers", [pytest.param(1, id="continuous"), pytest.param(2, id="dynamic")])
def test_batch_size_of_one_does_not_wait_for_its_batch(
    server: ServerConfig, management: ManagementClient, workers: int
) -> None:
    management.register(ServingSettings(batch_size=1, max_batch_delay_ms=10_000, workers=workers))
    begun = time.monotonic()

    assert answer_of(server) == "hello"

    assert time.monotonic() - begun < 10


def test_only_one_program_changes_the_model_at_a_time(server: ServerConfig, one: ManagementClient) -> None:
    with (
        file_lock(server.logs / "change.lock", 0),
        pytest.raises(ChangeFailed, match="Another page or program is changing the model"),
    ):
        one.apply(replace(ONE, batch_size=2))

    assert described(one).settings == ONE


def test_archive_with_another_name_is_served(server: ServerConfig, one: ManagementClient) -> None:
    shutil.copyfile(server.model_store / "llamacpp.tar.gz", server.model_store / "mine.tar.gz")

    one.apply(ONE, "mine.tar.gz")

    assert (described(one).archive, described(one).is_ready) == ("mine.tar.gz", True)
    one.apply(ONE)
    assert described(one).archive == "llamacpp.tar.gz"


# The state.


def test_model_whose_workers_cannot_load_any_more_has_failed(server: ServerConfig, one: ManagementClient) -> None:
    assert (one.state().state, described(one).phase) == ("up", "ready")
    refuse(server, 1)
    log_end = (server.logs / "model_log.log").stat().st_size

    psutil.Process(described(one).workers[0].pid).kill()

    causes = wait_until(lambda: worker_exceptions(server, log_end), 120, "the new worker's failure")
    assert "batch size 4 does not fit in memory" in causes[0]
    wait_until(lambda: described(one).phase == "failed", 60, "its end")


def test_server_that_refuses_our_key_is_unhealthy(server: ServerConfig, one: ManagementClient) -> None:
    keys = key_file(server).read_text()
    wrong = {name: entry | {"key": "wrong"} for name, entry in json.loads(keys).items()}
    key_file(server).write_text(json.dumps(wrong))
    try:
        view = one.state()
    finally:
        key_file(server).write_text(keys)

    assert (view.state, view.model) == ("unhealthy", None)
    assert "refused the key" in view.problem


def test_server_that_does_not_answer_is_starting_and_later_unhealthy(
    server: ServerConfig, one: ManagementClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = find_server(server)
    assert process
    process.suspend()
    try:
        monkeypatch.setattr(status, "START_SECONDS", 1e9)
        assert one.state().state == "starting"
        monkeypatch.setattr(status, "START_SECONDS", 0.0)
        view = one.state()
    finally:
        process.resume()

    assert view.state == "unhealthy" and f"(process {process.pid}) runs but does not answer" in view.problem


def test_server_that_is_not_there_is_down(tmp_path: Path) -> None:
    view = ManagementClient(make_home(tmp_path)).state()

    assert (view.state, view.model, view.problem) == ("down", None, "")


# Keys. Their expiry is tested in test_keys.py.


def keys_in(server: ServerConfig) -> list[str]:
    return [entry["key"] for entry in json.loads(key_file(server).read_text()).values()]


def test_refused_request_shows_no_key(server: ServerConfig, management: ManagementClient) -> None:
    with pytest.raises(RequestRefused) as refused:
        list(InferenceClient(server).complete("hello", SamplingParams()))

    shown = f"{refused.value!r} {refused.value} {InferenceClient(server)!r} {management!r} {server!r}"
    assert not [key for key in keys_in(server) if key in shown]


def test_logs_hold_requests_but_no_key(server: ServerConfig, one: ManagementClient) -> None:
    answer_of(server)
    logs = "".join(file.read_text() for file in Path(server.logs).glob("*.log"))

    assert "POST /predictions/llamacpp" in logs
    assert not [key for key in keys_in(server) if key in logs]


def test_server_without_tokens_needs_no_key(tmp_path: Path) -> None:
    config = make_home(tmp_path, disable_token_authorization="true")
    write_echo_archives(config)
    with running_server(config):
        ManagementClient(config).register(ONE)

        assert answer_of(config) == "hello"
        assert not key_file(config).exists()
