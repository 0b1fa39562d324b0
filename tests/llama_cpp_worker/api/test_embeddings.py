"""OpenAI's embeddings without a server: what is accepted, and the answers, computed by a tiny real model."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai.types import CreateEmbeddingResponse

from llama_cpp_worker.api.embeddings import EmbeddingsReply
from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.routes import Api
from llama_cpp_worker.engine import Engine
from llama_cpp_worker.model import Model
from tests.support.scripted_model import run_to_end
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(file: Path) -> Iterator[Model]:
    model = Model(str(file), n_slots=1, n_threads=1, embeddings=True)
    yield model
    model.close()


def reply_to(model: Model, **body: Any) -> EmbeddingsReply:
    reply = Api(model, "llamacpp", "continuous").answer("v1/embeddings", {"body": body}, "id-1")
    assert isinstance(reply, EmbeddingsReply)
    return reply


def answer(model: Model, **body: Any) -> dict[str, Any]:
    reply, engine = reply_to(model, **body), Engine(model)
    for request in reply.requests:
        engine.submit(request)
    assert reply.next_piece() == ""
    run_to_end(engine)
    assert reply.is_finished
    answer: dict[str, Any] = json.loads(reply.next_piece())
    if "encoding_format" not in body:  # OpenAI's package decodes base64 itself, before it makes this object
        CreateEmbeddingResponse.model_validate(answer)
    return answer


def refusal_of(model: Model, **body: Any) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        reply_to(model, **body)
    return refusal.value


def test_texts_and_their_tokens_have_the_same_embeddings_in_order(model: Model) -> None:
    texts = ["One text", "another, longer text"]
    tokens = [model.tokenizer.tokenize(text) for text in texts]
    of_texts, of_tokens = answer(model, input=texts), answer(model, input=tokens)
    assert of_texts == of_tokens
    assert [one["index"] for one in of_texts["data"]] == [0, 1]
    assert model.embedder is not None
    for one in of_texts["data"]:
        assert len(one["embedding"]) == model.embedder.size
        assert np.linalg.norm(one["embedding"]) == pytest.approx(1)
    n_tokens = len(tokens[0]) + len(tokens[1])
    assert of_texts["usage"] == {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    for alone, text in zip(of_texts["data"], texts, strict=True):
        assert answer(model, input=text)["data"][0]["embedding"] == alone["embedding"]
    assert answer(model, input=tokens[1])["data"][0]["embedding"] == of_texts["data"][1]["embedding"]


def test_base64_is_the_same_numbers(model: Model) -> None:
    (numbers,) = answer(model, input="Hello")["data"]
    (encoded,) = answer(model, input="Hello", encoding_format="base64")["data"]
    decoded = np.frombuffer(base64.b64decode(encoded["embedding"]), "<f4")
    assert decoded.tolist() == pytest.approx(numbers["embedding"], abs=1e-6)


def test_the_models_own_dimensions_are_accepted_and_others_refused(model: Model) -> None:
    assert model.embedder is not None
    size = model.embedder.size
    assert len(answer(model, input="Hello", dimensions=size, user="x")["data"][0]["embedding"]) == size
    assert refusal_of(model, input="Hello", dimensions=size - 1).param == "dimensions"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [5, -1]}, "input[0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "input_type": "query"}, "input_type"),
        ({"input": "\ud800"}, "input"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_request_is_refused_by_parameter_name(model: Model, body: dict[str, Any], param: str) -> None:
    refusal = refusal_of(model, **body)
    assert (refusal.param, refusal.status) == (param, 400)


def test_a_text_that_does_not_fit_is_refused(model: Model) -> None:
    assert model.embedder is not None
    assert len(reply_to(model, input=[5] * model.embedder.window).requests) == 1
    refusal = refusal_of(model, input=["a", [5] * (model.embedder.window + 1)])
    assert (refusal.param, refusal.code) == ("input[1]", "context_length_exceeded")


def test_a_failure_ends_the_whole_answer(model: Model) -> None:
    reply = reply_to(model, input=["a", "b"])
    reply.requests[1].error = "The model failed."
    assert reply.is_finished
    assert json.loads(reply.next_piece())["error"]["message"] == "The model failed."


def test_the_log_has_counts_and_no_text(model: Model) -> None:
    reply = reply_to(model, input=["secret", "secret"])
    for request in reply.requests:
        request.submitted_at, request.finished_at, request.finish_reason = 1.0, 3.5, "stop"
    n_tokens = 2 * len(model.tokenizer.tokenize("secret"))
    assert reply.summary() == f"2 embeddings of {n_tokens} tokens, 2.50 s, stop"


def test_without_an_embedder_the_refusal_names_the_setting(file: Path) -> None:
    model = Model(str(file), n_slots=1, n_threads=1)
    refusal = refusal_of(model, input="Hello")
    model.close()
    assert "embeddings: true" in str(refusal)
    assert refusal.status == 400


def test_more_numbers_than_an_answer_can_have_are_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.embedder is not None
    monkeypatch.setattr("llama_cpp_worker.api.embeddings.MAX_PIECE_BYTES", 10 * 23 * model.embedder.size)
    assert len(reply_to(model, input=["a"] * 10).requests) == 10
    assert "send fewer texts at once" in str(refusal_of(model, input=["a"] * 11))
    assert len(reply_to(model, input=["a"] * 11, encoding_format="base64").requests) == 11
