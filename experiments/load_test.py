"""Simultaneous requests to an OpenAI-compatible server, measured. For the command line, the benchmarks and the app.

Knows the wire only: any `…/v1` address will do, so that servers can be compared. Changing the server's settings
between runs, and keeping what was measured, is in experiments/. Threads: one per client, each with its own
connection; nothing but `stop` and what they measured is shared.

Not covered: https, and clients that keep their connection open between requests.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.prompts import PROMPT_SETS, make_bodies
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import API_PATH_HEADER, MODEL_NAME
from torchserve_client.keys import Keys

TIMEOUT_SECONDS = 1200.0
STOP_SECONDS = 0.1  # how soon a stop is seen
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask: `base_url` ends in /v1; `key` gives the API key at the moment of a request, or None.

    is_default_version: `base_url` is TorchServe's of a model without its version, and the API's path goes in a header.
    """

    name: str
    base_url: str
    key: Callable[[], str | None] = lambda: None
    is_default_version: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: times in seconds since the start of its run; `events` are the times at which text arrived.

    `timings` are the server's own milliseconds (queue_ms, prompt_ms, predicted_ms), where it tells them.
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
        """Seconds per token after the first; None for less than two tokens."""
        if self.first_token is None or self.completion_tokens < 2:
            return None
        return (self.ended - self.first_token) / (self.completion_tokens - 1)

    def phases(self) -> dict[str, tuple[float, float]]:
        """When it was queued, when its prompt was read and when its answer was written: seconds, start and end.

        The server tells how long it read and wrote; the rest, from sending on, is the queue, TorchServe's included.
        Empty for a failed request and for a server that tells nothing.
        """
        if self.error or not {"prompt_ms", "predicted_ms"} <= self.timings.keys():
            return {}
        writes = max(self.sent, self.ended - self.timings["predicted_ms"] / 1000)
        reads = max(self.sent, writes - self.timings["prompt_ms"] / 1000)
        return {"queued": (self.sent, reads), "reading": (reads, writes), "writing": (writes, self.ended)}


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
    start `rate` times a second, however many are still open, up to `clients`. `stop` hangs up: what was answered until
    then is returned. `on_sample` and `on_text` (a piece of some answer has come) are called in the clients' threads.
    """
    stop = stop or threading.Event()
    started = time.monotonic()
    numbers = deque(range(len(bodies)))
    samples: dict[int, Sample] = {}
    asking: list[_Question | None] = [None] * clients  # by client: what it has open

    def work(client: int) -> None:
        while not stop.is_set():
            try:
                number = numbers.popleft()
            except IndexError:
                return
            if rate:
                stop.wait(max(0.0, started + number / rate - time.monotonic()))
            asking[client] = question = _Question(target, bodies[number], started, on_text)
            sample = question.ask()
            if not stop.is_set():
                samples[number] = sample
                on_sample(sample)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(STOP_SECONDS)
            if stop.is_set():
                for question in filter(None, asking):
                    question.hang_up()
    return Run(target.name, time.monotonic() - started, [samples[number] for number in sorted(samples)])


class _Question:
    """One request on a connection of its own: ask() once, in a client's thread; hang_up() from any, at any time."""

    def __init__(self, target: Target, body: dict[str, Any], started: float, on_text: Callable[[], None]) -> None:
        self._target = target
        self._payload = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._started = started
        self._on_text = on_text
        self._socket: socket.socket | None = None
        self._is_hung_up = False
        self._events: list[float] = []
        self._text: list[str] = []
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, float] = {}

    def ask(self) -> Sample:
        """Streams the answer; what goes wrong becomes the sample's error."""
        sent = self._now()
        error = None
        try:
            self._exchange()
        except (OSError, http.client.HTTPException, ValueError, TorchServeError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        except _Refused as refusal:
            error = str(refusal)
        return Sample(
            sent=sent,
            first_token=self._events[0] if self._events else None,
            ended=self._now(),
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            cached_tokens=(self._usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            completion_tokens=self._usage.get("completion_tokens", 0),
            events=tuple(self._events),
            error=error,
            text="".join(self._text),
            timings=self._timings,
        )

    def hang_up(self) -> None:
        self._is_hung_up = True
        if self._socket:
            with contextlib.suppress(OSError):  # already disconnected
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _exchange(self) -> None:
        address = urlsplit(self._target.base_url)
        path, headers = f"{address.path}/chat/completions", {"Content-Type": "application/json"}
        if self._target.is_default_version:
            path, headers[API_PATH_HEADER] = address.path, "v1/chat/completions"
        if key := self._target.key():
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.connect()
            self._socket = connection.sock
            if self._is_hung_up:  # there was no socket to shut down yet
                raise _Refused("hung up")
            connection.request("POST", path, json.dumps(self._payload), headers)
            self._read(connection.getresponse())
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> None:
        if response.status != 200:
            raise _Refused(f"HTTP {response.status}: {response.read(300).decode(errors='replace')}")
        is_done = False
        for line in response:
            if line.startswith(b"data: [DONE]"):
                is_done = True
            elif line.startswith(b"data: "):
                self._take(json.loads(line[6:]))
        if not is_done:
            raise _Refused("the answer was cut")

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise _Refused(str(event["error"]))
        self._usage = event.get("usage") or self._usage
        self._timings = event.get("timings") or self._timings
        pieces = (choice.get("delta", {}).get("content") or "" for choice in event.get("choices", []))
        if piece := "".join(pieces):
            self._events.append(self._now())
            self._text.append(piece)
            self._on_text()


class _Refused(Exception):
    """The server's reason for not answering, or not to the end."""


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
    """The default version on the TorchServe of `config`, with its inference key, read anew for every request."""
    keys = Keys(config, "inference")
    url = f"{config.inference_url}/predictions/{MODEL_NAME}"
    return Target("torchserve", url, lambda: keys.use(lambda key: key), is_default_version=True)


def print_summary(summary: dict[str, Any]) -> None:
    """One line for people."""
    first, token = summary["first_token_ms"], summary["per_token_ms"]

    def shown(values: dict[str, float]) -> str:
        return " / ".join(f"{values[f'p{percent}']:.0f}" for percent in PERCENTILES) if values else "-"

    speed = f"{summary['target']:14} {summary['tokens_per_second']:7.1f} tokens/s"
    times = f"first token p50/p95/p99 {shown(first)} ms   per token {shown(token)} ms"
    print(f"{speed}   {times}   {summary['requests']} requests, {summary['errors']} errors", flush=True)


def at_least_one(text: str) -> int:
    """For argparse: a whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def main() -> int:
    """`python load_test.py --clients 8`: asks the TorchServe of config.properties, or any --url."""
    parser = argparse.ArgumentParser(
        description="Simultaneous chat requests, measured once. `python -m experiments --help` varies the settings."
    )
    count = at_least_one
    parser.add_argument("--clients", type=count, default=8, help="requests open at once, at most (default %(default)s)")
    parser.add_argument("--requests", type=count, help="requests in all (default: 4 for each client)")
    parser.add_argument("--max-tokens", type=count, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument(
        "--rate", type=float, help="requests a second (default: each client sends when it was answered)"
    )
    parser.add_argument("--prompts", choices=PROMPT_SETS, default="short", help="what is asked (default %(default)s)")
    parser.add_argument("--url", help="address of another server, ending in /v1")
    parser.add_argument("--json", type=Path, help="file for all samples")
    arguments = parser.parse_args()
    try:
        target = Target("server", arguments.url) if arguments.url else torchserve_target(ServerConfig.load())
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    requests = arguments.requests or 4 * arguments.clients
    bodies = make_bodies(arguments.prompts, requests, arguments.max_tokens, f"{random.randrange(10**6)}")
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
