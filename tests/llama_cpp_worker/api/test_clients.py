"""The packages openai and anthropic, against TorchServe: responses, messages and tokens."""

import importlib.util
import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.llama_cpp_worker.test_openai_clients import MODEL, base_url, key
from torchserve_client.config import ServerConfig

QUESTION = "What is the closest star to Earth?"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
FUNCTION: Any = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": False}


class Star(BaseModel):
    name: str
    is_near: bool


@pytest.fixture(scope="module")
def client(server: ServerConfig) -> OpenAI:
    return OpenAI(base_url=base_url(server), api_key=key(server), max_retries=0, timeout=120)


def test_a_response_whole_and_streamed_is_the_same_text(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 200}
    whole = client.responses.create(**asked)
    assert "Proxima" in whole.output_text
    assert (whole.status, whole.usage is not None) == ("completed", True)
    with client.responses.stream(**asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == whole.output_text
    assert final.usage and whole.usage and final.usage.output_tokens == whole.usage.output_tokens


def test_a_response_that_is_cut_is_incomplete(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"


def test_a_response_parses_as_an_object(client: OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Star, max_output_tokens=300, temperature=0)
    assert isinstance(answer.output_parsed, Star)


def test_a_response_calls_a_function_and_takes_its_result(client: OpenAI) -> None:
    items: Any = [{"role": "user", "content": "What is the weather in Bonn?"}]
    first = client.responses.create(
        model=MODEL, input=items, tools=[FUNCTION], tool_choice="required", parallel_tool_calls=False, temperature=0
    )
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert call.name == "get_weather"
    assert isinstance(json.loads(call.arguments)["city"], str)
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}]
    second = client.responses.create(
        model=MODEL, input=items, tools=[FUNCTION], tool_choice="none", max_output_tokens=20
    )
    assert second.output_text


def test_responses_are_not_stored(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=3)
    with pytest.raises(openai.NotFoundError, match="not stored"):
        client.responses.retrieve(answer.id)
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.create(model=MODEL, input="Hello", previous_response_id=answer.id)
    assert refusal.value.param == "previous_response_id"


def test_embeddings_that_are_off_are_refused_in_words(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="embeddings: true"):
        client.embeddings.create(model=MODEL, input="Hello")


def test_tokens_go_there_and_back(client: OpenAI) -> None:
    tokens = client.post("/tokenize", body={"content": QUESTION}, cast_to=object)
    assert isinstance(tokens, dict)
    assert client.post("/detokenize", body=tokens, cast_to=object) == {"content": QUESTION}
    prompt = client.post("/apply-template", body={"messages": [{"role": "user", "content": "Hi"}]}, cast_to=object)
    assert isinstance(prompt, dict)
    assert "<|im_start|>user\nHi<|im_end|>" in prompt["prompt"]


GREEDY = {"temperature": 0}  # the package no longer has this parameter; the API has


@pytest.fixture(scope="module")
def anthropic_client(server: ServerConfig) -> Any:
    if importlib.util.find_spec("anthropic") is None:
        pytest.skip("the package anthropic is not installed")
    from anthropic import Anthropic

    return Anthropic(base_url=base_url(server).removesuffix("/v1"), auth_token=key(server), max_retries=0, timeout=120)


def test_a_message_whole_and_streamed_is_the_same_text(anthropic_client: Any) -> None:
    asked = {
        "model": "claude",
        "max_tokens": 200,
        "extra_body": GREEDY,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = anthropic_client.messages.create(**asked)
    assert "Proxima" in whole.content[0].text
    assert whole.stop_reason == "end_turn"
    with anthropic_client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.usage.output_tokens == whole.usage.output_tokens
    total = final.usage.input_tokens + final.usage.cache_read_input_tokens
    counted = anthropic_client.messages.count_tokens(model="claude", messages=asked["messages"])
    assert counted.input_tokens == total


def test_a_message_stops_at_a_sequence_and_names_it(anthropic_client: Any) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    answer = anthropic_client.beta.messages.create(
        model="claude", max_tokens=50, messages=messages, stop_sequences=["Centauri"], extra_body=GREEDY
    )
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "Centauri")


def test_a_message_uses_a_tool_and_takes_its_result(anthropic_client: Any) -> None:
    tool = {"name": "get_weather", "description": "The weather of a city.", "input_schema": SCHEMA}
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Bonn?"}]
    asked = {"model": "claude", "max_tokens": 200, "extra_body": GREEDY, "tools": [tool], "messages": messages}
    with anthropic_client.messages.stream(**asked, tool_choice={"type": "tool", "name": "get_weather"}) as stream:
        first = stream.get_final_message()
    (use,) = [block for block in first.content if block.type == "tool_use"]
    assert (use.name, first.stop_reason) == ("get_weather", "tool_use")
    assert isinstance(use.input["city"], str)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "Rain"}
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert anthropic_client.messages.create(**asked, tool_choice={"type": "none"}).content


def test_errors_of_messages_have_anthropics_shape(anthropic_client: Any) -> None:
    from anthropic import BadRequestError

    with pytest.raises(BadRequestError) as refusal:
        anthropic_client.messages.create(model="claude", max_tokens=5, messages=[])
    body: Any = refusal.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
