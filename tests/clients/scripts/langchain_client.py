# /// script
# dependencies = ["langchain==1.5.2", "langchain-openai==1.7.4", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""LangChain: ChatOpenAI with tools and objects in each mode, OpenAI, an agent."""

import json

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, Person, get_weather
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

SERVER = {"base_url": BASE_URL, "api_key": KEY, "model": MODEL, "temperature": 0, "max_retries": 0, "timeout": 60}
chat_model = ChatOpenAI(max_tokens=100, **SERVER)
weather = tool(get_weather)


@check("chat and usage")
def chat():
    answer = chat_model.invoke(QUESTION)
    assert ANSWER in answer.content
    assert answer.usage_metadata["output_tokens"] > 0


@check("stream and usage")
def stream():
    chunks = list(ChatOpenAI(max_tokens=100, stream_usage=True, **SERVER).stream(QUESTION))
    whole = sum(chunks[1:], chunks[0])
    assert ANSWER in whole.content
    assert whole.usage_metadata["output_tokens"] > 0


@check("batch")
def batch():
    assert all(ANSWER in answer.content for answer in chat_model.batch([QUESTION] * 3))


@check("completions")
def completions():
    assert "four" in OpenAI(max_tokens=8, **SERVER).invoke("One, two, three,")
    assert len(OpenAI(max_tokens=8, **SERVER).generate(["One, two,", "A, B,"]).generations) == 2


@check("wrong key")
def wrong_key():
    fails(lambda: ChatOpenAI(**{**SERVER, "api_key": "wrong"}).invoke(QUESTION), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: ChatOpenAI(**{**SERVER, "temperature": 9}).invoke(QUESTION), 400)


@check("bind_tools: any, and its result")
def bind_tools():
    answer = chat_model.bind_tools([weather], tool_choice="any").invoke(WEATHER_QUESTION)
    assert answer.tool_calls
    assert not answer.invalid_tool_calls
    results = [weather.invoke(call) for call in answer.tool_calls]
    final = chat_model.bind_tools([weather], tool_choice="none").invoke(
        [{"role": "user", "content": WEATHER_QUESTION}, answer, *results]
    )
    assert final.content


@check("bind_tools: by name, strict, streamed")
def bind_tools_streamed():
    bound = chat_model.bind_tools([weather], tool_choice="get_weather", strict=True, parallel_tool_calls=False)
    chunks = list(bound.stream(WEATHER_QUESTION))
    (call,) = sum(chunks[1:], chunks[0]).tool_calls
    get_weather(**call["args"])


@check("bind_tools: automatic")
def bind_tools_automatic():
    answer = chat_model.bind_tools([weather]).invoke(WEATHER_QUESTION)
    assert not answer.invalid_tool_calls


@check("with_structured_output: json_schema")
def json_schema():
    assert isinstance(chat_model.with_structured_output(Person).invoke(PERSON_QUESTION), Person)
    strict = chat_model.with_structured_output(Person, method="json_schema", strict=True, include_raw=True)
    assert isinstance(strict.invoke(PERSON_QUESTION)["parsed"], Person)


@check("with_structured_output: function_calling")
def function_calling():
    structured = chat_model.with_structured_output(Person, method="function_calling")
    assert isinstance(structured.invoke(PERSON_QUESTION), Person)


@check("with_structured_output: json_mode")
def json_mode():
    """The mode promises any JSON object, so the tiny model need not answer with a Person."""
    model = ChatOpenAI(max_tokens=400, frequency_penalty=1, **SERVER)
    structured = model.with_structured_output(Person, method="json_mode", include_raw=True)
    answer = structured.invoke("Answer with a JSON object of a person.")
    assert isinstance(json.loads(answer["raw"].content), dict)


@check("responses")
def responses():
    model = ChatOpenAI(use_responses_api=True, max_tokens=60, **SERVER)
    assert ANSWER in model.invoke(QUESTION).text
    assert model.bind_tools([weather], tool_choice="any").invoke(WEATHER_QUESTION).tool_calls
    assert ANSWER in "".join(chunk.text for chunk in model.stream(QUESTION))


@check("create_agent")
def agent():
    answer = create_agent(chat_model, [weather]).invoke({"messages": [{"role": "user", "content": WEATHER_QUESTION}]})
    assert answer["messages"][-1].content


@check("create_agent: ProviderStrategy and ToolStrategy")
def agent_object():
    for strategy in (ProviderStrategy(Person), ToolStrategy(Person)):
        agent = create_agent(chat_model, [], response_format=strategy)
        answer = agent.invoke({"messages": [{"role": "user", "content": PERSON_QUESTION}]}, {"recursion_limit": 10})
        assert isinstance(answer["structured_response"], Person)


run()
