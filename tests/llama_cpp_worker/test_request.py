"""The wire inwards, without a server: which requests are accepted, and how the others are refused."""

import pytest

from llama_cpp_worker.constraint import compile_constraint
from llama_cpp_worker.request import WITHOUT_EFFECT, ApiError, Route, find_route, parse_request

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


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
        (Route.CHAT, {**HELLO, "return_progress": True}, "return_progress"),
        (Route.CHAT, {**HELLO, "timings_per_token": True, "stream": False}, "timings_per_token"),
        (Route.CHAT, {**HELLO, "timings_per_token": 1, "stream": True}, "timings_per_token"),
        (Route.CHAT, {**HELLO, "max_tokens": 1, "max_completion_tokens": 1}, "max_completion_tokens"),
        (Route.CHAT, {**HELLO, "model": 5}, "model"),
        (Route.CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        (Route.CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content"),
        (Route.CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        (Route.CHAT, {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name"),
        (Route.CHAT, {**HELLO, "tools": [{"type": "function"}]}, "tools"),
        (Route.CHAT, {**HELLO, "store": True}, "store"),
        (Route.CHAT, {**HELLO, "best_of": 2}, "best_of"),
        (Route.CHAT, {**HELLO, "best_of": True}, "best_of"),
        (Route.CHAT, {**HELLO, "n": 0}, "n"),
        (Route.CHAT, {**HELLO, "n": 9}, "n"),
        (Route.CHAT, {**HELLO, "n": "2"}, "n"),
        (Route.CHAT, {**HELLO, "logprobs": 1}, "logprobs"),
        (Route.CHAT, {**HELLO, "top_logprobs": 1}, "top_logprobs"),
        (Route.CHAT, {**HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (Route.CHAT, {**HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        (Route.CHAT, {**HELLO, "response_format": "json"}, "response_format"),
        (Route.CHAT, {**HELLO, "response_format": {"type": ["text"]}}, "response_format"),
        (Route.CHAT, {**HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
        (Route.CHAT, {**HELLO, "response_format": {"type": "json_object", "schema": 5}}, "response_format"),
        (
            Route.CHAT,
            {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format",
        ),
        (Route.CHAT, {**HELLO, "response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        (Route.CHAT, {**HELLO, "grammar": "root ::= nowhere"}, "grammar"),
        (Route.CHAT, {**HELLO, "grammar": "root ::= \ud800"}, "grammar"),
        (Route.COMPLETIONS, {"prompt": "a", "logprobs": True}, "logprobs"),
        (Route.COMPLETIONS, {"prompt": "a", "logprobs": 6}, "logprobs"),
        (Route.COMPLETIONS, {"prompt": "a", "logprobs": 1, "echo": True}, "logprobs"),
        (Route.COMPLETIONS, {"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
        (Route.COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
        (Route.COMPLETIONS, {"prompt": [1, True]}, "prompt"),
        (Route.COMPLETIONS, {"prompt": [1, -1]}, "prompt"),
        (Route.COMPLETIONS, {"prompt": [2**31]}, "prompt"),
        (Route.COMPLETIONS, {"prompt": []}, "prompt"),
        (Route.COMPLETIONS, {"prompt": [1], "echo": True}, "echo"),
        (Route.PREDICT, {"prompt": "a", "n": 2}, "n"),
        (Route.PREDICT, {"prompt": "a", "logprobs": 1}, "logprobs"),
    ],
    ids=lambda value: value.name if isinstance(value, Route) else repr(value)[:50],
)
def test_a_bad_request_is_refused_by_parameter_name(route: Route, body: dict[str, object], param: str) -> None:
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
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_request(Route.PREDICT, {"body": body})
    assert refusal.value.code == "invalid_json"


def test_an_unknown_path_is_404_and_lists_the_known_ones() -> None:
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


def test_content_may_consist_of_text_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    request = parse_request(Route.CHAT, {"body": {"messages": [{"role": "user", "content": parts}]}})
    assert request.messages == HELLO["messages"]


def test_values_without_effect_are_accepted() -> None:
    nothing = {"n": None, "seed": None, "logprobs": None, "user": None, "logit_bias": None, "response_format": None}
    values = {name: allowed[0] if allowed else None for name, allowed in WITHOUT_EFFECT.items()}
    request = parse_request(Route.CHAT, {"body": {**HELLO, **nothing, **values}})
    assert (request.n, request.logprobs, request.params.grammar) == (1, None, None)
    assert parse_request(Route.CHAT, {"body": {**HELLO, **dict.fromkeys(WITHOUT_EFFECT)}}).messages


def test_an_answer_of_this_server_can_be_sent_back_as_a_message() -> None:
    message: dict[str, object] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    request = parse_request(Route.CHAT, {"body": {"messages": [message, {"role": "developer", "content": "x"}]}})
    assert request.messages == [{"role": "assistant", "content": "Hi"}, {"role": "system", "content": "x"}]


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [("a", "a"), (["a"], "a"), ([5, 6], [5, 6]), ([[5, 6]], [5, 6]), ([5], [5])],
    ids=repr,
)
def test_a_prompt_is_a_text_or_its_tokens_alone_or_in_a_list(prompt: object, parsed: object) -> None:
    request = parse_request(Route.COMPLETIONS, {"body": {"prompt": prompt, "logprobs": 2}})
    assert (request.prompt, request.logprobs) == (parsed, 2)


def test_logprobs_of_a_chat_are_true_and_a_number() -> None:
    assert parse_request(Route.CHAT, {"body": {**HELLO, "logprobs": True, "top_logprobs": 3}}).logprobs == 3
    assert parse_request(Route.CHAT, {"body": {**HELLO, "logprobs": True}}).logprobs == 0
    assert parse_request(Route.CHAT, {"body": {**HELLO, "logprobs": False}}).logprobs is None


def test_a_response_format_becomes_a_grammar() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    for response_format in (form, {"type": "json_object"}):
        request = parse_request(Route.CHAT, {"body": {**HELLO, "response_format": response_format}})
        assert compile_constraint(request.params)
    free = parse_request(Route.CHAT, {"body": {**HELLO, "response_format": {"type": "text"}}})
    assert compile_constraint(free.params) is None


def test_an_unsupported_schema_is_refused_with_the_place_in_it() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "not": {"const": "a"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(ApiError, match=r"json_schema\.schema\.properties\.name\.not: is not supported") as refusal:
        parse_request(Route.CHAT, {"body": {**HELLO, "response_format": form}})
    assert refusal.value.param == "response_format"
