"""From a checked request to the tokens of its prompt: the checks that need the model's vocabulary and window.

Knows requests and a model. Knows nothing of TorchServe and the engine.
"""

from __future__ import annotations

from llama_cpp_worker.chat_template import TemplateError
from llama_cpp_worker.model import Model, PromptTooLong
from llama_cpp_worker.request import ApiError, ApiRequest


def tokenize(request: ApiRequest, model: Model) -> list[int]:
    """The prompt's tokens: at least one, and fewer than the context window has. Raises ApiError."""
    _check_vocabulary(request, model.n_vocab)
    param = "prompt" if request.messages is None else "messages"
    try:
        if request.messages is not None:
            tokens = model.tokenize_chat(request.messages)
        elif isinstance(request.prompt, str):
            tokens = model.tokenize_prompt(request.prompt)
        else:
            assert request.prompt is not None
            tokens = request.prompt
    except PromptTooLong as error:
        raise ApiError(f"{param}: {error}.", param=param, code="context_length_exceeded") from error
    except TemplateError as error:
        raise ApiError(f"{param}: {error}.", param=param) from error
    if not tokens:
        raise ApiError(f"{param}: has no tokens.", param=param)
    if len(tokens) >= model.window:
        raise ApiError(
            f"{param}: {len(tokens):,} tokens do not fit, since the context window has {model.window:,} "
            "and the completion needs at least one.",
            param=param,
            code="context_length_exceeded",
        )
    return tokens


def _check_vocabulary(request: ApiRequest, n_vocab: int) -> None:
    tokens = {
        "logit_bias": list(request.params.logit_bias),
        "prompt": request.prompt if isinstance(request.prompt, list) else [],
    }
    for param, ids in tokens.items():
        if max(ids, default=0) >= n_vocab:
            raise ApiError(f"{param}: the model's tokens are 0 to {n_vocab - 1:,}.", param=param)
