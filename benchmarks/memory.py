"""Measures what a worker's settings cost: its memory, at rest and with 8 clients, and its speed.

    python -m benchmarks.memory n_ctx=8192 n_ctx=4096 n_ctx=4096,kv_cache_type=q8_0

Each argument is a list of the handler's settings in model-config.yaml. Starts TorchServe once for each of them and
round, with model_store/llamacpp.tar.gz and a batch size of 8. Prints medians. Memory is the worker's resident memory,
the model's mapped file included, in MB of 2**20 bytes; the peak is that of the process until the end of the round.
"""

import statistics
import tempfile
from pathlib import Path

import psutil

from benchmarks import argument_parser
from benchmarks.workloads import CLOSED_LOOPS, body, question, text
from experiments.load_test import run_load, torchserve_target
from tests.support.serving import make_home, running_server, write_store
from torchserve_client.config import PROJECT
from torchserve_client.management import ManagementClient
from torchserve_client.status import DEFAULT_SETTINGS

CLIENTS = 8
LONG_PROMPT_TOKENS = 3500
FIGURES = ("at rest, MB", "peak, MB", "tokens/s, 8 clients", f"first token of {LONG_PROMPT_TOKENS:,}, s")


def measure(settings: dict[str, str | int], tag: str) -> list[float]:
    """FIGURES with these settings of the handler. Raises SystemExit if a request fails."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(PROJECT / "model_store", Path(folder) / "store", **settings)
        config = make_home(Path(folder) / "home", model_store=store)
        with running_server(config):
            management, target = ManagementClient(config), torchserve_target(config)
            management.register(DEFAULT_SETTINGS)
            status = management.describe()
            if status is None:
                raise SystemExit("The model was not registered: see the server's logs.")
            process = psutil.Process(status.workers[0].pid)
            rest = process.memory_info().rss
            together = run_load(target, CLOSED_LOOPS["W8"].bodies(tag), CLIENTS)
            alone = run_load(target, [body(question(text(LONG_PROMPT_TOKENS, tag)), 0, 4)], clients=1)
            if errors := together.errors + alone.errors:
                raise SystemExit(f"A request failed: {errors[0]}")
            first_token = alone.samples[0].time_to_first_token
            assert first_token is not None
            peak = peak_bytes(process.pid)
    return [rest / 2**20, peak / 2**20, together.tokens_per_second, first_token]


def peak_bytes(pid: int) -> int:
    """The largest resident memory so far (VmHWM of Linux; see proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def parsed(settings: str) -> dict[str, str | int]:
    pairs = dict(pair.split("=", 1) for pair in settings.split(","))
    return {name: int(value) if value.isdigit() else value for name, value in pairs.items()}


def main() -> None:
    parser = argument_parser("memory", __doc__)
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE[,…]")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds: dict[str, list[list[float]]] = {settings: [] for settings in arguments.settings}
    for number in range(arguments.rounds):
        for settings, figures in rounds.items():
            figures.append(measure(parsed(settings), f"{number} {settings}"))
            print(number, settings, [round(value, 1) for value in figures[-1]], flush=True)
    print(f"| settings | {' | '.join(FIGURES)} |")
    for settings, figures in rounds.items():
        medians = [f"{statistics.median(column):.1f}" for column in zip(*figures, strict=True)]
        print(f"| {settings} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
