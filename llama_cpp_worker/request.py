"""The wire inwards: JSON and form bodies, checked field by field into an ApiRequest, or refused by name.

Knows the shapes of requests as OpenAI's API reference has them; llama_cpp_reply knows those of answers.
Knows nothing of TorchServe, llama.cpp or the schedule.

Not covered: tools, several prompts in one request, images and sound, best_of, and log probabilities of the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from llama_cpp_worker.grammar import GrammarError, parse_gbnf
from llama_cpp_worker.sampling_params import PARAMETER_NAMES, Bounds, InvalidParameter, SamplingParams
from llama_cpp_worker.schema import JSON_OBJECT_GRAMMAR, SchemaError, json_schema_to_gbnf

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
N_CHOICES = Bounds(int, 1, 8)
TOP_LOGPROBS = Bounds(int, 0, 20)  # chat
LOGPROBS = Bounds(int, 0, 5)  # completions

# What OpenAI's API has and this server has not: the values that ask for nothing, as null always does.
WITHOUT_EFFECT: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}


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
    """A request whose every field has been checked. Exactly one of `prompt` and `messages` is there.

    `prompt` is a text or its tokens. `logprobs` is how many likeliest tokens to tell at each place; None tells nothing.
    `return_progress` and `timings_per_token` are llama-server's: a stream then tells how far the prompt is read, and
    counts and times with every piece.
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
    return_progress: bool = False
    timings_per_token: bool = False


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
        raise ApiError("echo: is possible only where the prompt is a text.", param="echo")
    if echo and logprobs is not None:
        raise ApiError("logprobs: are not known of an echoed prompt; send one or the other.", param="logprobs")
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
    names = {"model", "user", "stream", "stream_options", "max_completion_tokens", "response_format", *PARAMETER_NAMES}
    names |= {"return_progress", "timings_per_token"}
    names |= {
        Route.PREDICT: {"prompt", "messages", "echo"},
        Route.COMPLETIONS: {"prompt", "echo", "n", "logprobs"},
        Route.CHAT: {"messages", "n", "logprobs", "top_logprobs"},
    }[route]
    for name, value in body.items():
        if name in names:
            continue
        if route is not Route.PREDICT and name in WITHOUT_EFFECT:
            if value is None or any(value == nothing and value is not True for nothing in WITHOUT_EFFECT[name]):
                continue
            raise ApiError(f"{name}: this server cannot do that; leave it out.", param=name)
        raise ApiError(f"{name[:40]}: this server does not know this parameter here.", param=name[:40])
    for name in ("model", "user"):
        if not isinstance(body.get(name, ""), str | None):
            raise ApiError(f"{name}: must be a string.", param=name)


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
    if not isinstance(text, str) or name in ("prompt", "model", "user", "stop", "grammar"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # its own check will refuse it, naming the parameter


def _read_prompt(
    route: Route, body: Mapping[str, object]
) -> tuple[str | list[int] | None, list[dict[str, str]] | None]:
    prompt, messages = body.get("prompt"), body.get("messages")
    if prompt is not None and messages is not None:
        raise ApiError("messages: send either prompt or messages, not both.", param="messages")
    if messages is not None:
        return None, _read_messages(messages)
    if prompt is None:
        param = "messages" if route is Route.CHAT else "prompt"
        raise ApiError(f"{param}: is missing; there is nothing to complete.", param=param)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(token) is int and 0 <= token < 2**31 for token in prompt):
        return prompt, None
    if not isinstance(prompt, str) or not prompt:
        raise ApiError("prompt: must be one text that is not empty, or the tokens of one.", param="prompt")
    return _encodable(prompt, "prompt"), None


def _read_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise ApiError("messages: must be a list of at least one message.", param="messages")
    return [_read_message(f"messages[{index}]", message) for index, message in enumerate(messages)]


def _read_message(param: str, message: object) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ApiError(f"{param}: must be an object with role and content.", param=param)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise ApiError(f"{param}.role: must be one of {', '.join(ROLES)}.", param=f"{param}.role")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise ApiError(f"{param}.content: must be a text.", param=f"{param}.content")
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, []):  # what a client repeats from our answer
            raise ApiError(f"{param}.{name[:40]}: this server cannot use this.", param=f"{param}.{name[:40]}")
    return {"role": ROLES[role], "content": _encodable(content, f"{param}.content")}


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
    given = dict(body) if alias is None else {**body, "max_tokens": alias}
    param, grammar = _read_response_format(body)
    if grammar is not None and given.get("grammar") is not None:
        raise ApiError("grammar: send either grammar or response_format.", param="grammar")
    try:
        params = SamplingParams.from_request(given if grammar is None else {**given, "grammar": grammar})
        if params.grammar:
            parse_gbnf(params.grammar)
    except InvalidParameter as error:
        name = param if grammar is not None and error.name == "grammar" else error.name
        name = "max_completion_tokens" if alias is not None and name == "max_tokens" else name
        raise ApiError(f"{name}: {error.problem}.", param=name) from error
    except GrammarError as error:
        raise ApiError(f"{param}: {error}.", param=param) from error
    return params


def _read_response_format(body: Mapping[str, object]) -> tuple[str, str | None]:
    """The parameter that a grammar comes from, and the one that response_format asks for, if any."""
    param = "response_format"
    form = body.get(param)
    if form is None:
        return "grammar", None
    kind = form.get("type") if isinstance(form, dict) else None
    if not isinstance(form, dict) or kind not in ("text", "json_object", "json_schema"):
        raise ApiError(f"{param}: must be an object whose type is text, json_object or json_schema.", param=param)
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    for name in form.keys() - known:
        raise ApiError(f"{param}.{name[:40]}: this server does not know this.", param=param)
    if kind != "json_schema":
        return (param, JSON_OBJECT_GRAMMAR) if kind == "json_object" else ("grammar", None)
    try:
        return param, json_schema_to_gbnf(_read_schema(form.get("json_schema"), f"{param}.json_schema"))
    except SchemaError as error:
        raise ApiError(f"{param}.json_schema.{error}.", param=param) from error


def _read_schema(named: object, path: str) -> object:
    """The schema; with or without `strict`, the answer follows it."""
    if not isinstance(named, dict) or "schema" not in named:
        raise ApiError(f"{path}: must be an object with name and schema.", param="response_format")
    for name, value in named.items():
        expected = {"name": str, "description": str | None, "strict": bool | None, "schema": object}.get(name)
        if expected is None or not isinstance(value, expected):
            raise ApiError(f"{path}.{name[:40]}: cannot be used.", param="response_format")
    return named["schema"]


def _read_logprobs(route: Route, body: Mapping[str, object]) -> int | None:
    """OpenAI's two ways: completions take a number; chat takes true, and a number beside it."""
    if route is not Route.CHAT:
        return _read_number(body, "logprobs", LOGPROBS)
    count = _read_number(body, "top_logprobs", TOP_LOGPROBS)
    if _read_flag(body, "logprobs", False):
        return count or 0
    if count is not None:
        raise ApiError("top_logprobs: is only possible with logprobs: true.", param="top_logprobs")
    return None


def _read_number(body: Mapping[str, object], name: str, bounds: Bounds) -> int | None:
    value = body.get(name)
    try:
        return None if value is None else int(bounds.check(name, value))
    except InvalidParameter as error:
        raise ApiError(f"{error}.", param=name) from error


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


def _read_stream_flag(body: Mapping[str, object], name: str, stream: bool) -> bool:
    """Asks for more events in a stream, so there has to be one."""
    flag = _read_flag(body, name, False)
    if flag and not stream:
        raise ApiError(f"{name}: is only possible with stream: true.", param=name)
    return flag
