"""What the settings cost, in words. The memory is that of full slots."""

from dataclasses import replace

import pytest

from apps.dashboard.serving_costs import batch_size_cost, delay_cost, workers_cost
from torchserve_client.status import ServingSettings
from torchserve_client.worker_memory import WorkerMemory

MB = 2**20
SETTINGS = ServingSettings(batch_size=8, max_batch_delay_ms=50, workers=1)
MEMORY = WorkerMemory(400 * MB, 100 * MB, mapped_bytes=150 * MB, window=4096)


def test_workers_say_what_they_need_with_full_slots_and_why_the_batching_changes() -> None:
    one = workers_cost(SETTINGS, MEMORY, 5000 * MB)
    two = workers_cost(replace(SETTINGS, workers=2), MEMORY, 5000 * MB)

    assert one.line == "1,200 of 5,000 MB with full slots"
    assert one.help.startswith("Each worker needs about 1,200 MB with full slots. One worker batches continuously")
    assert two.line == "2,250 of 5,000 MB with full slots"
    assert two.help.startswith(
        "The first worker needs about 1,200 MB with full slots, each other one 1,050 MB, because they share"
    )
    assert "because TorchServe's continuous batching freezes" in two.help


def test_memory_is_a_lower_bound_until_the_model_has_reported_its_own() -> None:
    cost = workers_cost(SETTINGS, WorkerMemory(400 * MB, 0, is_complete=False), 5000 * MB)

    assert cost.line == "at least 400 of 5,000 MB"
    assert "when it has been loaded" in cost.help


def test_settings_that_do_not_fit_are_red() -> None:
    assert workers_cost(SETTINGS, MEMORY, 1100 * MB).line.startswith(":red[")


def test_batch_size_says_what_its_contexts_take() -> None:
    assert batch_size_cost(SETTINGS, MEMORY).line == "Full contexts: 800 MB a worker"
    assert "a slot with a context of 4,096 tokens, which takes 100 MB." in batch_size_cost(SETTINGS, MEMORY).help
    assert "One request at a time" in batch_size_cost(replace(SETTINGS, batch_size=1), MEMORY).help
    assert batch_size_cost(SETTINGS, WorkerMemory(MB, 0)).line == "8 requests a worker at once"


@pytest.mark.parametrize(
    ("batch_size", "delay", "line"),
    [
        pytest.param(8, 0, "No request waits for a batch to fill", id="none"),
        pytest.param(8, 50, "Up to 50 ms more for a lone request", id="some"),
        pytest.param(1, 50, "No effect with a batch size of 1", id="alone"),
    ],
)
def test_delay_says_what_it_adds(batch_size: int, delay: int, line: str) -> None:
    assert delay_cost(ServingSettings(batch_size, delay, 1)).line == line
