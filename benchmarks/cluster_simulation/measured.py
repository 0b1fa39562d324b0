"""What real nodes gave, to check the simulation. Entered by hand, with the command that measured it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TwoNodes:
    """One measurement of `scenarios.two_nodes` with real nodes. Cached shares are of all turns, first ones included."""

    date: str
    machine: str
    command: str
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


TWO_NODES: TwoNodes | None = None
