# /// script
# dependencies = ["anthropic==2.14.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""The anthropic package for Python: messages, streams, tools, token counts."""

import os

from anthropic import Anthropic
from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import WEATHER_QUESTION, WEATHER_SCHEMA, get_weather

ROOT = BASE_URL.removesuffix("/v1")
for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
    os.environ.pop(name, None)
client = Anthropic(base_url=ROOT, max_retries=0, timeout=60, api_key=KEY)
# The package has no parameter `temperature` any more.
GREEDY = {"model": MODEL, "max_tokens": 100, "extra_body": {"temperature": 0}}
HELLO = [{"role": "user", "content": QUESTION}]
WEATHER = [{"role": "user", "content": WEATHER_QUESTION}]
TOOL = {"name": "get_weather", "description": "The weather", "input_schema": WEATHER_SCHEMA}


@check("messages")
def messages():
    answer = client.messages.create(system="You know the stars.", messages=HELLO, **GREEDY)
    assert answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0
    assert ANSWER in client.messages.create(messages=HELLO, **GREEDY).content[0].text


@check("stream")
def stream():
    with client.messages.stream(messages=HELLO, **GREEDY) as events:
        text = "".join(events.text_stream)
        final = events.get_final_message()
    assert ANSWER in text
    assert final.content[0].text == text
    assert final.usage.output_tokens > 0
    assert final.stop_reason in ("end_turn", "max_tokens")


@check("text blocks, stop sequence, metadata")
def blocks():
    parts = [{"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]
    system = [{"type": "text", "text": "You are an assistant."}]
    answer = client.messages.create(
        messages=[{"role": "user", "content": parts}],
        system=system,
        stop_sequences=["e"],
        metadata={"user_id": "x"},
        **GREEDY,
    )
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == "e"


@check("forced tool: any, and its result")
def any_tool():
    answer = client.messages.create(messages=WEATHER, tools=[TOOL], tool_choice={"type": "any"}, **GREEDY)
    assert answer.stop_reason == "tool_use"
    calls = [block for block in answer.content if block.type == "tool_use"]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": get_weather(**call.input)} for call in calls]
    assert results
    more = [*WEATHER, {"role": "assistant", "content": answer.content}, {"role": "user", "content": results}]
    final = client.messages.create(messages=more, tools=[TOOL], tool_choice={"type": "none"}, **GREEDY)
    assert final.content[0].type == "text"


@check("forced tool: by name, streamed")
def named_tool():
    choice = {"type": "tool", "name": "get_weather"}
    with client.messages.stream(messages=WEATHER, tools=[TOOL], tool_choice=choice, **GREEDY) as events:
        final = events.get_final_message()
    (call,) = [block for block in final.content if block.type == "tool_use"]
    get_weather(**call.input)
    assert final.stop_reason == "tool_use"


@check("tool, automatic")
def automatic():
    answer = client.messages.create(messages=WEATHER, tools=[TOOL], **GREEDY)
    assert answer.content


@check("count_tokens")
def count_tokens():
    counted = client.messages.count_tokens(model=MODEL, messages=HELLO)
    usage = client.messages.create(messages=HELLO, **GREEDY).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with_tool = client.messages.count_tokens(model=MODEL, messages=HELLO, tools=[TOOL])
    assert with_tool.input_tokens > counted.input_tokens


@check("models")
def models():
    assert [model.id for model in client.models.list()] == [MODEL]


@check("wrong key")
def wrong_key():
    wrong = Anthropic(base_url=ROOT, max_retries=0, api_key="x")
    fails(lambda: wrong.messages.create(messages=HELLO, **GREEDY), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    error = fails(lambda: client.messages.create(messages=[], **GREEDY), 400)
    body = error.response.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"


run()
