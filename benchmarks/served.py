"""Compares a model behind TorchServe with llama.cpp's llama-batched-bench, and measures the memory of its workers.

    python -m benchmarks.served models/Llama-2-7b-Q4_0.gguf --tool path/to/llama-batched-bench --streams 4

Sends requests to the TorchServe of config.properties (or TS_CONFIG_FILE). It must serve the same GGUF file with a batch
size of at least --streams. Prints the generated tokens per second while all streams decode, and the median of the
ratios. Then prints the memory of one worker and of two workers. For that, the model is registered again twice.

The tool generates as many tokens, with as many tokens in the KV cache, as the served streams on average. A 7B model
decodes a third slower with 500 tokens in the KV cache than with 128, because attention reads all of them.
"""

import dataclasses
import statistics
import sys
from pathlib import Path

import psutil

from benchmarks import argument_parser
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
    """The time in which all streams decode: from the last first token to the first end."""

    tokens_per_second: float  # of all streams together
    context: int  # tokens in the KV cache of a stream at the beginning, on average
    generated: int  # tokens of a stream, on average


def bench_served(target: Target, streams: int, round_number: int) -> Window:
    """Sends one request for each stream, all at the same time.

    All prompts are equal, so that the streams begin together like those of the tool. In llama.cpp's attention, all
    sequences take the time of the longest one. Streams 20 tokens apart decode 4 % slower (Q4_0 of 7B, 2 cores).

    Counts the events of the stream as tokens. Fast models send several tokens in one event; they are refused.
    """
    messages = question(text(PROMPT_TOKENS, round_number))
    bodies = [body(messages, number, ANSWER_TOKENS) for number in range(streams)]
    samples = run_load(target, bodies, clients=streams).samples
    errors = [sample.error for sample in samples if sample.error]
    if errors:
        sys.exit(f"A request failed: {errors[0]}")
    if any(len(sample.events) < 0.9 * sample.completion_tokens for sample in samples):
        sys.exit("Several tokens came in one event: this model is too fast for this benchmark. Use benchmarks.serving.")
    begin = max(sample.events[0] for sample in samples)
    end = min(sample.events[-1] for sample in samples)
    generated = sum(begin < moment <= end for sample in samples for moment in sample.events)
    context = sum(sample.prompt_tokens + sum(moment <= begin for moment in sample.events) for sample in samples)
    return Window(generated / (end - begin), round(context / streams), round(generated / streams))


def print_memory(status: ModelStatus) -> None:
    """Prints the resident memory of each worker, and the part that no other process shares."""
    for worker in status.workers:
        memory = psutil.Process(worker.pid).memory_full_info()
        print(f"worker {worker.id}: {memory.rss / 1e9:.2f} GB resident, {memory.uss / 1e9:.2f} GB not shared")


def main() -> int:
    parser = argument_parser("served", __doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="llama-batched-bench of the same llama.cpp")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    config = ServerConfig.load()
    management, target = ManagementClient(config), torchserve_target(config)
    before = management.describe()
    if before is None:
        sys.exit("The model is not registered: press Register Llama2 in the server app first.")
    ratios = []
    for number in range(arguments.rounds):
        served = bench_served(target, arguments.streams, number)
        tool_rate = bench_tool(
            arguments.tool, arguments.model, arguments.streams, arguments.threads, served.context, served.generated
        )
        ratios.append(served.tokens_per_second / tool_rate)
        print(
            f"{arguments.streams} streams, {served.generated} tokens each after {served.context}: "
            f"served {served.tokens_per_second:.2f}, llama-batched-bench {tool_rate:.2f} tokens/s",
            flush=True,
        )
    print(f"{arguments.streams} streams: served / llama-batched-bench {statistics.median(ratios):.3f}", flush=True)

    print_memory(before)
    try:
        management.apply(dataclasses.replace(before.settings, workers=2))
        run_load(target, [body(question(text(32, number)), number, 4) for number in range(8)], clients=8)
        print_memory(management.describe() or before)
    finally:
        management.apply(before.settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
