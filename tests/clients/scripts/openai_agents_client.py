# /// script
# dependencies = ["openai-agents==0.24.0", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""OpenAI's Agents SDK: tools, handoffs, objects and streams, over chat completions and over responses."""

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, Person, get_weather
from openai import AsyncOpenAI

set_tracing_disabled(True)
weather = function_tool(get_weather)
LIMITS = {"temperature": 0, "max_tokens": 300}  # the SDK takes a response that is cut for an error


def client(key=KEY):
    return AsyncOpenAI(base_url=BASE_URL, api_key=key, max_retries=0, timeout=60)


def add(name, kind):
    def agent(key=KEY, tool_choice=None, limits=LIMITS, **changes):
        settings = ModelSettings(tool_choice=tool_choice, **limits)
        return Agent("assistant", model=kind(MODEL, client(key)), model_settings=settings, **changes)

    @check(f"{name}: text and usage")
    async def text():
        result = await Runner.run(agent(), QUESTION)
        assert ANSWER in result.final_output
        assert result.context_wrapper.usage.output_tokens > 0

    @check(f"{name}: stream")
    async def stream():
        result = Runner.run_streamed(agent(), QUESTION)
        events = [event async for event in result.stream_events()]
        assert any(event.type == "raw_response_event" for event in events)
        assert ANSWER in result.final_output

    @check(f"{name}: forced tool")
    async def forced():
        caller = agent(tools=[weather], tool_choice="required", tool_use_behavior="stop_on_first_tool")
        assert "degrees" in (await Runner.run(caller, WEATHER_QUESTION)).final_output

    @check(f"{name}: forced tool, then an answer")
    async def loop():
        """After the first call the choice is reset to auto, so the model answers or calls again until max_turns."""
        caller = agent(tools=[weather], tool_choice="get_weather", instructions="You know the weather.")
        result = Runner.run_streamed(caller, WEATHER_QUESTION, max_turns=5)
        items = [event.item.type async for event in result.stream_events() if event.type == "run_item_stream_event"]
        assert "tool_call_output_item" in items
        assert result.final_output

    @check(f"{name}: handoff")
    async def handoff():
        """The second agent's answer has a schema: a text of such a small model may have no end."""
        expert = agent(output_type=Person, handoff_description="Invents people")
        expert.name = "expert"
        first = agent(handoffs=[expert], tool_choice="required")
        result = await Runner.run(first, PERSON_QUESTION)
        assert result.last_agent.name == "expert"
        assert isinstance(result.final_output, Person)

    @check(f"{name}: object")
    async def output_type():
        result = await Runner.run(agent(output_type=Person), PERSON_QUESTION)
        assert isinstance(result.final_output, Person)

    @check(f"{name}: wrong key")
    def wrong_key():
        fails(lambda: Runner.run(agent(key="wrong"), QUESTION), WRONG_KEY_STATUS)

    @check(f"{name}: wrong parameter")
    def wrong_parameter():
        fails(lambda: Runner.run(agent(limits={"temperature": 9}), QUESTION), 400)


add("chat", OpenAIChatCompletionsModel)
add("responses", OpenAIResponsesModel)
run()
