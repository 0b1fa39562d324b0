"""The memory of a worker, from its use now and from the model's description of itself."""

import pytest

from torchserve_client.status import ModelStatus, ServingSettings, WorkerStatus
from torchserve_client.worker_memory import EMPTY_WORKER_BYTES, WorkerMemory, worker_memory

MB = 2**20
SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1)
DESCRIPTION = {"memory_bytes": {"weights": 100 * MB, "kv_cache": 800 * MB, "saved_sequences": 200 * MB}}


def served(memory_bytes: int) -> ModelStatus:
    worker = WorkerStatus("9000", 1, "READY", is_alive=True, is_paused=False, memory_bytes=memory_bytes, started=None)
    return ModelStatus("llamacpp", "1.0", "llamacpp.tar.gz", SETTINGS, "continuous", (worker,), 0, {})


def test_growth_is_not_taken_for_contexts_before_the_model_has_described_itself() -> None:
    memory = worker_memory(served(EMPTY_WORKER_BYTES + 900 * MB), model_bytes=100 * MB, meta=None)

    assert memory == WorkerMemory(EMPTY_WORKER_BYTES + 900 * MB, 0, is_complete=False)


def test_memory_of_a_model_without_a_description_is_the_measured_use() -> None:
    assert worker_memory(served(704 * MB), None, meta={}).of_another(batch_size=8) == 704 * MB


@pytest.mark.parametrize(("used", "fixed"), [(700 * MB, EMPTY_WORKER_BYTES + 300 * MB), (5000 * MB, 4200 * MB)])
def test_memory_includes_what_a_new_worker_does_not_use_yet(used: int, fixed: int) -> None:
    memory = worker_memory(served(used), 100 * MB, DESCRIPTION)

    assert memory == WorkerMemory(fixed, 100 * MB, mapped_bytes=100 * MB)
    assert memory.of_first(batch_size=8) == fixed + 800 * MB


@pytest.mark.parametrize(("used", "another"), [(700 * MB, EMPTY_WORKER_BYTES + 1000 * MB), (5000 * MB, 4900 * MB)])
def test_another_worker_needs_no_second_copy_of_the_mapped_file(used: int, another: int) -> None:
    assert worker_memory(served(used), None, DESCRIPTION).of_another(batch_size=8) == another


def test_memory_of_a_model_that_does_not_run_is_the_least_it_can_be() -> None:
    least = WorkerMemory(EMPTY_WORKER_BYTES + 100 * MB, 0, is_complete=False)
    assert worker_memory(None, 100 * MB, meta=None) == least
