"""Chooses a node for each request: the conversation's last one, else by consistent hashing, else one with few requests.

Consistent hashing alone would move conversations twice when a node ends and returns, and a returning node has another
place on the ring: it would take conversations whose prefix other nodes have cached. So a conversation stays where it
was answered last.
"""

import heapq
from collections import OrderedDict
from typing import Any

from ray.serve._private.common import ReplicaID
from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from cluster import node_facts

N_CONVERSATIONS = 100_000  # the last ones; about 300 bytes each
N_OTHERS = 8  # nodes that are tried when those of the ring are full


class StickyRouter(ConsistentHashRouter):
    """Ray Serve's consistent hashing, with a memory. It runs in the entry.

    A new conversation goes to the one of its two nodes on the ring that has fewer requests: nothing is cached yet.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last: OrderedDict[str, ReplicaID] = OrderedDict()  # conversation -> node, the oldest first
        node_facts.routing.n_waiting = self._n_waiting

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        node_facts.routing.reports = [replica.routing_stats for replica in replicas]

    def _n_waiting(self) -> int:
        return sum(not request.future.done() for request in self._pending_requests_to_fulfill)

    def _lookup_ranked_replicas(self, routing_key: str) -> list[ReplicaID]:
        ranked: list[ReplicaID] = sorted(super()._lookup_ranked_replicas(routing_key), key=self._n_requests)
        last = self._last.get(routing_key)
        if last in self._replicas:
            ranked = [last, *(each for each in ranked if each != last)]
        others = (each for each in self._replicas if each not in ranked)
        return [*ranked, *heapq.nsmallest(N_OTHERS, others, key=self._n_requests)]

    def _n_requests(self, replica_id: ReplicaID) -> int:
        """As far as it is known."""
        return self.replica_queue_len_cache.get(replica_id) or 0

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        session = pending_request.metadata.session_id
        if session:
            self._last[session] = replica_id
            self._last.move_to_end(session)
            if len(self._last) > N_CONVERSATIONS:
                self._last.popitem(last=False)
