"""Measures size, speed and quality of a model in each type that package_llama.sh can make.

    python -m benchmarks.quantizations models/SmolLM2-135M-Instruct.Q4_1.gguf

Prints a row for each type. Speeds are tokens per second of the engine without TorchServe: prefill of a prompt, and
decode for 1 and for 8 streams; medians. The perplexity is that of Python's documentation, divided by the perplexity of
the source.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks import argument_parser
from benchmarks.engine import bench_engine
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from llama_cpp_worker.request import Request
from llama_cpp_worker.sampling_params import SamplingParams
from package_llama.check_gguf import measure_perplexity
from package_llama.paths import PROJECT
from package_llama.weight_types import QUANTIZATIONS

PROMPT_TOKENS, STREAMS, ROUNDS = 512, (1, 8), 3
TEXT, TEXT_TOKENS = "\n\n".join(topics.values()).encode(), 12_288


def bench_prompt(engine: Engine, round_number: int) -> float:
    """Tokens per second of a prompt's prefill, with the first token of the answer."""
    dice = random.Random(round_number)
    prompt = [dice.randrange(1000, 20_000) for _ in range(PROMPT_TOKENS)]
    request = Request(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
    started = time.monotonic()
    engine.submit(request)
    while not request.is_finished:
        engine.step()
    return PROMPT_TOKENS / (time.monotonic() - started)


def bench_speed(gguf: Path, threads: int) -> list[float]:
    """Tokens per second: prefill, then decode for each number of STREAMS."""
    model = Model(str(gguf), n_slots=max(STREAMS), n_ctx=1024, n_threads=threads)
    engine = Engine(model)
    bench_prompt(engine, -1)
    rates = [statistics.median(bench_prompt(engine, number) for number in range(ROUNDS))]
    for streams in STREAMS:
        rates.append(statistics.median(bench_engine(engine, streams, number) for number in range(ROUNDS)))
    model.close()
    return rates


def main() -> int:
    parser = argument_parser("quantizations", __doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    given.source = given.source.resolve()
    before = measure_perplexity(given.source, TEXT, TEXT_TOKENS, checks_weights=False)[0]
    print("| type | size | prefill | 1 stream | 8 streams | perplexity |")
    print("|---|---|---|---|---|---|")
    for quantization in QUANTIZATIONS:
        with tempfile.TemporaryDirectory(dir=given.source.parent) as folder:
            made = Path(folder, "made.gguf")
            command = [sys.executable, "-m", "package_llama.quantize", given.source, made, quantization]
            subprocess.run(command, cwd=PROJECT, stderr=subprocess.PIPE, check=True)
            ratio = measure_perplexity(made, TEXT, TEXT_TOKENS, checks_weights=True)[0] / before
            rates = " | ".join(f"{rate:.0f}" for rate in bench_speed(made, given.threads))
            print(f"| {quantization} | {made.stat().st_size / 1e6:.0f} MB | {rates} | {ratio:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
