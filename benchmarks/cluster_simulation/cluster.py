"""Nodes behind a router: sends each request to a node, again if the node dies. Knows no conversations' contents."""

from collections import deque
from collections.abc import Callable

from benchmarks.cluster_simulation.clock import Clock
from benchmarks.cluster_simulation.costs import Costs, StepTimes
from benchmarks.cluster_simulation.node import Node
from benchmarks.cluster_simulation.request import Request
from benchmarks.cluster_simulation.routers import Loads, Router


class Cluster:
    """Calls on_end(request) at each request's end; the caller sets it. `ended` has all of them, in that order."""

    def __init__(
        self,
        clock: Clock,
        costs: Costs,
        n_nodes: int,
        n_system: int,
        routing: Callable[[Loads, int], Router],
        seed: int,
    ) -> None:
        times = StepTimes(costs)
        self.loads = Loads(n_nodes, costs.max_requests)
        self.router = routing(self.loads, seed)
        self.nodes = [Node(clock, times, n_system, self._end) for _ in range(n_nodes)]
        self.waiting: deque[Request] = deque()  # every node is full
        self.ended: list[Request] = []
        self.on_end: Callable[[Request], None] = lambda request: None
        self._last_nodes: dict[int, int] = {}  # by conversation

    def send(self, request: Request) -> None:
        self.waiting.append(request)
        self._send_waiting()

    def kill(self, node: int) -> None:
        """The node is gone. The clients send the requests that it has cut again, at once."""
        self.loads.remove(node)
        for request in self.nodes[node].die():
            request.n_cuts += 1
            self.send(request)

    def restore(self, node: int) -> None:
        """The node is back, with an empty cache."""
        self.loads.restore(node)
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self.waiting and self.loads.has_room():
            request = self.waiting.popleft()
            request.node = self.router.choose(request.conversation)
            request.moved = self._last_nodes.get(request.conversation, request.node) != request.node
            self._last_nodes[request.conversation] = request.node
            self.loads.requests[request.node] += 1
            self.nodes[request.node].submit(request)

    def _end(self, request: Request) -> None:
        self.loads.requests[request.node] -= 1
        self.ended.append(request)
        self.on_end(request)
        self._send_waiting()
