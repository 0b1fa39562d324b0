"""Checks the texts of a request that may be one text or many: prompts to complete, inputs to embed."""

from collections.abc import Iterable

from llama_cpp_worker.api.errors import refusal
from llama_cpp_worker.api.fields import encodable

MAX_TEXT_BYTES = 1_048_576  # of all texts of a request: they are tokenized in 0.5 s, in which no answer goes on

TextOrTokens = str | list[int]


def read_texts(value: object, name: str, most: int) -> list[TextOrTokens]:
    """One text or a list of at most `most`; each is a text that is not empty, or the tokens of one.

    Raises ApiError; its `param` is `name`, or the place in the list.
    """
    if value is None:
        raise refusal(name, "is missing; there is no text")
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise refusal(name, "must be a text that is not empty, the tokens of one, or a list of these")
    if len(value) > most:
        raise refusal(name, f"at most {most:,} texts are possible in one request")
    texts = [_read_text(text, place_of(name, index, len(value))) for index, text in enumerate(value)]
    _check_total_length(texts, name)
    return texts


def place_of(name: str, index: int, count: int) -> str:
    """The name of one of `count` texts in an error."""
    return name if count == 1 else f"{name}[{index}]"


def _read_text(text: object, place: str) -> TextOrTokens:
    if isinstance(text, str) and text:
        return encodable(text, place)
    if isinstance(text, list) and _is_tokens(text):
        return text
    raise refusal(place, "must be a text that is not empty, or the tokens of one")


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and 0 <= token < 2**31 for token in value)


def _check_total_length(texts: Iterable[TextOrTokens], name: str) -> None:
    n_bytes = sum(len(text.encode()) for text in texts if isinstance(text, str))
    if n_bytes > MAX_TEXT_BYTES:
        problem = f"has {n_bytes:,} bytes of text; at most {MAX_TEXT_BYTES:,} are possible in one request"
        raise refusal(name, problem, "context_length_exceeded")
