"""What a node does, as the dashboard shows it: requests, tokens, cached prompts. Computed from TorchServe's metrics."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.environment import APPLICATION
from torchserve_client.metrics import MetricsSnapshot, increase, rate

N_SNAPSHOTS = 150  # one every two seconds: the cached share is that of the last five minutes
RATE_SNAPSHOTS = 5
SILENT_SECONDS = 10.0  # older figures are no more those of now


@dataclass
class Routing:
    """What the router knows; it writes this, and the entry reads it.

    reports: what each serving node has reported last, as NodeFacts.to_dict(). n_waiting: requests that no node has
    accepted yet.
    """

    reports: list[dict[str, Any]] = field(default_factory=list)
    n_waiting: Callable[[], int] = lambda: 0


# The router uses its full name: Ray Serve copies the router's own module into each process, and each name in it.
routing = Routing()


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """requests: in the slots now; `waiting` are more, in the node.

    cached_share: of the last minutes' prompt tokens; None if there were none. problem: why the figures are not
    known, and `slots` is 0 then.
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
    def of(cls, name: str, slots: int, n_accepted: int, snapshots: Sequence[MetricsSnapshot], now: float) -> Self:
        """n_accepted: requests that the node has now. snapshots: the oldest first. now: in seconds since the epoch."""
        waiting = max(0, n_accepted - slots)
        if len(snapshots) < 2:
            return cls(name, 0, waiting, slots, 0.0, None, 0)
        first, last = snapshots[0], snapshots[-1]
        if (age := now - last.at) > SILENT_SECONDS:
            return cls(name, 0, 0, 0, 0.0, None, 0, f"Its TorchServe has not answered for {age:.0f} s.")
        prompt_tokens = increase(first, last, "llamacpp_prompt_tokens_total")
        cached_tokens = increase(first, last, "llamacpp_cached_tokens_total")
        return cls(
            name=name,
            requests=int(last.gauge_sum("llamacpp_slots_busy")),
            waiting=waiting,
            slots=slots,
            tokens_per_second=round(rate(snapshots[-RATE_SNAPSHOTS:][0], last, "llamacpp_completion_tokens_total"), 1),
            cached_share=cached_tokens / prompt_tokens if prompt_tokens else None,
            memory_bytes=sum(process.memory_bytes for process in last.processes),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def describe_nodes() -> list[dict[str, Any]]:
    """All machines of the cluster by name, each with the last report of its node.

    state: "serving", "starting" (no report yet), "idle" (no node is needed there now), "draining" (it will be taken
    away) or "gone" (the machine has ended).
    """
    by_name = {report["name"]: report for report in routing.reports if report}
    machines = ray.nodes()
    alive = {machine["NodeName"]: machine["NodeID"] for machine in machines if machine["Alive"]}
    draining = ray._private.state.state.get_draining_nodes()
    found = []
    for name in sorted({machine["NodeName"] for machine in machines}):
        if name not in alive:
            found.append({"name": name, "state": "gone"})
        elif alive[name] in draining:
            found.append({"name": name, "state": "draining"} | by_name.get(name, {}))
        elif name in by_name:
            found.append({"name": name, "state": "serving"} | by_name[name])
        else:
            found.append({"name": name, "state": _state_without_report()})
    return found


def _state_without_report() -> str:
    """Of a machine that is there, but whose node has reported nothing."""
    with contextlib.suppress(RayError, KeyError):  # Serve's controller is starting again
        status = serve.status().applications[APPLICATION].deployments["Node"].status
        return {"HEALTHY": "idle", "DOWNSCALING": "draining"}.get(status, "starting")
    return "starting"
