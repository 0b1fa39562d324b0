"""An experiment from the command line: python -m experiments --clients 8 --sweep batch_size=1,4,8"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from experiments import records
from experiments.load_test import PERCENTILES
from experiments.prompts import PROMPT_SETS
from experiments.records import Plan, Point
from experiments.restore import put_back
from experiments.run import Experiment, Progress
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Load while one of the server's settings varies. The old settings are put back when it is done, "
        "failed or cancelled (Ctrl-C).",
    )
    parser.add_argument("--clients", default="8", help="numbers of clients to try, like 1,4,8 (default %(default)s)")
    parser.add_argument("--requests", type=int, help="of each run (default: 4 for each client of the largest)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument("--prompts", choices=PROMPT_SETS, default="short", help="what is asked (default %(default)s)")
    parser.add_argument(
        "--sweep", metavar="NAME=VALUES", help=f"one of {', '.join(records.SWEEPS)}, like batch_size=1,4,8"
    )
    parser.add_argument("--csv", type=Path, help="file for the figures")
    parser.add_argument("--restore", action="store_true", help="put back what a killed experiment left, and end")
    arguments = parser.parse_args()
    try:
        config = ServerConfig.load()
        if arguments.restore:
            put_back(config, print)
            return 0
        return _run(config, _plan(arguments), arguments.csv)
    except (TorchServeError, InvalidParameter) as error:
        print(error, file=sys.stderr)
        return 1


def _plan(arguments: argparse.Namespace) -> Plan:
    clients = tuple(int(number) for number in records.values_from("clients", arguments.clients))
    sweep, _, values = (arguments.sweep or "").partition("=")
    return Plan(
        clients=clients,
        requests=arguments.requests or 4 * max(clients, default=1),
        prompts=arguments.prompts,
        max_tokens=arguments.max_tokens,
        sweep=sweep or None,
        values=records.values_from(sweep, values) if sweep else (),
    )


def _run(config: ServerConfig, plan: Plan, csv: Path | None) -> int:
    told = [""]

    def tell(progress: Progress) -> None:
        if progress.doing != told[0]:
            told[0] = progress.doing
            left = "" if progress.seconds_left is None else f" (about {progress.seconds_left:.0f} s left)"
            print(f"{progress.doing}{left}", flush=True)

    experiment = Experiment(config, plan, tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: experiment.cancel())
    record = experiment.run()
    for point in record.points:
        print(_line(plan, point))
    print(f"{record.state}. {record.reason}".strip(), records.file_of(config, record.id), sep="\n")
    if csv:
        csv.write_text(records.to_csv([record]))
    return 0 if record.state == "done" else 1


def _line(plan: Plan, point: Point) -> str:
    times = point.summary["first_token_ms"]
    first = " / ".join(f"{times[f'p{percent}']:.0f}" for percent in PERCENTILES) if times else "-"
    failed = f"   {point.summary['errors']} failed: {point.first_error}" if point.first_error else ""
    speed = f"{point.summary['tokens_per_second']:7.1f} tokens/s   first token p50/p95/p99 {first} ms"
    return f"{plan.run_name(point.value, point.clients):36} {speed}{failed}"


if __name__ == "__main__":
    sys.exit(main())
