"""The tables of the simulation, as Markdown. Each function runs its scenarios and returns the lines of a table."""

import statistics
from collections.abc import Callable, Iterable, Iterator

from benchmarks.cluster_simulation.costs import Costs
from benchmarks.cluster_simulation.measured import TWO_NODES
from benchmarks.cluster_simulation.routers import ROUTINGS
from benchmarks.cluster_simulation.scenarios import Figures, long_prompt, outage, steady, two_nodes

NODES = (10, 100, 1000)
RATES = (0.25, 0.5, 0.75, 1.0, 1.25)  # requests per second and node
LOADED_NODES = 30  # fewer would make p99 a matter of a few requests
CHECK_SEEDS = 20
WAITING_PER_SLOT = (0.0, 0.25, 0.5, 1.0)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> Iterator[str]:
    yield row(*cells)
    yield f"|{'---|' * len(cells)}"


def steady_table(seed: int) -> Iterator[str]:
    yield from header(
        "nodes", "routing", "cached share", "first token, p50", "p99", "tokens/s a node", "conversations that moved"
    )
    for n_nodes in NODES:
        for name, routing in ROUTINGS.items():
            result = steady(routing, n_nodes, seed)
            yield row(
                f"{n_nodes:,}",
                name,
                f"{result.cached_share:.2f}",
                f"{result.first_token_p50:.2f} s",
                f"{result.first_token_p99:.1f} s",
                f"{result.tokens_per_second / n_nodes:.0f}",
                f"{result.moved_share:.1%}",
            )


def load_table(seed: int) -> Iterator[str]:
    """The time to first token, p99, and tokens/s a node, by load."""
    yield from header("requests/s a node", *map(str, RATES))
    for name, routing in ROUTINGS.items():
        results = [steady(routing, LOADED_NODES, seed, rate) for rate in RATES]
        yield row(
            name, *(f"{each.first_token_p99:.1f} s, {each.tokens_per_second / LOADED_NODES:.0f}" for each in results)
        )


def outage_table(seed: int) -> Iterator[str]:
    yield from header("nodes", "routing", "conversations", "before", "while it is gone", "after its return")
    for n_nodes in NODES[:2]:
        for name in ("by session", "hash only"):
            for whose, phases in zip(("all", "the node's"), outage(ROUTINGS[name], n_nodes, seed), strict=True):
                cells = (f"{each.first_token_p99:.1f} s, {each.cached_share:.2f}" for each in phases)
                yield row(n_nodes, name, whose, *cells)


def two_node_table(seed: int) -> Iterator[str]:
    """Median, least and greatest of several seeds, beside what real nodes gave."""
    seeds = range(seed, seed + CHECK_SEEDS)
    one = [two_nodes(ROUTINGS["random"], 1, each) for each in seeds]
    session = [two_nodes(ROUTINGS["by session and load"], 2, each) for each in seeds]
    at_random = [two_nodes(ROUTINGS["random"], 2, each) for each in seeds]
    simulated = {
        "cached share of one node": share(one),
        "cached share, two nodes by session / one node": ratios(share(session), share(one)),
        "cached share, two nodes at random / one node": ratios(share(at_random), share(one)),
        "first token, p50, two nodes at random / by session": ratios(first_token(at_random), first_token(session)),
    }
    yield from header("figure", "simulated", "measured")
    for (name, values), measured in zip(simulated.items(), TWO_NODES.figures(), strict=True):
        yield row(name, spread(values), measured)


def queue_table(seed: int) -> Iterator[str]:
    """The two nodes by session and load, by how many requests may wait at a node. Cells are two nodes / one node."""
    yield from header("requests that a node accepts", "cached share", "tokens/s")
    for waiting_per_slot in WAITING_PER_SLOT:
        costs = Costs(waiting_per_slot=waiting_per_slot)
        seeds = range(seed, seed + CHECK_SEEDS)
        one = [two_nodes(ROUTINGS["random"], 1, each, costs) for each in seeds]
        two = [two_nodes(ROUTINGS["by session and load"], 2, each, costs) for each in seeds]
        yield row(costs.max_requests, spread(ratios(share(two), share(one))), spread(ratios(speed(two), speed(one))))


def node_table(seed: int) -> Iterator[str]:
    """The model of one node beside docs/measurements.md, "Served, beside llama-server". Nothing in it is random."""
    yield from header("figure", "simulated", "measured")
    yield row("WL: first token of 3,000 tokens beside four streams", f"{long_prompt(3000, 4):.1f} s", "9.6 s")
    yield row("WQ: first token of 6,000 tokens beside short questions", f"{long_prompt(6000, 0):.1f} s", "28.2 s")


def share(results: Iterable[Figures]) -> list[float]:
    return [result.cached_share for result in results]


def first_token(results: Iterable[Figures]) -> list[float]:
    return [result.first_token_p50 for result in results]


def speed(results: Iterable[Figures]) -> list[float]:
    return [result.tokens_per_second for result in results]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    return [each / other for each, other in zip(numerators, denominators, strict=True)]


TABLES: dict[str, Callable[[int], Iterator[str]]] = {
    "steady": steady_table,
    "load": load_table,
    "outage": outage_table,
    "two-nodes": two_node_table,
    "queue": queue_table,
    "node": node_table,
}
