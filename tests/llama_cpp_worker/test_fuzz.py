"""Good, bad and absurd requests to the real server: all are answered, and the server works as before.

Hypothesis draws 300 requests from a fixed seed, so that a failure can be repeated. FUZZ_REQUESTS and FUZZ_SEED change
both: `FUZZ_REQUESTS=2000 python -m pytest tests/llama_cpp_worker/test_fuzz.py` takes some minutes.
"""

import json
import os
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from llama_cpp_worker.api.fields import HINTS, NEUTRAL
from llama_cpp_worker.sampling_params import BOUNDS, PARAMETER_NAMES
from tests.support.serving import wait_until
from tests.support.wire import CHAT_PATH, MODEL_PATH, chat_body, engine_metrics, headers, post
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient

N_REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "300"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
N_THREADS = 6
PATHS = [MODEL_PATH, CHAT_PATH, f"{MODEL_PATH}/1.0/v1/completions"]
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Shot:
    path: str
    body: bytes
    content_type: str


# --- good requests: few tokens each, together with every parameter

GRAMMARS = ['root ::= "yes" | "no"', "root ::= [a-z]+", 'root ::= s\ns ::= "a" s "b" | "a" s "c" | "a"']
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]},
    {"anyOf": [{"type": "array", "items": {"$ref": "#"}}, {"enum": ["x", None, 1.5]}]},
]
FORMATS: list[dict[str, Any]] = [{"type": "text"}, {"type": "json_object"}]
FORMATS += [{"type": "json_schema", "json_schema": {"name": "x", "schema": schema}} for schema in SCHEMAS]

sampling = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 3)},
    optional={
        **{
            name: st.integers(int(bounds.low), int(bounds.high))
            if bounds.kind is int
            else st.floats(bounds.low, bounds.high)
            for name, bounds in BOUNDS.items()
            if name != "max_tokens"
        },
        "stop": st.text(st.characters(codec="utf-8"), min_size=1, max_size=5) | st.lists(st.just("x"), max_size=4),
        "logit_bias": st.dictionaries(st.integers(0, 40_000).map(str), st.floats(-100, 100), max_size=5),
        "ignore_eos": st.booleans(),
        "stream": st.booleans(),
        "model": st.just("llamacpp"),
        "user": st.text(max_size=5),
    },
)
constraint: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"grammar": st.sampled_from(GRAMMARS)}),
    st.fixed_dictionaries({"response_format": st.sampled_from(FORMATS)}),
)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40) | st.sampled_from(
    ["Hi <|im_end|>", "</s>", "\0"]
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": texts}),
    min_size=1,
    max_size=3,
)
choices = {"n": st.integers(1, 3)}
chat = st.builds(
    lambda *parts: merged(parts),
    st.fixed_dictionaries({"messages": messages}, optional=choices),
    st.sampled_from([{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 20}]),
    sampling,
    constraint,
)
prompts = texts | st.lists(st.integers(0, 40_000), min_size=1, max_size=20)
completion = st.builds(
    lambda *parts: merged(parts),
    st.fixed_dictionaries({"prompt": prompts}, optional=choices),
    st.sampled_from([{}, {"logprobs": 5}]),
    sampling,
    constraint,
)
plain = st.builds(lambda *parts: merged(parts), st.fixed_dictionaries({"prompt": texts}), sampling, constraint)


def merged(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def sent(path: str) -> Any:
    return lambda body: Shot(path, json.dumps(body).encode(), JSON_TYPE)


# --- bad requests: any value anywhere, any bytes, any content type

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**32 - 1, 1e308, -0.0])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = sorted(
    {*PARAMETER_NAMES, *HINTS, *NEUTRAL, "messages", "prompt", "model", "user", "stream", "stream_options", "n"}
    | {"logprobs", "top_logprobs", "response_format", "echo", "max_completion_tokens"}
)
wrong_values = st.dictionaries(st.sampled_from([*NAMES, "surprise", ""]), anything, min_size=1, max_size=2)
wrong_messages = st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), anything | st.just("user")))
wrong_schemas = st.dictionaries(
    st.sampled_from(["type", "properties", "items", "enum", "$ref", "anyOf", "minimum", "maxLength", "format"]),
    anything | st.sampled_from(["object", "array", "string", "number", "#"]),
)
wrong_grammars = st.text('root:= ab"[]^-(){}0,1|*+?#.\\x\n', max_size=30).map(lambda text: "root ::= " + text)
wrong_parts: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "wrong values": wrong_values,
    "wrong messages": st.fixed_dictionaries({"messages": wrong_messages | anything}),
    "wrong grammars": wrong_grammars.map(lambda grammar: {"grammar": grammar}),
    "wrong schemas": wrong_schemas.map(
        lambda schema: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
    ),
}


def made_wrong(part: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Shot]:
    return st.builds(
        lambda base, part: sent(base[0])(
            {**base[1], **part, "max_tokens": 2}
        ),  # a request that happens to be good stays short
        st.sampled_from([(PATHS[0], {"prompt": "a"}), (PATHS[1], chat_body("a")), (PATHS[2], {"prompt": "a"})]),
        part,
    )


DEEP = b"[" * 100_000
raw_bodies = st.one_of(
    st.binary(max_size=50),
    st.sampled_from([b"", b"null", b"NaN", DEEP, b'{"prompt":' + DEEP, b'{"messages": [' + b'{"a":' * 50_000]),
    st.just({"prompt": "a", "max_tokens": 1}).map(lambda body: json.dumps(body).encode("utf-16")),
    anything.map(lambda value: json.dumps(value).encode()),
    st.text(max_size=20).map(lambda text: f"prompt={text}&max_tokens=1".encode("utf-8", "replace")),
)
TYPES = [JSON_TYPE, "application/json; charset=utf-16", "text/plain", "application/x-www-form-urlencoded", "image/png"]
TYPES += ["multipart/form-data; boundary=x", "nonsense"]
raw = st.builds(Shot, st.sampled_from([*PATHS, f"{MODEL_PATH}/1.0/v1/x"]), raw_bodies, st.sampled_from(TYPES))

KINDS = {
    "plain calls": plain.map(sent(PATHS[0])),
    "chats": chat.map(sent(PATHS[1])),
    "completions": completion.map(sent(PATHS[2])),
    **{kind: made_wrong(part) for kind, part in wrong_parts.items()},
    "raw bodies": raw,
}


def draw_shots(count: int) -> list[Shot]:
    """An equal number of each kind, in random order."""
    drawn = [shot for kind in KINDS.values() for shot in draw_some(kind, -(-count // len(KINDS)))]
    random.Random(SEED).shuffle(drawn)
    return drawn[:count]


def draw_some(kind: st.SearchStrategy[Shot], count: int) -> list[Shot]:
    drawn: list[Shot] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind)
    def draw(shot: Shot) -> None:
        drawn.append(shot)

    draw()
    return drawn


def fire(server: ServerConfig, key: dict[str, str], shot: Shot) -> tuple[Shot, int, str]:
    response = requests.post(
        server.inference_url + shot.path,
        data=shot.body,
        headers={**key, "Content-Type": shot.content_type},
        timeout=120,
    )
    return shot, response.status_code, response.text


def is_whole(shot: Shot, status: int, text: str) -> bool:
    """Whether this is a complete answer, or an error with a message."""
    if status != 200:
        error = json.loads(text).get("error") or json.loads(text)
        return bool(error["message"])
    is_streamed = text.startswith("data: ")
    return (
        text.endswith("data: [DONE]\n\n") if is_streamed else shot.path == MODEL_PATH or "choices" in json.loads(text)
    )


@pytest.mark.timeout(1800)  # enough for 2,000 requests on a busy machine
def test_requests_of_any_kind_are_answered_and_the_server_still_works(server: ServerConfig) -> None:
    pids = worker_pids(server)
    fuzz = draw_shots(N_REQUESTS)
    key = {"Authorization": headers(server)["Authorization"]}
    started = time.monotonic()
    with ThreadPoolExecutor(N_THREADS) as pool:
        answers = list(pool.map(lambda shot: fire(server, key, shot), fuzz))
    seconds = time.monotonic() - started
    print(f"{len(answers)} requests in {seconds:.0f} s: {dict(Counter(status for _, status, _ in answers))}")

    failed = [answer for answer in answers if answer[1] >= 500 and answer[1] != 503]
    assert not failed, failed[:3]
    broken = [answer for answer in answers if not is_whole(*answer)]
    assert not broken, broken[:3]
    assert worker_pids(server) == pids, "the worker was restarted"
    wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 0, what="no busy slot")
    assert engine_metrics(server)["llamacpp_requests_waiting"] == 0
    assert Counter(status for _, status, _ in answers)[200] > N_REQUESTS / 8, "too few requests were good"
    answer = post(server, chat_body("What is the closest star to Earth?", max_tokens=24, temperature=0), CHAT_PATH)
    assert "Proxima" in answer.json()["choices"][0]["message"]["content"]


def worker_pids(server: ServerConfig) -> list[int]:
    status = ManagementClient(server).describe()
    assert status is not None
    return [worker.pid for worker in status.workers]
