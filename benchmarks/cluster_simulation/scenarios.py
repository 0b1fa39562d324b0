"""The scenarios: a steady load, a node that dies and returns, and the two nodes that are also measured.

Each function runs one routing, and returns figures. Knows nothing of tables.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cluster_simulation.clock import Clock
from benchmarks.cluster_simulation.cluster import Cluster
from benchmarks.cluster_simulation.costs import Costs, StepTimes
from benchmarks.cluster_simulation.node import Node
from benchmarks.cluster_simulation.request import Request
from benchmarks.cluster_simulation.routers import ConsistentHash, Loads, Router
from benchmarks.cluster_simulation.workload import Arrivals, Clients, Conversation, Lengths

Routing = Callable[[Loads, int], Router]

REQUESTS_PER_NODE_SECOND = 0.5  # assumed
WARM_UP_SECONDS = 240.0  # longer than most conversations; from then on as many end as begin
MEASURED_SECONDS = 120.0  # and the time for which the node is gone
DEAD_NODE = 0

# As benchmarks/cluster_speed.py: questions of 60 tokens, answers of 16, a short system prompt. SmolLM2's chat template
# adds 8 tokens to a question; 13 tokens of the system prompt are the same in all prompts (seen in answers' `usage`).
TWO_NODE_LENGTHS = Lengths((5, 5), (68, 68), (16, 16), (0.0, 0.0), system_tokens=13)
TWO_NODE_CONVERSATIONS = 40
TWO_NODE_CLIENTS = 16

DEFAULT_COSTS = Costs()


@dataclass(frozen=True, slots=True)
class Figures:
    """Of some requests, at least one. Times are in seconds."""

    requests: int
    cached_share: float  # cached prompt tokens / prompt tokens
    first_token_p50: float
    first_token_p99: float
    moved_share: float  # conversations of which a turn moved to another node / all conversations
    tokens_per_second: float


def figures(requests: Sequence[Request], tokens_per_second: float) -> Figures:
    times = sorted(request.first_token_seconds for request in requests)
    moved = {request.conversation for request in requests if request.moved}
    return Figures(
        len(requests),
        sum(request.n_cached for request in requests) / sum(request.n_prompt for request in requests),
        percentile(times, 0.5),
        percentile(times, 0.99),
        len(moved) / len({request.conversation for request in requests}),
        tokens_per_second,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that is not less than `share` of all values."""
    return ordered[math.ceil(share * len(ordered)) - 1]


def between(ended: Sequence[Request], start: float, end: float) -> Figures:
    """Of the requests that were sent from `start` to `end`; tokens/s are of those that ended in that time."""
    tokens = sum(request.n_completion for request in ended if start <= request.ended_at < end)
    sent = [request for request in ended if start <= request.sent_at < end]
    return figures(sent, tokens / (end - start))


def steady(routing: Routing, n_nodes: int, seed: int, rate: float = REQUESTS_PER_NODE_SECOND) -> Figures:
    """A load of `rate` requests per second and node, after a warm-up."""
    end = WARM_UP_SECONDS + MEASURED_SECONDS
    return between(_run(routing, n_nodes, seed, rate, end, dies=False).ended, WARM_UP_SECONDS, end)


def outage(routing: Routing, n_nodes: int, seed: int, rate: float = REQUESTS_PER_NODE_SECOND) -> list[list[Figures]]:
    """One node dies and returns. Figures of the times before, while it is gone, and after.

    Two rows: those of all conversations, and those of the conversations whose point on the ring is the node's.
    """
    starts = [WARM_UP_SECONDS + phase * MEASURED_SECONDS for phase in range(3)]
    cluster = _run(routing, n_nodes, seed, rate, starts[-1] + MEASURED_SECONDS, dies=True)
    ring = ConsistentHash(cluster.loads, seed)
    ours = [request for request in cluster.ended if ring.home(request.conversation) == DEAD_NODE]
    return [[between(some, start, start + MEASURED_SECONDS) for start in starts] for some in (cluster.ended, ours)]


def two_nodes(routing: Routing, n_nodes: int, seed: int, costs: Costs = DEFAULT_COSTS) -> Figures:
    """40 conversations of 5 turns, on 16 clients without pauses. `n_nodes`: 2, or 1 to compare with."""
    clock = Clock()
    cluster = Cluster(clock, costs, n_nodes, TWO_NODE_LENGTHS.system_tokens, routing, seed)
    dice = random.Random(seed)
    conversations = [Conversation(number, TWO_NODE_LENGTHS, dice) for number in range(TWO_NODE_CONVERSATIONS)]
    Clients(clock, cluster, conversations, TWO_NODE_CLIENTS)
    clock.run()
    return figures(cluster.ended, sum(request.n_completion for request in cluster.ended) / clock.now)


def long_prompt(n_prompt: int, streams: int) -> float:
    """Seconds to the first token of a prompt on one node, beside so many streams that are being decoded."""
    clock = Clock()
    node = Node(clock, StepTimes(DEFAULT_COSTS), 0, on_end=lambda request: None)
    for number in range(streams):
        node.submit(Request(number, 35, 10_000, clock.now))
    request = Request(streams, n_prompt, 1, sent_at=5.0)  # when the streams have their first tokens
    clock.at(request.sent_at, lambda: node.submit(request))
    clock.run()
    return request.first_token_seconds


def _run(routing: Routing, n_nodes: int, seed: int, rate: float, until: float, *, dies: bool) -> Cluster:
    clock, lengths = Clock(), Lengths()
    cluster = Cluster(clock, DEFAULT_COSTS, n_nodes, lengths.system_tokens, routing, seed)
    conversations_per_second = rate * n_nodes / (sum(lengths.turns) / 2)
    arrivals = Arrivals(clock, cluster, lengths, conversations_per_second, until, seed)
    if dies:
        clock.at(WARM_UP_SECONDS + MEASURED_SECONDS, lambda: cluster.kill(DEAD_NODE))
        clock.at(WARM_UP_SECONDS + 2 * MEASURED_SECONDS, lambda: cluster.restore(DEAD_NODE))
    clock.run()
    assert len(cluster.ended) == arrivals.n_sent, "a request has no end"
    return cluster
