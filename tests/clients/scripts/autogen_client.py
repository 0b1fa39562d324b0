# /// script
# dependencies = ["autogen-agentchat==0.7.5", "autogen-ext[openai]==0.7.5", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""AutoGen with its defaults: OpenAIChatCompletionClient, AssistantAgent, a team."""

import json

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import CancellationToken
from autogen_core.models import AssistantMessage, FunctionExecutionResult, FunctionExecutionResultMessage, UserMessage
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, Person, get_weather

weather = FunctionTool(get_weather, description="The weather", strict=True)
ABLE = {"vision": False, "function_calling": True, "json_output": True, "family": "unknown", "structured_output": True}


def client(key=KEY, **options):
    options = {"temperature": 0, "max_tokens": 100, "max_retries": 0, **options}
    return OpenAIChatCompletionClient(model=MODEL, base_url=BASE_URL, api_key=key, model_info=ABLE, **options)


def user(text):
    return UserMessage(content=text, source="user")


@check("chat and usage")
async def chat():
    answer = await client().create([user(QUESTION)])
    assert ANSWER in answer.content
    assert answer.usage.completion_tokens > 0


@check("stream and usage")
async def stream():
    *pieces, final = [piece async for piece in client().create_stream([user(QUESTION)], include_usage=True)]
    assert ANSWER in "".join(pieces)
    assert final.usage.completion_tokens > 0


@check("forced tool and its result")
async def forced():
    answer = await client().create([user(WEATHER_QUESTION)], tools=[weather], tool_choice="required")
    assert answer.finish_reason == "function_calls"
    results = []
    for call in answer.content:
        result = await weather.run_json(json.loads(call.arguments), CancellationToken())
        results.append(FunctionExecutionResult(content=result, call_id=call.id, is_error=False, name=call.name))
    final = await client().create(
        [
            user(WEATHER_QUESTION),
            AssistantMessage(content=answer.content, source="assistant"),
            FunctionExecutionResultMessage(content=results),
        ]
    )
    assert final.content


@check("forced tool, streamed")
async def streamed():
    pieces = client().create_stream([user(WEATHER_QUESTION)], tools=[weather], tool_choice=weather)
    assert [piece async for piece in pieces][-1].content[0].name == "get_weather"


@check("object")
async def object_of_schema():
    answer = await client().create([user(PERSON_QUESTION)], json_output=Person)
    Person.model_validate_json(answer.content)


@check("AssistantAgent")
async def agent():
    result = await AssistantAgent("assistant", model_client=client()).run(task=QUESTION)
    assert result.messages[-1].content


@check("AssistantAgent with a tool")
async def agent_with_tool():
    caller = AssistantAgent("assistant", model_client=client(), tools=[get_weather], reflect_on_tool_use=True)
    assert (await caller.run(task=WEATHER_QUESTION)).messages[-1].content


@check("RoundRobinGroupChat")
async def team():
    agents = [AssistantAgent(name, model_client=client()) for name in ("first", "second")]
    result = await RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(3)).run(task=QUESTION)
    assert len(result.messages) == 3


@check("wrong key")
def wrong_key():
    fails(lambda: client(key="wrong").create([user(QUESTION)]), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: client(temperature=9).create([user(QUESTION)]), 400)


run()
