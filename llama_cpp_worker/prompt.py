"""From a checked request to the tokens of its prompts, and the rules of its answer: what needs the tokenizer.

Knows requests and a tokenizer. Knows nothing of TorchServe and the engine.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from llama_cpp_worker.answer import answer_rules
from llama_cpp_worker.api.errors import refusal, too_many_reports
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.texts import TextOrTokens, place_of
from llama_cpp_worker.chat_template import TemplateError
from llama_cpp_worker.constraint import compile_constraint
from llama_cpp_worker.output import OutputParser, PlainParser
from llama_cpp_worker.sampling_params import InvalidParameter
from llama_cpp_worker.tokenizer import InfillUnsupported, PromptTooLong, Tokenizer


@dataclass(frozen=True, slots=True)
class Prepared:
    """The tokens of each prompt, its text and the bytes of its first token. `make_parser`: for one choice."""

    prompts: list[list[int]]
    texts: list[str]  # an empty one for a chat
    first_pieces: list[bytes]
    constraint: str | None
    make_parser: Callable[[], OutputParser]


def prepare(request: GenerationRequest, tokenizer: Tokenizer) -> Prepared:
    """Each prompt has at least one token, and fewer than the context window has. Raises ApiError."""
    _check_tokens("logit_bias", request.params.logit_bias, tokenizer.n_vocab)
    if request.messages:
        return _prepare_chat(request, tokenizer)
    prompts, texts = [], []
    for index, prompt in enumerate(request.prompts):
        param = place_of("prompt", index, len(request.prompts))
        tokens = tokenize_text(prompt, tokenizer, param, request.suffix)
        _check_length(tokens, tokenizer.window, param)
        prompts.append(tokens)
        texts.append(prompt if isinstance(prompt, str) else tokenizer.detokenize(prompt) if request.echo else "")
    if request.echo:
        n_tokens = sum(map(len, prompts)) * request.n
        if error := too_many_reports(n_tokens, request.logprobs):
            raise error
    first_pieces = [tokenizer.piece(tokens[0], shows_control=True) for tokens in prompts]
    return Prepared(prompts, texts, first_pieces, compile_constraint(request.params), PlainParser)


def _prepare_chat(request: GenerationRequest, tokenizer: Tokenizer) -> Prepared:
    try:
        rules = answer_rules(
            tokenizer,
            request.params,
            request.messages,
            request.tools,
            shows_reasoning=request.reasoning_format == "none",
            continues_answer=request.continues_answer,
        )
    except InvalidParameter as error:
        raise refusal(error.name, error.problem) from error
    tokens = chat_tokens(request, tokenizer)
    _check_length(tokens, tokenizer.window, "messages")
    return Prepared([tokens], [""], [b""], rules.constraint, rules.make_parser)


def chat_tokens(request: GenerationRequest, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a chat's prompt, which need not fit the context window. Raises ApiError."""
    definitions = request.tools.definitions() if request.tools is not None else []
    try:
        return tokenizer.tokenize_chat(request.messages, definitions, continues_answer=request.continues_answer)
    except PromptTooLong as error:
        raise refusal("messages", str(error), "context_length_exceeded") from error
    except TemplateError as error:
        raise refusal("messages", str(error)) from error


def tokenize_text(text: TextOrTokens, tokenizer: Tokenizer, param: str, suffix: str | None = None) -> list[int]:
    """At least one token. suffix: the text after a gap. Raises ApiError."""
    try:
        if not isinstance(text, str):
            _check_tokens(param, text, tokenizer.n_vocab)
            tokens = text
        elif suffix is None:
            tokens = tokenizer.tokenize(text)
        else:
            tokens = tokenizer.tokenize_infill(text, suffix)
    except PromptTooLong as error:
        raise refusal(param, str(error), "context_length_exceeded") from error
    except InfillUnsupported as error:
        raise refusal("suffix", str(error)) from error
    if not tokens:
        raise refusal(param, "has no tokens")
    return tokens


def _check_length(tokens: Sequence[int], window: int, param: str) -> None:
    if len(tokens) >= window:
        problem = f"{len(tokens):,} tokens do not fit, since the context window has {window:,} and "
        raise refusal(param, problem + "the completion needs at least one", "context_length_exceeded")


def _check_tokens(param: str, tokens: Iterable[int], n_vocab: int) -> None:
    if max(tokens, default=0) >= n_vocab:
        raise refusal(param, f"the model's tokens are 0 to {n_vocab - 1:,}")
