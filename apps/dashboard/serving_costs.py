"""What each of the three serving settings costs, as a sentence. Knows nothing of Streamlit and sends no request.

A running worker reports the memory that it needs when its caches are full, and its use now is measured. Without a
worker, the size of the model's file gives a lower bound.
"""

from dataclasses import dataclass
from typing import Any

from apps.dashboard.wording import megabytes
from torchserve_client.status import ModelStatus, ServingSettings

WORKER_BYTES = 300 * 2**20  # a worker without a model: Python, torch, TorchServe (measured: 230 to 300 MB)


@dataclass(frozen=True, slots=True)
class Memory:
    """A worker's memory: `fixed_bytes`, and `slot_bytes` for each slot.

    is_measured: whether it comes from a running worker. Otherwise the size of a slot is unknown and 0.
    """

    fixed_bytes: int
    slot_bytes: int
    is_measured: bool

    def of_worker(self, batch_size: int) -> int:
        return self.fixed_bytes + batch_size * self.slot_bytes


def worker_memory(status: ModelStatus | None, model_bytes: int | None, meta: dict[str, Any] | None) -> Memory:
    """Derived from the largest ready worker of `status` and the size of the model's file, if they are known.

    meta: the model's description of itself. Its `memory_bytes` include what a new worker does not use yet.
    """
    fixed = WORKER_BYTES + (model_bytes or 0)
    measured = max((worker.memory_bytes for worker in status.workers if worker.is_ready), default=0) if status else 0
    if not status or not measured:
        return Memory(fixed, 0, is_measured=False)
    if needed := (meta or {}).get("memory_bytes"):
        fixed = max(WORKER_BYTES + needed["weights"] + needed["saved_sequences"], measured - needed["kv_cache"])
        return Memory(fixed, needed["kv_cache"] // status.settings.batch_size, is_measured=True)
    fixed = min(fixed, measured)
    return Memory(fixed, (measured - fixed) // status.settings.batch_size, is_measured=True)


def workers_cost(wanted: ServingSettings, memory: Memory, free_bytes: int) -> str:
    """The memory of each worker, and how the workers batch."""
    each = memory.of_worker(wanted.batch_size)
    least = "about" if memory.is_measured else "at least"
    needed = f"Each worker needs {least} {megabytes(each)}; {megabytes(free_bytes)} are free."
    if wanted.workers == 1:
        return f"{needed} One worker batches continuously: a new request joins at the next token."
    return (
        f"{needed} Two or more workers use dynamic batching, because TorchServe's continuous batching freezes with "
        "them: a new request waits until its worker's batch has ended. The workers share the processor's cores."
    )


def batch_size_cost(wanted: ServingSettings, memory: Memory) -> str:
    """What it costs to answer several requests together."""
    if wanted.batch_size == 1:
        return "One request at a time: the fastest for a single person, the others wait."
    shared = f"Up to {wanted.batch_size} requests share a worker: more tokens/s in total, fewer for each."
    if not memory.slot_bytes:
        return shared
    return f"{shared} Their contexts take about {megabytes(wanted.batch_size * memory.slot_bytes)} of its memory."


def delay_cost(wanted: ServingSettings) -> str:
    """The delay until a batch is filled. TorchServe does not delay a batch that one request fills (measured)."""
    if wanted.max_batch_delay_ms == 0:
        return "Requests are not delayed to fill a batch."
    if wanted.batch_size == 1:
        return "Has no effect with a batch size of 1: one request fills the batch."
    return f"Adds up to {wanted.max_batch_delay_ms} ms to the first token of a lone request."
