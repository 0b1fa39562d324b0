"""What each of the three serving settings costs, as a sentence. Knows nothing of Streamlit and sends no request."""

from apps.dashboard.wording import megabytes
from torchserve_client.status import ServingSettings
from torchserve_client.worker_memory import WorkerMemory


def workers_cost(wanted: ServingSettings, memory: WorkerMemory, free_bytes: int) -> str:
    """The memory of each worker, and how the workers batch."""
    first, another = (megabytes(size(wanted.batch_size)) for size in (memory.of_first, memory.of_another))
    least = "about" if memory.is_measured else "at least"
    needed = f"Each worker needs {least} {first}"
    if wanted.workers > 1 and another != first:
        needed = (
            f"The first worker needs {least} {first}, each other one {another}, because they share the model's file"
        )
    needed += f"; {megabytes(free_bytes)} are free."
    if wanted.workers == 1:
        return f"{needed} One worker batches continuously: a new request joins at the next token."
    return (
        f"{needed} Two or more workers use dynamic batching, because TorchServe's continuous batching freezes with "
        "them: a new request waits until its worker's batch has ended. The workers share the processor's cores."
    )


def batch_size_cost(wanted: ServingSettings, memory: WorkerMemory) -> str:
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
