"""What a cluster says of its nodes: asks it over HTTP and checks every value. Knows nothing of Streamlit.

Threads: pages share one ClusterNodes; at most one thread queries, and a page waits for it WAIT_SECONDS at most.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from apps.shared.labels import as_label
from cluster.entry_file import ClusterEntry
from torchserve_client.config import TorchServeError
from torchserve_client.http import RequestRefused, ServerUnreachable, fetch_text

TIMEOUT_SECONDS = 5.0  # of connecting, and then of each silence
WAIT_SECONDS = 1.0  # of a page; the answer is there for its next refresh
MAX_AGE_SECONDS = 1.0  # several pages share one query
STALE_SECONDS = 10.0  # a busy cluster may answer late; after this time the last answer says nothing about now

NodeState = Literal["serving", "starting", "idle", "draining", "gone"]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One TorchServe. Its name and problem are another program's words. Without a report it has no `slots`.

    requests: in progress, in `slots`; `waiting` are more. cached_share: of the prompt tokens of the last minutes; None
    before any. problem: why it does not serve, as a sentence; "" if it does, or if that is not known.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    state: NodeState
    requests: Count = 0
    slots: Count = 0
    waiting: Count = 0
    tokens_per_second: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    cached_share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    memory_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**60)] = 0
    problem: Annotated[str, msgspec.Meta(max_length=10_000)] = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    nodes: Annotated[tuple[ClusterNode, ...], msgspec.Meta(max_length=10_000)]
    waiting: Count = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The nodes in the cluster's order. problem: why they are not known, in Markdown; "" if they are.

    waiting: requests that no node has accepted yet.
    """

    nodes: tuple[ClusterNode, ...] = ()
    waiting: int = 0
    problem: str = ""


class ClusterNodes:
    """The nodes of one cluster. `file` is where its address and key are from."""

    def __init__(self, entry: ClusterEntry, file: Path) -> None:
        self._entry = entry
        self._file = file
        self._reading = Reading()
        self._read_at = float("-inf")
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun = float("-inf")

    def latest(self) -> Reading:
        """Queries the cluster if the last query began MAX_AGE_SECONDS ago. Raises nothing."""
        with self._lock:
            if self._thread is None or (
                not self._thread.is_alive() and time.monotonic() - self._begun > MAX_AGE_SECONDS
            ):
                self._thread = threading.Thread(target=self._update, daemon=True)
                self._begun = time.monotonic()
                self._thread.start()
            thread, left = self._thread, self._begun + WAIT_SECONDS - time.monotonic()
        thread.join(max(0.0, left))
        if thread.is_alive() and time.monotonic() - self._read_at > STALE_SECONDS:
            return Reading(problem=f"The cluster at {self._entry.url} does not answer in time. {self._next_step}")
        return self._reading

    def _update(self) -> None:
        self._reading = self._query()
        self._read_at = time.monotonic()

    def _query(self) -> Reading:
        url = self._entry.url
        try:
            text = fetch_text("GET", f"{url}/cluster", self._entry.key, TIMEOUT_SECONDS)
            answer = msgspec.json.decode(text, type=_Answer)
            return Reading(answer.nodes, answer.waiting)
        except ServerUnreachable:
            return Reading(problem=f"No cluster answers at {url}. {self._next_step}")
        except RequestRefused as refusal:
            return Reading(problem=self._sentence(refusal))
        except (TorchServeError, ValueError) as error:
            about = f"The cluster at {url} does not describe its nodes as this version expects ({as_label(str(error))})"
            return Reading(problem=f"{about}: run the same version at both places.")

    def _sentence(self, refusal: RequestRefused) -> str:
        url = self._entry.url
        if refusal.status in (401, 403):
            return f"The cluster at {url} refuses the key in {self._file}: correct it, or start the cluster again."
        if refusal.status == 404:
            return f"The server at {url} is no cluster: correct the url in {self._file}, or delete this file."
        return f"The cluster at {url} cannot answer now ({as_label(str(refusal))}). This page asks again by itself."

    @property
    def _next_step(self) -> str:
        return f"Start it with `make cluster`, or delete {self._file} if it is not needed any more."
