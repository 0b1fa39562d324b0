"""Compares the engine, without TorchServe, with llama.cpp's llama-batched-bench.

    python -m benchmarks.engine models/SmolLM2-135M-Instruct-Q8_0.gguf --tool path/to/llama-batched-bench

Both use the same model file and the same number of threads, and they take turns. Prints the generated tokens per second
of both for each number of streams, and the median of the ratios.
"""

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import argument_parser
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams

PROMPT_TOKENS, GENERATED_TOKENS = 128, 64


def bench_engine(engine: Engine, streams: int, round_number: int) -> float:
    """Generated tokens per second while all streams decode: from the last first token to the first end."""
    dice = random.Random(round_number)
    requests = [
        Request(
            [dice.randrange(1000, 20_000) for _ in range(PROMPT_TOKENS)],
            SamplingParams(max_tokens=GENERATED_TOKENS, seed=number, ignore_eos=True),
        )
        for number in range(streams)
    ]
    for request in requests:
        engine.submit(request)
    while any(not request.completion for request in requests):
        engine.step()
    before, started = sum(len(request.completion) for request in requests), time.monotonic()
    while not any(request.is_finished for request in requests):
        engine.step()
    rate = (sum(len(request.completion) for request in requests) - before) / (time.monotonic() - started)
    for request in requests:
        engine.cancel(request)
    return rate


def bench_tool(
    tool: Path, model: Path, streams: int, threads: int, prompt: int = PROMPT_TOKENS, generated: int = GENERATED_TOKENS
) -> float:
    """Generated tokens per second of llama-batched-bench: column S_TG in the last row of its table.

    prompt, generated: tokens of each stream.
    """
    sizes = ["-npp", str(prompt), "-ntg", str(generated), "-npl", str(streams)]
    command = [tool, "-m", model, "-c", str(streams * (prompt + generated)), "-t", str(threads), *sizes]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    row = [line for line in run.stdout.splitlines() if line.startswith("|")][-1]
    return float(row.split("|")[8])


def main() -> int:
    parser = argument_parser("engine", __doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tool", type=Path, required=True, help="llama-batched-bench of the same llama.cpp")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for streams in arguments.streams:
        model = Model(str(arguments.model), n_slots=streams, n_ctx=512, n_threads=arguments.threads)
        engine = Engine(model)
        bench_engine(engine, streams, -1)
        ratios = []
        for number in range(arguments.rounds):
            engine_rate = bench_engine(engine, streams, number)
            tool_rate = bench_tool(arguments.tool, arguments.model, streams, arguments.threads)
            ratios.append(engine_rate / tool_rate)
            rates = f"engine {engine_rate:6.1f}, llama-batched-bench {tool_rate:6.1f} tokens/s"
            print(f"{streams:3} streams: {rates}", flush=True)
        print(f"{streams:3} streams: engine / llama-batched-bench {statistics.median(ratios):.3f}", flush=True)
        model.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
