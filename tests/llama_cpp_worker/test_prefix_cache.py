"""Which slot a prompt gets, which computed prefix it reuses, and which sequences are saved."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_cpp_worker.prefix_cache import MIN_SHARED_PREFIX_TOKENS, PrefixCache, common_prefix_length
from tests.support.scripted_model import ScriptedModel

LONG = list(range(100))
OTHER = list(range(1000, 1100))


def fill(cache: PrefixCache, model: ScriptedModel, slot: int, tokens: list[int]) -> None:
    """As if `tokens` had been decoded in a slot."""
    cache.forget(slot)
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


def test_the_state_of_a_saved_sequence_is_copied_only_if_it_fits() -> None:
    cache, model = make(n_slots=1, n_saved_bytes=99)
    fill(cache, model, 0, LONG)
    assert cache.assign_prefix(0, [900, 901]) == 0
    assert model.n_copies == 0


def test_saved_sequences_never_take_more_than_their_memory() -> None:
    cache, model = make(n_slots=1, n_saved_bytes=150)
    for start in range(0, 1000, 100):
        prompt = list(range(start, start + 100))
        fill(cache, model, 0, prompt)
        cache.assign_prefix(0, [5000, 5001])
        assert cache.used_bytes <= 150


# --- copies that pay


def test_a_short_head_of_a_long_sequence_is_computed_instead_of_copied() -> None:
    cache, model = make()
    fill(cache, model, 0, list(range(5000)))
    prompt = [*range(7), 9000, 9001]
    assert cache.assign_prefix(1, prompt) == 0  # 10,000 bytes at 1 MB/s take 10 ms, 7 tokens at 1,000/s 7 ms
    assert model.n_copies == 0
    assert cache.assign_prefix(1, [*range(50), 9000]) == 50


def test_of_two_sources_the_cheaper_one_is_copied() -> None:
    cache, model = make(n_slots=3)
    model.copied_bytes_per_second = 1e5
    fill(cache, model, 0, list(range(5000)))
    fill(cache, model, 1, [*range(60), 7000])
    assert cache.assign_prefix(2, [*range(62), 9000]) == 60


def test_hits_are_counted_by_the_source_of_the_prefix() -> None:
    cache, model = make(n_saved_bytes=1000)
    fill(cache, model, 0, LONG)
    cache.assign_prefix(0, [*LONG, 1])  # its own sequence
    cache.assign_prefix(1, [*LONG, 2])  # a copy of slot 0
    cache.forget(1)
    cache.assign_prefix(0, [900, 901])  # nothing is known of it; LONG is saved
    cache.assign_prefix(1, [*LONG, 3])
    assert cache.hits == {"own": 1, "copied": 1, "saved": 1, "none": 1}


# --- the slot of a new prompt


def test_a_prompt_gets_the_slot_of_its_own_conversation() -> None:
    cache, model = make(n_slots=4)
    fill(cache, model, 2, LONG)
    fill(cache, model, 1, [*LONG[:20], 700])
    assert cache.choose_slot([*LONG, 500], range(4)) == 2


def test_a_new_conversation_gets_an_empty_slot_although_others_share_its_head() -> None:
    cache, model = make(n_slots=4)
    fill(cache, model, 0, LONG)
    fill(cache, model, 1, [*LONG[:60], *range(700, 750)])
    assert cache.choose_slot([*LONG[:7], 900], range(4)) == 2
    assert cache.choose_slot([*LONG[:60], 900], range(4)) == 2  # would discard 40 tokens of slot 0
    assert cache.choose_slot([*LONG[:60], 900], [3, 2]) == 3


def test_without_an_empty_slot_the_least_recently_used_one_is_chosen() -> None:
    cache, model = make(n_slots=3)
    for slot in (1, 0, 2):
        fill(cache, model, slot, [slot * 1000 + value for value in LONG])
    cache.append(1, [5])
    assert cache.choose_slot([9, 9, 9], range(3)) == 0
    assert cache.choose_slot([9, 9, 9], [1, 2]) == 2
    cache.swap(0, 2)
    assert cache.choose_slot([9, 9, 9], range(3)) == 2


def test_an_edited_conversation_keeps_its_slot_if_none_is_empty() -> None:
    cache, model = make(n_slots=2)
    fill(cache, model, 0, OTHER)
    fill(cache, model, 1, LONG)
    assert cache.choose_slot([*LONG[:60], 900], range(2)) == 1


def test_a_shared_system_prompt_is_no_reason_to_overwrite_a_recent_conversation() -> None:
    cache, model = make(n_slots=3)
    for slot in (1, 0, 2):
        fill(cache, model, slot, [*LONG[:60], *range(slot * 1000, slot * 1000 + 50)])
    assert cache.choose_slot([*LONG[:60], 2000, 900], range(3)) == 1  # slot 2 shares 61 tokens


def test_a_slot_is_not_overwritten_by_a_better_prefix_from_elsewhere() -> None:
    cache, model = make(n_slots=3)
    fill(cache, model, 0, LONG)  # still running
    fill(cache, model, 1, LONG[:20])
    assert cache.choose_slot([*LONG, 500], [1, 2]) == 2


# --- swaps


def test_a_swap_loses_neither_sequence() -> None:
    cache, model = make(n_slots=3)
    fill(cache, model, 2, LONG)
    fill(cache, model, 0, OTHER)
    cache.swap(2, 0)
    cache.swap(2, 1)
    assert model.cache == {0: LONG, 1: OTHER, 2: []}
    assert cache.assign_prefix(1, [*OTHER, 1]) == len(OTHER)
    assert cache.swaps == 2


@pytest.mark.parametrize(
    ("sizes", "slots", "swaps"),
    [
        pytest.param([90, 0, 90], [0, 2], [(2, 1)], id="either may move"),
        pytest.param([90, 50, 10], [0, 2], [(2, 1)], id="the shorter one moves"),
        pytest.param([10, 80, 90, 90, 2], [0, 2, 3], [(0, 4)], id="not from the lowest"),
        pytest.param([10, 0, 10, 0, 90], [0, 2, 4], [(0, 3)], id="fewest tokens for three"),
        pytest.param([5, 5, 5], [0, 1], [], id="consecutive"),
    ],
)
def test_the_cheapest_swaps_join_slots(sizes: list[int], slots: list[int], swaps: list[tuple[int, int]]) -> None:
    cache, model = make(n_slots=len(sizes))
    for slot, size in enumerate(sizes):
        fill(cache, model, slot, LONG[:size])
    assert cache.due_swaps(slots) == swaps


def test_swaps_are_due_when_extra_passes_have_cost_as_much() -> None:
    cache, model = make(n_slots=3)
    for slot in (0, 2):
        fill(cache, model, slot, list(range(2000)))
    assert [bool(cache.due_swaps([0, 2])) for _ in range(4)] == [False, False, False, True]  # 4 ms of copies
    assert cache.due_swaps([0, 1]) == []
    assert cache.due_swaps([0, 2]) == []  # counted from the start again


# --- any sequence of operations

PROMPTS = st.lists(st.sampled_from([LONG[:40], LONG[40:80], OTHER[:35], [1], [2, 3]]), min_size=1, max_size=3).map(
    lambda parts: [token for part in parts for token in part] + [999]
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), PROMPTS, st.sets(st.integers(0, 3), min_size=1)),
        st.tuples(st.just("forget"), st.integers(0, 3)),
        st.tuples(st.just("swap"), st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.just("join"), st.sets(st.integers(0, 3), min_size=1)),
    ),
    max_size=30,
)


@given(OPERATIONS, st.sampled_from([0, 50, 200, 10_000]), st.sampled_from([1e3, 1e5, 1e6]))
def test_the_tokens_are_those_of_the_model_after_any_operations(
    operations: list[tuple[Any, ...]], n_saved_bytes: int, copied_bytes_per_second: float
) -> None:
    cache, model = make(n_slots=4, n_saved_bytes=n_saved_bytes)
    model.copied_bytes_per_second = copied_bytes_per_second
    for name, *arguments in operations:
        before = sorted(tuple(cache.tokens(slot)) for slot in range(4))
        if name == "start":
            prompt, free = arguments
            slot = cache.choose_slot(prompt, sorted(free))
            assert slot in free
            known = cache.cached_prefix_length(prompt)
            length = cache.assign_prefix(slot, prompt)
            assert length <= known < len(prompt)
            assert model.cache[slot] == prompt[:length], "the tokens in the slot are not those of the prompt"
            model.cache[slot] += prompt[length:]
            cache.append(slot, prompt[length:])
        elif name == "forget":
            cache.forget(arguments[0])
            assert not cache.tokens(arguments[0])
        elif name == "swap":
            cache.swap(*arguments)
            assert sorted(tuple(cache.tokens(slot)) for slot in range(4)) == before
        else:
            joined = arguments[0]
            contents = sorted(tuple(cache.tokens(slot)) for slot in joined)
            while not (pairs := cache.due_swaps(joined)) and max(joined) - min(joined) >= len(joined):
                pass  # until the swaps are due
            for source, target in pairs:
                cache.swap(source, target)
                joined = joined - {source} | {target}
            assert max(joined) - min(joined) == len(joined) - 1
            assert sorted(tuple(cache.tokens(slot)) for slot in joined) == contents
        for slot in range(4):  # the model still has the tokens of a forgotten sequence
            assert model.cache[slot] == cache.tokens(slot) or not cache.tokens(slot)
        assert cache.used_bytes <= n_saved_bytes


def test_nothing_of_a_forgotten_sequence_is_reused() -> None:
    cache, model = make()
    fill(cache, model, 0, LONG)
    cache.forget(0)
    assert cache.cached_prefix_length(LONG) == 0
    assert cache.n_tokens == 0


@pytest.mark.parametrize("n_good_copies", [0, 1])
def test_a_swap_that_fails_leaves_no_sequence_under_another_ones_tokens(
    n_good_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, model = make()
    other = [value + 1000 for value in LONG]
    fill(cache, model, 0, LONG)
    fill(cache, model, 1, other)
    restore = model.restore_state
    copies: list[int] = []

    def fail_later(slot: int, state: list[int]) -> None:
        if len(copies) == n_good_copies:
            raise RuntimeError("no memory")
        copies.append(slot)
        restore(slot, state)

    monkeypatch.setattr(model, "restore_state", fail_later)
    with pytest.raises(RuntimeError, match="no memory"):
        cache.swap(0, 1)
    assert [cache.tokens(slot) for slot in range(2)] == [[], []]
    assert cache.cached_prefix_length([*LONG, 1]) == cache.cached_prefix_length([*other, 1]) == 0
