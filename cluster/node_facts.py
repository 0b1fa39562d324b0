"""What a node does, as the dashboard shows it: requests, tokens, cached prompts. Computed from TorchServe's metrics."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import ray

from torchserve_client.metrics import MetricsSnapshot, increase, rate

N_SNAPSHOTS = 150  # one every two seconds: the cached share is that of the last five minutes
RATE_SNAPSHOTS = 5
SILENT_SECONDS = 10.0  # older figures are no more those of now

# What each serving node has reported last, as NodeFacts.to_dict(). The router writes it, the entry reads it. (Ray Serve
# copies the router's own module into each process, so a name there is not the same one for both.)
reports: list[dict[str, Any]] = []


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """requests: in progress now. cached_share: of the last minutes' prompt tokens; None if there were none.

    problem: why the figures are not known, and `slots` is 0 then.
    """

    name: str
    requests: int
    waiting: int
    slots: int
    tokens_per_second: float
    cached_share: float | None
    memory_bytes: int
    problem: str = ""

    @classmethod
    def of(cls, name: str, slots: int, snapshots: Sequence[MetricsSnapshot], now: float) -> Self:
        """snapshots: the oldest first. now: in seconds since the epoch."""
        if len(snapshots) < 2:
            return cls(name, 0, 0, slots, 0.0, None, 0)
        first, last = snapshots[0], snapshots[-1]
        if (age := now - last.at) > SILENT_SECONDS:
            return cls(name, 0, 0, 0, 0.0, None, 0, f"Its TorchServe has not answered for {age:.0f} s.")
        prompt_tokens = increase(first, last, "llamacpp_prompt_tokens_total")
        cached_tokens = increase(first, last, "llamacpp_cached_tokens_total")
        return cls(
            name=name,
            requests=int(last.gauge_sum("llamacpp_slots_busy")),
            waiting=int(last.gauge_sum("llamacpp_requests_waiting")),
            slots=slots,
            tokens_per_second=round(rate(snapshots[-RATE_SNAPSHOTS:][0], last, "llamacpp_completion_tokens_total"), 1),
            cached_share=cached_tokens / prompt_tokens if prompt_tokens else None,
            memory_bytes=sum(process.memory_bytes for process in last.processes),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_nodes() -> list[dict[str, Any]]:
    """All machines of the cluster by name, each with the last report of its node.

    state: "serving", "starting" (no report yet), "draining" (it will be taken away) or "gone".
    """
    by_name = {report["name"]: report for report in reports if report}
    alive = {node["NodeName"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
    names = {node["NodeName"] for node in ray.nodes()}
    draining = ray._private.state.state.get_draining_nodes()
    found = []
    for name in sorted(names):
        state = "gone" if name not in alive else "draining" if alive[name] in draining else "starting"
        if name in by_name and state == "starting":
            state = "serving"
        found.append({"name": name, "state": state} | (by_name.get(name, {}) if state != "gone" else {}))
    return found
