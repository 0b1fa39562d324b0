"""From a checked request to the tokens of its prompt: the checks that need the model's vocabulary and window.

Knows requests and a model. Knows nothing of TorchServe and the engine.
"""

from llama_cpp_worker.chat_template import TemplateError
from llama_cpp_worker.model import Model, PromptTooLong
from llama_cpp_worker.request import ApiRequest, refusal


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
        raise refusal(param, str(error), "context_length_exceeded") from error
    except TemplateError as error:
        raise refusal(param, str(error)) from error
    if not tokens:
        raise refusal(param, "has no tokens")
    if len(tokens) >= model.window:
        problem = f"{len(tokens):,} tokens do not fit, since the context window has {model.window:,} and "
        raise refusal(param, problem + "the completion needs at least one", "context_length_exceeded")
    return tokens


def _check_vocabulary(request: ApiRequest, n_vocab: int) -> None:
    prompt = request.prompt if isinstance(request.prompt, list) else []
    for param, tokens in (("logit_bias", request.params.logit_bias), ("prompt", prompt)):
        if max(tokens, default=0) >= n_vocab:
            raise refusal(param, f"the model's tokens are 0 to {n_vocab - 1:,}")
