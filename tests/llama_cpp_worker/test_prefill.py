"""The plan of a prefill step, without an engine. How it serves requests is in test_engine.py."""

from collections.abc import Sequence

import pytest

from llama_cpp_worker.chunk_size import DEEP_TOKENS, MIN_DEEP_CHUNK_TOKENS
from llama_cpp_worker.prefill import PrefillPlanner
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams


def requests_of(lengths: Sequence[int], tokens_per_second: float | None = 10_000.0) -> list[Request]:
    """Requests in slots 0, 1, …; with the default speed, a step has time for every batch."""
    requests = [Request([0] * length, SamplingParams()) for length in lengths]
    for slot, request in enumerate(requests):
        request.slot, request.tokens_per_second = slot, tokens_per_second
    return requests


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([256, 256], [(0, 256), (1, 256)]),
        ([256, 256, 1], [(2, 1), (0, 256)]),  # the other 256 do not fit
        ([100, 200, 300], [(0, 100), (1, 200)]),
        ([700, 20], [(1, 20)]),  # a part of a prompt has a step of its own
        ([700], [(0, 512)]),
        ([513], [(0, 512)]),
    ],
    ids=repr,
)
def test_a_step_takes_as_many_whole_prompts_as_fit_the_batch(
    lengths: list[int], expected: list[tuple[int, int]]
) -> None:
    chunks = PrefillPlanner(n_batch=512, n_outputs=64).next_chunks(requests_of(lengths))
    assert [(chunk.slot, len(chunk.tokens)) for chunk in chunks] == expected
    assert [chunk.wants_logits for chunk in chunks] == [len(chunk.tokens) == lengths[chunk.slot] for chunk in chunks]


def test_prompts_with_log_probabilities_share_the_outputs_of_a_step() -> None:
    planner = PrefillPlanner(n_batch=512, n_outputs=64)
    requests = requests_of([40, 24, 30])
    for request in requests:
        request.prompt_logprobs = 0
    chunks = planner.next_chunks(requests)
    assert [(chunk.slot, len(chunk.tokens)) for chunk in chunks] == [(1, 24), (2, 30)]
    assert all(chunk.wants_all_logits for chunk in chunks)


def test_a_deep_prompt_of_unknown_speed_gets_the_smallest_chunk() -> None:
    (request,) = requests_of([4000], tokens_per_second=None)
    request.n_prefilled = DEEP_TOKENS
    planner = PrefillPlanner(n_batch=512, n_outputs=64)
    (chunk,) = planner.next_chunks([request])
    assert (chunk.position, len(chunk.tokens)) == (DEEP_TOKENS, MIN_DEEP_CHUNK_TOKENS)
    planner.note_speed([(request, chunk)], seconds=MIN_DEEP_CHUNK_TOKENS / 1000)
    (chunk,) = planner.next_chunks([request])
    assert len(chunk.tokens) == 384, "1,000 tokens a second for 0.4 s, in whole tiles of 64"
