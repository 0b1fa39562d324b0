"""Where conversations go, without a cluster: only the order of the nodes is asked for."""

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make cluster-test` installs it")

from ray.serve._private.common import DeploymentID, ReplicaID

from cluster import sticky_router
from cluster.sticky_router import StickyRouter

DEPLOYMENT = DeploymentID("Node", "llama")
SESSIONS = [f"conversation {number}" for number in range(1000)]


class Router(StickyRouter):  # type: ignore[misc, unused-ignore]
    """Without Ray's part: nodes come and go by `nodes`, and their requests in progress are `load`."""

    def __init__(self, *names: str) -> None:
        self._last = OrderedDict()
        self._num_virtual_nodes, self._num_fallback_replicas = 100, 1
        self.load: dict[ReplicaID, int] = {}
        self.nodes(*names)

    @property
    def replica_queue_len_cache(self) -> Any:
        return self.load

    @property
    def _deployment_id(self) -> DeploymentID:
        return DEPLOYMENT

    @_deployment_id.setter
    def _deployment_id(self, value: DeploymentID) -> None:
        pass

    def nodes(self, *names: str) -> None:
        self._replicas = {node(name): None for name in names}
        self._rebuild_ring(frozenset(self._replicas))

    def first(self, session: str) -> ReplicaID:
        return self._lookup_ranked_replicas(session)[0]

    def route(self, session: str, to: ReplicaID | None = None) -> ReplicaID:
        chosen = to or self.first(session)
        request: Any = SimpleNamespace(metadata=SimpleNamespace(session_id=session))
        self.on_request_routed(request, chosen, None)
        return chosen


def node(name: str) -> ReplicaID:
    return ReplicaID(name, DEPLOYMENT)


def test_new_conversations_are_spread_evenly_and_always_in_the_same_way() -> None:
    router = Router("a", "b", "c", "d")
    chosen = [router.first(session) for session in SESSIONS]
    assert chosen == [Router("d", "c", "b", "a").first(session) for session in SESSIONS]
    assert all(150 < chosen.count(node(name)) < 350 for name in "abcd")


def test_a_new_conversation_goes_to_the_less_loaded_of_its_two_nodes() -> None:
    router = Router("a", "b")
    router.load = {node("a"): 5, node("b"): 1}
    assert {router.first(session) for session in SESSIONS} == {node("b")}


def test_when_a_conversations_nodes_are_full_the_others_are_tried_the_least_loaded_first() -> None:
    router = Router("a", "b", "c", "d")
    ranked = router._lookup_ranked_replicas("conversation")
    first, second, *others = ranked
    router.load = {first: 12, second: 11, others[0]: 7, others[1]: 3}
    assert router._lookup_ranked_replicas("conversation") == [second, first, others[1], others[0]]


def test_a_conversation_stays_whatever_the_load() -> None:
    router = Router("a", "b")
    chosen = {session: router.route(session) for session in SESSIONS}
    router.load = {node("a"): 5, node("b"): 1}
    assert {session: router.first(session) for session in SESSIONS} == chosen


def test_a_conversation_that_a_full_node_sent_away_stays_where_it_went() -> None:
    router = Router("a", "b")
    moved = next(session for session in SESSIONS if router.first(session) == node("a"))
    router.route(moved)
    router.route(moved, to=node("b"))
    assert router.first(moved) == node("b")
    assert router._lookup_ranked_replicas(moved) == [node("b"), node("a")]


def test_a_node_that_returns_takes_no_conversation_back() -> None:
    router = Router("a", "b")
    lost = [session for session in SESSIONS if router.route(session) == node("b")]
    router.nodes("a")
    assert {router.route(session) for session in lost} == {node("a")}
    router.nodes("a", "b again")
    assert {router.first(session) for session in SESSIONS} == {node("a")}
    new = [router.first(f"new {number}") for number in range(1000)]
    assert 300 < new.count(node("b again")) < 700


def test_only_the_last_conversations_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sticky_router, "N_CONVERSATIONS", 10)
    router = Router("a", "b")
    for session in SESSIONS:
        router.route(session)
    assert list(router._last) == SESSIONS[-10:]
    request: Any = SimpleNamespace(metadata=SimpleNamespace(session_id=""))
    router.on_request_routed(request, node("a"), None)
    assert list(router._last) == SESSIONS[-10:]
