"""Changes while the real model answers: requests in progress finish, or are cut after a cancelled wait."""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.serving import make_home, running_server, wait_until
from tests.support.wire import Stream, chat_body, post
from torchserve_client.config import ServerConfig
from torchserve_client.drain import DrainPolicy, RequestCounts
from torchserve_client.management import ChangeFailed, ManagementClient
from torchserve_client.metrics import ARRIVED, scrape
from torchserve_client.running_server import find_server
from torchserve_client.status import ModelStatus, ServingSettings

ONE = ServingSettings(batch_size=2, max_batch_delay_ms=0, workers=1)
TWO = ServingSettings(batch_size=1, max_batch_delay_ms=0, workers=2)
NO_WAIT = DrainPolicy(seconds=0.0)


@pytest.fixture(scope="module")
def busy_server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    config = make_home(tmp_path_factory.mktemp("traffic"), model_store=demo_store)
    with running_server(config):
        yield config


@pytest.fixture
def management(busy_server: ServerConfig) -> ManagementClient:
    """The model serves with ONE."""
    client = ManagementClient(busy_server)
    if client.describe():
        client.apply(ONE)
    else:
        client.register(ONE)
    return client


def described(management: ManagementClient) -> ModelStatus:
    status = management.describe()
    assert status is not None
    return status


def question(tokens: int) -> dict[str, Any]:
    return chat_body("Tell me a story.", max_tokens=tokens, ignore_eos=True)


def send_questions(config: ServerConfig, tokens: int, times: int) -> list[Stream]:
    """Sends that many requests for answers of that many tokens, and waits until all have arrived."""
    before = scrape(config).total(ARRIVED)
    streams = [Stream(config, question(tokens)).start() for _ in range(times)]
    wait_until(lambda: scrape(config).total(ARRIVED) == before + times, what="the arrival of all")
    return streams


def test_apply_lets_running_and_waiting_requests_finish(
    busy_server: ServerConfig, management: ManagementClient
) -> None:
    streams = send_questions(busy_server, tokens=60, times=3)  # two slots: one request waits
    sentences: list[str] = []

    management.apply(replace(ONE, batch_size=3), drain_policy=DrainPolicy(on_drain=sentences.append))

    assert [(stream.finish().is_done, stream.failure) for stream in streams] == [(True, None)] * 3
    assert described(management).settings.batch_size == 3
    assert sentences[0].startswith("Letting ")


def test_prompt_in_prefill_counts_as_running(busy_server: ServerConfig, management: ManagementClient) -> None:
    arrived = scrape(busy_server).total(ARRIVED)
    stream = Stream(busy_server, chat_body("word " * 1000, max_tokens=4)).start()
    wait_until(lambda: scrape(busy_server).total(ARRIVED) > arrived, what="the request's arrival")

    management.apply(replace(ONE, batch_size=3))

    assert stream.finish().is_done


def test_new_requests_are_served_while_others_finish(busy_server: ServerConfig, management: ManagementClient) -> None:
    send_questions(busy_server, tokens=200, times=1)
    is_draining = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        drain_policy = DrainPolicy(on_drain=lambda sentence: is_draining.set())
        change = pool.submit(management.apply, replace(ONE, batch_size=3), drain_policy=drain_policy)
        assert is_draining.wait(60)

        assert post(busy_server, {"prompt": "Hello", "max_tokens": 3}).status_code == 200
        assert not change.done()


def test_request_that_does_not_finish_in_time_is_cut(busy_server: ServerConfig, management: ManagementClient) -> None:
    streams = send_questions(busy_server, tokens=5000, times=3)
    wait_until(lambda: any(stream.text for stream in streams), what="the first text")
    skip = threading.Event()

    policy = DrainPolicy(is_cancelled=skip.is_set, on_drain=lambda sentence: skip.set())
    management.apply(replace(ONE, batch_size=3), drain_policy=policy)

    assert [stream.finish().is_done for stream in streams] == [False] * 3
    assert all(stream.failure for stream in streams)
    assert described(management).settings.batch_size == 3 and described(management).is_ready


def test_unregister_waits_and_leaves_no_worker(busy_server: ServerConfig, management: ManagementClient) -> None:
    (stream,) = send_questions(busy_server, tokens=60, times=1)

    management.unregister()

    assert stream.finish().is_done and management.describe() is None
    server = find_server(busy_server)
    assert server
    wait_until(lambda: not server.children(recursive=True), what="no worker")


def test_worker_ends_only_when_it_is_idle(busy_server: ServerConfig, management: ManagementClient) -> None:
    management.apply(TWO)
    streams = send_questions(busy_server, tokens=200, times=2)
    wait_until(lambda: all(stream.text for stream in streams), what="two workers at work")

    with pytest.raises(ChangeFailed, match=r"still busy.*serves on with 2 workers"):
        management.scale(1, NO_WAIT)
    assert described(management).ready_workers == 2
    management.scale(1)

    assert [(stream.finish().is_done, stream.failure) for stream in streams] == [(True, None)] * 2
    assert described(management).ready_workers == 1


def test_request_counts_are_running_and_waiting_requests(
    busy_server: ServerConfig, management: ManagementClient
) -> None:
    streams = send_questions(busy_server, tokens=5000, times=5)

    wait_until(
        lambda: RequestCounts.of(described(management), scrape(busy_server)) == RequestCounts(waiting=3, running=2),
        what="two running and three waiting",
    )

    for stream in streams:
        stream.wait_for_text().hang_up() if stream.text else None
    management.unregister(NO_WAIT)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a running process")
def test_batch_size_that_needs_too_much_memory_restores_the_old_settings(
    busy_server: ServerConfig, management: ManagementClient
) -> None:
    import resource

    server = find_server(busy_server)
    assert server
    allowed = described(management).workers[0].memory_bytes + 2 * 2**30
    before = server.rlimit(resource.RLIMIT_DATA)
    server.rlimit(resource.RLIMIT_DATA, (allowed, before[1]))  # its next workers inherit that
    try:
        with pytest.raises(
            ChangeFailed, match=r"(no memory for|KV caches of) 128 sequences.*serves again with 1 worker, batch size 2"
        ):
            management.apply(replace(ONE, batch_size=128))
    finally:
        server.rlimit(resource.RLIMIT_DATA, before)

    assert (described(management).settings, described(management).is_ready) == (ONE, True)
    assert post(busy_server, {"prompt": "Hello", "max_tokens": 3}).status_code == 200
