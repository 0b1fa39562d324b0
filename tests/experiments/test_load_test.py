"""The load test: its figures from plain numbers, its clients against a small real server."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from experiments.load_test import Run, Sample, Target, run_load
from experiments.prompts import PROMPT_SETS, make_bodies
from tests.support.serving import wait_until
from torchserve_client.config import PROJECT


def sample(sent: float = 0.0, first: float | None = 0.0, ended: float = 1.0, **others: Any) -> Sample:
    return Sample(sent, first, ended, prompt_tokens=10, cached_tokens=0, completion_tokens=5, **others)


def test_summary_of_evenly_spread_latencies_has_their_percentiles() -> None:
    run = Run("x", 10.0, [sample(ended=number / 1000) for number in range(101)])

    assert run.summary()["latency_ms"] == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_percentiles_of_one_request_are_its_time_and_of_none_are_empty() -> None:
    assert Run("x", 1.0, [sample(first=0.25)]).summary()["first_token_ms"] == {"p50": 250.0, "p95": 250.0, "p99": 250.0}
    assert Run("x", 1.0, []).summary()["latency_ms"] == {}


def test_tokens_per_second_are_all_tokens_over_the_whole_time() -> None:
    assert Run("x", 4.0, [sample(), sample(sent=3.0, ended=4.0)]).tokens_per_second == 2.5


def test_failed_requests_are_counted_and_left_out_of_the_times() -> None:
    summary = Run("x", 1.0, [sample(ended=0.5), sample(ended=9.0, error="HTTP 503: no")]).summary()

    assert (summary["requests"], summary["errors"], summary["latency_ms"]["p99"]) == (2, 1, 500.0)


def test_time_per_token_leaves_the_first_one_out() -> None:
    assert sample(first=1.0, ended=3.0).time_per_token == 0.5
    assert sample(first=None).time_per_token is None


def test_phases_end_with_the_answer_and_the_rest_is_the_queue() -> None:
    phases = sample(
        sent=1.0, ended=6.0, timings={"queue_ms": 10.0, "prompt_ms": 1500.0, "predicted_ms": 500.0}
    ).phases()

    assert phases == {"queued": (1.0, 4.0), "prefill": (4.0, 5.5), "decode": (5.5, 6.0)}


def test_phases_never_begin_before_the_request() -> None:
    phases = sample(sent=1.0, ended=2.0, timings={"prompt_ms": 5000.0, "predicted_ms": 400.0}).phases()

    assert phases == {"queued": (1.0, 1.0), "prefill": (1.0, 1.6), "decode": (1.6, 2.0)}


@pytest.mark.parametrize(
    "without",
    [sample(), sample(error="cut", timings={"prompt_ms": 1.0, "predicted_ms": 1.0})],
    ids=["no-timings", "failed"],
)
def test_failed_request_or_one_without_timings_has_no_phases(without: Sample) -> None:
    assert without.phases() == {}


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_prompts_of_two_runs_differ_from_their_beginning_on(prompts: str) -> None:
    texts = [body["messages"][0]["content"] for tag in "ab" for body in make_bodies(prompts, 12, 16, tag)]

    assert {text[0] for text in texts} == {"a", "b"}


@pytest.mark.parametrize("prompts", PROMPT_SETS)
def test_no_two_requests_of_a_run_are_alike(prompts: str) -> None:
    bodies = make_bodies(prompts, 20, 16, "run")

    assert len({json.dumps(body["messages"]) for body in bodies}) == 20
    assert all(body["max_tokens"] == 16 and body["ignore_eos"] for body in bodies)


def test_all_requests_of_a_run_share_one_long_prompt() -> None:
    systems = {body["messages"][0]["content"] for body in make_bodies("shared", 5, 16, "run")}

    assert len(systems) == 1 and len(systems.pop()) > 1000


class Answers:
    """What the small server does, and what it has seen."""

    def __init__(self) -> None:
        self.behave: Callable[[BaseHTTPRequestHandler], None] = good_answer
        self.bodies: list[dict[str, Any]] = []
        self.open_requests: set[BaseHTTPRequestHandler] = set()
        self.open_at_most = 0
        self.lock = threading.Lock()

    @property
    def open_now(self) -> int:
        return len(self.open_requests)

    def begin(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self.lock:
            self.bodies.append(body)
            self.open_requests.add(handler)
            self.open_at_most = max(self.open_at_most, self.open_now)

    def end(self, handler: BaseHTTPRequestHandler) -> None:
        with self.lock:
            self.open_requests.discard(handler)


def send_event(handler: BaseHTTPRequestHandler, event: object) -> None:
    text = event if isinstance(event, str) else json.dumps(event)
    handler.wfile.write(f"data: {text}\n\n".encode())
    handler.wfile.flush()


def wait_for_three(seen: Answers) -> Callable[[BaseHTTPRequestHandler], None]:
    """Good answers, the first of them when three requests are open."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        wait_until(lambda: seen.open_at_most >= 3, what="three clients")
        good_answer(handler, before_end=lambda: seen.end(handler))

    return behave


def good_answer(handler: BaseHTTPRequestHandler, before_end: Callable[[], None] = lambda: None) -> None:
    """`before_end` is called before [DONE] is sent: the client may send its next request right after that."""
    handler.send_response(200)
    handler.end_headers()
    time.sleep(0.02)
    send_event(handler, {"choices": [{"delta": {"content": "hello"}}]})
    send_event(handler, {"choices": [{"delta": {}}], "timings": {"prompt_ms": 15.0, "predicted_ms": 1.0}})
    send_event(handler, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    before_end()
    send_event(handler, "[DONE]")


def refuse(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(503)
    handler.end_headers()
    handler.wfile.write(b"no worker")


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    send_event(handler, {"choices": [{"delta": {"content": "hel"}}]})


def fail_in_the_stream(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    send_event(handler, {"error": {"message": "out of memory"}})


def never_end(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while handler.rfile.read(1):  # returns nothing once the client has hung up
        pass


@pytest.fixture
def answers() -> Iterator[tuple[Target, Answers]]:
    seen = Answers()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.begin(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            try:
                seen.behave(self)
            finally:
                seen.end(self)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Target("small", f"http://127.0.0.1:{server.server_port}/v1"), seen
    server.shutdown()
    server.server_close()


def test_every_request_is_sent_once_by_that_many_clients(answers: tuple[Target, Answers]) -> None:
    target, seen = answers
    seen.behave = wait_for_three(seen)
    samples: list[Sample] = []

    run = run_load(target, make_bodies("short", 10, 16, "run"), clients=3, on_sample=samples.append)

    assert sorted(body["seed"] for body in seen.bodies) == list(range(10))
    assert seen.open_at_most == 3
    assert len(run.samples) == len(samples) == 10 and not run.errors
    assert (run.samples[0].completion_tokens, run.samples[0].text) == (3, "hello")
    assert list(run.samples[0].phases()) == ["queued", "prefill", "decode"]


@pytest.mark.parametrize(
    ("behave", "reason"),
    [(refuse, "HTTP 503: no worker"), (cut, "The answer was cut"), (fail_in_the_stream, "out of memory")],
    ids=["refused", "cut", "failed"],
)
def test_failure_is_the_samples_error(
    answers: tuple[Target, Answers], behave: Callable[[BaseHTTPRequestHandler], None], reason: str
) -> None:
    target, seen = answers
    seen.behave = behave

    (only,) = run_load(target, make_bodies("short", 1, 16, "run"), clients=1).samples

    assert only.error and reason in only.error


def test_server_that_is_not_there_fails_every_request() -> None:
    run = run_load(Target("missing", "http://127.0.0.1:9/v1"), make_bodies("short", 3, 16, "run"), clients=2)

    assert run.errors == ["No server answers at http://127.0.0.1:9/v1: start it, or correct the address."] * 3


def test_stop_disconnects_and_leaves_out_unfinished_requests(answers: tuple[Target, Answers]) -> None:
    target, seen = answers
    stop = threading.Event()
    runs: list[Run] = []
    bodies = make_bodies("short", 20, 16, "run")
    seen.behave = never_end

    thread = threading.Thread(target=lambda: runs.append(run_load(target, bodies, clients=4, stop=stop)))
    thread.start()
    wait_until(lambda: seen.open_now == 4, what="four open requests")
    stop.set()
    thread.join(timeout=30)

    assert runs and runs[0].samples == []
    wait_until(lambda: seen.open_now == 0, what="the server to see that its clients hung up")
    assert len(seen.bodies) == 4


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "experiments.load_test", *map(str, arguments)]
    return subprocess.run(line, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_command_line_measures_and_writes_its_samples(answers: tuple[Target, Answers], tmp_path: Path) -> None:
    target, _ = answers

    done = command("--url", target.base_url, "--clients", 2, "--requests", 6, "--json", tmp_path / "run.json")

    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout and "6 requests, 0 errors" in done.stdout
    written = json.loads((tmp_path / "run.json").read_text())
    assert len(written["samples"]) == 6 and written["summary"]["completion_tokens"] == 18


def test_command_line_says_the_first_reason_and_fails(answers: tuple[Target, Answers]) -> None:
    target, seen = answers
    seen.behave = refuse

    done = command("--url", target.base_url, "--clients", 1, "--requests", 2)

    assert done.returncode == 1
    assert "2 requests, 2 errors" in done.stdout and "first error: HTTP 503: no worker" in done.stderr


@pytest.mark.parametrize("option", ["--clients", "--requests", "--max-tokens"])
def test_command_line_refuses_less_than_one(option: str) -> None:
    done = command(option, 0)

    assert done.returncode == 2 and "must be 1 or more" in done.stderr
