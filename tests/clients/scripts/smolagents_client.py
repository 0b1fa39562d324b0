# /// script
# dependencies = ["smolagents[openai]==1.26.0", "openai==3.57.0", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""smolagents: OpenAIModel, ToolCallingAgent (each step is a forced call) and CodeAgent with its JSON format."""

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import WEATHER_QUESTION, get_weather
from smolagents import ActionStep, CodeAgent, LogLevel, OpenAIModel, Tool, ToolCallingAgent

HELLO = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]


def model(key=KEY, **options):
    options = {"temperature": 0, "max_tokens": 100, **options}
    return OpenAIModel(MODEL, api_base=BASE_URL, api_key=key, client_kwargs={"max_retries": 0}, **options)


class Weather(Tool):
    name = "get_weather"
    description = "The weather of a city."
    inputs = {  # noqa: RUF012 (smolagents asks for a plain attribute)
        "city": {"type": "string", "description": "The city", "enum": ["Paris", "Rome", "Oslo"]},
        "unit": {"type": "string", "description": "The unit", "enum": ["celsius", "fahrenheit"]},
    }
    output_type = "string"

    def forward(self, city: str, unit: str) -> str:
        return get_weather(city, unit)


def errors_of_requests(agent):
    """Steps whose request failed; a step that the model filled with nonsense is not one of them."""
    errors = [step.error for step in agent.memory.steps if isinstance(step, ActionStep) and step.error]
    return [error.message for error in errors if "rror while generating" in error.message]


@check("chat and usage")
def chat():
    answer = model().generate(HELLO)
    assert ANSWER in answer.content
    assert answer.token_usage.output_tokens > 0


@check("stream")
def stream():
    assert ANSWER in "".join(delta.content or "" for delta in model().generate_stream(HELLO))


@check("forced tool")
def forced():
    ask = [{"role": "user", "content": [{"type": "text", "text": WEATHER_QUESTION}]}]
    answer = model().generate(ask, tools_to_call_from=[Weather()])
    assert answer.tool_calls
    assert all(call.function.name == "get_weather" for call in answer.tool_calls)


@check("ToolCallingAgent")
def tool_calling_agent():
    agent = ToolCallingAgent([Weather()], model(), max_steps=3, verbosity_level=LogLevel.OFF)
    agent.run(WEATHER_QUESTION)
    calls = [call for step in agent.memory.steps if isinstance(step, ActionStep) for call in step.tool_calls or []]
    assert calls
    assert not errors_of_requests(agent)


@check("ToolCallingAgent, streamed")
def streamed_agent():
    agent = ToolCallingAgent([Weather()], model(), max_steps=2, verbosity_level=LogLevel.OFF, stream_outputs=True)
    agent.run(WEATHER_QUESTION)
    assert not errors_of_requests(agent)


@check("CodeAgent, structured outputs")
def code_agent():
    agent = CodeAgent(
        [Weather()], model(), max_steps=2, verbosity_level=LogLevel.OFF, use_structured_outputs_internally=True
    )
    agent.run(WEATHER_QUESTION)
    assert not errors_of_requests(agent)


@check("wrong key")
def wrong_key():
    fails(lambda: model(key="wrong").generate(HELLO), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: model(temperature=9).generate(HELLO), 400)


run()
