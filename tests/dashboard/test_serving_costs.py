"""What the settings cost, in words."""

from dataclasses import replace

import pytest

from apps.dashboard.serving_costs import batch_size_cost, delay_cost, workers_cost
from torchserve_client.status import ServingSettings
from torchserve_client.worker_memory import WorkerMemory

MB = 2**20
SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1)


def test_workers_say_what_each_needs_and_why_the_batching_changes() -> None:
    memory = WorkerMemory(400 * MB, 100 * MB)

    assert workers_cost(SETTINGS, memory, 5000 * MB).startswith("Each worker needs about 1,200 MB; 5,000 MB are free.")
    assert "batches continuously" in workers_cost(SETTINGS, memory, 0)
    assert "because TorchServe's continuous batching freezes" in workers_cost(replace(SETTINGS, workers=2), memory, 0)
    assert "at least" in workers_cost(SETTINGS, replace(memory, is_measured=False), 0)


def test_several_workers_map_the_models_file_once() -> None:
    memory = WorkerMemory(400 * MB, 100 * MB, mapped_bytes=150 * MB)

    sentence = workers_cost(replace(SETTINGS, workers=2), memory, 5000 * MB)

    assert sentence.startswith("The first worker needs about 1,200 MB, each other one 1,050 MB, because they share")
    assert workers_cost(SETTINGS, memory, 0).startswith("Each worker needs about 1,200 MB")


def test_batch_size_says_what_its_contexts_take() -> None:
    memory = WorkerMemory(400 * MB, 100 * MB)

    assert "about 800 MB" in batch_size_cost(SETTINGS, memory)
    assert "One request at a time" in batch_size_cost(replace(SETTINGS, batch_size=1), memory)


@pytest.mark.parametrize(
    ("batch_size", "delay", "sentence"),
    [
        pytest.param(8, 0, "Requests are not delayed to fill a batch.", id="none"),
        pytest.param(8, 50, "Adds up to 50 ms to the first token of a lone request.", id="some"),
        pytest.param(1, 50, "Has no effect with a batch size of 1: one request fills the batch.", id="alone"),
    ],
)
def test_delay_says_what_it_adds(batch_size: int, delay: int, sentence: str) -> None:
    assert delay_cost(ServingSettings(batch_size, delay, 1)) == sentence
