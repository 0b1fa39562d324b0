"""What the settings cost, in words, from what was measured."""

from dataclasses import replace

import pytest

from apps.dashboard.serving_costs import WORKER_BYTES, Memory, batch_size_cost, delay_cost, worker_memory, workers_cost
from torchserve_client.status import ModelStatus, ServingSettings, WorkerStatus

MB = 2**20
SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1)


def served(memory_bytes: int) -> ModelStatus:
    worker = WorkerStatus("9000", 1, "READY", is_alive=True, memory_bytes=memory_bytes, started=None)
    return ModelStatus("llamacpp", "1.0", "llamacpp.tar.gz", SETTINGS, "continuous", (worker,), 0, 256, {})


def test_memory_is_measured_from_a_running_worker() -> None:
    memory = worker_memory(served(WORKER_BYTES + 900 * MB), model_bytes=100 * MB, meta=None)

    assert memory == Memory(WORKER_BYTES + 100 * MB, 100 * MB, is_measured=True)
    assert memory.of_worker(batch_size=2) == WORKER_BYTES + 300 * MB


@pytest.mark.parametrize(("used", "fixed"), [(700 * MB, WORKER_BYTES + 300 * MB), (5000 * MB, 4200 * MB)])
def test_memory_includes_what_a_new_worker_does_not_use_yet(used: int, fixed: int) -> None:
    meta = {"memory_bytes": {"weights": 100 * MB, "kv_cache": 800 * MB, "saved_sequences": 200 * MB}}

    assert worker_memory(served(used), 100 * MB, meta) == Memory(fixed, 100 * MB, is_measured=True)


def test_memory_of_a_model_that_does_not_run_is_the_least_it_can_be() -> None:
    assert worker_memory(None, 100 * MB, meta=None) == Memory(WORKER_BYTES + 100 * MB, 0, is_measured=False)


def test_workers_say_what_each_needs_and_why_the_batching_changes() -> None:
    memory = Memory(400 * MB, 100 * MB, is_measured=True)

    assert workers_cost(SETTINGS, memory, 5000 * MB).startswith("Each worker needs about 1,200 MB; 5,000 MB are free.")
    assert "batches continuously" in workers_cost(SETTINGS, memory, 0)
    assert "because TorchServe's continuous batching freezes" in workers_cost(replace(SETTINGS, workers=2), memory, 0)
    assert "at least" in workers_cost(SETTINGS, replace(memory, is_measured=False), 0)


def test_batch_size_says_what_its_contexts_take() -> None:
    memory = Memory(400 * MB, 100 * MB, is_measured=True)

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
