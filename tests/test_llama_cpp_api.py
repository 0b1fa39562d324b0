"""The wire without a server: what is accepted, what is refused and how, and what answers look like."""

from __future__ import annotations

import json

import pytest

from llama_cpp_api import END_OF_STREAM, ApiError, Reply, Route, Usage, find_route, parse_request

USAGE = Usage(prompt_tokens=5, completion_tokens=3, queue_ms=1.0, prompt_ms=20.0, predicted_ms=40.0)
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def make_reply(route: Route, body: dict[str, object]) -> Reply:
    return Reply(parse_request(route, {"body": body}), "id-1", "tiny")


def events(text: str) -> list[dict]:
    assert text.endswith(END_OF_STREAM)
    lines = text.removesuffix(END_OF_STREAM).split("\n\n")[:-1]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (Route.PREDICT, {}, "prompt"),
        (Route.PREDICT, {"prompt": ""}, "prompt"),
        (Route.PREDICT, {"prompt": 5}, "prompt"),
        (Route.PREDICT, {"prompt": "a", **HELLO}, "messages"),
        (Route.PREDICT, {"prompt": "a", "temperature": "hot"}, "temperature"),
        (Route.PREDICT, {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        (Route.PREDICT, {"prompt": "a", "stream": "yes"}, "stream"),
        (Route.PREDICT, {"prompt": "a", "surprise": 1}, "surprise"),
        (Route.PREDICT, {"prompt": "\ud800"}, "prompt"),
        (Route.COMPLETIONS, HELLO, "messages"),
        (Route.CHAT, {"prompt": "a"}, "prompt"),
        (Route.CHAT, {}, "messages"),
        (Route.CHAT, {"messages": []}, "messages"),
        (Route.CHAT, {"messages": "Hello"}, "messages"),
        (Route.CHAT, {"messages": ["Hello"]}, "messages[0]"),
        (Route.CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        (Route.CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
        (Route.CHAT, {**HELLO, "stream_options": {"include_usage": True}}, "stream_options"),
        (Route.CHAT, {**HELLO, "max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        (Route.CHAT, {**HELLO, "model": 5}, "model"),
    ],
    ids=lambda value: value.name if isinstance(value, Route) else repr(value)[:50],
)
def test_a_bad_request_is_refused_and_its_parameter_named(route: Route, body: dict[str, object], param: str) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_request(route, {"body": body})
    assert refusal.value.status == 400
    error = refusal.value.body()["error"]
    assert isinstance(error, dict)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"{bad", b"\xff\xfe", b"[1]", b"5", b"[" * 100_000, b""], ids=lambda body: repr(body[:9])
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_request(Route.PREDICT, {"body": body})
    assert refusal.value.code == "invalid_json"


def test_an_unknown_path_is_404_and_the_known_ones_are_named() -> None:
    assert find_route("v1/chat/completions/") is Route.CHAT
    with pytest.raises(ApiError, match="/v1/models") as refusal:
        find_route("v1/embeddings")
    assert refusal.value.status == 404


def test_form_fields_work_as_json_does() -> None:
    request = parse_request(
        Route.PREDICT, {"prompt": bytearray(b"5"), "max_tokens": b"7", "temperature": b"0.5", "stream": b"true"}
    )
    assert (request.prompt, request.params.max_tokens, request.params.temperature, request.stream) == (
        "5",
        7,
        0.5,
        True,
    )
    with pytest.raises(ApiError) as refusal:
        parse_request(Route.PREDICT, {"prompt": b"a", "temperature": b"hot"})
    assert refusal.value.param == "temperature"


def test_content_may_come_in_text_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    request = parse_request(Route.CHAT, {"body": {"messages": [{"role": "user", "content": parts}]}})
    assert request.messages == HELLO["messages"]


def test_the_users_original_call_is_answered_with_prompt_and_completion_as_text() -> None:
    reply = make_reply(Route.PREDICT, {"prompt": "Question: 1+1? Answer:"})
    assert reply.push(" tw") == ""
    assert reply.push("o") == ""
    assert reply.finish("stop", USAGE) == "Question: 1+1? Answer: two"
    assert reply.content_type.startswith("text/plain")


def test_a_whole_chat_answer_is_an_openai_object_with_usage_and_timings() -> None:
    reply = make_reply(Route.CHAT, HELLO)
    reply.push("Hi")
    answer = json.loads(reply.finish("length", USAGE))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi"}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert answer["timings"]["predicted_per_second"] == 50.0
    assert answer["timings"]["prompt_per_second"] == 250.0


def test_a_streamed_chat_answer_begins_with_the_role_and_ends_with_usage_and_done() -> None:
    reply = make_reply(Route.CHAT, {**HELLO, "stream": True, "stream_options": {"include_usage": True}})
    text = reply.push("") + reply.push("Hi") + reply.push("") + reply.finish("stop", USAGE)
    first, piece, ending, usage = events(text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert piece["choices"][0]["delta"] == {"content": "Hi"}
    assert (ending["choices"][0]["delta"], ending["choices"][0]["finish_reason"]) == ({}, "stop")
    assert ending["timings"]["prompt_n"] == 5
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 8)
    assert {event["object"] for event in (first, piece, ending, usage)} == {"chat.completion.chunk"}


def test_a_streamed_completion_echoes_its_prompt_first_when_asked() -> None:
    reply = make_reply(Route.COMPLETIONS, {"prompt": "1 2", "echo": True, "stream": True})
    texts = [event["choices"][0]["text"] for event in events(reply.push(" 3") + reply.finish("stop", USAGE))]
    assert "".join(texts) == "1 2 3"


def test_a_failure_in_mid_answer_is_an_error_object_without_done() -> None:
    streamed = make_reply(Route.CHAT, {**HELLO, "stream": True})
    streamed.push("Hi")
    failure = streamed.fail("The model failed.")
    assert json.loads(failure.removeprefix("data: "))["error"]["message"] == "The model failed."
    assert "[DONE]" not in failure
    assert json.loads(make_reply(Route.CHAT, HELLO).fail("x"))["error"]["type"] == "server_error"
