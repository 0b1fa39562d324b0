"""Adds and removes workers of the model as the load changes, until Ctrl-C or until TorchServe ends."""

import argparse
import signal
import sys
from dataclasses import fields, replace

from autoscaler.control import autoscaler_lock, switch_off
from autoscaler.loop import Autoscaler
from autoscaler.policy import Policy
from autoscaler.state_files import read_policy, write_policy
from torchserve_client.config import ServerConfig, TorchServeError

HELP = {
    "min_workers": "smallest number of workers",
    "max_workers": "largest number of workers",
    "max_memory_percent": "limit for the machine's memory in use, with another worker",
    "max_wait_seconds": "add a worker if a request waits longer",
    "calm_seconds": "remove a worker if no request waited and a worker was free for this time",
    "pause_seconds": "from one change to the next",
}


def main() -> int:
    arguments = _parse()
    chosen = {name: value for name, value in vars(arguments).items() if name != "off" and value is not None}
    try:
        config = ServerConfig.load()
        if arguments.off:
            switch_off(config)
            return 0
        autoscaler = Autoscaler(config)
        # The lock makes the process id known to others, so the handlers come first.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: autoscaler.stop())
        with autoscaler_lock(config):
            write_policy(config, replace(read_policy(config), **chosen))
            autoscaler.run()
    except (TorchServeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m autoscaler",
        description=__doc__,
        epilog="Limits that are not given stay as they were chosen last, here or in the server app. "
        "A model with continuous batching is registered again, with dynamic batching.",
    )
    for field in fields(Policy):
        text = f"{HELP[field.name]} (at first {field.default})"
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), metavar="N", help=text)
    parser.add_argument("--off", action="store_true", help="end the running autoscaler; the workers stay as they are")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
