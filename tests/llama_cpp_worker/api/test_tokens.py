"""llama-server's calls about tokens and prompts, and Anthropic's count of tokens, with a tiny real model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.routes import Api
from llama_cpp_worker.model import Model
from tests.support.tiny_llama import write_tiny_llama

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    model = Model(str(write_tiny_llama(folder / "tiny.gguf")), n_slots=1, n_threads=1)
    yield model
    model.close()


def call(model: Model, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = Api(model, "llamacpp", "continuous").answer(path, {"body": body}, "id-1")
    assert isinstance(answer, dict)
    return answer


def refusal_of(model: Model, path: str, body: dict[str, Any]) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        call(model, path, body)
    return refusal.value


@pytest.mark.parametrize("path", ["tokenize", "v1/tokenize", "/tokenize/"])
def test_a_text_becomes_tokens_and_a_text_again(model: Model, path: str) -> None:
    tokens = call(model, path, {"content": "Hello, Köln 🙂"})["tokens"]
    assert tokens == model.tokenizer.tokenize("Hello, Köln 🙂", add_special=False)
    text = call(model, path.replace("tokenize", "detokenize"), {"tokens": tokens})["content"]
    assert text.strip() == "Hello, Köln 🙂"


def test_special_tokens_are_added_only_on_request(model: Model) -> None:
    plain = call(model, "tokenize", {"content": "Hello"})["tokens"]
    special = call(model, "tokenize", {"content": "Hello", "add_special": True})["tokens"]
    assert special == model.tokenizer.tokenize("Hello")
    assert special[-len(plain) :] == plain
    assert len(special) > len(plain)


def test_names_of_control_tokens_are_parsed_unless_the_client_refuses(model: Model) -> None:
    assert len(call(model, "tokenize", {"content": "</s>"})["tokens"]) == 1
    assert len(call(model, "tokenize", {"content": "</s>", "parse_special": False})["tokens"]) > 1


def test_pieces_are_texts_or_the_bytes_of_a_part_of_a_character(model: Model) -> None:
    pieces = call(model, "tokenize", {"content": "a🙂", "with_pieces": True})["tokens"]
    assert [piece["id"] for piece in pieces] == call(model, "tokenize", {"content": "a🙂"})["tokens"]
    raw = [piece["piece"] for piece in pieces]
    joined = b"".join(piece.encode() if isinstance(piece, str) else bytes(piece) for piece in raw)
    assert joined.decode().strip() == "a🙂"
    assert any(isinstance(piece, list) for piece in raw)


def test_a_chat_becomes_the_prompt_that_the_model_gets(model: Model) -> None:
    prompt = call(model, "apply-template", {"messages": HELLO})["prompt"]
    assert prompt == model.tokenizer.template.render(HELLO)
    tools = [{"type": "function", "function": WEATHER}]
    assert "get_weather" in call(model, "v1/apply-template", {"messages": HELLO, "tools": tools})["prompt"]


def test_anthropics_count_is_that_of_the_prompt(model: Model) -> None:
    expected = len(model.tokenizer.tokenize_chat(HELLO))
    body = {"model": "claude", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}
    assert call(model, "v1/messages/count_tokens", body) == {"input_tokens": expected}
    tool = {"name": "get_weather", "input_schema": WEATHER["parameters"]}
    assert call(model, "v1/messages/count_tokens", {**body, "tools": [tool]})["input_tokens"] > expected


def test_a_prompt_that_does_not_fit_is_counted_all_the_same(model: Model) -> None:
    body = {"messages": [{"role": "user", "content": "a " * model.window}]}
    assert call(model, "v1/messages/count_tokens", body)["input_tokens"] > model.window


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "content"),
        ("tokenize", {"content": 5}, "content"),
        ("tokenize", {"content": "a" * 1_000_000}, "content"),
        ("tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("tokenize", {"text": "a"}, "text"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("detokenize", {"tokens": [10**9]}, "tokens"),
        ("detokenize", {"tokens": [True]}, "tokens"),
        ("detokenize", {"tokens": [5] * 200_000}, "tokens"),
        ("apply-template", {}, "messages"),
        ("v1/messages/count_tokens", {}, "messages"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_call_is_refused_by_parameter_name(model: Model, path: str, body: dict[str, Any], param: str) -> None:
    refusal = refusal_of(model, path, body)
    assert (refusal.param, refusal.status) == (param, 400)


def test_a_prompt_that_does_not_fit_names_the_clients_field(model: Model) -> None:
    long = "a " * model.window
    for path, body, name in (
        ("v1/responses", {"input": long}, "input"),
        ("v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": long}]}, "messages"),
    ):
        refusal = refusal_of(model, path, body)
        assert (refusal.param, refusal.code) == (name, "context_length_exceeded")
        assert str(refusal).startswith(f"{name}: ")


def test_a_stored_response_is_not_found_in_words(model: Model) -> None:
    refusal = refusal_of(model, "v1/responses/resp_1", {})
    assert refusal.status == 404
    assert "not stored" in str(refusal)
