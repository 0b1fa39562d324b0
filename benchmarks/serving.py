"""Compares OpenAI-compatible servers: each workload on each server in turn, in several rounds.

    python -m benchmarks.serving --target llama-server=http://127.0.0.1:9090/v1 --rounds 3

Sends the requests to the TorchServe of config.properties (or TS_CONFIG_FILE), then to each --target. All must serve the
same GGUF file with the same threads and context. `--config NAME=FILE` adds another TorchServe by its config.properties.
Prints the medians of the ratios TorchServe / other server.

The workloads are those of benchmarks/workloads.py and two more. WT: a conversation of 10 turns. WL: 4 clients receive
200 tokens each while a fifth client sends a prompt of 3,000 tokens.
"""

import dataclasses
import json
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import argument_parser
from benchmarks.workloads import CLOSED_LOOPS, body, distinct, question, text
from experiments.load_test import Run, Target, print_summary, run_load, torchserve_target
from torchserve_client.config import ServerConfig

DECODING_CLIENTS, GENERATED_TOKENS, LONG_PROMPT_TOKENS = 4, 200, 3000
TURNS = 10


def run_conversation(target: Target, tag: str) -> dict[str, Any]:
    """WT: the time to the first token of each turn."""
    messages = question(f"{tag} {text(20, tag)}")[:1]
    first_ms = []
    cached = []
    for turn in range(TURNS):
        messages = [*messages, {"role": "user", "content": text(20, tag, turn)}]
        (sample,) = run_load(target, [body(messages, turn)], clients=1).samples
        if sample.error or sample.time_to_first_token is None:
            return {"target": target.name, "errors": 1, "error": sample.error}
        first_ms.append(round(1000 * sample.time_to_first_token, 1))
        cached.append(sample.cached_tokens)
        messages = [*messages, {"role": "assistant", "content": sample.text}]
    return {
        "target": target.name,
        "errors": 0,
        "first_token_ms_by_turn": first_ms,
        "cached_tokens_by_turn": cached,
        "last_over_first": round(first_ms[-1] / first_ms[0], 2),
    }


def run_long_prompt(target: Target, tag: str) -> dict[str, Any]:
    """WL: the longest gap between two events of a stream during the prefill of a long prompt, and the median gap."""
    decoding: list[Run] = []
    has_begun = threading.Event()
    bodies = [body(question(text(20, tag, number)), number, GENERATED_TOKENS) for number in range(DECODING_CLIENTS)]
    thread = threading.Thread(
        target=lambda: decoding.append(run_load(target, bodies, DECODING_CLIENTS, on_text=has_begun.set)), daemon=True
    )
    thread.start()
    has_begun.wait(60)
    long_prompt = run_load(target, [body(question(text(LONG_PROMPT_TOKENS, tag, "long")), 0, 16)], clients=1)
    thread.join()
    gaps = [
        later - earlier
        for sample in decoding[0].samples
        for earlier, later in zip(sample.events, sample.events[1:], strict=False)
    ]
    errors = [*decoding[0].errors, *long_prompt.errors]
    if errors or not gaps:
        return {"target": target.name, "errors": len(errors), "error": errors[:1]}
    longest, median = 1000 * max(gaps), 1000 * statistics.median(gaps)
    return {
        "target": target.name,
        "errors": 0,
        "longest_gap_ms": round(longest, 1),
        "median_gap_ms": round(median, 1),
        "longest_over_median": round(longest / median, 2),
        "long_prompt_first_token_ms": round(1000 * (long_prompt.samples[0].time_to_first_token or 0), 1),
    }


def run_closed_loop(target: Target, tag: str, name: str) -> dict[str, Any]:
    workload = CLOSED_LOOPS[name]
    return run_load(target, workload.bodies(tag), workload.clients).summary()


def run_workload(name: str, target: Target, tag: str) -> dict[str, Any]:
    special: dict[str, Callable[[Target, str], dict[str, Any]]] = {"WT": run_conversation, "WL": run_long_prompt}
    if name in special:
        result = special[name](target, tag)
        print(json.dumps(result), flush=True)
        return result
    result = run_closed_loop(target, tag, name)
    print_summary(result)
    return result


def compare(name: str, results: list[dict[str, dict[str, Any]]], baseline: str, other: str) -> dict[str, float]:
    """The medians of the ratios baseline / other, over the rounds. Empty for WT and WL, and without answers."""

    def ratios(pick: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(pick(each[baseline]) / pick(each[other]) for each in results), 3)

    if name in ("WT", "WL"):
        return {}
    if any(not result[target]["first_token_ms"] for result in results for target in (baseline, other)):
        return {}
    return {
        "tokens_per_second": ratios(lambda result: result["tokens_per_second"]),
        "first_token_p50": ratios(lambda result: result["first_token_ms"]["p50"]),
        "first_token_p95": ratios(lambda result: result["first_token_ms"]["p95"]),
        "per_token_p50": ratios(lambda result: result["per_token_ms"]["p50"]),
    }


def main() -> int:
    parser = argument_parser("serving", __doc__)
    parser.add_argument("--target", action="append", default=[], metavar="NAME=URL", help="another server, .../v1")
    parser.add_argument("--config", action="append", default=[], metavar="NAME=FILE", help="another TorchServe")
    parser.add_argument("--workload", action="append", help=f"{', '.join(CLOSED_LOOPS)}, WT, WL (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all texts (default: a new one)")
    parser.add_argument("--json", type=Path, help="file for all figures")
    arguments = parser.parse_args()
    targets = [torchserve_target(ServerConfig.load())]
    for name, file in (pair.split("=", 1) for pair in arguments.config):
        targets.append(dataclasses.replace(torchserve_target(ServerConfig.load(file)), name=name))
    targets += [Target(*pair.split("=", 1)) for pair in arguments.target]
    names = arguments.workload or [*CLOSED_LOOPS, "WT", "WL"]

    report: dict[str, Any] = {"machine": f"{platform.machine()}, {platform.system()}", "workloads": {}}
    for target in targets:  # the first requests are slower than the later ones
        run_load(target, distinct(2)("warm-up"), clients=2)
    for name in names:
        print(f"\n{name}: {CLOSED_LOOPS[name].about if name in CLOSED_LOOPS else ''}", flush=True)
        rounds = [
            {target.name: run_workload(name, target, f"{name} {number} {arguments.seed}") for target in targets}
            for number in range(arguments.rounds)
        ]
        ratios = {target.name: compare(name, rounds, targets[0].name, target.name) for target in targets[1:]}
        for other, figures in ratios.items():
            if figures:
                print(f"{targets[0].name} / {other}: {figures}", flush=True)
        report["workloads"][name] = {"rounds": rounds, "ratios": ratios}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
