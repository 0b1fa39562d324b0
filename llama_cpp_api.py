"""The wire: JSON and form bodies in, OpenAI objects and server-sent events out.

Knows the shapes of requests and answers. Knows nothing of TorchServe, llama.cpp or the schedule.
Shapes as in OpenAI's API reference, `timings` as llama-server gives them.

Not covered yet: n, logprobs, penalties by frequency, logit_bias, response_format, tools. They are refused by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from sampling_params import PARAMETER_NAMES, InvalidParameter, SamplingParams

ROLES = ("system", "user", "assistant")
JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain; charset=utf-8"
END_OF_STREAM = "data: [DONE]\n\n"


class Route(Enum):
    """What a request is for; the value is the path after /predictions/{model}/{version}/."""

    PREDICT = ""  # the user's original call: a prompt in, the prompt and its completion out, as plain text
    COMPLETIONS = "v1/completions"
    CHAT = "v1/chat/completions"
    MODELS = "v1/models"


class ApiError(Exception):
    """An answer that is an OpenAI error object: `param` names what the caller got wrong."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code

    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """A request whose every field has been checked. Exactly one of `prompt` and `messages` is there."""

    route: Route
    prompt: str | None
    messages: list[dict[str, str]] | None
    params: SamplingParams
    stream: bool
    include_usage: bool
    echo: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts and milliseconds of a completion, as far as it has come."""

    prompt_tokens: int
    completion_tokens: int
    queue_ms: float
    prompt_ms: float
    predicted_ms: float

    def counts(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def timings(self) -> dict[str, float]:
        """The first token counts as part of the prompt's time, the tokens after it as predicted."""
        n_after_first = max(0, self.completion_tokens - 1)
        return {
            "queue_ms": round(self.queue_ms, 1),
            "prompt_n": self.prompt_tokens,
            "prompt_ms": round(self.prompt_ms, 1),
            "prompt_per_second": _per_second(self.prompt_tokens, self.prompt_ms),
            "predicted_n": self.completion_tokens,
            "predicted_ms": round(self.predicted_ms, 1),
            "predicted_per_second": _per_second(n_after_first, self.predicted_ms),
        }


# --- in


def find_route(url_path: str) -> Route:
    """The route of a path; raises ApiError (404)."""
    try:
        return Route(url_path.strip("/"))
    except ValueError:
        known = ", ".join(f"/{route.value}" for route in Route if route.value)
        raise ApiError(f"There is no '/{url_path}' here; there are {known}.", status=404) from None


def parse_request(route: Route, fields: Mapping[str, object]) -> ApiRequest:
    """Checks a request's fields as TorchServe delivers them: {"body": JSON} or the fields of a form.

    Raises ApiError, which names the parameter.
    """
    body = _read_body(fields)
    names = {"model", "user", "stream", "stream_options", "max_completion_tokens", *PARAMETER_NAMES}
    names |= {"messages"} if route is Route.CHAT else {"prompt", "echo"}
    names |= {"messages"} if route is Route.PREDICT else set()
    for name in body:
        if name not in names:
            raise ApiError(f"{name}: this server does not know this parameter.", param=name)
    for name in ("model", "user"):
        if not isinstance(body.get(name, ""), str | None):
            raise ApiError(f"{name}: must be a string.", param=name)
    prompt, messages = _read_prompt(route, body)
    stream = _read_flag(body, "stream", False)
    return ApiRequest(
        route=route,
        prompt=prompt,
        messages=messages,
        params=_read_params(body),
        stream=stream,
        include_usage=_read_include_usage(body, stream),
        echo=_read_flag(body, "echo", route is Route.PREDICT) and prompt is not None,
    )


def _read_body(fields: Mapping[str, object]) -> dict[str, object]:
    if "body" not in fields:  # a form: every value is text
        return {name: _form_value(name, value) for name, value in fields.items()}
    body = fields["body"]
    if isinstance(body, bytes | bytearray | str):  # TorchServe could not parse it, or it came as another type
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError('The body must be a JSON object such as {"prompt": "…"}.', code="invalid_json")
    return body


def _form_value(name: str, value: object) -> object:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
    if not isinstance(text, str) or name in ("prompt", "model", "user", "stop"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # its own check will refuse it, naming the parameter


def _read_prompt(route: Route, body: Mapping[str, object]) -> tuple[str | None, list[dict[str, str]] | None]:
    prompt, messages = body.get("prompt"), body.get("messages")
    if prompt is not None and messages is not None:
        raise ApiError("messages: send either prompt or messages, not both.", param="messages")
    if messages is not None:
        return None, _read_messages(messages)
    if prompt is None:
        param = "messages" if route is Route.CHAT else "prompt"
        raise ApiError(f"{param}: is missing; there is nothing to complete.", param=param)
    if not isinstance(prompt, str) or not prompt:
        raise ApiError("prompt: must be a text that is not empty.", param="prompt")
    return _encodable(prompt, "prompt"), None


def _read_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages: must be a list of at least one message.", param="messages")
    return [_read_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _read_message(param: str, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(f"{param}: must be an object with role and content.", param=param)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ApiError(f"{param}.role: must be one of {', '.join(ROLES)}.", param=f"{param}.role")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ApiError(f"{param}.content: must be a text.", param=f"{param}.content")
    return {"role": role, "content": _encodable(content, f"{param}.content")}


def _encodable(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(f"{param}: has half of a surrogate pair, which is no character.", param=param) from error
    return text


def _read_params(body: Mapping[str, object]) -> SamplingParams:
    alias = body.get("max_completion_tokens")
    if alias is not None and body.get("max_tokens") is not None:
        raise ApiError("max_completion_tokens: is another name of max_tokens; send one.", param="max_completion_tokens")
    try:
        return SamplingParams.from_request(body if alias is None else {**body, "max_tokens": alias})
    except InvalidParameter as error:
        raise ApiError(f"{error}.", param=error.name) from error


def _read_flag(body: Mapping[str, object], name: str, default: bool) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise ApiError(f"{name}: must be true or false.", param=name)
    return default if value is None else value


def _read_include_usage(body: Mapping[str, object], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError("stream_options: is only possible with stream: true.", param="stream_options")
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise ApiError("stream_options: must be an object with include_usage.", param="stream_options")
    return _read_flag(options, "include_usage", False)


# --- out


class Reply:
    """One request's answer, piece by piece; `is_sent` is the sender's note that some piece has gone out."""

    def __init__(self, request: ApiRequest, request_id: str, model_name: str) -> None:
        self.is_sent = False
        self._request = request
        self._is_chat = request.messages is not None
        self._text: list[str] = []
        self._is_begun = False
        self._head = {
            "id": f"{'chatcmpl' if self._is_chat else 'cmpl'}-{request_id}",
            "object": "chat.completion" if self._is_chat else "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }

    @property
    def content_type(self) -> str:
        if self._request.stream:
            return EVENTS_TYPE
        return TEXT_TYPE if self._request.route is Route.PREDICT else JSON_TYPE

    def push(self, text: str) -> str:
        """What can be sent now that `text` has been generated: events when streaming, nothing otherwise."""
        if not self._request.stream:
            self._text.append(text)
            return ""
        return self._begin() + (self._event(self._choice(text)) if text else "")

    def finish(self, finish_reason: str, usage: Usage) -> str:
        """The end of the answer, or the whole of it when it is not streamed."""
        if self._request.stream:
            ending = self._event(self._choice("", finish_reason), timings=usage.timings())
            if self._request.include_usage:
                ending += self._event(usage=usage.counts())
            return self._begin() + ending + END_OF_STREAM
        text = "".join(self._text)
        if self._request.echo:
            text = f"{self._request.prompt}{text}"
        if self._request.route is Route.PREDICT:
            return text
        choice: dict[str, object] = {"index": 0, "finish_reason": finish_reason, "logprobs": None}
        choice |= {"message": {"role": "assistant", "content": text}} if self._is_chat else {"text": text}
        return json.dumps(self._head | {"choices": [choice], "usage": usage.counts(), "timings": usage.timings()})

    def fail(self, message: str) -> str:
        """Ends an answer that the engine could not finish; its status has been sent, so the body has to say it."""
        error = json.dumps(ApiError(message, status=500).body())
        return f"data: {error}\n\n" if self._request.stream else error

    def _begin(self) -> str:
        if self._is_begun:
            return ""
        self._is_begun = True
        if self._is_chat:
            return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        return self._event(self._choice(self._request.prompt or "")) if self._request.echo else ""

    def _choice(self, text: str, finish_reason: str | None = None) -> dict[str, object]:
        content: dict[str, object] = {"text": text}
        if self._is_chat:
            content = {"delta": {"content": text} if text else {}}
        return {"index": 0, **content, "finish_reason": finish_reason}

    def _event(self, choice: dict[str, object] | None = None, **extra: object) -> str:
        kind = {"object": "chat.completion.chunk"} if self._is_chat else {}
        return f"data: {json.dumps(self._head | kind | {'choices': [choice] if choice else []} | extra)}\n\n"


def models_body(model_name: str, description: Mapping[str, object]) -> dict[str, object]:
    """The list of models: the one that is served, with what is known about it under `meta`."""
    model = {"id": model_name, "object": "model", "created": 0, "owned_by": "llama.cpp", "meta": dict(description)}
    return {"object": "list", "data": [model]}


def _per_second(count: int, milliseconds: float) -> float:
    return round(1000 * count / milliseconds, 2) if milliseconds > 0 else 0.0
