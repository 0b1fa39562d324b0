"""The front before a real TorchServe with the demo model: other people's clients, hang-ups, errors."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from benchmarks.front import FIRST_TOKEN, first_token_difference_ms, run_round
from benchmarks.workloads import Workload, distinct
from experiments.load_test import Target, torchserve_target
from tests.front.conftest import running_front
from tests.support.serving import wait_until
from tests.support.wire import engine_metrics, headers, post
from torchserve_client.config import ServerConfig
from torchserve_client.keys import Keys

QUESTION: Any = [{"role": "user", "content": "What is the closest star to Earth?"}]
GREEDY: dict[str, Any] = {"model": "llamacpp", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
ENDLESS: dict[str, Any] = {**GREEDY, "max_tokens": 3000, "ignore_eos": True}


@pytest.fixture(scope="module")
def port(server: ServerConfig) -> Iterator[int]:
    with running_front(server) as port:
        yield port


@pytest.fixture
def client(server: ServerConfig, port: int) -> Iterator[OpenAI]:
    key = Keys(server, "inference").current()
    with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120) as client:
        yield client


def test_openais_client_gets_the_same_answer_as_from_torchserve(server: ServerConfig, client: OpenAI) -> None:
    straight = post(server, GREEDY, "/predictions/llamacpp/1.0/v1/chat/completions").json()
    expected = straight["choices"][0]["message"]["content"]
    assert client.chat.completions.create(**GREEDY).choices[0].message.content == expected
    events = list(client.chat.completions.create(**GREEDY, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected
    assert [model.id for model in client.models.list()] == ["llamacpp"]


def test_errors_are_those_that_openais_client_knows(port: int, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match=r"\.venv/bin/python -m torchserve_client\.keys"):
        client.with_options(api_key="wrong").chat.completions.create(**GREEDY)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**{**GREEDY, "temperature": 9})
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", cast_to=object, body={})
    assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_hang_up_frees_the_slot(server: ServerConfig, port: int, streamed: bool) -> None:
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="an idle engine")
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": streamed}), headers(server))
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 1, what="a busy slot")
    if streamed:
        with connection.getresponse() as response:
            assert response.read(6) == b"data: "
    connection.close()
    left_at = time.monotonic()
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="a free slot")
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")


def test_a_hang_up_before_the_first_token_frees_the_slot(server: ServerConfig, port: int) -> None:
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="an idle engine")
    cancelled = engine_metrics(server)["llamacpp_requests_cancelled_total"]
    long = {"model": "llamacpp", "prompt": f"{time.time()} " + "river stone lantern " * 1500, "stream": True}
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(long), headers(server))
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 1, what="a busy slot")
    connection.close()
    left_at = time.monotonic()
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="a free slot")
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")
    assert engine_metrics(server)["llamacpp_requests_cancelled_total"] == cancelled + 1


def test_the_benchmark_measures_both_ways(server: ServerConfig, port: int) -> None:
    targets = [
        replace(torchserve_target(server), name="straight"),
        Target("front", f"http://127.0.0.1:{port}/v1", Keys(server, "inference")),
    ]
    figures = run_round(Workload("tiny", "", 2, distinct(4, 3)), targets, 0)
    assert {name: each["completion_tokens"] for name, each in figures.items()} == {"straight": 12, "front": 12}
    faster, slower = ({FIRST_TOKEN: 10.0}, {FIRST_TOKEN: 12.5})
    assert first_token_difference_ms([{"straight": faster, "front": slower}]) == 2.5
