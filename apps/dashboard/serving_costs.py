"""What each of the three serving settings costs: a short line, and an explanation. Knows nothing of Streamlit.

The memory is what the workers need when all their slots are full, not what they use now.
"""

from dataclasses import dataclass

from apps.dashboard.wording import counted, megabytes
from torchserve_client.status import ServingSettings
from torchserve_client.worker_memory import WorkerMemory


@dataclass(frozen=True, slots=True)
class Cost:
    """`line` is Markdown for a caption of one line; `help` explains it."""

    line: str
    help: str


def workers_cost(wanted: ServingSettings, memory: WorkerMemory, free_bytes: int) -> Cost:
    """The memory of all workers when their slots are full, and how they batch.

    free_bytes: the memory that new workers could use, with that of the workers that they replace.
    """
    first, another = memory.of_first(wanted.batch_size), memory.of_another(wanted.batch_size)
    needed = first + (wanted.workers - 1) * another
    least = "" if memory.is_complete else "at least "
    full = " with full slots" if memory.is_complete else ""
    line = f"{least}{needed / 2**20:,.0f} of {megabytes(free_bytes)}{full}"
    if needed > free_bytes:
        line = f":red[:material/warning: {line}]"
    if wanted.workers == 1:
        batching = "One worker batches continuously: a new request joins at the next token."
    else:
        batching = (
            "Two or more workers use dynamic batching, because TorchServe's continuous batching freezes with them: a "
            "new request waits until its worker's batch has ended. The workers share the processor's cores."
        )
    each = f"Each worker needs {least or 'about '}{megabytes(first)}{full}."
    if wanted.workers > 1 and another != first:
        each = (
            f"The first worker needs {least or 'about '}{megabytes(first)}{full}, each other one {megabytes(another)}, "
            "because they share the model's file."
        )
    unknown = "" if memory.is_complete else " The model reports what its contexts need when it has been loaded."
    return Cost(line, f"{each}{unknown} {batching}")


def batch_size_cost(wanted: ServingSettings, memory: WorkerMemory) -> Cost:
    """What it costs to answer several requests together."""
    line = f"{counted(wanted.batch_size, 'request')} a worker at once"
    slot = ""
    if memory.slot_bytes:
        line = f"Full contexts: {megabytes(wanted.batch_size * memory.slot_bytes)} a worker"
        slot = (
            f" Each request has a slot with a context of {memory.window:,} tokens, which takes "
            f"{megabytes(memory.slot_bytes)}. n_ctx in model-config.yaml makes it shorter or longer."
        )
    if wanted.batch_size == 1:
        return Cost(line, f"One request at a time: the fastest for a single person. All other requests wait.{slot}")
    return Cost(line, f"The requests of a worker share its speed: more tokens/s in total, fewer for each.{slot}")


def delay_cost(wanted: ServingSettings) -> Cost:
    """The delay until a batch is filled. TorchServe does not delay a batch that one request fills (measured)."""
    explanation = "How long a request for an idle worker waits for other requests that would join its batch."
    if wanted.max_batch_delay_ms == 0:
        return Cost("No request waits for a batch to fill", explanation)
    if wanted.batch_size == 1:
        return Cost("No effect with a batch size of 1", f"{explanation} One request fills a batch of 1.")
    return Cost(f"Up to {wanted.max_batch_delay_ms:,} ms more for a lone request", explanation)
