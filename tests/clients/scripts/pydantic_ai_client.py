# /// script
# dependencies = ["pydantic-ai-slim[openai,anthropic]==2.68.0", "openai==3.57.0", "anthropic==2.14.0"]
# ///
# mypy: ignore-errors
"""Pydantic AI: text, tools, each kind of output; over chat completions, responses and messages."""

import contextlib
import os

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, Person, get_weather
from pydantic_ai import Agent, ModelSettings, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

LIMITS = ModelSettings(temperature=0, max_tokens=100)
model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY), settings=LIMITS)


@check("text and usage")
async def text():
    answer = await Agent(model, instructions="You are an assistant.").run(QUESTION)
    assert answer.output
    assert answer.usage.output_tokens > 0
    assert ANSWER in (await Agent(model).run(QUESTION)).output


@check("stream")
async def stream():
    async with Agent(model).run_stream(QUESTION) as answer:
        assert ANSWER in [text async for text in answer.stream_text()][-1]


@check("output: ToolOutput")
async def tool_output():
    assert isinstance((await Agent(model, output_type=ToolOutput(Person)).run(PERSON_QUESTION)).output, Person)


@check("output: NativeOutput")
async def native_output():
    assert isinstance((await Agent(model, output_type=NativeOutput(Person)).run(PERSON_QUESTION)).output, Person)


@check("output: PromptedOutput")
async def prompted_output():
    """The request has no schema: the tiny model may answer something else."""
    with contextlib.suppress(UnexpectedModelBehavior):
        await Agent(model, output_type=PromptedOutput(Person)).run(PERSON_QUESTION)


@check("output: one of two, streamed")
async def streamed_output():
    async with Agent(model, output_type=[Person, bool]).run_stream(PERSON_QUESTION) as answer:
        assert isinstance(await answer.get_output(), Person | bool)


@check("output: a function, so a forced tool")
async def output_function():
    assert "degrees" in (await Agent(model, output_type=get_weather).run(WEATHER_QUESTION)).output


@check("tool, automatic")
async def automatic():
    assert (await Agent(model, tools=[get_weather]).run(WEATHER_QUESTION)).output


@check("responses")
async def responses():
    provider = OpenAIProvider(base_url=BASE_URL, api_key=KEY)
    other = OpenAIResponsesModel(MODEL, provider=provider, settings=LIMITS)
    assert ANSWER in (await Agent(other).run(QUESTION)).output
    assert isinstance((await Agent(other, output_type=Person).run(PERSON_QUESTION)).output, Person)
    assert (await Agent(other, tools=[get_weather]).run(WEATHER_QUESTION)).output


@check("messages")
async def messages():
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    os.environ.pop("ANTHROPIC_API_KEY", None)
    client = AsyncAnthropic(base_url=BASE_URL.removesuffix("/v1"), auth_token=KEY, max_retries=0)
    other = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client), settings=LIMITS)
    assert ANSWER in (await Agent(other).run(QUESTION)).output
    assert isinstance((await Agent(other, output_type=ToolOutput(Person)).run(PERSON_QUESTION)).output, Person)


@check("wrong key")
def wrong_key():
    wrong = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key="wrong"))
    fails(lambda: Agent(wrong).run(QUESTION), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: Agent(model, model_settings=ModelSettings(temperature=9)).run(QUESTION), 400)


run()
