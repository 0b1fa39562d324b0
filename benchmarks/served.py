"""A model served by TorchServe beside llama.cpp's own llama-batched-bench, in turn, and what its workers take.

    python -m benchmarks.served models/Llama-2-7b-Q4_0.gguf --tool path/to/llama-batched-bench --streams 4

asks the TorchServe of config.properties (or TS_CONFIG_FILE), which must serve the same GGUF with a batch size of at
least --streams. Prints generated tokens per second while all streams write, and the median of the ratios; then the
memory of one worker, and of two, for which the model is registered anew with two workers, and again as it was.

The tool writes as many tokens behind as many others as our streams had when they were measured: a 7B model writes a
third more slowly behind 500 tokens than behind 128, because attention reads all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import psutil

from benchmarks.engine import bench_tool
from benchmarks.workloads import body, question, text
from experiments.load_test import Target, run_load, torchserve_target
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ModelStatus

PROMPT_TOKENS = 32  # of the demo model; the vocabulary of a synthetic 7B makes about four times as many
ANSWER_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Window:
    """The time in which all streams wrote: from the last first token to the first end."""

    tokens_per_second: float  # of all streams together
    context: int  # tokens that a stream had in its KV cache at the beginning, on average
    generated: int  # tokens that a stream wrote, on average


def bench_served(target: Target, streams: int, round_number: int) -> Window:
    """One answer for each stream, all at once.

    All ask the same, so that they begin together, as the tool's do: llama.cpp's attention takes as long for all as for
    the longest, so streams that are 20 tokens apart write 4 % more slowly (Q4_0 of 7B, 2 cores).

    Counts pieces, so it is for models that take longer for a step than a time slice: each piece is a token then.
    """
    messages = question(text(PROMPT_TOKENS, round_number))
    bodies = [body(messages, number, ANSWER_TOKENS) for number in range(streams)]
    samples = run_load(target, bodies, clients=streams).samples
    errors = [sample.error for sample in samples if sample.error]
    if errors:
        sys.exit(f"A request failed: {errors[0]}")
    if any(len(sample.events) < 0.9 * sample.completion_tokens for sample in samples):
        sys.exit("Several tokens came in one piece: this model is too fast for this benchmark, use benchmarks.serving.")
    begin = max(sample.events[0] for sample in samples)
    end = min(sample.events[-1] for sample in samples)
    written = sum(begin < moment <= end for sample in samples for moment in sample.events)
    known = sum(sample.prompt_tokens + sum(moment <= begin for moment in sample.events) for sample in samples)
    return Window(written / (end - begin), round(known / streams), round(written / streams))


def print_memory(status: ModelStatus) -> None:
    """Resident memory of each worker, and of that what it shares with no other process."""
    for worker in status.workers:
        memory = psutil.Process(worker.pid).memory_full_info()
        print(f"worker {worker.id}: {memory.rss / 1e9:.2f} GB resident, {memory.uss / 1e9:.2f} GB of it its own")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="llama-batched-bench of the same llama.cpp")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    config = ServerConfig.load()
    manager, target = ManagementClient(config), torchserve_target(config)
    before = manager.describe()
    if before is None:
        sys.exit("The model is not registered: press Register Llama2 in the server app first.")
    ratios = []
    for number in range(arguments.rounds):
        ours = bench_served(target, arguments.streams, number)
        theirs = bench_tool(
            arguments.tool, arguments.model, arguments.streams, arguments.threads, ours.context, ours.generated
        )
        ratios.append(ours.tokens_per_second / theirs)
        print(
            f"{arguments.streams} streams, {ours.generated} tokens each behind {ours.context}: "
            f"served {ours.tokens_per_second:.2f}, llama-batched-bench {theirs:.2f} tokens/s",
            flush=True,
        )
    print(f"{arguments.streams} streams: served / llama-batched-bench {statistics.median(ratios):.3f}", flush=True)

    print_memory(before)
    try:
        manager.apply(dataclasses.replace(before.settings, workers=2))
        run_load(target, [body(question(text(32, number)), number, 4) for number in range(8)], clients=8)
        print_memory(manager.describe() or before)
    finally:
        manager.apply(before.settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
