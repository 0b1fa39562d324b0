"""The cluster with real nodes: answers, errors, conversations, hang-ups, and what listens."""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai import OpenAI

from tests.cluster.conftest import needs_ray
from tests.support.running_cluster import RunningCluster
from tests.support.serving import wait_until
from tests.support.wire import engine_metrics, post

pytestmark = needs_ray

QUESTION: Any = [{"role": "user", "content": "What is the closest star to Earth?"}]
GREEDY: dict[str, Any] = {"model": "llamacpp", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
ENDLESS: dict[str, Any] = {**GREEDY, "max_tokens": 3000, "ignore_eos": True}
SECRET = "heliotrope cartographer"


@pytest.fixture
def client(cluster: RunningCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.key, max_retries=0, timeout=120) as client:
        yield client


def n_busy(cluster: RunningCluster) -> int:
    return int(sum(engine_metrics(cluster.config(name))["llamacpp_slots_busy"] for name in cluster.states()))


def test_openais_client_gets_the_same_answer_as_from_one_torchserve(cluster: RunningCluster, client: OpenAI) -> None:
    straight = post(cluster.config("node-1"), GREEDY, "/predictions/llamacpp/1.0/v1/chat/completions").json()
    expected = straight["choices"][0]["message"]["content"]
    assert client.chat.completions.create(**GREEDY).choices[0].message.content == expected
    events = list(client.chat.completions.create(**GREEDY, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices) == expected
    assert [model.id for model in client.models.list()] == ["llamacpp"]


def test_errors_are_those_that_openais_client_knows(cluster: RunningCluster, client: OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError, match=r"\.venv/bin/python -m cluster\.key"):
        client.with_options(api_key="wrong").chat.completions.create(**GREEDY)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**{**GREEDY, "temperature": 9})
    with pytest.raises(openai.NotFoundError):
        client.post("/nothing", cast_to=object, body={})
    assert httpx.get(f"{cluster.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{cluster.url}/cluster").status_code == 401
    assert httpx.get(f"{cluster.url}/health", headers={"Host": "evil.example"}).status_code == 400


def test_a_body_of_the_largest_size_reaches_a_node(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**{**GREEDY, "messages": [{"role": "user", "content": "river " * 2_700_000}]})
    assert refusal.value.code == "context_length_exceeded"
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**{**GREEDY, "messages": [{"role": "user", "content": "river " * 2_900_000}]})
    assert refused.value.status_code == 413


def test_conversations_use_both_nodes_and_each_stays_on_its_node(cluster: RunningCluster, client: OpenAI) -> None:
    before = {name: engine_metrics(cluster.config(name))["llamacpp_requests_total"] for name in cluster.states()}
    for number in range(8):
        messages: Any = [{"role": "user", "content": f"{number} {time.time()}: tell me about a river in some words."}]
        n_prompt = 0
        for _ in range(3):
            answer = client.chat.completions.create(model="llamacpp", messages=messages, max_tokens=12, temperature=0)
            usage: Any = answer.usage
            assert usage.prompt_tokens_details.cached_tokens >= n_prompt, number
            n_prompt = usage.prompt_tokens
            messages += [{"role": "assistant", "content": answer.choices[0].message.content}]
            messages += [{"role": "user", "content": "And then?"}]
    after = {name: engine_metrics(cluster.config(name))["llamacpp_requests_total"] for name in cluster.states()}
    assert all(after[name] > before[name] for name in before)


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_hang_up_frees_the_slot(cluster: RunningCluster, streamed: bool) -> None:
    wait_until(lambda: n_busy(cluster) == 0, what="idle engines")
    connection = HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    headers = {"Authorization": f"Bearer {cluster.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": streamed}), headers)
    wait_until(lambda: n_busy(cluster) == 1, what="a busy slot")
    if streamed:
        with connection.getresponse() as response:
            assert response.read(6) == b"data: "
    connection.close()
    left_at = time.monotonic()
    wait_until(lambda: n_busy(cluster) == 0, what="a free slot")
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")


def test_a_hang_up_before_the_first_token_frees_the_slot(cluster: RunningCluster) -> None:
    wait_until(lambda: n_busy(cluster) == 0, what="idle engines")
    long = {"model": "llamacpp", "prompt": f"{time.time()} " + "river stone lantern " * 1500, "stream": True}
    connection = HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    headers = {"Authorization": f"Bearer {cluster.key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(long), headers)
    wait_until(lambda: n_busy(cluster) == 1, what="a busy slot")
    connection.close()
    left_at = time.monotonic()
    wait_until(lambda: n_busy(cluster) == 0, what="a free slot")
    print(f"slot freed after {time.monotonic() - left_at:.2f} s")


def test_the_nodes_report_what_they_do(cluster: RunningCluster, client: OpenAI) -> None:
    client.chat.completions.create(**GREEDY)
    reports = wait_until(lambda: cluster.nodes(), what="reports")
    assert [node["name"] for node in reports] == ["node-1", "node-2"]
    wait_until(
        lambda: all(node["slots"] == 8 and node["memory_bytes"] > 0 for node in cluster.nodes()), what="the figures"
    )
    wait_until(lambda: any((node["cached_share"] or 0) > 0 for node in cluster.nodes()), what="a cached share")


def test_all_programs_listen_at_this_machine_only_and_know_the_token(cluster: RunningCluster) -> None:
    servers = [server for name in cluster.states() if (server := cluster.server(name))]
    parents = [psutil.Process(cluster.process.pid), *servers]
    programs = [process for parent in parents for process in (parent, *parent.children(recursive=True))]
    addresses = {
        connection.laddr.ip
        for process in programs
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    raylets = [process for process in programs if process.name() == "raylet"]
    assert len(raylets) == 2
    for raylet in raylets:
        environment = raylet.environ()
        assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_USAGE_STATS_ENABLED"] == "0"
        assert Path(environment["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o77 == 0


def test_no_log_has_a_prompt_or_a_key(cluster: RunningCluster, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="llamacpp", messages=[{"role": "user", "content": SECRET}], temperature=9)
    client.chat.completions.create(model="llamacpp", messages=[{"role": "user", "content": SECRET}], max_tokens=4)
    raylet: Any = cluster.raylet("node-1")
    folders = [Path(raylet.environ()["RAY_TMPDIR"]), cluster.home]
    assert all(folder.stat().st_mode & 0o77 == 0 for folder in folders)
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".log", ".out", ".err")]
    assert len(files) > 10
    for path in files:
        text = path.read_text(errors="replace")
        assert SECRET not in text and cluster.key not in text, path
