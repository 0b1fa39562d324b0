"""Compares OpenAI-compatible servers: each workload on each server in turn, in several rounds.

    python -m benchmarks.serving --target llama-server=http://127.0.0.1:9090/v1 --rounds 3 --json figures.json

Sends the requests to the TorchServe of config.properties (or TS_CONFIG_FILE), then to each --target. All must serve the
same GGUF file with the same threads and context. `--config NAME=FILE` adds another TorchServe by its config.properties.

Prints the figures of each round, their medians, and the medians of the ratios TorchServe / other server.
A server whose request fails has no figures in that round.
"""

import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import argument_parser
from benchmarks.conversations import run_long_conversation, run_many_conversations, run_second_questions
from benchmarks.fairness import (
    run_arriving_questions,
    run_beside_busy_programs,
    run_long_prompt_beside_streams,
    run_questions_in_sequence,
)
from benchmarks.figures import Figures, WorkloadFailed, checked, compare, line, load_figures, medians
from benchmarks.workloads import CLOSED_LOOPS, Workload, distinct, schema_body
from experiments.load_test import Target, run_load, torchserve_target
from torchserve_client.config import ServerConfig

RunWorkload = Callable[[Target, str], Figures]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """run(target, tag): the figures of one round. No prompt has the text of a prompt with another tag."""

    about: str
    run: RunWorkload


def closed_loop(workload: Workload) -> RunWorkload:
    return lambda target, tag: load_figures(run_load(target, workload.bodies(tag), workload.clients))


def schema_answers(clients: int, requests: int) -> RunWorkload:
    """The requests with a JSON schema, then as many without one, with answers of the average length of those."""

    def run(target: Target, tag: str) -> Figures:
        bodies = [schema_body(request) for request in distinct(requests)(f"{tag} schema")]
        constrained = run_load(target, bodies, clients)
        length = round(statistics.mean(sample.completion_tokens for sample in checked(constrained.samples)))
        plain = run_load(target, distinct(requests, length)(f"{tag} plain"), clients)
        checked(plain.samples)
        return {
            **load_figures(constrained),
            "plain_tokens_per_second": plain.tokens_per_second,
            "schema_over_plain": constrained.tokens_per_second / plain.tokens_per_second,
            "complete_answers": sum(is_json(sample.text) for sample in constrained.samples),
        }

    return run


def is_json(answer: str) -> bool:
    try:
        json.loads(answer)
    except ValueError:
        return False
    return True


BENCHMARKS = {
    **{name: Benchmark(workload.about, closed_loop(workload)) for name, workload in CLOSED_LOOPS.items()},
    "WT": Benchmark("a conversation of 10 turns", run_long_conversation),
    "WL": Benchmark("a prompt of 3,000 tokens beside 4 streams of 200", run_long_prompt_beside_streams),
    "WQ": Benchmark("6 short questions, one every 0.5 s, 1 s after a prompt of 6,000 tokens", run_arriving_questions),
    "WN": Benchmark("40 short questions, one after another, beside a prompt of 6,000", run_questions_in_sequence),
    "WB": Benchmark("WQ, then WQ beside one busy program for each core", run_beside_busy_programs),
    "WJ1": Benchmark("1 client, answers with a JSON schema of 5 fields, and without", schema_answers(1, 6)),
    "WJ8": Benchmark("8 clients, as WJ1", schema_answers(8, 48)),
    "WC": Benchmark("24 conversations of 4 turns on 8 clients", run_many_conversations),
    "W3": Benchmark("4 clients with 3,000 tokens each, the second question", run_second_questions),
}


def run_round(benchmark: Benchmark, targets: Sequence[Target], tag: str) -> dict[str, Figures]:
    """The figures of each target, by its name; empty after a failed request."""
    figures: dict[str, Figures] = {}
    for target in targets:
        try:
            figures[target.name] = benchmark.run(target, tag)
            print(f"{target.name:14} {line(figures[target.name])}", flush=True)
        except WorkloadFailed as problem:
            figures[target.name] = {}
            print(f"{target.name:14} {problem}", flush=True)
    return figures


def run_benchmark(name: str, targets: Sequence[Target], rounds: int, seed: int) -> dict[str, Any]:
    """All rounds; prints and returns the figures, their medians, and the ratios of the first target to each other."""
    benchmark, baseline = BENCHMARKS[name], targets[0].name
    print(f"\n{name}: {benchmark.about}", flush=True)
    results = [run_round(benchmark, targets, f"{name} {number} {seed}") for number in range(rounds)]
    middle = {target.name: medians(result[target.name] for result in results) for target in targets}
    ratios = {target.name: compare(results, baseline, target.name) for target in targets[1:]}
    for target, figures in middle.items():
        print(f"{name} median of {target}: {line(figures)}", flush=True)
    for other, figures in ratios.items():
        print(f"{name} {baseline} / {other}: {line(figures)}", flush=True)
    return {"rounds": results, "medians": middle, "ratios": ratios}


def main() -> int:
    workloads = "\n".join(f"  {name:7} {benchmark.about}" for name, benchmark in BENCHMARKS.items())
    parser = argument_parser("serving", f"{__doc__}\nWorkloads:\n{workloads}")
    parser.add_argument("--target", action="append", default=[], metavar="NAME=URL", help="another server, .../v1")
    parser.add_argument("--config", action="append", default=[], metavar="NAME=FILE", help="another TorchServe")
    parser.add_argument(
        "--workload", action="append", choices=BENCHMARKS, metavar="NAME", help="repeatable (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all texts (default: a new one)")
    parser.add_argument("--json", type=Path, help="file for all figures, written after each workload")
    arguments = parser.parse_args()
    targets = [torchserve_target(ServerConfig.load())]
    for name, file in (pair.split("=", 1) for pair in arguments.config):
        targets.append(dataclasses.replace(torchserve_target(ServerConfig.load(file)), name=name))
    targets += [Target(*pair.split("=", 1)) for pair in arguments.target]

    report: dict[str, Any] = {"machine": f"{platform.machine()}, {platform.system()}", "workloads": {}}
    for target in targets:  # the first requests are slower than the later ones
        run_load(target, distinct(2)("warm-up"), clients=2)
    for name in arguments.workload or BENCHMARKS:
        report["workloads"][name] = run_benchmark(name, targets, arguments.rounds, arguments.seed)
        if arguments.json:
            arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
