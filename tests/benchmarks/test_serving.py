"""The workloads of benchmarks.serving against a small server; their figures from plain numbers."""

import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from benchmarks import fairness
from benchmarks.conversations import CLIENTS, CONVERSATIONS, TURNS, run_many_conversations, run_second_questions
from benchmarks.fairness import busy_cores, pauses_ms, run_arriving_questions, run_questions_in_sequence
from benchmarks.figures import WorkloadFailed, compare, medians
from benchmarks.serving import BENCHMARKS, run_benchmark, run_round, schema_answers
from experiments.load_test import Sample, Target
from tests.support.serving import wait_until

Body = dict[str, Any]
LONG_CHARACTERS = 10_000


@dataclass
class Script:
    """What the server does before each answer, and the requests that it has seen."""

    before: Callable[[Body], None] = lambda body: None
    refuses: Callable[[Body], bool] = lambda body: False
    bodies: list[Body] = field(default_factory=list)
    n_open: int = 0
    n_open_at_most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, body: Body) -> None:
        with self.lock:
            self.bodies.append(body)
            self.n_open += 1
            self.n_open_at_most = max(self.n_open_at_most, self.n_open)

    def end(self) -> None:
        with self.lock:
            self.n_open -= 1

    @property
    def short_bodies(self) -> list[Body]:
        return [body for body in self.bodies if not is_long(body)]


def is_long(body: Body) -> bool:
    return len(body["messages"][-1]["content"]) > LONG_CHARACTERS


def events(body: Body) -> list[Body]:
    """Two texts and the usage. With a schema: 40 tokens of JSON, else as many tokens as the request allows."""
    first, second = ('{"name": ', '"x"}') if "response_format" in body else ("one ", "two")
    n_tokens = 40 if "response_format" in body else body["max_tokens"]
    usage = {"prompt_tokens": 100, "completion_tokens": n_tokens, "prompt_tokens_details": {"cached_tokens": 25}}
    return [
        {"choices": [{"delta": {"content": first}}]},
        {"choices": [{"delta": {"content": second}}]},
        {"choices": [], "usage": usage},
    ]


class Server(ThreadingHTTPServer):
    request_queue_size = 256  # all clients of a workload connect together


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def target(script: Script) -> Iterator[Target]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.begin(body)
            script.before(body)
            self.send_response(503 if script.refuses(body) else 200)
            self.end_headers()
            for event in events(body):
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            script.end()  # before the client sees the end and sends its next request
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Target("small", f"http://127.0.0.1:{server.server_port}/v1")
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "HEAD_START_SECONDS", 0.0)
    monkeypatch.setattr(fairness, "INTERVAL_SECONDS", 0.0)


def sample(*events: float) -> Sample:
    return Sample(0.0, events[0], events[-1], 10, 0, len(events), events)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    rounds = [{"a": {"x": first}, "b": {"x": second}} for first, second in ((1.0, 2.0), (9.0, 3.0), (8.0, 8.0))]

    assert compare(rounds, "a", "b") == {"x": 1.0}


def test_rounds_and_figures_that_one_target_lacks_are_left_out_of_its_ratios() -> None:
    rounds = [{"a": {"x": 1.0, "only_a": 1.0, "zero": 1.0}, "b": {"x": 4.0, "zero": 0.0}}, {"a": {"x": 3.0}, "b": {}}]

    assert compare(rounds, "a", "b") == {"x": 0.25}
    assert medians(each["a"] for each in rounds)["x"] == 2.0


def test_pauses_are_between_two_events_of_a_stream() -> None:
    assert pauses_ms([sample(0.0, 0.5, 0.75), sample(5.0, 5.125)]) == [500.0, 250.0, 125.0]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_workload_has_only_finite_figures(target: Target, name: str) -> None:
    figures = BENCHMARKS[name].run(target, "tag")

    assert figures and all(math.isfinite(value) for value in figures.values())


def test_report_has_each_round_the_medians_and_the_ratios(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    other = Target("other", target.base_url)

    report = run_benchmark("W1", [target, other], rounds=2, seed=1)

    assert [set(figures) for figures in report["rounds"]] == [{"small", "other"}] * 2
    assert report["ratios"]["other"]["completion_tokens"] == 1.0
    assert "W1 small / other: tokens_per_second" in capsys.readouterr().out


def test_target_with_a_refused_request_has_no_figures_in_that_round(
    target: Target, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.refuses = lambda body: body["seed"] == 3

    assert run_round(BENCHMARKS["W8"], [target], "tag") == {"small": {}}
    assert "1 of 48 requests failed: HTTP 503" in capsys.readouterr().out


def test_short_questions_arrive_while_the_long_prompt_has_no_token(target: Target, script: Script) -> None:
    def before(body: Body) -> None:
        if is_long(body):
            wait_until(lambda: len(script.short_bodies) == fairness.ARRIVING, what="all short questions")

    script.before = before

    assert run_arriving_questions(target, "tag")["short_sent_during_prefill"] == fairness.ARRIVING


def test_questions_in_sequence_are_never_two_at_once(target: Target, script: Script) -> None:
    def before(body: Body) -> None:
        if is_long(body) and len(script.bodies) > 1:  # not the one that is measured alone
            wait_until(lambda: len(script.short_bodies) == fairness.IN_SEQUENCE, what="the last short question")

    script.before = before

    figures = run_questions_in_sequence(target, "tag")

    assert script.n_open_at_most == 2
    assert figures["short_answered_during_prefill"] >= fairness.IN_SEQUENCE - 1
    long_ms, alone_ms = figures["long_first_token_ms"], figures["long_alone_first_token_ms"]
    assert figures["long_over_alone"] == pytest.approx(long_ms / alone_ms)


def test_conversations_have_all_turns_on_that_many_clients(target: Target, script: Script) -> None:
    def before(body: Body) -> None:
        if len(script.bodies) <= CLIENTS:
            wait_until(lambda: len(script.bodies) >= CLIENTS, what="all clients")

    script.before = before

    assert run_many_conversations(target, "tag")["later_turns_cached_share"] == 0.25
    questions = [[message["content"] for message in body["messages"][1::2]] for body in script.bodies]
    assert script.n_open_at_most == CLIENTS
    assert len(script.bodies) == CONVERSATIONS * TURNS
    assert sorted(map(len, questions)) == sorted([*range(1, TURNS + 1)] * CONVERSATIONS)
    assert len({texts[0] for texts in questions}) == CONVERSATIONS
    assert all(texts[:-1] in questions[:index] for index, texts in enumerate(questions) if len(texts) > 1)


def test_second_question_comes_after_all_first_answers(target: Target, script: Script) -> None:
    run_second_questions(target, "tag")

    assert [len(body["messages"]) for body in script.bodies] == [2] * 4 + [4] * 4
    assert {body["messages"][2]["content"] for body in script.bodies[4:]} == {"one two"}


def test_requests_without_the_schema_have_the_length_of_those_with_it(target: Target, script: Script) -> None:
    figures = schema_answers(clients=2, requests=6)(target, "tag")

    constrained, plain = script.bodies[:6], script.bodies[6:]
    assert all(body["response_format"]["type"] == "json_schema" and not body["ignore_eos"] for body in constrained)
    assert [(body["max_tokens"], body["ignore_eos"], "response_format" in body) for body in plain] == [
        (40, True, False)
    ] * 6
    assert figures["complete_answers"] == 6


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_two_rounds_share_a_question(target: Target, script: Script, name: str) -> None:
    for tag in ("one", "two"):
        BENCHMARKS[name].run(target, tag)

    assert len({body["messages"][-1]["content"] for body in script.bodies}) == len(script.bodies)


def test_busy_programs_are_stopped_after_a_failure() -> None:
    before = set(psutil.Process().children())
    programs: set[psutil.Process] = set()

    def fail() -> None:
        with busy_cores():
            programs.update(set(psutil.Process().children()) - before)
            raise WorkloadFailed("a request failed")

    with pytest.raises(WorkloadFailed):
        fail()

    assert programs
    assert not any(program.is_running() for program in programs)
