# /// script
# dependencies = ["openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""The openai package for Python: chats, tools, objects, completions, responses, models, errors."""

import json

import openai
from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, WEATHER_SCHEMA, Person, get_weather
from openai import AsyncOpenAI, OpenAI

client = OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)
HELLO = [{"role": "user", "content": QUESTION}]
WEATHER = [{"role": "user", "content": WEATHER_QUESTION}]
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather", "parameters": WEATHER_SCHEMA},
}
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 100}


@check("models")
def models():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


@check("chat")
def chat():
    answer = client.chat.completions.create(messages=HELLO, **GREEDY)
    assert ANSWER in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check("stream and usage")
def stream():
    chunks = list(
        client.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert ANSWER in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 0


@check("asynchronous")
async def asynchronous():
    other = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    async with other, other.chat.completions.stream(messages=HELLO, **GREEDY) as events:
        final = await events.get_final_completion()
    assert ANSWER in final.choices[0].message.content


@check("wrong key")
def wrong_key():
    wrong = client.with_options(api_key="wrong")
    fails(lambda: wrong.chat.completions.create(messages=HELLO, **GREEDY), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    error = fails(lambda: client.chat.completions.create(messages=HELLO, **{**GREEDY, "temperature": 9}), 400)
    assert isinstance(error, openai.BadRequestError)
    assert error.param == "temperature"


@check("fields without effect")
def fields_without_effect():
    hints = {"prompt_cache_key": "x", "safety_identifier": "x", "metadata": {"a": "b"}, "store": False}
    more = {"service_tier": "auto", "verbosity": "low", "reasoning_effort": "low", "user": "x", "modalities": ["text"]}
    named = [{"role": "user", "content": [{"type": "text", "text": QUESTION}], "name": "somebody"}]
    answer = client.chat.completions.create(messages=named, **hints, **more, **GREEDY)
    assert ANSWER in answer.choices[0].message.content


@check("forced tool: required")
def required():
    answer = client.chat.completions.create(messages=WEATHER, tools=[TOOL], tool_choice="required", **GREEDY)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.function.name == "get_weather"
        get_weather(**json.loads(call.function.arguments))


@check("forced tool: by name, and its result")
def named():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(messages=WEATHER, tools=[TOOL], tool_choice=choice, **GREEDY)
    (call,) = answer.choices[0].message.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": get_weather(**json.loads(call.function.arguments))}
    messages = [*WEATHER, answer.choices[0].message, result]
    final = client.chat.completions.create(messages=messages, tools=[TOOL], tool_choice="none", **GREEDY)
    assert final.choices[0].message.content
    assert not final.choices[0].message.tool_calls


@check("forced tool, streamed")
def streamed_tool():
    with client.chat.completions.stream(messages=WEATHER, tools=[TOOL], tool_choice="required", **GREEDY) as events:
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert done
    for event in done:
        get_weather(**json.loads(event.arguments))


@check("tool, automatic")
def automatic():
    answer = client.chat.completions.create(messages=WEATHER, tools=[TOOL], parallel_tool_calls=False, **GREEDY)
    (choice,) = answer.choices
    assert choice.message.content or choice.message.tool_calls
    for call in choice.message.tool_calls or []:
        json.loads(call.function.arguments)


@check("object: parse")
def parse():
    ask = [{"role": "user", "content": PERSON_QUESTION}]
    answer = client.chat.completions.parse(messages=ask, response_format=Person, **GREEDY)
    assert isinstance(answer.choices[0].message.parsed, Person)


@check("object: strict tool")
def strict_tool():
    tool = openai.pydantic_function_tool(Person)
    ask = [{"role": "user", "content": PERSON_QUESTION}]
    answer = client.chat.completions.parse(messages=ask, tools=[tool], tool_choice="required", **GREEDY)
    assert all(isinstance(call.function.parsed_arguments, Person) for call in answer.choices[0].message.tool_calls)


@check("completions: prompts, echo, logprobs")
def completions():
    ask = {"prompt": ["One, two,", "A, B,"], "echo": True, "logprobs": 1, **GREEDY, "max_tokens": 4}
    answer = client.completions.create(**ask)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[1].text.startswith("A, B,")
    assert answer.choices[0].logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in answer.choices[0].logprobs.token_logprobs[1:])


@check("responses")
def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=100)
    assert ANSWER in answer.output_text
    assert answer.usage.output_tokens > 0
    more = [{"role": "user", "content": QUESTION}, *answer.output, {"role": "user", "content": "Why?"}]
    assert client.responses.create(model=MODEL, input=more, instructions="Be short.", max_output_tokens=20).output_text


@check("responses, streamed")
def responses_streamed():
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=100) as events:
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == events.get_final_response().output_text
    assert ANSWER in text


@check("responses: forced tool")
def responses_tool():
    tool = {"type": "function", "name": "get_weather", "parameters": WEATHER_SCHEMA, "strict": True}
    ask = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 100}
    answer = client.responses.create(input=WEATHER_QUESTION, tool_choice="required", **ask)
    calls = [item for item in answer.output if item.type == "function_call"]
    results = [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": get_weather(**json.loads(call.arguments)),
        }
        for call in calls
    ]
    assert results
    messages = [{"role": "user", "content": WEATHER_QUESTION}, *answer.output, *results]
    assert client.responses.create(input=messages, tool_choice="none", **ask).output_text


@check("responses: object")
def responses_parse():
    answer = client.responses.parse(
        model=MODEL, input=PERSON_QUESTION, text_format=Person, temperature=0, max_output_tokens=100
    )
    assert isinstance(answer.output_parsed, Person)


run()
