"""What the three settings cost, each as a sentence for people. Knows nothing of Streamlit and asks nobody.

Memory is measured where a worker runs, else it is the least that the model's file shows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torchserve_client.status import ModelStatus, ServingSettings

WORKER_BYTES = 300 * 2**20  # a worker without a model: Python, torch, TorchServe (measured: 230 to 300 MB)


@dataclass(frozen=True, slots=True)
class Memory:
    """A worker's memory: `fixed_bytes`, and `slot_bytes` more for each of the requests it answers together.

    is_measured: whether a running worker showed it; else the requests' share is not known and 0.
    """

    fixed_bytes: int
    slot_bytes: int
    is_measured: bool

    def of_worker(self, batch_size: int) -> int:
        return self.fixed_bytes + batch_size * self.slot_bytes


def worker_memory(status: ModelStatus | None, model_bytes: int | None) -> Memory:
    """From the largest ready worker of `status` and the size of the model's file, where they are known."""
    fixed = WORKER_BYTES + (model_bytes or 0)
    measured = max((worker.memory_bytes for worker in status.workers if worker.is_ready), default=0) if status else 0
    if not status or not measured:
        return Memory(fixed, 0, is_measured=False)
    fixed = min(fixed, measured)
    return Memory(fixed, (measured - fixed) // status.settings.batch_size, is_measured=True)


def workers_cost(wanted: ServingSettings, memory: Memory, free_bytes: int) -> str:
    """What `wanted.workers` take, and how they batch."""
    each = memory.of_worker(wanted.batch_size)
    least = "about" if memory.is_measured else "at least"
    needed = f"Each worker needs {least} {_megabytes(each)}; {_megabytes(free_bytes)} are free."
    if wanted.workers == 1:
        return f"{needed} One worker batches continuously: a new request joins at the next token."
    return (
        f"{needed} Two or more workers use dynamic batching, because TorchServe's continuous batching freezes with "
        "them: a new request waits until its worker's batch has ended. They share the processor's cores."
    )


def batch_size_cost(wanted: ServingSettings, memory: Memory) -> str:
    """What answering so many requests together costs."""
    if wanted.batch_size == 1:
        return "One request at a time: the fastest for a single person, the others wait."
    shared = f"Up to {wanted.batch_size} requests share a worker: more tokens/s in all, fewer for each."
    if not memory.slot_bytes:
        return shared
    return f"{shared} Their contexts take about {_megabytes(wanted.batch_size * memory.slot_bytes)} of its memory."


def delay_cost(wanted: ServingSettings) -> str:
    """What waiting for company costs; TorchServe does not wait where a batch is full with one request (tried)."""
    if wanted.max_batch_delay_ms == 0:
        return "No request waits for company."
    if wanted.batch_size == 1:
        return "Has no effect with a batch size of 1: there is no company to wait for."
    return f"Adds up to {wanted.max_batch_delay_ms} ms to the first token of a lone request."


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"
