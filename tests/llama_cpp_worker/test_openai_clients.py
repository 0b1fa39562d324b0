"""Other people's clients, against TorchServe with its inference key: the openai package, LangChain, llm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field, SecretStr

from torchserve_client.config import ServerConfig
from torchserve_client.running_server import key_file

MODEL = "llamacpp"
HELLO: Any = [{"role": "user", "content": "What is the closest star to Earth?"}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


class Person(BaseModel):
    """As in OpenAI's own examples of structured outputs, but every part has an end.

    The demo model may repeat itself for ever in a string or a number without one; which one, depends on the processor.
    """

    name: str = Field(description="The full name", max_length=40)
    age: int = Field(ge=0, le=150)
    centimetres: int | None = Field(ge=40, le=250)
    kind: Literal["child", "adult"]
    hobbies: list[Annotated[str, Field(max_length=20)]] = Field(max_length=3)


def key(server: ServerConfig) -> str:
    return str(json.loads(key_file(server).read_text())["inference"]["key"])


def base_url(server: ServerConfig) -> str:
    return f"{server.inference_url}/predictions/llamacpp/1.0/v1"


@pytest.fixture(scope="module")
def client(server: ServerConfig) -> OpenAI:
    return OpenAI(base_url=base_url(server), api_key=key(server), max_retries=0, timeout=120)


def test_models(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model == client.models.retrieve(MODEL)
    assert model.id == MODEL
    assert 1_600_000_000 < model.created < 4_000_000_000


def test_a_chat_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, user="somebody", **GREEDY)
    assert "Proxima" in (answer.choices[0].message.content or "")
    assert answer.id.startswith("chatcmpl-")
    assert (answer.system_fingerprint or "").startswith("fp_")
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens is not None
    again = client.chat.completions.create(model=MODEL, messages=[*HELLO, answer.choices[0].message, *HELLO], **GREEDY)
    assert again.choices[0].message.content


def test_a_streamed_chat_answer_is_the_same_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY)
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=True, stream_options=options, **GREEDY)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_the_stream_helper_of_the_package_joins_the_pieces(client: OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, logprobs=True, temperature=0) as stream:
        content = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert final.choices[0].message.content == content
    assert final.choices[0].logprobs and final.choices[0].logprobs.content
    assert "".join(token.token for token in final.choices[0].logprobs.content) == content


@pytest.mark.parametrize("prompt", ["One, two, three,", ["One, two, three,"]], ids=["text", "list"])
def test_a_completion(client: OpenAI, prompt: str) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, echo=True, **GREEDY)
    assert answer.choices[0].text.startswith("One, two, three, four")
    assert answer.id.startswith("cmpl-")


def test_two_choices_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": HELLO, "n": 2, "seed": 3, "temperature": 1.5, "max_tokens": 16}
    first, second = (client.chat.completions.create(**ask) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert texts == [choice.message.content for choice in second.choices]
    assert first.usage and first.usage.completion_tokens > 16

    streamed = ["", ""]
    for chunk in client.chat.completions.create(stream=True, **ask):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_log_probabilities_of_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=3, **GREEDY)
    (choice,) = answer.choices
    assert choice.logprobs and choice.logprobs.content
    for token in choice.logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert len(token.top_logprobs) == 3
    raw = bytes(byte for token in choice.logprobs.content for byte in token.bytes or [])
    assert raw.decode(errors="ignore") == choice.message.content


def test_log_probabilities_of_a_completion(client: OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="One, two, three,", logprobs=2, **GREEDY)
    (choice,) = answer.choices
    logprobs = choice.logprobs
    assert logprobs and logprobs.tokens and logprobs.text_offset and logprobs.token_logprobs and logprobs.top_logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert [
        choice.text[offset:][: len(token)] for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)
    ]
    assert [max(top.values()) for top in logprobs.top_logprobs] == logprobs.token_logprobs


def test_a_stop_string_is_in_neither_the_text_nor_the_log_probabilities(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, stop="Centauri", **GREEDY)
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.logprobs and choice.logprobs.content
    reported = "".join(token.token for token in choice.logprobs.content)
    assert (choice.message.content or "").startswith(reported)
    assert "Cent" not in reported


def test_an_answer_follows_its_json_schema(client: OpenAI) -> None:
    schema = Person.model_json_schema()
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": schema}},
        max_tokens=300,
        temperature=1.2,
        seed=1,
    )
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), schema)


def test_the_parse_method_of_the_package_gives_an_object(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format=Person,
        max_tokens=300,
        temperature=1.2,
        seed=1,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give me a JSON object with one key."}],
        response_format={"type": "json_object"},
        max_tokens=400,
        frequency_penalty=1,  # without it, such a small model repeats itself until max_tokens
        seed=1,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)
    assert (answer.choices[0].message.content or "").startswith("{")


WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": PLACE}}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "by name"])
def test_a_forced_call_is_valid_and_its_result_is_taken(client: OpenAI, choice: Any) -> None:
    tools: dict[str, Any] = {"model": MODEL, "tools": [TOOL], "temperature": 0, "max_tokens": 200}
    answer = client.chat.completions.create(messages=WEATHER, tool_choice=choice, **tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    message: Any = answer.choices[0].message
    assert message.content is None
    for call in message.tool_calls:
        assert call.function.name == "get_weather"
        jsonschema.validate(json.loads(call.function.arguments), PLACE)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "20 degrees"} for call in message.tool_calls]
    messages: Any = [*WEATHER, message, *results]
    final = client.chat.completions.create(messages=messages, tool_choice="none", **tools)
    assert final.choices[0].message.content
    assert not final.choices[0].message.tool_calls


def test_a_streamed_forced_call_is_the_same_call(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": WEATHER, "tools": [TOOL], "tool_choice": NAMED, **GREEDY}
    ask["max_tokens"] = 100
    (expected,) = client.chat.completions.create(**ask).choices[0].message.tool_calls or []
    with client.chat.completions.stream(**ask) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    assert final.choices[0].finish_reason == "tool_calls"
    assert expected.type == "function"
    assert call.function.arguments == "".join(pieces) == expected.function.arguments
    assert len(pieces) > 1


def test_with_tools_to_choose_from_an_answer_is_text_or_valid_calls(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": WEATHER, "tools": [TOOL], "max_tokens": 60}
    for seed in range(4):
        (choice,) = client.chat.completions.create(seed=seed, temperature=1, **ask).choices
        assert choice.message.content or choice.message.tool_calls
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            if choice.finish_reason == "tool_calls":
                jsonschema.validate(json.loads(call.function.arguments), PLACE)


def test_fields_that_change_nothing_change_nothing(client: OpenAI) -> None:
    expected = client.chat.completions.create(model=MODEL, messages=HELLO, **GREEDY).choices[0].message.content
    hints: dict[str, Any] = {"prompt_cache_key": "a", "safety_identifier": "a", "metadata": {"a": "b"}, "store": False}
    more: dict[str, Any] = {"service_tier": "auto", "verbosity": "low", "reasoning_effort": "low"}
    named: Any = [{**HELLO[0], "name": "somebody"}]
    answer = client.chat.completions.create(model=MODEL, messages=named, **hints, **more, **GREEDY)
    assert answer.choices[0].message.content == expected


def test_several_prompts_have_log_probabilities_of_their_tokens(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "echo": True, "logprobs": 1, "temperature": 0, "max_tokens": 2}
    answer = client.completions.create(prompt=["One, two, three,", "The capital of France is"], **ask)
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice, prompt in zip(answer.choices, ["One, two, three,", "The capital of France is"], strict=True):
        assert choice.text.startswith(prompt)
        assert choice.logprobs and choice.logprobs.tokens and choice.logprobs.token_logprobs
        assert "".join(choice.logprobs.tokens) == choice.text
        first, *others = choice.logprobs.token_logprobs
        assert first is None
        assert all(value <= 0 for value in others)


def test_an_answer_follows_its_grammar(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, extra_body={"grammar": 'root ::= "Sun" | "Moon"'}, max_tokens=20
    )
    assert answer.choices[0].message.content in ("Sun", "Moon")
    assert answer.choices[0].finish_reason == "stop"


def test_a_bias_forces_a_token(client: OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": [504, 2365], "max_tokens": 3, "temperature": 0, "logprobs": 0}
    answer = client.completions.create(**ask, logit_bias={"1000": 100})
    assert answer.choices[0].logprobs
    assert len(set(answer.choices[0].logprobs.tokens or [])) == 1
    assert client.completions.create(**ask, logit_bias={"1000": -100}).choices[0].text != answer.choices[0].text


BAD_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"n": 100}, "n"),
        ({"messages": []}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"extra_body": {"grammar": "root ::= nowhere"}}, "grammar"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"response_format": BAD_SCHEMA}, "response_format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_names_its_parameter(client: OpenAI, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(**{"model": MODEL, "messages": HELLO, **changes})
    assert refusal.value.param == param
    assert refusal.value.type == "invalid_request_error"


def test_an_unknown_path_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.moderations.create(input="x")


def test_a_wrong_key_is_refused(server: ServerConfig) -> None:
    with pytest.raises(openai.BadRequestError) as refusal:
        OpenAI(base_url=base_url(server), api_key="wrong", max_retries=0).models.list()
    assert refusal.value.response.json()["type"] == "InvalidKeyException"  # TorchServe's own answer


def test_langchain_chats_streams_and_gets_an_object(server: ServerConfig) -> None:
    from langchain_openai import ChatOpenAI

    limits: dict[str, Any] = {"temperature": 0, "max_tokens": 300}
    chat = ChatOpenAI(base_url=base_url(server), api_key=SecretStr(key(server)), model=MODEL, **limits)
    assert "Proxima" in chat.invoke("What is the closest star to Earth?").content
    assert "Proxima" in "".join(str(chunk.content) for chunk in chat.stream("What is the closest star to Earth?"))
    assert isinstance(chat.with_structured_output(Person).invoke("Invent a person."), Person)
    by_call = chat.with_structured_output(Person, method="function_calling")
    assert isinstance(by_call.invoke("Invent a person."), Person)


def test_langchain_calls_a_tool_and_takes_its_result(server: ServerConfig) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI

    @tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather of a city."""
        return f"20 degrees in {city}"

    limits: dict[str, Any] = {"temperature": 0, "max_tokens": 100}
    chat = ChatOpenAI(base_url=base_url(server), api_key=SecretStr(key(server)), model=MODEL, **limits)
    answer = chat.bind_tools([get_weather], tool_choice="any").invoke("What is the weather in Paris?")
    results = [get_weather.invoke(call) for call in answer.tool_calls]
    assert "20 degrees" in results[0].content
    assert chat.invoke([("user", "What is the weather in Paris?"), answer, *results]).content


def test_langchain_completes(server: ServerConfig) -> None:
    from langchain_openai import OpenAI as Completions

    model = Completions(
        base_url=base_url(server), api_key=SecretStr(key(server)), model=MODEL, temperature=0, max_tokens=12
    )
    assert "four" in model.invoke("One, two, three,")


def test_the_llm_command_line_chats(server: ServerConfig, tmp_path: Path) -> None:
    models = f"- model_id: {MODEL}\n  model_name: {MODEL}\n  api_base: {base_url(server)}\n  api_key_name: torchserve\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    llm = str(Path(sys.executable).with_name("llm"))
    run = subprocess.run(
        [llm, "-m", MODEL, "--key", key(server), "-o", "temperature", "0", HELLO[0]["content"]],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "Proxima" in run.stdout
