"""What real nodes gave, to check the simulation. Entered by hand, with the command that measured it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """Of `scenarios.two_nodes` with real nodes: medians. Cached shares are of all turns, first ones included."""

    one_node: float
    by_session: float
    random: float
    first_token_p50_by_session: float  # seconds
    first_token_p50_random: float

    def figures(self) -> tuple[str, ...]:
        """In the order of `report.two_node_table`."""
        return (
            f"{self.one_node:.3f}",
            f"{self.by_session / self.one_node:.3f}",
            f"{self.random / self.one_node:.3f}",
            f"{self.first_token_p50_random / self.first_token_p50_by_session:.3f}",
        )


# `python -m benchmarks.cluster_speed affinity --repeats 1 --rounds 2`, 2026-11-27, shared VM, 2 x86-64 cores.
TWO_NODES = TwoNodes(
    one_node=0.719,
    by_session=0.715,
    random=0.511,
    first_token_p50_by_session=1.886,
    first_token_p50_random=2.816,
)
