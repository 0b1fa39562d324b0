# /// script
# dependencies = ["llama-index-llms-openai-like==0.8.1", "llama-index-llms-openai", "pydantic==2.14.4"]
# ///
# mypy: ignore-errors
"""LlamaIndex: OpenAILike with chats, completions, tools and objects."""

from checks import ANSWER, BASE_URL, KEY, MODEL, QUESTION, WRONG_KEY_STATUS, check, fails, run
from examples import PERSON_QUESTION, WEATHER_QUESTION, Person, get_weather
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

SERVER = {"model": MODEL, "api_base": BASE_URL, "api_key": KEY, "temperature": 0, "max_tokens": 100, "max_retries": 0}


def new_model():
    """An asynchronous check needs its own: the connections of a model belong to one event loop."""
    return OpenAILike(is_chat_model=True, is_function_calling_model=True, context_window=2048, **SERVER)


model = new_model()
HELLO = [ChatMessage(role="user", content=QUESTION)]
weather = FunctionTool.from_defaults(get_weather)


@check("chat")
def chat():
    answer = model.chat(HELLO)
    assert ANSWER in answer.message.content
    assert answer.raw.usage.completion_tokens > 0


@check("stream")
def stream():
    assert ANSWER in list(model.stream_chat(HELLO))[-1].message.content


@check("asynchronous")
async def asynchronous():
    assert ANSWER in (await new_model().achat(HELLO)).message.content


@check("completions")
def completions():
    completer = OpenAILike(is_chat_model=False, context_window=2048, **SERVER)
    assert "four" in completer.complete("One, two, three,").text
    assert "four" in list(completer.stream_complete("One, two, three,"))[-1].text


@check("wrong key")
def wrong_key():
    wrong = OpenAILike(is_chat_model=True, **{**SERVER, "api_key": "wrong"})
    fails(lambda: wrong.chat(HELLO), WRONG_KEY_STATUS)


@check("wrong parameter")
def wrong_parameter():
    fails(lambda: model.chat(HELLO, top_p=9), 400)


@check("forced tool and its result")
def forced():
    answer = model.chat_with_tools([weather], user_msg=WEATHER_QUESTION, tool_required=True)
    calls = model.get_tool_calls_from_response(answer)
    results = [
        ChatMessage(
            role="tool",
            content=get_weather(**call.tool_kwargs),
            additional_kwargs={"tool_call_id": call.tool_id},
        )
        for call in calls
    ]
    final = model.chat([ChatMessage(role="user", content=WEATHER_QUESTION), answer.message, *results])
    assert final.message.content


@check("predict_and_call")
def predict_and_call():
    answer = model.predict_and_call([weather], user_msg=WEATHER_QUESTION, tool_required=True)
    assert "degrees" in answer.response


@check("forced tool, streamed")
def streamed():
    answer = list(model.stream_chat_with_tools([weather], user_msg=WEATHER_QUESTION, tool_required=True))[-1]
    for call in model.get_tool_calls_from_response(answer):
        get_weather(**call.tool_kwargs)


@check("object by tool")
def structured_predict():
    assert isinstance(model.structured_predict(Person, PromptTemplate(PERSON_QUESTION)), Person)


@check("object by schema")
def structured_outputs():
    schema = OpenAILike(is_chat_model=True, should_use_structured_outputs=True, context_window=2048, **SERVER)
    assert isinstance(schema.structured_predict(Person, PromptTemplate(PERSON_QUESTION)), Person)


@check("FunctionAgent")
async def agent():
    answer = await FunctionAgent(tools=[weather], llm=new_model()).run(WEATHER_QUESTION)
    assert str(answer)


run()
