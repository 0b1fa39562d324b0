"""The main memory that a worker needs. Knows nothing of Streamlit and sends no request.

A running worker reports the memory that it needs when its caches are full, and its use now is measured. Without a
worker, the size of the model's file gives a lower bound.
"""

from dataclasses import dataclass
from typing import Any

from torchserve_client.status import ModelStatus

EMPTY_WORKER_BYTES = 300 * 2**20  # a worker without a model: Python, torch, TorchServe (measured: 230 to 300 MB)


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """`fixed_bytes`, and `slot_bytes` for each slot. `mapped_bytes` of the fixed ones are the model's file.

    All workers map the file once. mapped_bytes is 0 if the part is unknown.
    is_measured: whether it comes from a running worker. Otherwise the size of a slot is unknown and 0.
    """

    fixed_bytes: int
    slot_bytes: int
    mapped_bytes: int = 0
    is_measured: bool = True

    def of_first(self, batch_size: int) -> int:
        """With the model's file."""
        return self.fixed_bytes + batch_size * self.slot_bytes

    def of_another(self, batch_size: int) -> int:
        """Without the file, which another worker has mapped."""
        return self.of_first(batch_size) - self.mapped_bytes


def worker_memory(status: ModelStatus | None, model_bytes: int | None, meta: dict[str, Any] | None) -> WorkerMemory:
    """Derived from the largest ready worker of `status` and the size of the model's file, if they are known.

    meta: the model's description of itself. Its `memory_bytes` include what a new worker does not use yet. They do not
    include the copy of the weights that llama.cpp rearranges for some processors, so the measured use may be larger.
    """
    fixed = EMPTY_WORKER_BYTES + (model_bytes or 0)
    measured = max((worker.memory_bytes for worker in status.workers if worker.is_ready), default=0) if status else 0
    if not status or not measured:
        return WorkerMemory(fixed, 0, is_measured=False)
    batch_size = status.settings.batch_size
    if needed := (meta or {}).get("memory_bytes"):
        described = EMPTY_WORKER_BYTES + needed["weights"] + needed["saved_sequences"] + needed.get("embeddings", 0)
        fixed = max(described, measured - needed["kv_cache"])
        return WorkerMemory(fixed, needed["kv_cache"] // batch_size, needed["weights"])
    fixed = min(fixed, measured)
    return WorkerMemory(fixed, (measured - fixed) // batch_size)
