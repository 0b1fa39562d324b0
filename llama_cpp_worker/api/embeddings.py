"""OpenAI's embeddings: the request's fields, and the answer, which comes when the last text is computed.

Not covered: fewer dimensions than the model has.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llama_cpp_worker.api.errors import MAX_PIECE_BYTES, ApiError, refusal
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.api.reply import JSON_TYPE, Head
from llama_cpp_worker.api.texts import TextOrTokens, place_of, read_texts
from llama_cpp_worker.embedding_queue import EmbeddingRequest
from llama_cpp_worker.model import Model
from llama_cpp_worker.prompt import tokenize_text
from llama_cpp_worker.sampling_params import Bounds

MAX_INPUTS = 2048  # as in OpenAI's API
BYTES_PER_NUMBER = {"float": 23.0, "base64": 16 / 3}  # in the JSON of the answer
OFF = "embeddings are off: set `embeddings: true` under `handler` in model-config.yaml, and package the model again"


@dataclass(frozen=True, slots=True)
class EmbeddingsInput:
    """texts: texts or lists of tokens. dimensions: how many numbers the client expects of each embedding."""

    texts: list[TextOrTokens]
    encoding: str = "float"
    dimensions: int | None = None


def parse(fields: Fields) -> EmbeddingsInput:
    """Raises ApiError, which names the parameter."""
    fields.check_names(("model", "input", "encoding_format", "dimensions"))
    fields.text("model")
    encoding = fields.text("encoding_format") or "float"
    if encoding not in BYTES_PER_NUMBER:
        raise refusal("encoding_format", f"must be {' or '.join(BYTES_PER_NUMBER)}")
    dimensions = fields.number("dimensions", Bounds(int, 1, 2**31 - 1))
    return EmbeddingsInput(read_texts(fields.get("input"), "input", MAX_INPUTS), encoding, dimensions)


def answer(fields: Fields, model: Model, head: Head) -> "EmbeddingsReply":
    """The reply to a request. Raises ApiError, also if the model has no embedder."""
    if model.embedder is None:
        raise ApiError(f"{OFF[0].upper()}{OFF[1:]}.", code="embeddings_off")
    asked = parse(fields)
    if asked.dimensions not in (None, model.embedder.size):
        raise refusal("dimensions", f"this model's embeddings have {model.embedder.size:,} numbers; leave it out")
    n_bytes = len(asked.texts) * model.embedder.size * BYTES_PER_NUMBER[asked.encoding]
    if n_bytes > MAX_PIECE_BYTES:
        problem = f"{len(asked.texts):,} embeddings make an answer of about {n_bytes:,.0f} bytes"
        raise refusal("input", f"{problem}, and at most {MAX_PIECE_BYTES:,} are possible: send fewer texts at once")
    requests = [
        EmbeddingRequest(_tokens(text, place_of("input", index, len(asked.texts)), model))
        for index, text in enumerate(asked.texts)
    ]
    return EmbeddingsReply(requests, asked.encoding, head)


class EmbeddingsReply:
    """The answer to one request for embeddings. `requests` are the engine's, one for each text.

    It has the methods of Reply. `n_pieces` counts the pieces taken so far, empty ones included.
    """

    content_type = JSON_TYPE

    def __init__(self, requests: Sequence[EmbeddingRequest], encoding: str, head: Head) -> None:
        self.requests = list(requests)
        for request in self.requests:
            request.api_request = self
        self.n_pieces = 0
        self._encoding = encoding
        self._head = head
        self._error: ApiError | None = None

    @property
    def is_finished(self) -> bool:
        return self._failure is not None or all(request.is_finished for request in self.requests)

    def next_piece(self) -> str:
        """The whole answer, if all texts are computed; else nothing."""
        self.n_pieces += 1
        if self._failure:
            return self.fail(self._failure)
        return json.dumps(self._body()) if self.is_finished else ""

    def fail(self, error: ApiError) -> str:
        """Ends the answer with an error."""
        self._error = error
        return json.dumps(error.body())

    def summary(self) -> str:
        """Counts, seconds and ends of the answer, for the log."""
        n_tokens = sum(len(request.tokens) for request in self.requests)
        seconds = max((request.finished_at or request.submitted_at) - request.submitted_at for request in self.requests)
        ends = ", ".join(sorted({str(request.finish_reason) for request in self.requests}))
        return f"{len(self.requests)} embeddings of {n_tokens} tokens, {seconds:.2f} s, {ends}"

    @property
    def _failure(self) -> ApiError | None:
        message = next((request.error for request in self.requests if request.error), None)
        return self._error or (None if message is None else ApiError(message, status=500))

    def _body(self) -> dict[str, object]:
        n_tokens = sum(len(request.tokens) for request in self.requests)
        return {
            "object": "list",
            "model": self._head.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": self._encoded(request.embedding or [])}
                for index, request in enumerate(self.requests)
            ],
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }

    def _encoded(self, embedding: Sequence[float]) -> str | list[float]:
        if self._encoding == "base64":
            return base64.b64encode(np.asarray(embedding, "<f4").tobytes()).decode()
        return list(embedding)


def _tokens(text: TextOrTokens, place: str, model: Model) -> list[int]:
    """1 to `window` tokens. Raises ApiError."""
    assert model.embedder is not None
    tokens, window = tokenize_text(text, model.tokenizer, place), model.embedder.window
    if len(tokens) > window:
        problem = f"{len(tokens):,} tokens do not fit, since the context window has {window:,}"
        raise refusal(place, problem, "context_length_exceeded")
    return tokens
