"""Anthropic's Messages API without a server: what is accepted, and the objects and events of the answers."""

import json
from typing import Any

import pytest

from llama_cpp_worker.api.anthropic import error_body, parse, parse_prompt
from llama_cpp_worker.api.errors import ApiError, refusal
from llama_cpp_worker.api.fields import read_body
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.routes import error_body as error_body_of_path
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from tests.llama_cpp_worker.api.scripted_reply import ScriptedReply, read_events

PATH = "v1/messages"
HELLO: dict[str, Any] = {"max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def request_of(**fields: Any) -> GenerationRequest:
    return parse(read_body({"body": {**HELLO, **fields}}))


def refusal_of(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        request_of(**fields)
    return error.value


def stream(**fields: Any) -> ScriptedReply:
    return ScriptedReply(PATH, {**HELLO, "stream": True, **fields})


def whole(**fields: Any) -> ScriptedReply:
    return ScriptedReply(PATH, {**HELLO, **fields})


def test_text_comes_as_one_block_in_anthropics_order_of_events() -> None:
    reply = stream()
    events = read_events(reply.say(Text("Hi")) + reply.say(Text(" there")) + reply.end())
    start, *blocks, delta, stop = events
    assert start["message"] == {
        "id": "msg_id-1",
        "type": "message",
        "role": "assistant",
        "model": "tiny",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "output_tokens": 1,
        },
    }
    assert blocks == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
        {"type": "content_block_stop", "index": 0},
    ]
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert (delta["usage"]["output_tokens"], delta["usage"]["input_tokens"]) == (2, 5)
    assert stop == {"type": "message_stop"}


def test_thoughts_text_and_calls_are_streamed_as_blocks_in_order() -> None:
    reply = stream(tools=[WEATHER])
    deltas: list[Delta] = [
        Reasoning("Hm."),
        Text("I look."),
        ToolCallBegin(0, "call_a", "get_weather"),
        ToolCallArguments(0, '{"city": '),
        ToolCallArguments(0, '"Bonn"}'),
        ToolCallBegin(1, "call_b", "get_weather"),
        ToolCallArguments(1, "{}"),
    ]
    _, *blocks, delta, _ = read_events("".join(reply.say(delta) for delta in deltas) + reply.end())
    starts = [event["content_block"] for event in blocks if event["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_a", "name": "get_weather", "input": {}},
        {"type": "tool_use", "id": "call_b", "name": "get_weather", "input": {}},
    ]
    assert [event["index"] for event in blocks if event["type"] == "content_block_stop"] == [0, 1, 2, 3]
    pieces = [event["delta"] for event in blocks if event["type"] == "content_block_delta"]
    assert pieces[0] == {"type": "thinking_delta", "thinking": "Hm."}
    assert [piece.get("partial_json") for piece in pieces[2:]] == ['{"city": ', '"Bonn"}', "{}"]
    assert delta["delta"]["stop_reason"] == "tool_use"


def test_a_whole_answer_has_the_same_blocks() -> None:
    reply = whole(tools=[WEATHER])
    reply.say(Reasoning("Hm."), Text("I look."), ToolCallBegin(0, "c", "get_weather"), ToolCallArguments(0, '{"a": 1}'))
    message = json.loads(reply.end())
    assert message["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c", "name": "get_weather", "input": {"a": 1}},
    ]
    assert (message["stop_reason"], message["stop_sequence"]) == ("tool_use", None)


def test_an_empty_answer_has_no_block() -> None:
    assert json.loads(whole().end())["content"] == []
    assert [event["type"] for event in read_events(stream().end())] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


def test_a_call_that_was_cut_has_no_input() -> None:
    reply = whole(tools=[WEATHER], max_tokens=1)
    reply.say(ToolCallBegin(0, "c", "get_weather"), ToolCallArguments(0, '{"ci'))
    message = json.loads(reply.end("length"))
    assert (message["content"][0]["input"], message["stop_reason"]) == ({}, "max_tokens")


def test_a_full_context_window_is_another_reason_than_max_tokens() -> None:
    reply = whole(max_tokens=20)
    reply.say(Text("Hi"))
    assert json.loads(reply.end("length"))["stop_reason"] == "model_context_window_exceeded"


def test_a_stop_sequence_is_named() -> None:
    for reply in (whole(stop_sequences=["END", "STOP"]), stream(stop_sequences=["END", "STOP"])):
        piece = reply.say(Text("Hi"))
        reply.request.assembler.push(b"Hi STOP")
        text = piece + reply.end()
        end = read_events(text)[-2]["delta"] if text.startswith("event") else json.loads(text)
        assert (end["stop_reason"], end["stop_sequence"]) == ("stop_sequence", "STOP")


def test_a_failure_is_anthropics_error() -> None:
    streamed, plain = stream(), whole()
    error = {"type": "error", "error": {"type": "api_error", "message": "The model failed."}}
    assert read_events(streamed.say(Text("Hi")) + streamed.fail("The model failed."))[-1] == error
    plain.say(Text("Hi"))
    assert json.loads(plain.fail("The model failed.")) == error


def test_errors_of_its_paths_have_anthropics_shape() -> None:
    error = refusal("max_tokens", "is missing")
    expected = {"type": "error", "error": {"type": "invalid_request_error", "message": "max_tokens: is missing."}}
    assert error_body_of_path("v1/messages", error) == expected
    assert error_body_of_path("/v1/messages/count_tokens", error) == expected
    assert error_body_of_path("v1/responses", error) == error.body()
    assert error_body(ApiError("x", status=404))["error"] == {"type": "not_found_error", "message": "x"}
    too_long = error_body(refusal("messages", "9,000 tokens do not fit", "context_length_exceeded"))["error"]
    assert too_long == {"type": "invalid_request_error", "message": "prompt is too long: 9,000 tokens do not fit."}


def test_blocks_become_messages() -> None:
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                {"type": "text", "text": "Weather?", "cache_control": {"type": "ephemeral"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A tool.", "signature": "abc"},
                {"type": "redacted_thinking", "data": "abc"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Köln"}},
                {"type": "tool_use", "id": "c2", "name": "get_weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "Rain"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "no city"}],
                    "is_error": True,
                },
                {"type": "tool_result", "tool_use_id": "c3"},
                {"type": "text", "text": "Go on."},
            ],
        },
    ]
    system = [
        {"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be kind."},
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'}},
        {"id": "c2", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}},
    ]
    assert request_of(messages=messages, system=system).messages == [
        {"role": "system", "content": "Be short.\nBe kind."},
        {"role": "user", "content": "<system-reminder>x</system-reminder>\nWeather?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls, "reasoning_content": "A tool."},
        {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "Error: no city"},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "user", "content": "Go on."},
    ]


def test_a_last_message_of_the_assistant_is_continued() -> None:
    messages = [*HELLO["messages"], {"role": "assistant", "content": "{"}]
    request = request_of(messages=messages)
    assert request.continues_answer
    assert request.messages[-1] == {"role": "assistant", "content": "{"}


def test_a_request_of_claude_code_is_accepted() -> None:
    request = request_of(
        model="claude-opus-4-6",
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.101.e51; cch=a5145;"},
            {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
        ],
        tools=[{**WEATHER, "eager_input_streaming": True, "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": '{"device_id": "x"}'},
        thinking={"type": "adaptive"},
        output_config={"effort": "high"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        diagnostics={"previous_message_id": None},
        betas=["interleaved-thinking-2025-05-14"],
        speed="standard",
        container=None,
        mcp_servers=[],
        stream=True,
    )
    assert request.messages[0] == {"role": "system", "content": "You are a coding agent."}
    assert request.tools is not None
    assert request.tools.functions[0].parameters == WEATHER["input_schema"]
    assert request.stream


def test_names_of_anthropic_become_sampling_parameters() -> None:
    params = request_of(stop_sequences=["END"], temperature=1, top_k=5, top_p=0.9).params
    assert (params.stop, params.temperature, params.top_k, params.top_p, params.max_tokens) == (("END",), 1, 5, 0.9, 20)
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    for fields in ({"output_config": {"format": {"type": "json_schema", "schema": schema}}},):
        form = request_of(**fields).params.response_format
        assert form == {"type": "json_schema", "json_schema": {"schema": schema}}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ("auto", True)),
        ({"type": "auto"}, ("auto", True)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", False)),
        ({"type": "any"}, ("required", True)),
        ({"type": "tool", "name": "get_weather"}, ("required", False)),
        ({"type": "none"}, ("none", True)),
    ],
    ids=repr,
)
def test_a_tool_choice_has_anthropics_form(choice: object, expected: tuple[str, bool]) -> None:
    tools = request_of(tools=[WEATHER, {**WEATHER, "name": "other"}], tool_choice=choice).tools
    assert tools is not None
    assert (tools.choice, tools.allows_several) == expected


def test_tokens_are_counted_without_max_tokens() -> None:
    body = {"messages": HELLO["messages"], "system": "Be short."}
    assert len(parse_prompt(read_body({"body": body})).messages) == 2
    with pytest.raises(ApiError, match="max_tokens: is missing"):
        parse(read_body({"body": body}))


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "messages[0].content[0]"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "input_schema": 5}]}, "tools[0].input_schema"),
        ({"tools": [{**WEATHER, "name": ""}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "f"}}, "tool_choice"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": 9}, "temperature"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"prompt": "x"}, "prompt"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_request_is_refused_with_its_place(fields: dict[str, Any], place: str) -> None:
    refused = refusal_of(**fields)
    assert str(refused).startswith(f"{place}: ")
    assert refused.status == 400
