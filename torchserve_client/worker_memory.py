"""The main memory that a worker needs. Knows nothing of Streamlit and sends no request.

A running worker reports the memory that it needs when its caches are full, and its use now is measured. Without such a
report there is only a lower bound: the use now, or the size of the model's file.
"""

from dataclasses import dataclass
from typing import Any

from torchserve_client.status import ModelStatus

EMPTY_WORKER_BYTES = 120 * 2**20  # a worker without weights and caches (measured: 105 MB, docs/measurements.md)


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """`fixed_bytes`, and `slot_bytes` for each slot. `mapped_bytes` of the fixed ones are the model's file.

    All workers map the file once. mapped_bytes is 0 if the part is unknown. window: tokens of context of a slot, or 0.
    is_complete: whether the worker has reported what full caches need. Otherwise the size of a slot is unknown and 0.
    """

    fixed_bytes: int
    slot_bytes: int
    mapped_bytes: int = 0
    window: int = 0
    is_complete: bool = True

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
    needed = (meta or {}).get("memory_bytes")
    if status and measured and needed:
        described = EMPTY_WORKER_BYTES + needed["weights"] + needed["saved_sequences"] + needed.get("embeddings", 0)
        fixed = max(described, measured - needed["kv_cache"])
        slot = needed["kv_cache"] // status.settings.batch_size
        return WorkerMemory(fixed, slot, needed["weights"], (meta or {}).get("context_window", 0))
    return WorkerMemory(max(fixed, measured), 0, is_complete=False)
