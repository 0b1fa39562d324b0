# /// script
# dependencies = ["haystack-ai==3.4.1", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""Haystack: OpenAIChatGenerator and OpenAIResponsesChatGenerator with tools and objects, an Agent."""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, WEATHER_SCHEMA, Person, get_weather
from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret

weather = Tool(name="get_weather", description="The weather", parameters=WEATHER_SCHEMA, function=get_weather)
GREEDY = {"temperature": 0, "max_tokens": 100}


def generator(key=KEY, **changes):
    options = {"generation_kwargs": GREEDY, "max_retries": 0, **changes}
    return OpenAIChatGenerator(api_key=Secret.from_token(key), model=MODEL, api_base_url=BASE_URL, **options)


def ask(text, **options):
    return generator(**options).run([ChatMessage.from_user(text)])["replies"][0]


@check("chat and usage")
def chat():
    answer = ask(QUESTION)
    assert ANSWER in answer.text
    assert answer.meta["usage"]["completion_tokens"] > 0


@check("stream")
def stream():
    pieces = []
    answer = ask(QUESTION, streaming_callback=lambda chunk: pieces.append(chunk.content))
    assert "".join(pieces) == answer.text
    assert ANSWER in answer.text


@check("forced tool and its result")
def forced():
    answer = ask(WEATHER_QUESTION, tools=[weather], generation_kwargs={**GREEDY, "tool_choice": "required"})
    results = [ChatMessage.from_tool(get_weather(**call.arguments), origin=call) for call in answer.tool_calls]
    assert results
    final = generator().run([ChatMessage.from_user(WEATHER_QUESTION), answer, *results])["replies"][0]
    assert final.text


@check("forced tool, strict and streamed")
def streamed():
    options = {"tools": [weather], "tools_strict": True, "streaming_callback": lambda chunk: None}
    answer = ask(WEATHER_QUESTION, generation_kwargs={**GREEDY, "tool_choice": "required"}, **options)
    assert answer.tool_calls
    for call in answer.tool_calls:
        get_weather(**call.arguments)


@check("object")
def response_format():
    answer = ask(PERSON_QUESTION, generation_kwargs={**GREEDY, "response_format": Person})
    Person.model_validate_json(answer.text)


@check("agent")
def agent():
    result = Agent(chat_generator=generator(), tools=[weather], max_agent_steps=3).run(
        [ChatMessage.from_user(WEATHER_QUESTION)]
    )
    assert result["last_message"]


@check("responses")
def responses():
    options = {"api_base_url": BASE_URL, "generation_kwargs": {"temperature": 0, "max_output_tokens": 60}}
    other = OpenAIResponsesChatGenerator(api_key=Secret.from_token(KEY), model=MODEL, max_retries=0, **options)
    assert ANSWER in other.run([ChatMessage.from_user(QUESTION)])["replies"][0].text


@check("wrong key")
def wrong_key():
    fails(lambda: ask(QUESTION, key="wrong"), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: ask(QUESTION, generation_kwargs={"temperature": 9}), 400)


run()
