"""Simultaneous requests to an OpenAI-compatible server, measured. For the command line, the benchmarks and the app.

Knows the wire only: any `…/v1` address will do, so that servers can be compared. Threads: one per client, each with
its own connection; what they measure comes back through the thread pool.

Not covered: https, and clients that keep their connection open between requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torchserve_client import MODEL_NAME, MODEL_VERSION, Keys
from torchserve_process import ServerConfig, TorchServeError

TIMEOUT_SECONDS = 1200.0
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask: `base_url` ends in /v1; `key` gives the API key at the moment of a request, or None."""

    name: str
    base_url: str
    key: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: times in seconds since the start of its run; `events` are the times at which text arrived."""

    sent: float
    first_token: float | None
    ended: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    events: tuple[float, ...] = ()
    error: str | None = None
    text: str = ""

    @property
    def time_to_first_token(self) -> float | None:
        return None if self.first_token is None else self.first_token - self.sent

    @property
    def time_per_token(self) -> float | None:
        """Seconds per token after the first; None for less than two tokens."""
        if self.first_token is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first_token) / (self.completion_tokens - 1)


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
    rate: float | None = None,
    on_sample: Callable[[Sample], None] = lambda sample: None,
    on_text: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
) -> Run:
    """Sends each of `bodies` (chat requests without `stream`) once, from `clients` clients.

    Closed loop (`rate` None): every client sends its next request when its last one is answered. Open loop: requests
    start `rate` times a second, however many are still open, up to `clients`. `stop` ends it after the open requests.
    `on_sample` and `on_text` (a piece of some answer has come) are called in the clients' threads.
    """
    stop = stop or threading.Event()
    started = time.monotonic()

    def send(number: int) -> Sample | None:
        if rate:
            stop.wait(max(0.0, started + number / rate - time.monotonic()))
        if stop.is_set():
            return None
        sample = _ask(target, bodies[number], started, on_text)
        on_sample(sample)
        return sample

    with ThreadPoolExecutor(clients, thread_name_prefix="client") as pool:
        samples = [sample for sample in pool.map(send, range(len(bodies))) if sample]
    return Run(target.name, time.monotonic() - started, samples)


def _ask(target: Target, body: dict[str, Any], started: float, on_text: Callable[[], None]) -> Sample:
    """Streams one answer; what goes wrong becomes the sample's error."""

    def now() -> float:
        return time.monotonic() - started

    sent = now()
    events: list[float] = []
    text: list[str] = []
    usage: dict[str, Any] = {}
    error: str | None = None
    is_done = False
    address = urlsplit(target.base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
    try:
        headers = {"Content-Type": "application/json"}
        if key := target.key():
            headers["Authorization"] = f"Bearer {key}"
        payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
        connection.request("POST", f"{address.path}/chat/completions", json.dumps(payload), headers)
        response = connection.getresponse()
        if response.status != 200:
            error = f"HTTP {response.status}: {response.read(300).decode(errors='replace')}"
        while error is None and (line := response.readline()):
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    error = str(event["error"])
                usage = event.get("usage") or usage
                if piece := "".join(
                    choice.get("delta", {}).get("content") or "" for choice in event.get("choices", [])
                ):
                    events.append(now())
                    on_text()
                    text.append(piece)
        if error is None and not is_done:
            error = "the answer was cut"
    except (OSError, http.client.HTTPException, ValueError, TorchServeError) as problem:
        error = f"{type(problem).__name__}: {problem}"
    finally:
        connection.close()
    return Sample(
        sent=sent,
        first_token=events[0] if events else None,
        ended=now(),
        prompt_tokens=usage.get("prompt_tokens", 0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        events=tuple(events),
        error=error,
        text="".join(text),
    )


def _percentiles(seconds: Sequence[float | None]) -> dict[str, float]:
    """Milliseconds at each of PERCENTILES; empty where nothing was measured."""
    values = sorted(value for value in seconds if value is not None)
    if not values:
        return {}
    if len(values) == 1:
        return {f"p{percent}": round(1000 * values[0], 1) for percent in PERCENTILES}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": round(1000 * cuts[percent - 1], 1) for percent in PERCENTILES}


def torchserve_target(config: ServerConfig) -> Target:
    """The TorchServe of `config`, with its inference key, read anew for every request."""
    keys = Keys(config, "inference")
    url = f"{config.inference_url}/predictions/{MODEL_NAME}/{MODEL_VERSION}/v1"
    return Target("torchserve", url, lambda: keys.use(lambda key: key))


def simple_bodies(requests: int, prompt: str, max_tokens: int) -> list[dict[str, Any]]:
    """Distinct chat requests of the same length, so that no server can answer one from another."""
    return [
        {
            "messages": [{"role": "user", "content": f"{prompt} ({number})"}],
            "max_tokens": max_tokens,
            "seed": number,
            "ignore_eos": True,
        }
        for number in range(requests)
    ]


def print_summary(summary: dict[str, Any]) -> None:
    """One line for people."""
    first, token = summary["first_token_ms"], summary["per_token_ms"]

    def shown(values: dict[str, float]) -> str:
        return " / ".join(f"{values[f'p{percent}']:.0f}" for percent in PERCENTILES) if values else "-"

    speed = f"{summary['target']:14} {summary['tokens_per_second']:7.1f} tokens/s"
    times = f"first token p50/p95/p99 {shown(first)} ms   per token {shown(token)} ms"
    print(f"{speed}   {times}   {summary['requests']} requests, {summary['errors']} errors", flush=True)


def main() -> int:
    """`python load_test.py --clients 8`: asks the TorchServe of config.properties, or any --url."""
    parser = argparse.ArgumentParser(description="Simultaneous chat requests, measured.")
    parser.add_argument(
        "--clients", type=int, default=8, help="requests that may be open at once (default %(default)s)"
    )
    parser.add_argument("--requests", type=int, help="requests in all (default: 4 for each client)")
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument(
        "--rate", type=float, help="requests a second (default: each client sends when it was answered)"
    )
    parser.add_argument("--prompt", default="Tell me a long story about the sea.", help="what is asked")
    parser.add_argument("--url", help="address of another server, ending in /v1")
    parser.add_argument("--json", type=Path, help="file for all samples")
    arguments = parser.parse_args()
    try:
        target = Target("server", arguments.url) if arguments.url else torchserve_target(ServerConfig.load())
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    bodies = simple_bodies(arguments.requests or 4 * arguments.clients, arguments.prompt, arguments.max_tokens)
    run = run_load(target, bodies, arguments.clients, arguments.rate)
    print_summary(run.summary())
    if run.errors:
        print(f"first error: {run.errors[0]}", file=sys.stderr)
    if arguments.json:
        samples = [asdict(sample) for sample in run.samples]
        arguments.json.write_text(json.dumps({"summary": run.summary(), "samples": samples}, indent=1))
    return 1 if run.errors else 0


if __name__ == "__main__":
    sys.exit(main())
