"""From a path to the API family that answers it. The handler's only entrance to the API."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from llama_cpp_worker.api import anthropic, chat, completions, embeddings, plain, responses, tokens
from llama_cpp_worker.api.anthropic_format import AnthropicFormat
from llama_cpp_worker.api.embeddings import EmbeddingsReply
from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.fields import Fields, read_body
from llama_cpp_worker.api.naming import errors_name
from llama_cpp_worker.api.reply import Format, Head, Reply
from llama_cpp_worker.api.request import GenerationRequest
from llama_cpp_worker.api.responses_format import ResponsesFormat
from llama_cpp_worker.model import Model
from llama_cpp_worker.prompt import prepare
from llama_cpp_worker.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Family:
    """Paths that generate text: how their body is checked, and what their answers look like.

    names: what the client calls fields that are translated, for the errors of the prompt (see naming.py).
    """

    parse: Callable[[Fields], GenerationRequest]
    make_format: Callable[[GenerationRequest, Head], Format]
    names: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    "": Family(plain.parse, plain.make_format),
    "v1/completions": Family(completions.parse, completions.CompletionFormat),
    "v1/chat/completions": Family(chat.parse, chat.ChatFormat),
    "v1/responses": Family(responses.parse, ResponsesFormat, responses.CLIENT_NAMES),
    "v1/messages": Family(anthropic.parse, AnthropicFormat, anthropic.CLIENT_NAMES),
}

# Paths that are answered at once.
CALLS: dict[str, Callable[[Fields, Tokenizer], dict[str, object]]] = {
    "v1/messages/count_tokens": tokens.count_tokens,
    "tokenize": tokens.tokenize,
    "detokenize": tokens.detokenize,
    "apply-template": tokens.apply_template,
}
WITHOUT_V1 = ("tokenize", "detokenize", "apply-template")  # llama-server's paths; here, v1/ before them is possible


def error_body(path: str, error: ApiError) -> dict[str, object]:
    """The error object that clients of this path expect."""
    return anthropic.error_body(error) if path.strip("/").startswith("v1/messages") else error.body()


class Api:
    """The API of one model. `batching` is a word for the description of the model."""

    def __init__(self, model: Model, model_name: str, batching: str) -> None:
        self._model = model
        self._model_name = model_name
        self._batching = batching

    def answer(
        self, path: str, fields: Mapping[str, object], request_id: str
    ) -> Reply | EmbeddingsReply | dict[str, object]:
        """A reply whose requests wait for the engine, or at once the object to answer with.

        path: what follows /predictions/{model}/{version}/. fields: as TorchServe passes them. Raises ApiError.
        """
        path = path.strip("/")
        if path.removeprefix("v1/") in WITHOUT_V1:
            path = path.removeprefix("v1/")
        head = Head(request_id, self._model_name, self._model.fingerprint)
        if path in FAMILIES:
            family = FAMILIES[path]
            api_request = family.parse(read_body(fields))
            with errors_name(family.names):
                prepared = prepare(api_request, self._model.tokenizer)
            return Reply(api_request, prepared, family.make_format, head)
        if path in CALLS:
            return CALLS[path](read_body(fields), self._model.tokenizer)
        if path == "v1/embeddings":
            return embeddings.answer(read_body(fields), self._model, head)
        if path == "v1/models":
            return {"object": "list", "data": [self._description()]}
        if path == f"v1/models/{self._model_name}":
            return self._description()
        if path.startswith("v1/models/"):
            asked = path.removeprefix("v1/models/")[:80]
            problem = f"There is no model '{asked}' here; the model's id is {self._model_name}."
            raise ApiError(problem, "model", status=404, code="model_not_found")
        if path.startswith("v1/responses/"):
            raise ApiError("Responses are not stored here: keep what POST /v1/responses answers.", status=404)
        others = ("v1/embeddings", "v1/models", "v1/models/{id}")
        known = ", ".join(f"/{known}" for known in (*FAMILIES, *CALLS, *others) if known)
        raise ApiError(f"There is no '/{path[:80]}' here; there are {known}.", status=404)

    def _description(self) -> dict[str, object]:
        """OpenAI's object for the served model, with llama.cpp's description under `meta`."""
        meta = self._model.describe() | {"batching": self._batching}
        created = int(self._model.weights.changed_at)
        return {
            "id": self._model_name,
            "object": "model",
            "created": created,
            "owned_by": "llama.cpp",
            "meta": meta,
        }
