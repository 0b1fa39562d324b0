"""Two versions of the model on a real TorchServe: switching the default version, going back, and failures."""

import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llama_cpp_worker.sampling_params import SamplingParams
from tests.support.serving import make_home, running_server, wait_until, write_echo_archives
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.drain import DrainPolicy
from torchserve_client.http import RequestRefused, fetch
from torchserve_client.inference import InferenceClient
from torchserve_client.keys import Keys
from torchserve_client.management import ArchiveMissing, ChangeFailed, ManagementClient
from torchserve_client.metrics import ARRIVED, scrape
from torchserve_client.status import ServingSettings

ONE = ServingSettings(batch_size=4, max_batch_delay_ms=10, workers=1)
TWO = replace(ONE, workers=2)
NEW = "llamacpp-1.1.tar.gz"
OLD = "llamacpp.tar.gz"
PARAMS = SamplingParams()


def write_version(store: Path, source: str, target: str, version: str) -> None:
    """An echo archive whose answers begin with its version. It computes for as many seconds as "wait 2" says."""
    with tarfile.open(store / source) as archive, tarfile.open(store / target, "w:gz") as made:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            content = file.read() if file else b""
            if entry.name.endswith("MANIFEST.json"):
                content = content.replace(b'"modelVersion": "1.0"', b'"modelVersion": "%s"' % version.encode())
            if entry.name.endswith("_handler.py"):
                content = content.replace(b'{"text": body["prompt"],', b'{"text": VERSION + spoken(body["prompt"]),')
                content = CHATTY.replace(b"VERSION_HERE", version.encode()) + content
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))


CHATTY = b"""
import time
VERSION = "VERSION_HERE "
def spoken(prompt):
    if prompt.startswith("wait "):
        end = time.monotonic() + float(prompt.split()[1])
        while time.monotonic() < end:
            pass
    return prompt
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """Its store has the versions 1.0 and 1.1, each with its twin."""
    config = make_home(tmp_path_factory.mktemp("versions"))
    write_echo_archives(config)
    for ending in (".tar.gz", "-dynamic.tar.gz"):
        write_version(config.model_store, f"llamacpp{ending}", f"llamacpp-1.1{ending}", "1.1")
        write_version(config.model_store, f"llamacpp{ending}", "made", "1.0")
        (config.model_store / "made").replace(config.model_store / f"llamacpp{ending}")
    with running_server(config):
        yield config


@pytest.fixture
def management(server: ServerConfig) -> Iterator[ManagementClient]:
    """Version 1.0 serves with ONE."""
    client = ManagementClient(server)
    if [each.version for each in client.registered()] != ["1.0"]:
        client.unregister()
        client.register(ONE)
    client.apply(ONE)
    yield client
    (server.home / "refuse_batch_size").unlink(missing_ok=True)


def complete(server: ServerConfig, prompt: str = "hello") -> str:
    return "".join(event.text for event in InferenceClient(server).complete(prompt, PARAMS))


def registered(management: ManagementClient) -> list[tuple[str, str, bool]]:
    return [(each.version, each.archive, each.is_ready) for each in management.registered()]


def test_another_version_becomes_the_default_and_the_first_one_again(
    server: ServerConfig, management: ManagementClient
) -> None:
    assert complete(server) == "1.0 hello"

    management.make_default(NEW)

    assert complete(server) == "1.1 hello"
    assert registered(management) == [("1.1", NEW, True)]
    assert management.registered()[0].settings == ONE
    management.make_default(OLD)
    assert complete(server) == "1.0 hello"
    assert registered(management) == [("1.0", OLD, True)]


def test_two_workers_are_two_workers_of_the_other_versions_twin(
    server: ServerConfig, management: ManagementClient
) -> None:
    management.apply(TWO)

    management.make_default(NEW)

    assert registered(management) == [("1.1", "llamacpp-1.1-dynamic.tar.gz", True)]
    assert management.registered()[0].settings == TWO
    assert complete(server) == "1.1 hello"
    management.make_default(OLD)
    assert registered(management) == [("1.0", "llamacpp-dynamic.tar.gz", True)]


def test_no_request_is_refused_during_a_switch(server: ServerConfig, management: ManagementClient) -> None:
    is_cancelled, answers, errors = threading.Event(), [], []

    def complete_again_and_again() -> None:
        while not is_cancelled.is_set():
            try:
                answers.append(complete(server))
            except TorchServeError as error:
                errors.append(error)

    requesting = threading.Thread(target=complete_again_and_again)
    requesting.start()
    try:
        wait_until(lambda: answers, what="the first answer")
        management.make_default(NEW)
        answered = len(answers)
        wait_until(lambda: len(answers) > answered + 1, what="an answer of the new version")
    finally:
        is_cancelled.set()
        requesting.join()

    assert errors == []
    assert (answers[0], answers[-1]) == ("1.0 hello", "1.1 hello")
    assert answers == sorted(answers)  # never back to the old one


def test_request_in_progress_on_the_old_version_is_answered(server: ServerConfig, management: ManagementClient) -> None:
    answers: list[str] = []
    before = scrape(server).total(ARRIVED)
    requesting = threading.Thread(target=lambda: answers.append(complete(server, "wait 8")))
    requesting.start()
    wait_until(lambda: scrape(server).total(ARRIVED) > before, what="the request's arrival")

    management.make_default(NEW)

    requesting.join()
    assert answers == ["1.0 wait 8"]


def test_old_version_that_stays_busy_stays_registered_and_can_be_ended(
    server: ServerConfig, management: ManagementClient
) -> None:
    management.make_default(NEW, DrainPolicy(seconds=0))

    assert [each.version for each in management.registered()] == ["1.1", "1.0"]
    assert (complete(server), management.describe().version) == ("1.1 hello", "1.1")  # type: ignore[union-attr]
    management.end_version("1.0")
    assert [each.version for each in management.registered()] == ["1.1"]


def test_version_that_is_still_loaded_is_loaded_anew(server: ServerConfig, management: ManagementClient) -> None:
    management.make_default(NEW, DrainPolicy(seconds=0))

    management.make_default(OLD)

    assert registered(management) == [("1.0", OLD, True)]
    assert complete(server) == "1.0 hello"


def test_unregistering_ends_every_version(server: ServerConfig, management: ManagementClient) -> None:
    management.make_default(NEW, DrainPolicy(seconds=0))

    management.unregister()

    assert management.registered() == ()
    with pytest.raises(RequestRefused, match="not registered"):
        complete(server)


def test_version_that_cannot_be_loaded_leaves_the_old_one_serving(
    server: ServerConfig, management: ManagementClient
) -> None:
    before = management.registered()[0].workers
    (server.home / "refuse_batch_size").write_text("1")

    with pytest.raises(ChangeFailed, match=r"does not fit in memory.*Version 1\.0 serves on with 1 worker"):
        management.make_default(NEW)

    assert [worker.pid for worker in management.registered()[0].workers] == [worker.pid for worker in before]
    assert registered(management) == [("1.0", OLD, True)]
    assert complete(server) == "1.0 hello"


def test_without_memory_for_both_the_old_version_ends_first(
    server: ServerConfig, management: ManagementClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchserve_client.management.MIN_FREE_MEMORY_FACTOR", 10**9)
    sentences: list[str] = []

    management.make_default(NEW, DrainPolicy(on_progress=sentences.append, on_drain=lambda sentence: None))

    assert sentences[:2] == ["Ending the workers", f"Loading {NEW} with {ONE}"]
    assert registered(management) == [("1.1", NEW, True)]


def test_missing_archive_is_named_and_nothing_changes(server: ServerConfig, management: ManagementClient) -> None:
    with pytest.raises(ArchiveMissing, match=r"llamacpp-2\.0\.tar\.gz is missing"):
        management.make_default("llamacpp-2.0.tar.gz")

    assert registered(management) == [("1.0", OLD, True)]


def test_version_can_be_addressed_by_its_number(server: ServerConfig, management: ManagementClient) -> None:
    management.make_default(NEW)
    keys = Keys(server, "inference")
    url = f"{server.inference_url}/predictions/llamacpp"

    assert keys.use(lambda key: fetch("GET", f"{url}/1.1/v1/models", key, 10))["object"] == "list"
    with pytest.raises(RequestRefused, match=r"1\.0 does not exist"):
        keys.use(lambda key: fetch("GET", f"{url}/1.0/v1/models", key, 10))
