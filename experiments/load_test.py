"""Sends simultaneous requests to an OpenAI-compatible server and measures them, for the command line and other modules.

Any address that ends in /v1 will do, so servers can be compared. Does not change the server's settings and stores
nothing; experiments/run.py does. Threads: one per client, with its own connection. They share `stop` and the samples.

Not covered: clients that reuse their connection for the next request.
"""

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.prompts import PROMPT_SETS, make_bodies
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, RequestRefused
from torchserve_client.keys import NO_KEY, Keys, KeySource
from torchserve_client.streaming import CompletionStream

STOP_POLL_SECONDS = 0.1
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `base_url` ends in /v1.

    is_default_version: `base_url` is TorchServe's URL of the default version, so the API's path goes into a header.
    """

    name: str
    base_url: str
    keys: KeySource = NO_KEY
    is_default_version: bool = False

    def stream(self, body: dict[str, Any]) -> CompletionStream:
        """The answer to a chat request."""
        if self.is_default_version:
            return CompletionStream(self.base_url, body, self.keys, "v1/chat/completions")
        unreachable = f"No server answers at {self.base_url}: start it, or correct the address."
        return CompletionStream(f"{self.base_url}/chat/completions", body, self.keys, unreachable=unreachable)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. Times are in seconds since the start of its run; `events` are the times at which text arrived.

    timings: the server's own milliseconds (queue_ms, prompt_ms, predicted_ms); empty if the server sends none.
    """

    sent: float
    first_token: float | None
    ended: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    events: tuple[float, ...] = ()
    error: str | None = None
    text: str = ""
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.sent

    @property
    def time_per_token(self) -> float | None:
        """Seconds per token after the first one; None for less than two tokens."""
        if self.first_token is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first_token) / (self.completion_tokens - 1)

    def phases(self) -> dict[str, tuple[float, float]]:
        """Start and end of queue, prefill and decode, in seconds; empty after a failure or without timings.

        The server sends how long prefill and decode took. The queue, TorchServe's included, is the rest.
        """
        if self.error or not {"prompt_ms", "predicted_ms"} <= self.timings.keys():
            return {}
        decode = max(self.sent, self.ended - self.timings["predicted_ms"] / 1000)
        prefill = max(self.sent, decode - self.timings["prompt_ms"] / 1000)
        return {"queued": (self.sent, prefill), "prefill": (prefill, decode), "decode": (decode, self.ended)}


@dataclass(frozen=True, slots=True)
class Run:
    """All requests of one workload against one target."""

    target: str
    seconds: float
    samples: list[Sample] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        return sum(sample.completion_tokens for sample in self.samples) / self.seconds

    @property
    def errors(self) -> list[str]:
        return [sample.error for sample in self.samples if sample.error]

    def summary(self) -> dict[str, Any]:
        """Figures for people and JSON: tokens per second; milliseconds at each of PERCENTILES; counts."""
        good = [sample for sample in self.samples if not sample.error]
        return {
            "target": self.target,
            "requests": len(self.samples),
            "errors": len(self.errors),
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens_per_second, 1),
            "prompt_tokens": sum(sample.prompt_tokens for sample in good),
            "cached_tokens": sum(sample.cached_tokens for sample in good),
            "completion_tokens": sum(sample.completion_tokens for sample in good),
            "first_token_ms": _percentiles([sample.time_to_first_token for sample in good]),
            "per_token_ms": _percentiles([sample.time_per_token for sample in good]),
            "latency_ms": _percentiles([sample.ended - sample.sent for sample in good]),
        }


def run_load(
    target: Target,
    bodies: Sequence[dict[str, Any]],
    clients: int,
    on_sample: Callable[[Sample], None] = lambda sample: None,
    on_text: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> Run:
    """Sends each of `bodies` (chat requests without `stream`) once. Each client sends its next request after its last.

    `stop` cancels the open requests; the run then has only the finished ones. The clients' threads call `on_sample` for
    every sample, and `on_text` when text of any answer has arrived.
    """
    stop = stop or threading.Event()
    started = time.monotonic()
    numbers = deque(range(len(bodies)))
    samples: dict[int, Sample] = {}
    streams: list[CompletionStream | None] = [None] * clients  # by client: its open request

    def send_all(client: int) -> None:
        while not stop.is_set():
            try:
                number = numbers.popleft()
            except IndexError:
                return
            streams[client] = stream = target.stream(bodies[number])
            sample = _measure(stream, started, on_text)
            if not stop.is_set():
                samples[number] = sample
                on_sample(sample)

    threads = [threading.Thread(target=send_all, args=(client,), daemon=True) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(STOP_POLL_SECONDS)
            if stop.is_set():
                for stream in filter(None, streams):
                    stream.close()
    return Run(target.name, time.monotonic() - started, [samples[number] for number in sorted(samples)])


def _measure(stream: CompletionStream, started: float, on_text: Callable[[], None]) -> Sample:
    """Receives the whole answer. Any failure becomes the sample's error."""
    sent = time.monotonic() - started
    events: list[float] = []
    text, error = "", None
    usage: dict[str, Any] = {}
    timings: dict[str, float] = {}
    try:
        for event in stream:
            if event.text:
                events.append(time.monotonic() - started)
                text += event.text
                on_text()
            usage = event.usage or usage
            timings = event.timings or timings
    except TorchServeError as problem:
        error = f"HTTP {problem.status}: {problem}" if isinstance(problem, RequestRefused) else str(problem)
    return Sample(
        sent=sent,
        first_token=events[0] if events else None,
        ended=time.monotonic() - started,
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        events=tuple(events),
        error=error,
        text=text,
        timings=timings,
    )


def _percentiles(seconds: Sequence[float | None]) -> dict[str, float]:
    """Milliseconds at each of PERCENTILES; empty without measured values."""
    values = sorted(value for value in seconds if value is not None)
    if not values:
        return {}
    if len(values) == 1:
        return {f"p{percent}": round(1000 * values[0], 1) for percent in PERCENTILES}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": round(1000 * cuts[percent - 1], 1) for percent in PERCENTILES}


def torchserve_target(config: ServerConfig) -> Target:
    """The default version on the TorchServe of `config`."""
    url = f"{config.inference_url}/predictions/{MODEL_NAME}"
    return Target("torchserve", url, Keys(config, "inference"), is_default_version=True)


def print_summary(summary: dict[str, Any]) -> None:
    """One line for people."""
    first, token = (
        " / ".join(f"{value:.0f}" for value in summary[name].values()) or "-"
        for name in ("first_token_ms", "per_token_ms")
    )
    speed = f"{summary['target']:14} {summary['tokens_per_second']:7.1f} tokens/s"
    times = f"first token p50/p95/p99 {first} ms   per token {token} ms"
    print(f"{speed}   {times}   {summary['requests']} requests, {summary['errors']} errors", flush=True)


def main() -> int:
    """Sends to the TorchServe of config.properties, or to any --url."""
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m experiments.load_test", description=description)
    parser.add_argument("--clients", type=int, default=8, help="requests open at once, at most (default %(default)s)")
    parser.add_argument("--requests", type=int, help="requests in all (default: 4 for each client)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument("--prompts", choices=PROMPT_SETS, default="short", help="the prompts (default %(default)s)")
    parser.add_argument("--url", help="address of another server, ending in /v1")
    parser.add_argument("--json", type=Path, help="file for all samples")
    arguments = parser.parse_args()
    requests = 4 * arguments.clients if arguments.requests is None else arguments.requests
    if min(arguments.clients, requests, arguments.max_tokens) < 1:
        parser.error("--clients, --requests and --max-tokens must be 1 or more")
    try:
        target = Target("server", arguments.url) if arguments.url else torchserve_target(ServerConfig.load())
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    tag = str(random.randrange(10**6))
    run = run_load(target, make_bodies(arguments.prompts, requests, arguments.max_tokens, tag), arguments.clients)
    print_summary(run.summary())
    if run.errors:
        print(f"first error: {run.errors[0]}", file=sys.stderr)
    if arguments.json:
        samples = [asdict(sample) for sample in run.samples]
        arguments.json.write_text(json.dumps({"summary": run.summary(), "samples": samples}, indent=1))
    return 1 if run.errors else 0


if __name__ == "__main__":
    sys.exit(main())
