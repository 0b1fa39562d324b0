"""Which computed prefix a prompt reuses, and which sequences are saved when their slot is reassigned."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.prefix_cache import MIN_SHARED_PREFIX_TOKENS, PrefixCache, common_prefix_length
from tests.support.scripted_model import ScriptedModel

LONG = list(range(100))


def fill(cache: PrefixCache, model: ScriptedModel, slot: int, tokens: list[int]) -> None:
    """As if `tokens` had been decoded in a slot."""
    cache.clear(slot)
    model.cache[slot] = list(tokens)
    cache.append(slot, tokens)


def make(n_slots: int = 2, n_saved_bytes: int = 0) -> tuple[PrefixCache, ScriptedModel]:
    model = ScriptedModel(n_slots=n_slots)
    return PrefixCache(model, n_saved_bytes), model


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_the_common_prefix_is_what_both_begin_with(first: list[int], second: list[int]) -> None:
    length = common_prefix_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_the_next_turn_reuses_the_sequence_in_its_slot() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.assign_prefix(0, [*LONG, 500, 501]) == len(LONG)
    assert model.cache[0] == LONG


def test_another_slot_gets_a_copy_of_a_shared_prefix() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.assign_prefix(1, [*LONG[:40], 500]) == 40
    assert model.cache == {0: LONG, 1: LONG[:40]}


def test_the_last_prompt_token_is_never_reused() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.assign_prefix(0, LONG) == len(LONG) - 1
    assert cache.assign_prefix(1, LONG[:50]) == 49


def test_a_prefix_that_is_too_short_is_not_copied() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.assign_prefix(1, [*LONG[: MIN_SHARED_PREFIX_TOKENS - 1], 500]) == 0
    assert model.cache[1] == []


@pytest.mark.parametrize(("n_saved_bytes", "reused"), [(0, 0), (150, 99)], ids=["no memory", "memory"])
def test_a_sequence_that_loses_its_slot_is_saved_if_memory_allows(n_saved_bytes: int, reused: int) -> None:
    cache, model = make(n_slots=1, n_saved_bytes=n_saved_bytes)
    fill(cache, model, 0, LONG)
    cache.assign_prefix(0, [900, 901])
    cache.append(0, [900, 901])
    assert cache.assign_prefix(0, LONG) == reused


def test_the_oldest_saved_sequence_is_evicted_first() -> None:
    cache, model = make(n_slots=1, n_saved_bytes=120)
    first, second = LONG[:60], [value + 1000 for value in LONG[:60]]
    third = [value + 2000 for value in LONG[:60]]
    for tokens in (first, second, third, [9] * 30):
        cache.assign_prefix(0, [*tokens, 1])
        fill_from = len(model.cache[0])
        model.cache[0] = list(tokens)
        cache.append(0, tokens[fill_from:])
    assert cache.cached_prefix_length([*first, 1]) == 0
    assert cache.cached_prefix_length([*second, 1]) == 60
    assert cache.cached_prefix_length([*third, 1]) == 60


def test_moving_a_sequence_saves_the_old_one_of_its_new_slot() -> None:
    cache, model = make(n_slots=3, n_saved_bytes=1000)
    other = [value + 1000 for value in LONG]
    fill(cache, model, 2, LONG)
    fill(cache, model, 0, other)
    cache.move(2, 0)
    assert (model.cache[0], model.cache[2]) == (LONG, [])
    assert cache.cached_prefix_length([*other, 1]) == len(other)


def test_nothing_of_a_cleared_slot_is_reused() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    cache.clear(0)
    assert cache.cached_prefix_length(LONG) == 0
    assert cache.n_tokens == 0
