# /// script
# dependencies = ["litellm==1.110.2", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""LiteLLM as a library, with its provider `openai/`."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list at import

import litellm
from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, WEATHER_SCHEMA, Person, get_weather

litellm.suppress_debug_info = True
HELLO = [{"role": "user", "content": QUESTION}]
WEATHER = [{"role": "user", "content": WEATHER_QUESTION}]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER_SCHEMA}}
SERVER = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "num_retries": 0}
GREEDY = {**SERVER, "temperature": 0, "max_tokens": 100}


@check("chat")
def chat():
    answer = litellm.completion(messages=HELLO, **GREEDY)
    assert ANSWER in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


@check("stream and usage")
def stream():
    chunks = list(litellm.completion(messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert ANSWER in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert litellm.stream_chunk_builder(chunks, messages=HELLO).usage.completion_tokens > 0


@check("asynchronous")
async def asynchronous():
    answer = await litellm.acompletion(messages=HELLO, **GREEDY)
    assert ANSWER in answer.choices[0].message.content


@check("text completion")
def text_completion():
    server = {**GREEDY, "model": f"text-completion-openai/{MODEL}", "max_tokens": 8}
    answer = litellm.text_completion(prompt=["One, two, three,", "One, two,"], **server)
    assert "four" in answer.choices[0].text
    assert len(answer.choices) == 2


@check("wrong key")
def wrong_key():
    fails(lambda: litellm.completion(messages=HELLO, **{**GREEDY, "api_key": "wrong"}), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: litellm.completion(messages=HELLO, **{**GREEDY, "temperature": 9}), 400)


@check("forced tool and its result")
def tool():
    answer = litellm.completion(messages=WEATHER, tools=[TOOL], tool_choice="required", **GREEDY)
    message = answer.choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": get_weather(**json.loads(call.function.arguments))}
        for call in message.tool_calls
    ]
    final = litellm.completion(messages=[*WEATHER, message, *results], tools=[TOOL], tool_choice="none", **GREEDY)
    assert final.choices[0].message.content


@check("forced tool, streamed")
def streamed_tool():
    choice = {"type": "function", "function": {"name": "get_weather"}}
    chunks = list(litellm.completion(messages=WEATHER, tools=[TOOL], tool_choice=choice, stream=True, **GREEDY))
    (call,) = litellm.stream_chunk_builder(chunks, messages=WEATHER).choices[0].message.tool_calls
    get_weather(**json.loads(call.function.arguments))


@check("tool, automatic")
def automatic():
    litellm.completion(messages=WEATHER, tools=[TOOL], **GREEDY)


@check("object")
def response_format():
    ask = [{"role": "user", "content": PERSON_QUESTION}]
    answer = litellm.completion(messages=ask, response_format=Person, **GREEDY)
    Person.model_validate_json(answer.choices[0].message.content)


@check("responses")
def responses():
    answer = litellm.responses(input=QUESTION, max_output_tokens=60, temperature=0, **SERVER)
    assert ANSWER in answer.output[-1].content[0].text


run()
