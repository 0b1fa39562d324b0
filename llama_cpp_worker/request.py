"""Checks the JSON or form body of a request, field by field. Makes an ApiRequest, or an ApiError that names the field.

Knows the shapes of requests as OpenAI's API reference has them; reply.py knows those of answers.
Knows nothing of TorchServe, llama.cpp and the schedule.

Not covered: tools, several prompts in one request, images and sound, best_of, and log probabilities of the prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from llama_cpp_worker.constraint import compile_constraint
from llama_cpp_worker.sampling_params import PARAMETER_NAMES, Bounds, InvalidParameter, SamplingParams

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
N_CHOICES = Bounds(int, 1, 8)
TOP_LOGPROBS = Bounds(int, 0, 20)  # chat
LOGPROBS = Bounds(int, 0, 5)  # completions

# Parameters of OpenAI's API that this server does not support. These values and null change nothing, so they pass.
WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("audio", "parallel_tool_calls", "prediction", "prompt_cache_key", "reasoning_effort"), ()),
    **dict.fromkeys(("safety_identifier", "verbosity", "web_search_options"), ()),
    **dict.fromkeys(("function_call", "tool_choice"), ("none", "auto")),
    **dict.fromkeys(("functions", "tools"), ([],)),
    "best_of": (1,),
    "metadata": ({},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
}


class Route(Enum):
    """What a request is for; the value is the path after /predictions/{model}/{version}/."""

    PREDICT = ""  # the plain call: the answer is the prompt and its completion as text
    COMPLETIONS = "v1/completions"
    CHAT = "v1/chat/completions"
    MODELS = "v1/models"


class ApiError(Exception):
    """A request that is answered with an OpenAI error object; `param` is the name of the wrong parameter."""

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
    """A request with checked fields. Exactly one of `prompt` and `messages` is not None.

    `prompt` is a text or its tokens. `logprobs` is how many of the likeliest tokens to report with each token; None
    reports no token. `return_progress` and `timings_per_token` are llama-server's: a stream then has events with the
    progress of the prefill, and counts and times in every event with text.
    """

    route: Route
    prompt: str | list[int] | None
    messages: list[dict[str, str]] | None
    params: SamplingParams
    n: int
    logprobs: int | None
    stream: bool
    include_usage: bool
    echo: bool
    return_progress: bool
    timings_per_token: bool


def refusal(param: str, problem: str, code: str | None = None) -> ApiError:
    return ApiError(f"{param}: {problem}.", param=param, code=code)


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
    _check_names(route, body)
    prompt, messages = _read_prompt(route, body)
    stream = _read_flag(body, "stream", False)
    echo = _read_flag(body, "echo", route is Route.PREDICT and isinstance(prompt, str))
    logprobs = _read_logprobs(route, body)
    if echo and isinstance(prompt, list):
        raise refusal("echo", "is possible only if the prompt is a text")
    if echo and logprobs is not None:
        raise refusal("logprobs", "are not available with echo; send one or the other")
    return ApiRequest(
        route=route,
        prompt=prompt,
        messages=messages,
        params=_read_params(body),
        n=_read_number(body, "n", N_CHOICES) or 1,
        logprobs=logprobs,
        stream=stream,
        include_usage=_read_include_usage(body, stream),
        echo=echo and prompt is not None,
        return_progress=_read_stream_flag(body, "return_progress", stream),
        timings_per_token=_read_stream_flag(body, "timings_per_token", stream),
    )


def _check_names(route: Route, body: Mapping[str, object]) -> None:
    names = {"model", "user", "stream", "stream_options", "max_completion_tokens", *PARAMETER_NAMES}
    names |= {"return_progress", "timings_per_token"}
    names |= {
        Route.PREDICT: {"prompt", "messages", "echo"},
        Route.COMPLETIONS: {"prompt", "echo", "n", "logprobs"},
        Route.CHAT: {"messages", "n", "logprobs", "top_logprobs"},
    }[route]
    for name, value in body.items():
        if name in names:
            continue
        if route is Route.PREDICT or name not in WITHOUT_EFFECT:
            raise refusal(name[:40], "this server does not know this parameter here")
        is_one = value is True and name == "best_of"  # in Python, True == 1
        if value is not None and (value not in WITHOUT_EFFECT[name] or is_one):
            raise refusal(name, "this server does not support it; leave it out")
    for name in ("model", "user"):
        if not isinstance(body.get(name, ""), str | None):
            raise refusal(name, "must be a string")


def _read_body(fields: Mapping[str, object]) -> dict[str, object]:
    if "body" not in fields:  # a form, where every value is a text
        return {name: _form_value(name, value) for name, value in fields.items()}
    body = fields["body"]
    if isinstance(body, bytes | bytearray | str):  # TorchServe parses only valid JSON with the content type of JSON
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise ApiError('The body must be a JSON object such as {"prompt": "…"}.', code="invalid_json")
    return body


def _form_value(name: str, value: object) -> object:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else value
    if not isinstance(text, str) or name in ("prompt", "model", "user", "stop", "grammar"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # the check of this parameter refuses it by name


def _read_prompt(
    route: Route, body: Mapping[str, object]
) -> tuple[str | list[int] | None, list[dict[str, str]] | None]:
    prompt, messages = body.get("prompt"), body.get("messages")
    if prompt is not None and messages is not None:
        raise refusal("messages", "send either prompt or messages, not both")
    if messages is not None:
        return None, _read_messages(messages)
    if prompt is None:
        raise refusal("messages" if route is Route.CHAT else "prompt", "is missing; there is nothing to complete")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        return prompt, None
    if not isinstance(prompt, str) or not prompt:
        raise refusal("prompt", "must be one text that is not empty, or the tokens of one")
    return _encodable(prompt, "prompt"), None


def _read_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise refusal("messages", "must be a list of at least one message")
    return [_read_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _read_message(param: str, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise refusal(param, "must be an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise refusal(f"{param}.role", f"must be one of {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise refusal(f"{param}.content", "must be a text")
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):  # clients send such fields of our answers back
            raise refusal(f"{param}.{name[:40]}", "this server does not support it")
    return {"role": ROLES[role], "content": _encodable(content, f"{param}.content")}


def _encodable(text: str, param: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(param, "has half of a surrogate pair, which is no character") from error
    return text


def _read_params(body: Mapping[str, object]) -> SamplingParams:
    alias = body.get("max_completion_tokens")
    if alias is not None and body.get("max_tokens") is not None:
        raise refusal("max_completion_tokens", "is another name of max_tokens; send one")
    given = dict(body) if alias is None else {**body, "max_tokens": alias}
    try:
        params = SamplingParams.from_request(given)
        compile_constraint(params)
    except InvalidParameter as error:
        name = "max_completion_tokens" if alias is not None and error.name == "max_tokens" else error.name
        raise ApiError(f"{name}: {error.problem}.", param=name.partition(".")[0]) from error
    return params


def _read_logprobs(route: Route, body: Mapping[str, object]) -> int | None:
    """OpenAI has two forms: completions take a number; chats take true, and a number in another parameter."""
    if route is not Route.CHAT:
        return _read_number(body, "logprobs", LOGPROBS)
    count = _read_number(body, "top_logprobs", TOP_LOGPROBS)
    if _read_flag(body, "logprobs", False):
        return count or 0
    if count is not None:
        raise refusal("top_logprobs", "is only possible with logprobs: true")
    return None


def _read_number(body: Mapping[str, object], name: str, bounds: Bounds) -> int | None:
    value = body.get(name)
    try:
        return None if value is None else int(bounds.check(name, value))
    except InvalidParameter as error:
        raise refusal(name, error.problem) from error


def _read_flag(body: Mapping[str, object], name: str, default: bool) -> bool:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise refusal(name, "must be true or false")
    return default if value is None else value


def _read_include_usage(body: Mapping[str, object], stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise refusal("stream_options", "is only possible with stream: true")
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise refusal("stream_options", "must be an object with include_usage")
    return _read_flag(options, "include_usage", False)


def _read_stream_flag(body: Mapping[str, object], name: str, stream: bool) -> bool:
    flag = _read_flag(body, name, False)
    if flag and not stream:
        raise refusal(name, "is only possible with stream: true")
    return flag
