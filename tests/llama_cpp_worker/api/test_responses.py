"""OpenAI's Responses API without a server: what is accepted, and the objects and events of the answers."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.fields import read_body
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.responses import parse
from llama_cpp_worker.output import Delta, Reasoning, Text, ToolCallArguments, ToolCallBegin
from llama_cpp_worker.sampling_params import SampledToken, TokenLogprob
from tests.llama_cpp_worker.api.scripted_reply import ScriptedReply, read_events

PATH = "v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def request_of(**fields: Any) -> GenerationRequest:
    return parse(read_body({"body": {"input": "Hello", **fields}}))


def refusal_of(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        request_of(**fields)
    return refusal.value


def stream(**fields: Any) -> ScriptedReply:
    return ScriptedReply(PATH, {"input": "Hello", "stream": True, **fields})


def whole(**fields: Any) -> ScriptedReply:
    return ScriptedReply(PATH, {"input": "Hello", **fields})


def checked_events(text: str) -> list[dict[str, Any]]:
    """The events, each one checked with the model that OpenAI's package has for it."""
    events = read_events(text)
    for event in events:
        assert EVENTS.validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def checked_response(text: str) -> dict[str, Any]:
    response: dict[str, Any] = json.loads(text)
    Response.model_validate(response)
    return response


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_text_comes_as_one_message_in_openais_order_of_events() -> None:
    reply = stream()
    events = checked_events(reply.say(Text("Hi")) + reply.say(Text(" there")) + reply.end())
    assert names(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, added, done, completed = (events[index] for index in (0, 2, 8, 9))
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert (added["item"]["content"], added["item"]["status"]) == ([], "in_progress")
    part = {"type": "output_text", "text": "Hi there", "annotations": [], "logprobs": []}
    assert (done["item"]["content"], done["item"]["status"]) == ([part], "completed")
    assert completed["response"]["output"] == [done["item"]]
    assert {event["item_id"] for event in events if "item_id" in event} == {added["item"]["id"]}


def test_usage_counts_reused_tokens() -> None:
    reply = whole()
    reply.say(Text("Hi"))
    response = checked_response(reply.end())
    assert response["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 8,
    }


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thoughts_text_and_calls_are_items_in_order(is_streamed: bool) -> None:
    reply = stream(tools=[WEATHER]) if is_streamed else whole(tools=[WEATHER])
    deltas: list[Delta] = [
        Reasoning("Hm"),
        Reasoning("m."),
        Text("I look."),
        ToolCallBegin(0, "call_a", "get_weather"),
        ToolCallArguments(0, '{"city": '),
        ToolCallArguments(0, '"Bonn"}'),
        ToolCallBegin(1, "call_b", "get_weather"),
        ToolCallArguments(1, '{"city": "Ulm"}'),
    ]
    text = "".join(reply.say(delta) for delta in deltas) + reply.end()
    response = checked_events(text)[-1]["response"] if is_streamed else checked_response(text)
    thoughts, message, bonn, ulm = response["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "I look."
    assert (bonn["type"], bonn["call_id"], bonn["arguments"]) == ("function_call", "call_a", '{"city": "Bonn"}')
    assert (ulm["name"], ulm["call_id"], ulm["arguments"]) == ("get_weather", "call_b", '{"city": "Ulm"}')
    assert len({item["id"] for item in response["output"]}) == 4
    assert {item["status"] for item in response["output"]} == {"completed"}
    assert response["status"] == "completed"


def test_a_call_is_streamed_as_an_item_and_pieces_of_its_arguments() -> None:
    reply = stream(tools=[WEATHER])
    text = reply.say(ToolCallBegin(0, "call_a", "get_weather")) + reply.say(ToolCallArguments(0, "{}")) + reply.end()
    _, _, added, delta, done, item_done, _ = checked_events(text)
    assert added["item"] | {"id": ""} == {
        "id": "",
        "type": "function_call",
        "call_id": "call_a",
        "name": "get_weather",
        "arguments": "",
        "status": "in_progress",
    }
    assert (delta["type"], delta["delta"]) == ("response.function_call_arguments.delta", "{}")
    assert (done["name"], done["arguments"]) == ("get_weather", "{}")
    assert item_done["item"]["arguments"] == "{}"


def test_thoughts_are_streamed_as_reasoning_text() -> None:
    reply = stream()
    events = checked_events(reply.say(Reasoning("Hm.")) + reply.say(Text("Hi")) + reply.end())
    assert names(events)[2:8] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert (events[4]["delta"], events[5]["text"]) == ("Hm.", "Hm.")


@pytest.mark.parametrize("deltas", [[], [Reasoning("Hm.")]], ids=["nothing", "thoughts"])
def test_an_answer_without_text_and_calls_has_an_empty_message(deltas: list[Any]) -> None:
    for reply in (whole(), stream()):
        text = reply.say(*deltas) + reply.end()
        response = checked_events(text)[-1]["response"] if text.startswith("event") else checked_response(text)
        assert response["output"][-1]["type"] == "message"
        assert response["output"][-1]["content"][0]["text"] == ""


def test_an_answer_that_was_cut_is_incomplete() -> None:
    streamed, plain = stream(tools=[WEATHER]), whole(tools=[WEATHER])
    texts = []
    for reply in (streamed, plain):
        text = reply.say(ToolCallBegin(0, "call_a", "get_weather"), ToolCallArguments(0, '{"ci'))
        texts.append(text + reply.end("length"))
    last = checked_events(texts[0])[-1]
    assert last["type"] == "response.incomplete"
    for response in (last["response"], checked_response(texts[1])):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert (response["output"][0]["arguments"], response["output"][0]["status"]) == ('{"ci', "incomplete")


def test_a_failure_is_a_failed_response() -> None:
    streamed, plain = stream(), whole()
    *_, failed = checked_events(streamed.say(Text("Hi")) + streamed.fail("The model failed."))
    plain.say(Text("Hi"))
    for response in (failed["response"], checked_response(plain.fail("The model failed."))):
        assert response["status"] == "failed"
        assert response["error"] == {"code": "server_error", "message": "The model failed."}
    assert failed["response"]["output"][0]["content"][0]["text"] == "Hi"
    assert streamed.reply.is_finished


def test_log_probabilities_come_with_the_text() -> None:
    token = SampledToken(TokenLogprob(b"Hi", -0.5), (TokenLogprob(b"Ho", -0.75),))
    reply = stream(include=["message.output_text.logprobs"], top_logprobs=1)
    events = checked_events(reply.say(Text("Hi"), tokens=(token,)) + reply.end())
    delta, done = events[4], events[5]
    expected = {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [72, 105],
        "top_logprobs": [{"token": "Ho", "logprob": -0.75, "bytes": [72, 111]}],
    }
    assert delta["logprobs"] == done["logprobs"] == [expected]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [expected]


def test_the_answer_repeats_the_request_and_says_that_nothing_is_stored() -> None:
    reply = whole(
        instructions="Be short.", tools=[WEATHER], tool_choice="required", metadata={"a": "b"}, store=True, top_p=0.5
    )
    response = checked_response(reply.end())
    assert response["store"] is False
    assert (response["instructions"], response["metadata"], response["top_p"]) == ("Be short.", {"a": "b"}, 0.5)
    assert (response["tools"], response["tool_choice"]) == ([WEATHER], "required")
    assert (response["id"], response["object"], response["model"]) == ("resp_id-1", "response", "tiny")


def test_items_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Bonn"}'}
    items = [
        {"role": "developer", "content": "Answer in English."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather in Bonn?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "A tool."}]},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "I look."}]},
        {**call, "id": "fc_1", "status": "completed"},
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Sun"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"},
        {**call, "call_id": "c3"},
    ]
    function = {"name": "get_weather", "arguments": '{"city": "Bonn"}'}
    calls = [{"id": identity, "type": "function", "function": function} for identity in ("c1", "c2", "c3")]
    assert request_of(input=items, instructions="Be short.").messages == [
        {"role": "system", "content": "Be short.\n\nAnswer in English."},
        {"role": "user", "content": "Weather in Bonn?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "A tool.", "tool_calls": calls[:2]},
        {"role": "tool", "tool_call_id": "c1", "content": "Rain"},
        {"role": "tool", "tool_call_id": "c2", "content": "Sun"},
        {"role": "assistant", "content": "", "tool_calls": calls[2:]},
    ]


def test_the_items_of_an_answer_can_be_sent_back() -> None:
    reply = whole(tools=[WEATHER])
    reply.say(Reasoning("Hm."), Text("I look."), ToolCallBegin(0, "call_a", "get_weather"), ToolCallArguments(0, "{}"))
    answer = checked_response(reply.end())
    (message,) = request_of(input=answer["output"]).messages
    assert (message["content"], message["reasoning_content"]) == ("I look.", "Hm.")
    assert message["tool_calls"][0]["id"] == "call_a"


def test_limits_and_formats_have_their_own_names() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "name": "person", "strict": True, "schema": schema}
    request = request_of(max_output_tokens=5, temperature=0, text={"format": form, "verbosity": "low"})
    assert (request.params.max_tokens, request.params.temperature) == (5, 0)
    named = {"name": "person", "strict": True, "schema": schema}
    assert request.params.response_format == {"type": "json_schema", "json_schema": named}
    assert request_of(text={"format": {"type": "text"}}).params.response_format == {"type": "text"}


def test_what_cannot_change_the_answer_is_accepted() -> None:
    request = request_of(
        store=True,
        background=False,
        previous_response_id=None,
        include=["reasoning.encrypted_content"],
        truncation="disabled",
        reasoning={"effort": "low", "summary": "auto"},
        metadata={},
        user="somebody",
        prompt_cache_key="x",
        parallel_tool_calls=True,
        service_tier="auto",
        max_tool_calls=3,
        stream=True,
        stream_options={"include_obfuscation": False},
        tools=[],
        tool_choice="auto",
    )
    assert (request.tools, request.logprobs, request.stream) == (None, None, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": "x"}, "include"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"reasoning": "low"}, "reasoning"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{**WEATHER, "parameters": 5}]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function", "name": "f"}, "tools": [WEATHER]}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"surprise": 1}}, "text.surprise"),
        ({"n": 2}, "n"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_bad_request_is_refused_by_parameter_name(fields: dict[str, Any], param: str) -> None:
    refusal = refusal_of(**fields)
    assert (refusal.param, refusal.status) == (param, 400)
    assert str(refusal).startswith(param)


def test_a_schema_is_refused_with_its_place_in_text_format() -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "not": {"const": "a"}}}}
    refusal = refusal_of(text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    assert str(refusal).startswith("text.format.schema.properties.name.not: ")


def test_a_failure_repeats_nothing_of_the_client_and_begins_with_the_error() -> None:
    for reply in (stream(metadata={"a": "my label"}, instructions="my text"), whole(metadata={"a": "my label"})):
        reply.say(Text("Hi"))
        failure = reply.reply.fail(ApiError("x", code="too_long"))
        assert "my " not in failure and "Hi" not in failure
    assert failure.startswith('{"error"')
