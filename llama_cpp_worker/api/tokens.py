"""llama-server's calls about tokens and prompts, and Anthropic's count of tokens. They need no slot."""

from llama_cpp_worker.api import anthropic, chat
from llama_cpp_worker.api.errors import refusal
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.chat_template import TemplateError
from llama_cpp_worker.prompt import chat_tokens
from llama_cpp_worker.tokenizer import PromptTooLong, Tokenizer

MAX_TOKENS = 131_072  # to detokenize in one call: 0.1 s, in which no answer goes on


def tokenize(fields: Fields, tokenizer: Tokenizer) -> dict[str, object]:
    """{"content": text} -> {"tokens": [...]}.

    with_pieces: each token as an object with its id and its text; a part of a character is a list of bytes.
    """
    fields.check_names(("model", "content", "add_special", "parse_special", "with_pieces"))
    content = fields.text("content")
    if content is None:
        raise refusal("content", "is missing; there is nothing to tokenize")
    add_special, parse_special = fields.flag("add_special"), fields.flag("parse_special", default=True)
    try:
        tokens = tokenizer.tokenize(content, add_special=add_special, parse_special=parse_special)
    except PromptTooLong as error:
        raise refusal("content", str(error)) from error
    if not fields.flag("with_pieces"):
        return {"tokens": tokens}
    return {"tokens": [{"id": token, "piece": _piece(tokenizer.piece(token, shows_control=True))} for token in tokens]}


def detokenize(fields: Fields, tokenizer: Tokenizer) -> dict[str, object]:
    """{"tokens": [...]} -> {"content": text}, with the names of control tokens."""
    fields.check_names(("model", "tokens"))
    tokens, n_vocab = fields.get("tokens"), tokenizer.n_vocab
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < n_vocab for token in tokens):
        raise refusal("tokens", f"must be a list of the model's tokens, which are 0 to {n_vocab - 1:,}")
    if len(tokens) > MAX_TOKENS:
        raise refusal("tokens", f"has {len(tokens):,} tokens; at most {MAX_TOKENS:,} are possible")
    return {"content": tokenizer.detokenize(tokens)}


def apply_template(fields: Fields, tokenizer: Tokenizer) -> dict[str, object]:
    """A chat -> {"prompt": text}, the prompt that v1/chat/completions would make of it."""
    request = chat.parse(fields)
    definitions = request.tools.definitions() if request.tools else []
    try:
        prompt = tokenizer.template.render(request.messages, definitions, continues_answer=request.continues_answer)
    except TemplateError as error:
        raise refusal("messages", str(error)) from error
    return {"prompt": prompt}


def count_tokens(fields: Fields, tokenizer: Tokenizer) -> dict[str, object]:
    """Anthropic's: a message's request -> {"input_tokens": number}, also if the window is too small for it."""
    return {"input_tokens": len(chat_tokens(anthropic.parse_prompt(fields), tokenizer))}


def _piece(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
