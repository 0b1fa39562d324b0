"""The tokens of a prompt, and the refusals that need the model's vocabulary and window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.fields import read_body
from llama_cpp_worker.api.routes import FAMILIES
from llama_cpp_worker.prompt import prepare
from llama_cpp_worker.tokenizer import Tokenizer
from llama_cpp_worker.weights import Weights
from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tokenizer]:
    folder: Path = tmp_path_factory.mktemp("tiny")
    weights = Weights(str(write_tiny_llama(folder / "tiny.gguf")))
    yield Tokenizer(weights, window=512)
    weights.close()


def tokens_of(body: dict[str, Any], tokenizer: Tokenizer) -> list[int]:
    (tokens,) = prepare(FAMILIES[""].parse(read_body({"body": body})), tokenizer).prompts
    return tokens


def test_a_prompt_may_be_a_text_tokens_or_messages(tokenizer: Tokenizer) -> None:
    assert tokens_of({"prompt": "Hello"}, tokenizer) == tokenizer.tokenize("Hello")
    assert tokens_of({"prompt": [5, 6]}, tokenizer) == [5, 6]
    messages = [{"role": "user", "content": "Hello"}]
    assert tokens_of({"messages": messages}, tokenizer) == tokenizer.tokenize_chat(messages)


@pytest.mark.parametrize(
    ("body", "param", "code", "problem"),
    [
        pytest.param({"prompt": [5] * 512}, "prompt", "context_length_exceeded", "512 tokens do not fit", id="full"),
        pytest.param(
            {"prompt": "x" * 9000}, "prompt", "context_length_exceeded", "the context window has 512", id="long"
        ),
        pytest.param({"prompt": [275]}, "prompt", None, "the model's tokens are 0 to 274", id="no token of the model"),
        pytest.param({"prompt": "a", "logit_bias": {"275": 1}}, "logit_bias", None, "0 to 274", id="bias of no token"),
        pytest.param(
            {"messages": [{"role": "system", "content": "a"}]},
            "messages",
            None,
            "only user and assistant",
            id="template",
        ),
    ],
)
def test_a_prompt_that_the_model_cannot_take_is_refused(
    tokenizer: Tokenizer, body: dict[str, Any], param: str, code: str | None, problem: str
) -> None:
    with pytest.raises(ApiError, match=problem) as refusal:
        tokens_of(body, tokenizer)
    assert (refusal.value.param, refusal.value.code) == (param, code)


def test_more_log_probabilities_than_an_answer_can_have_are_refused(tokenizer: Tokenizer) -> None:
    body = {"prompt": [[5] * 400] * 100, "echo": True, "max_tokens": 1, "logprobs": 3}
    request = FAMILIES["v1/completions"].parse(read_body({"body": body}))
    assert len(prepare(request, tokenizer).prompts) == 100
    request = FAMILIES["v1/completions"].parse(read_body({"body": body | {"logprobs": 5}}))
    with pytest.raises(ApiError, match="240,000 log probabilities are too many") as refusal:
        prepare(request, tokenizer)
    assert refusal.value.param == "logprobs"
