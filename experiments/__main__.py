"""Measures the server under load while one of its settings varies, then puts the old settings back."""

import argparse
import signal
import sys
from pathlib import Path

from experiments.load_test import print_summary
from experiments.plan import SWEEPS, Plan
from experiments.prompts import PROMPT_SETS
from experiments.records import ExperimentRecord, record_file, to_csv
from experiments.restore import restore_setup
from experiments.run import Experiment, ExperimentProgress
from llama_cpp_worker.sampling_params import InvalidParameter
from torchserve_client.config import ServerConfig, TorchServeError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        epilog="The settings are put back after a failure and after a cancel (Ctrl-C), too.",
    )
    parser.add_argument("--clients", default="8", help="numbers of clients to try, like 1,4,8 (default %(default)s)")
    parser.add_argument("--requests", type=int, help="of each run (default: 4 for each client of the largest)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument("--prompts", choices=PROMPT_SETS, default="short", help="which prompts (default %(default)s)")
    sweeps = f"one of {', '.join(SWEEPS)}, like batch_size=1,4,8"
    parser.add_argument("--sweep", metavar="NAME=VALUES", default="", help=sweeps)
    parser.add_argument("--csv", type=Path, help="file for the figures")
    parser.add_argument("--restore", action="store_true", help="put back what a killed experiment changed, and end")
    arguments = parser.parse_args()
    sweep, _, values = arguments.sweep.partition("=")
    try:
        config = ServerConfig.load()
        if arguments.restore:
            restore_setup(config, print)
            return 0
        plan = Plan.from_texts(
            arguments.clients, arguments.requests, arguments.prompts, arguments.max_tokens, sweep, values
        )
        record = _run(config, plan)
    except (TorchServeError, InvalidParameter) as error:
        print(error, file=sys.stderr)
        return 1
    for point in record.points:
        print(f"{plan.run_name(point.value, point.clients)}: {point.first_error or 'no errors'}")
        print_summary(point.summary)
    print(f"{record.state}. {record.reason}".strip(), record_file(config, record.id), sep="\n")
    if arguments.csv:
        arguments.csv.write_text(to_csv([record]))
    return 0 if record.state == "done" else 1


def _run(config: ServerConfig, plan: Plan) -> ExperimentRecord:
    printed = ""

    def print_progress(progress: ExperimentProgress) -> None:
        nonlocal printed
        if progress.activity != printed:
            printed = progress.activity
            left = "" if progress.seconds_left is None else f" (about {progress.seconds_left:.0f} s left)"
            print(f"{progress.activity}{left}", flush=True)

    experiment = Experiment(config, plan, print_progress)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: experiment.cancel())
    return experiment.run()


if __name__ == "__main__":
    sys.exit(main())
