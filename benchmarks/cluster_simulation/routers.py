"""The routings that are compared. Each one chooses a node that accepts requests, by the conversation or by the load.

Knows nothing of time and of what a node has cached.
"""

import bisect
import hashlib
import math
import random
from collections.abc import Callable
from typing import Protocol

VIRTUAL_NODES = 100  # points of each node on the ring, as in Ray Serve's ConsistentHashRouter


class Loads:
    """The number of requests of each node; infinity: the node is gone. A node with `limit` requests is full."""

    def __init__(self, nodes: int, limit: int) -> None:
        self.limit = limit
        self.requests: list[float] = [0.0] * nodes

    def accepts(self, node: int) -> bool:
        return self.requests[node] < self.limit

    def has_room(self) -> bool:
        """Whether any node accepts a request."""
        return min(self.requests) < self.limit

    def remove(self, node: int) -> None:
        self.requests[node] = math.inf

    def restore(self, node: int) -> None:
        self.requests[node] = 0.0


class Router(Protocol):
    """choose(conversation): a node that accepts requests. There is one: the caller has checked `Loads.has_room`."""

    def choose(self, conversation: int) -> int: ...


class RandomNode:
    """Any node, at random."""

    def __init__(self, loads: Loads, seed: int) -> None:
        self._loads = loads
        self._dice = random.Random(seed)

    def choose(self, conversation: int) -> int:
        while True:
            node = self._dice.randrange(len(self._loads.requests))
            if self._loads.accepts(node):
                return node


class LeastLoaded:
    """The node with the fewest requests; of several, the next one in turn."""

    def __init__(self, loads: Loads, seed: int) -> None:
        self._requests = loads.requests
        self._next = 0

    def choose(self, conversation: int) -> int:
        least = min(self._requests)
        try:
            node = self._requests.index(least, self._next)
        except ValueError:
            node = self._requests.index(least)
        self._next = (node + 1) % len(self._requests)
        return node


class ConsistentHash:
    """The first node on a ring after the conversation's point. If that one is full or gone, the next one."""

    def __init__(self, loads: Loads, seed: int) -> None:
        self._loads = loads
        nodes = range(len(loads.requests))
        ring = sorted((point(seed, "node", node, copy), node) for node in nodes for copy in range(VIRTUAL_NODES))
        self._points = [place for place, _ in ring]
        self._nodes = [node for _, node in ring]
        self._seed = seed

    def home(self, conversation: int) -> int:
        """The conversation's node while every node accepts requests."""
        return self._nodes[self._first(conversation)]

    def choose(self, conversation: int) -> int:
        index = self._first(conversation)
        while not self._loads.accepts(self._nodes[index]):
            index = (index + 1) % len(self._nodes)
        return self._nodes[index]

    def _first(self, conversation: int) -> int:
        return bisect.bisect(self._points, point(self._seed, "conversation", conversation)) % len(self._points)


class Sticky:
    """The node that had the conversation's last turn. `first` chooses for a new one, and for one that must move."""

    def __init__(self, loads: Loads, first: Router) -> None:
        self._loads = loads
        self._first = first
        self._places: dict[int, int] = {}

    def choose(self, conversation: int) -> int:
        node = self._places.get(conversation)
        if node is None or not self._loads.accepts(node):
            node = self._places[conversation] = self._first.choose(conversation)
        return node


def by_session(loads: Loads, seed: int) -> Router:
    """A new conversation, or one whose node is full or gone, goes by consistent hashing."""
    return Sticky(loads, ConsistentHash(loads, seed))


def by_session_and_load(loads: Loads, seed: int) -> Router:
    """As cluster/sticky_router.py, which looks at two nodes for a new conversation; here it is all of them."""
    return Sticky(loads, LeastLoaded(loads, seed))


def point(*name: object) -> int:
    """A place on the ring: the same one in each run of the program, which hash() would not give."""
    return int.from_bytes(hashlib.blake2b(repr(name).encode(), digest_size=8).digest(), "big")


ROUTINGS: dict[str, Callable[[Loads, int], Router]] = {
    "by session": by_session,
    "by session and load": by_session_and_load,
    "hash only": ConsistentHash,
    "random": RandomNode,
    "least loaded": LeastLoaded,
}
