"""The history of the metrics, and how often it queries TorchServe. A small HTTP server counts the requests."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from apps.dashboard import metrics_history
from apps.dashboard.metrics_history import MetricsHistory
from tests.support.serving import make_home, wait_until
from torchserve_client.config import ServerConfig

WAITING = 3


class FakeTorchServe(ThreadingHTTPServer):
    """Serves metrics, and reports three waiting requests while `arrived` is WAITING."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.requests: Counter[str] = Counter()
        self.arrived = 0
        self.tokens = 0
        self.answers = 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_refusing = False

    def answer(self, path: str) -> tuple[int, str]:
        self.requests[path] += 1
        self.may_answer.wait()
        if self.is_refusing:
            return 500, json.dumps({"code": 500, "type": "InternalServerException", "message": "No metrics today."})
        if path == "/metrics":
            return 200, (
                "# TYPE ts_inference_requests_total counter\n"
                f"ts_inference_requests_total {self.arrived}\n"
                "# TYPE llamacpp_completion_tokens_total counter\n"
                f'llamacpp_completion_tokens_total{{WorkerName="0"}} {self.tokens}\n'
                "# TYPE llamacpp_time_to_first_token_seconds histogram\n"
                f'llamacpp_time_to_first_token_seconds_count{{WorkerName="0"}} {self.answers}\n'
                "# TYPE llamacpp_wait_seconds_total counter\n"
                f'llamacpp_wait_seconds_total{{WorkerName="0",Reason="slot"}} {0.25 * self.answers}\n'
                "# TYPE llamacpp_prefix_lookups_total counter\n"
                f'llamacpp_prefix_lookups_total{{WorkerName="0",Source="own"}} {self.answers}\n'
            )
        model = {"modelName": "llamacpp", "modelVersion": "1.0", "modelUrl": "a", "batchSize": 4, "maxBatchDelay": 0}
        waiting = WAITING if self.arrived == WAITING else 0
        queue = {"remainingCapacity": 97, "pendingRequests": waiting}
        return 200, json.dumps([model | {"minWorkers": 1, "workers": [], "jobQueueStatus": queue}])


class _Answers(BaseHTTPRequestHandler):
    server: FakeTorchServe

    def do_GET(self) -> None:
        status, text = self.server.answer(self.path)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing, because pytest shows what a test prints."""


@pytest.fixture
def fake() -> Iterator[FakeTorchServe]:
    with FakeTorchServe() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.may_answer.set()
        server.shutdown()


@pytest.fixture
def config(fake: FakeTorchServe, tmp_path: Path) -> ServerConfig:
    address = f"http://127.0.0.1:{fake.server_port}"
    overrides = dict.fromkeys(("metrics_address", "management_address", "inference_address"), address)
    return make_home(tmp_path, **overrides, disable_token_authorization="true")


def test_history_grows_without_a_viewer(
    config: ServerConfig, fake: FakeTorchServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_history, "POLL_SECONDS", 0.01)
    history = MetricsHistory(config)

    history.start()

    wait_until(lambda: len(history.points()) > 3, what="points that no viewer asked for")
    assert history.latest and history.latest.snapshot.at >= history.points()[-1].at


def test_history_is_bounded(config: ServerConfig, fake: FakeTorchServe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_history, "HISTORY_POINTS", 3)
    history = MetricsHistory(config)
    for _ in range(6):
        history.poll()
    assert len(history.points()) == 3


def test_queue_is_queried_only_while_it_may_contain_a_request(config: ServerConfig, fake: FakeTorchServe) -> None:
    history = MetricsHistory(config)
    described = "/models/llamacpp"

    for _ in range(4):
        history.poll()
    assert fake.requests[described] == 1  # the queue is unknown at first
    assert [point.queued for point in history.points()] == [0, 0, 0]

    fake.arrived = WAITING
    history.poll()
    history.poll()
    assert fake.requests[described] == 3
    assert history.points()[-1].queued == WAITING

    fake.arrived = WAITING + 1  # and the queue is empty
    for _ in range(3):
        history.poll()
    assert fake.requests[described] == 4
    assert history.points()[-1].queued == 0


def test_rates_stay_positive_when_a_restarted_server_counts_from_zero(
    config: ServerConfig, fake: FakeTorchServe
) -> None:
    history = MetricsHistory(config)
    for fake.tokens in (100, 150, 20):
        history.poll()
    assert [point.tokens_per_second > 0 for point in history.points()] == [True, True]


def test_waits_are_the_mean_of_the_answers_and_prefixes_are_counted(config: ServerConfig, fake: FakeTorchServe) -> None:
    history = MetricsHistory(config)
    for fake.answers in (4, 4, 6):
        history.poll()
    nothing, last = history.points()
    assert (nothing.wait_ms, nothing.prefix_lookups["own"]) == ({}, 0)
    assert last.wait_ms == {"slot": 250, "prefix": 0, "prefill": 0}
    assert last.prefix_lookups == {"own": 2, "copied": 0, "saved": 0, "none": 0}


def test_failed_poll_leaves_a_reason_and_the_earlier_points(config: ServerConfig, fake: FakeTorchServe) -> None:
    history = MetricsHistory(config)
    history.poll()
    history.poll()
    fake.is_refusing = True
    history.poll()
    assert (history.problem, history.latest) == ("No metrics today.", None)
    assert len(history.points()) == 1

    fake.is_refusing = False
    history.poll()
    history.poll()
    assert history.problem == ""
    assert len(history.points()) == 2  # the counts of the time between belong to no point
