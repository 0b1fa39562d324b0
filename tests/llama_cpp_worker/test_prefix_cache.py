"""Which computed prefix a prompt starts from, and what is kept when a slot is needed for something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.prefix_cache import LEAST_TAKEN, KVCache, common_prefix
from tests.support.scripted_model import ScriptedModel

LONG = list(range(100))


def fill(cache: KVCache, model: ScriptedModel, slot: int, tokens: list[int]) -> None:
    """As if `tokens` had been decoded in a slot."""
    cache.clear(slot)
    model.cache[slot] = list(tokens)
    cache.extend(slot, tokens)


def make(n_slots: int = 2, n_saved_bytes: int = 0) -> tuple[KVCache, ScriptedModel]:
    model = ScriptedModel(n_slots=n_slots)
    return KVCache(model, n_saved_bytes), model


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_prefix_is_what_both_begin_with(first: list[int], second: list[int]) -> None:
    length = common_prefix(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_the_next_turn_keeps_what_its_slot_has() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.claim(0, [*LONG, 500, 501]) == len(LONG)
    assert model.cache[0] == LONG


def test_another_slot_takes_over_a_shared_beginning_and_leaves_the_source_alone() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.claim(1, [*LONG[:40], 500]) == 40
    assert model.cache == {0: LONG, 1: LONG[:40]}


def test_the_last_prompt_token_is_always_left_to_decode() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.claim(0, LONG) == len(LONG) - 1
    assert cache.claim(1, LONG[:50]) == 49


def test_a_beginning_too_short_to_be_worth_it_is_not_taken() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    assert cache.claim(1, [*LONG[: LEAST_TAKEN - 1], 500]) == 0
    assert model.cache[1] == []


@pytest.mark.parametrize(("n_saved_bytes", "kept"), [(0, 0), (150, 99)], ids=["no memory", "memory"])
def test_a_conversation_that_loses_its_slot_is_kept_as_far_as_memory_goes(n_saved_bytes: int, kept: int) -> None:
    cache, model = make(n_slots=1, n_saved_bytes=n_saved_bytes)
    fill(cache, model, 0, LONG)
    cache.claim(0, [900, 901])
    cache.extend(0, [900, 901])
    assert cache.claim(0, LONG) == kept


def test_the_oldest_conversation_outside_makes_room_first() -> None:
    cache, model = make(n_slots=1, n_saved_bytes=120)
    first, second = LONG[:60], [value + 1000 for value in LONG[:60]]
    third = [value + 2000 for value in LONG[:60]]
    for tokens in (first, second, third, [9] * 30):
        cache.claim(0, [*tokens, 1])
        fill_from = len(model.cache[0])
        model.cache[0] = list(tokens)
        cache.extend(0, tokens[fill_from:])
    assert cache.length_known([*first, 1]) == 0
    assert cache.length_known([*second, 1]) == 60
    assert cache.length_known([*third, 1]) == 60


def test_moving_a_sequence_keeps_it_and_what_was_in_its_way() -> None:
    cache, model = make(n_slots=3, n_saved_bytes=1000)
    other = [value + 1000 for value in LONG]
    fill(cache, model, 2, LONG)
    fill(cache, model, 0, other)
    cache.move(2, 0)
    assert (model.cache[0], model.cache[2]) == (LONG, [])
    assert cache.length_known([*other, 1]) == len(other)


def test_a_cleared_slot_offers_nothing() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    cache.clear(0)
    assert cache.length_known(LONG) == 0
    assert cache.n_tokens == 0
