"""The checked request of every API family that generates text, and the checks that these families share.

Knows the names of OpenAI's API. Knows nothing of TorchServe, llama.cpp and the schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from llama_cpp_worker.api.errors import ApiError
from llama_cpp_worker.api.fields import Fields
from llama_cpp_worker.constraint import compile_constraint
from llama_cpp_worker.sampling_params import BOUNDS, PARAMETER_NAMES, Bounds, InvalidParameter, SamplingParams, shown
from llama_cpp_worker.tools import ToolSet

N_CHOICES = Bounds(int, 1, 8)

Message = dict[str, Any]  # for the chat template: role and content, and perhaps tool_calls, tool_call_id …

# Other names of sampling parameters, as vLLM and OpenAI have them.
ALIASES = {"max_completion_tokens": "max_tokens", "repetition_penalty": "repeat_penalty"}

SAMPLING_NAMES = frozenset((*PARAMETER_NAMES, *ALIASES, "json_schema"))
STREAM_NAMES = frozenset(("stream", "stream_options", "return_progress", "timings_per_token"))


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A request with checked fields. Either `prompts` or `messages` is not empty.

    prompts: texts or lists of tokens; each gets `n` choices. suffix: the text after a prompt, to fill in the middle.
    logprobs: how many of the likeliest tokens to report with each token; None reports no token.
    echo: the answer begins with the prompt. With `logprobs`, it also reports the prompt's tokens.
    continues_answer: whether a last message of the assistant is continued.
    reasoning_format: "none" leaves the model's thoughts in the text.
    return_progress, timings_per_token: llama-server's. A stream then has events with the progress of the prefill, and
    counts and times in every event with text.
    shown: fields of the body that the answer repeats, as they are.
    """

    params: SamplingParams
    prompts: list[str | list[int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    tools: ToolSet | None = None
    n: int = 1
    logprobs: int | None = None
    echo: bool = False
    suffix: str | None = None
    continues_answer: bool = True
    reasoning_format: str = "auto"
    stream: bool = False
    include_usage: bool = False
    return_progress: bool = False
    timings_per_token: bool = False
    shown: Mapping[str, Any] = field(default_factory=dict)


def read_params(fields: Fields, fewest_tokens: int = 1) -> SamplingParams:
    """The sampling parameters, under their own names or OpenAI's and vLLM's. Raises ApiError.

    fewest_tokens: the smallest max_tokens.
    """
    given = dict(fields.values)
    names = {}  # as the client calls them
    for alias, name in ALIASES.items():
        if given.get(alias) is not None:
            if given.get(name) is not None:
                raise fields.refusal(alias, f"is another name of {name}; send one")
            given[name] = given[alias]
            names[name] = alias
    for name, unlimited in (("max_tokens", None), ("top_k", 0), ("seed", None)):
        if given.get(name) == -1:  # as in llama-server: no limit, or a random seed
            given[name] = unlimited
    if given.get("json_schema") is not None:  # llama-server's
        if given.get("response_format") is not None:
            raise fields.refusal("json_schema", "is another form of response_format; send one")
        given["response_format"] = {"type": "json_object", "schema": given["json_schema"]}
        names["response_format.schema"] = "json_schema"
    try:
        _check_limit(given.get("max_tokens"), fewest_tokens)
        params = SamplingParams.from_request(given)
        compile_constraint(params)
    except InvalidParameter as error:
        place = error.name
        for name, own in names.items():
            if place == name or place.startswith(f"{name}."):
                place = own + place.removeprefix(name)
        raise ApiError(f"{place}: {error.problem}.", param=place.partition(".")[0]) from error
    return params


def _check_limit(max_tokens: object, fewest: int) -> None:
    """Raises InvalidParameter, which names the bounds of this path and -1."""
    most = BOUNDS["max_tokens"].high
    if max_tokens is None:
        return
    try:
        Bounds(int, fewest, most).check("max_tokens", max_tokens)
    except InvalidParameter as error:
        problem = f"must be an integer from {fewest} to {most:,}, or -1 for no limit, not {shown(max_tokens)}"
        raise InvalidParameter("max_tokens", problem) from error


class StreamFlags(TypedDict):
    """The fields of GenerationRequest that belong to a stream."""

    stream: bool
    include_usage: bool
    return_progress: bool
    timings_per_token: bool


def read_stream(fields: Fields) -> StreamFlags:
    """The parameters of a stream. Raises ApiError."""
    options = fields.object("stream_options", ("include_usage", "include_obfuscation", "continuous_usage_stats"))
    if options.flag("continuous_usage_stats"):
        raise options.refusal("continuous_usage_stats", "this server does not support it; leave it out")
    flags = StreamFlags(
        stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"),
        return_progress=fields.flag("return_progress"),
        timings_per_token=fields.flag("timings_per_token"),
    )
    for name in ("stream_options", "return_progress", "timings_per_token"):
        if fields.get(name) and not flags["stream"]:
            raise fields.refusal(name, "is only possible with stream: true")
    return flags
