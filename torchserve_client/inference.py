"""Sends chats and completions to the model that TorchServe serves. Starts, stops and changes nothing.

Not covered: several models, TorchServe's gRPC interface.
"""

from typing import Any

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, fetch
from torchserve_client.keys import Keys
from torchserve_client.model_description import ModelDescription, ModelDescriptions
from torchserve_client.status import Availability, StatusClient
from torchserve_client.streaming import CompletionStream

COUNT_TIMEOUT_SECONDS = 5.0
DESCRIPTION_WAIT_SECONDS = 0.5  # an idle model describes itself sooner


class InferenceClient:
    """The default version of the model. Threads may share one."""

    name = "TorchServe"

    def __init__(self, config: ServerConfig) -> None:
        self._keys = Keys(config, "inference")
        self._url = f"{config.inference_url}/predictions/{MODEL_NAME}"
        self._status = StatusClient(config)
        self._descriptions = ModelDescriptions(config)
        self._description = ModelDescription()

    @property
    def context_window(self) -> int | None:
        """Tokens of prompt and answer together; None until state() has seen a model that has described itself."""
        return self._description.context_window

    @property
    def has_chat_template(self) -> bool:
        """False if the model has said that it has none: chats are then sent as `Question: … Answer:`."""
        return self._description.has_chat_template

    @property
    def model(self) -> str:
        """The model's name for people; empty until state() has seen a model that has described itself."""
        return self._description.name

    def state(self) -> Availability:
        """Whether the model can answer now, and if not, why. Takes two seconds at most and raises nothing."""
        seen = self._status.state()
        if seen.model:
            description = self._descriptions.of(seen.model, DESCRIPTION_WAIT_SECONDS)
            self._description = description or self._description
        return seen.availability

    def chat(self, messages: list[dict[str, str]], params: SamplingParams) -> CompletionStream:
        """The next message of a conversation. If the last message is the assistant's, the model continues it."""
        return self._stream("chat/completions", {"messages": messages}, params)

    def complete(self, prompt: str, params: SamplingParams) -> CompletionStream:
        """The continuation of a prompt."""
        return self._stream("completions", {"prompt": prompt}, params)

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has; None if no worker says so in time, or if it is far longer than the window."""
        body = {"content": text, "parse_special": False}
        try:
            answer = self._keys.use(lambda key: fetch("POST", self._url, key, COUNT_TIMEOUT_SECONDS, "tokenize", body))
        except TorchServeError:
            return None
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return len(tokens) if isinstance(tokens, list) else None

    def _stream(self, path: str, question: dict[str, Any], params: SamplingParams) -> CompletionStream:
        body = {**question, **params.to_request(), "return_progress": True, "timings_per_token": True}
        return CompletionStream(self._url, body, self._keys, f"v1/{path}")
