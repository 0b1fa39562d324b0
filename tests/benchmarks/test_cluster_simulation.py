"""The simulated cluster: small cases by hand, and what must be true of any run."""

from functools import partial

import pytest

from benchmarks.cluster_simulation.__main__ import main
from benchmarks.cluster_simulation.clock import Clock
from benchmarks.cluster_simulation.cluster import Cluster
from benchmarks.cluster_simulation.costs import Costs, StepTimes
from benchmarks.cluster_simulation.node import Node
from benchmarks.cluster_simulation.node_cache import NodeCache
from benchmarks.cluster_simulation.request import Request
from benchmarks.cluster_simulation.routers import (
    ROUTINGS,
    ConsistentHash,
    LeastLoaded,
    Loads,
    Sticky,
    by_session,
    by_session_and_load,
)
from benchmarks.cluster_simulation.scenarios import DEAD_NODE, long_prompt, outage, percentile, steady, two_nodes

# Two slots. A token of a prompt takes 10 ms at any depth; a decode step 1 s alone, and 2 s for two sequences.
SIMPLE = Costs(
    decode_step_seconds=(1.0, 2.0),
    chunk_tokens=(512,),
    chunk_tokens_per_second=(100.0,),
    deep_chunk_tokens_per_second=(100.0,),
    saved_token_seconds=0.0,
    restored_token_seconds=0.0,
    saved_tokens=100,
)


def run_node(*requests: Request) -> list[Request]:
    """Runs the requests on one node with SIMPLE costs. Returns them in the order of their ends."""
    clock = Clock()
    ended: list[Request] = []
    node = Node(clock, StepTimes(SIMPLE), 0, ended.append)
    for request in requests:
        clock.at(request.sent_at, partial(node.submit, request))
    clock.run()
    return ended


def test_a_request_alone_is_prefilled_and_then_decoded_token_by_token() -> None:
    (request,) = run_node(Request(1, n_prompt=20, n_completion=4, sent_at=1.0))

    assert request.first_token_at == pytest.approx(1.2)
    assert request.ended_at == pytest.approx(1.2 + 3 * 1.0)


def test_a_second_request_joins_at_the_next_step_and_then_shares_each_step() -> None:
    first = Request(1, n_prompt=20, n_completion=4, sent_at=0.0)
    second = Request(2, n_prompt=30, n_completion=2, sent_at=0.5)

    assert run_node(first, second) == [second, first]
    # First: prefill to 0.2, decode to 1.2; prefill of the second to 1.5; both decode to 3.5; the first alone to 4.5.
    assert (first.first_token_at, second.first_token_at) == pytest.approx((0.2, 1.5))
    assert (first.ended_at, second.ended_at) == pytest.approx((4.5, 3.5))


def test_a_request_waits_while_every_slot_is_in_use() -> None:
    requests = [Request(number, n_prompt=10, n_completion=2, sent_at=0.0) for number in range(3)]

    assert run_node(*requests) == requests
    # The first is prefilled to 0.1 and decoded to 1.1. Then the others are prefilled together to 1.3.
    assert [request.first_token_at for request in requests] == pytest.approx([0.1, 1.3, 1.3])
    assert [request.ended_at for request in requests] == pytest.approx([1.1, 3.3, 3.3])


def test_a_long_prompt_is_prefilled_in_chunks_between_decode_steps() -> None:
    stream = Request(1, n_prompt=10, n_completion=20, sent_at=0.0)
    long = Request(2, n_prompt=200, n_completion=1, sent_at=0.5)

    run_node(stream, long)

    # From 1.1 on: chunks of 64, 64, 64 and 8 tokens, with a decode step of the stream between two of them.
    assert long.first_token_at == pytest.approx(1.1 + 2.0 + 3 * 1.0)


def test_a_turn_reuses_what_its_slot_has_computed_but_for_the_last_token() -> None:
    cache = NodeCache(SIMPLE, n_system=0)

    assert cache.assign(1, n_prompt=50) == (0, 0.0)
    cache.release(1, n_computed=60)
    assert cache.assign(1, n_prompt=80) == (60, 0.0)
    cache.release(1, n_computed=90)
    assert cache.assign(1, n_prompt=90) == (89, 0.0)


def test_other_conversations_reuse_the_system_prompt() -> None:
    cache = NodeCache(SIMPLE, n_system=15)

    assert [cache.assign(conversation, n_prompt=50)[0] for conversation in (1, 2)] == [0, 15]
    cache.clear()
    assert cache.assign(3, n_prompt=50)[0] == 0


def test_the_oldest_saved_sequence_is_evicted_when_there_is_no_room() -> None:
    cache = NodeCache(SIMPLE, n_system=0)
    for conversation in (1, 2, 3, 4):  # two are saved: 60 and 60 of at most 100 tokens
        cache.assign(conversation, n_prompt=50)
        cache.release(conversation, n_computed=60)

    assert cache.assign(2, n_prompt=80)[0] == 60
    assert cache.assign(1, n_prompt=80)[0] == 0


def test_requests_of_a_node_that_dies_are_answered_by_another_one() -> None:
    clock = Clock()
    cluster = Cluster(clock, SIMPLE, 2, 0, LeastLoaded, seed=1)
    requests = [Request(number, n_prompt=10, n_completion=5, sent_at=0.0) for number in range(2)]
    for request in requests:
        clock.at(0.0, partial(cluster.send, request))
    clock.at(1.5, lambda: cluster.kill(0))
    clock.run()

    assert cluster.ended == requests[::-1]
    assert [(request.node, request.n_cuts, request.moved) for request in requests] == [(1, 1, True), (1, 0, False)]
    # Sent again at 1.5, in the middle of a step of the other node that ends at 2.1.
    assert requests[0].first_token_at == pytest.approx(2.2)


def test_requests_wait_before_the_nodes_when_all_are_full() -> None:
    clock = Clock()
    cluster = Cluster(clock, SIMPLE, 2, 0, by_session, seed=1)
    requests = [Request(number, n_prompt=10, n_completion=2, sent_at=0.0) for number in range(20)]
    for request in requests:
        cluster.send(request)

    assert cluster.loads.requests == [SIMPLE.max_requests] * 2
    assert len(cluster.waiting) == 20 - 2 * SIMPLE.max_requests
    clock.run()
    assert set(cluster.ended) == set(requests)
    assert cluster.loads.requests == [0, 0]


def test_a_moved_conversation_stays_with_stickiness_and_returns_without() -> None:
    loads = Loads(nodes=3, limit=1)
    hash_only = ConsistentHash(loads, seed=1)
    sticky = Sticky(loads, hash_only)
    home = hash_only.home(7)
    assert sticky.choose(7) == hash_only.choose(7) == home

    loads.remove(home)
    other = hash_only.choose(7)
    assert sticky.choose(7) == other != home

    loads.restore(home)
    assert sticky.choose(7) == other
    assert hash_only.choose(7) == home


def test_a_lost_node_moves_only_its_own_conversations_and_to_several_nodes() -> None:
    loads = Loads(nodes=10, limit=1)
    router = ConsistentHash(loads, seed=1)
    homes = [router.choose(conversation) for conversation in range(1000)]
    loads.remove(DEAD_NODE)
    now = [router.choose(conversation) for conversation in range(1000)]

    assert min(map(homes.count, range(10))) > 50
    assert {home for home, node in zip(homes, now, strict=True) if home != node} == {DEAD_NODE}
    assert len({node for home, node in zip(homes, now, strict=True) if home == DEAD_NODE}) > 4


def test_least_loaded_takes_nodes_with_equal_loads_in_turn() -> None:
    loads = Loads(nodes=3, limit=9)
    router = LeastLoaded(loads, seed=1)

    assert [router.choose(0) for _ in range(4)] == [0, 1, 2, 0]
    loads.requests[:] = [2, 2, 1]
    assert [router.choose(0) for _ in range(2)] == [2, 2]


def test_new_conversations_begin_on_the_least_loaded_node_and_stay_there() -> None:
    loads = Loads(nodes=2, limit=9)
    router = by_session_and_load(loads, seed=1)
    loads.requests[:] = [5, 1]
    assert router.choose(7) == 1

    loads.requests[:] = [0, 5]
    assert [router.choose(7), router.choose(8)] == [1, 0]


@pytest.mark.parametrize("name", ROUTINGS)
def test_the_same_seed_gives_the_same_figures(name: str) -> None:
    assert steady(ROUTINGS[name], 3, seed=5) == steady(ROUTINGS[name], 3, seed=5)
    assert steady(ROUTINGS[name], 3, seed=5) != steady(ROUTINGS[name], 3, seed=6)


@pytest.mark.parametrize("seed", range(3))
def test_routing_by_session_caches_most_and_one_node_as_much(seed: int) -> None:
    one, session, at_random = (
        two_nodes(ROUTINGS[name], n_nodes, seed) for name, n_nodes in (("random", 1), ("by session", 2), ("random", 2))
    )

    assert one.requests == session.requests == at_random.requests == 40 * 5
    assert one.cached_share >= session.cached_share > at_random.cached_share + 0.1
    # A turn's prompt has all of the turn before but its last token. 39 first turns have the system prompt.
    prompts = [13 + 68 + turn * (68 + 16) for turn in range(5)]
    cached = 39 * 13 + 40 * sum(prompt + 16 - 1 for prompt in prompts[:-1])
    assert one.cached_share == pytest.approx(cached / (40 * sum(prompts)))


def test_after_a_nodes_return_only_hashing_alone_has_to_prefill_again() -> None:
    (_, session), (_, hash_only) = (outage(ROUTINGS[name], 10, seed=1) for name in ("by session", "hash only"))

    before, gone, after = session
    assert after.first_token_p99 < gone.first_token_p99 > before.first_token_p99
    assert hash_only[2].first_token_p99 > 2 * after.first_token_p99
    assert hash_only[2].cached_share < after.cached_share - 0.05


@pytest.mark.parametrize(("n_prompt", "streams", "measured_seconds"), [(3000, 4, 9.6), (6000, 0, 28.2)])
def test_one_node_takes_as_long_as_was_measured(n_prompt: int, streams: int, measured_seconds: float) -> None:
    """docs/measurements.md, WL and WQ."""
    assert long_prompt(n_prompt, streams) == pytest.approx(measured_seconds, rel=0.1)


def test_percentile_is_a_value_that_occurred() -> None:
    values = [float(value) for value in range(1, 201)]

    assert [percentile(values, share) for share in (0.5, 0.99, 1.0)] == [100.0, 198.0, 200.0]
    assert percentile([3.0], 0.99) == 3.0


def test_command_prints_the_named_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["cluster_simulation", "node"])
    main()

    assert "| WL: first token of 3,000 tokens beside four streams | 9.4 s | 9.6 s |" in capsys.readouterr().out


def test_unknown_table_is_an_error_with_the_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cluster_simulation", "stedy"])
    with pytest.raises(SystemExit):
        main()

    assert (
        "There is no table 'stedy'; the tables are steady, load, outage, two-nodes, queue, node."
        in capsys.readouterr().err
    )
