"""The errors that the API answers. Knows no request."""

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from llama_cpp_worker.sampling_params import InvalidParameter

# TorchServe ends a worker, and with it all answers, at a message that is longer than max_response_size: by default
# 6,553,500 bytes. config.properties allows more, because a message has the pieces of all requests.
MAX_PIECE_BYTES = 6_000_000
MAX_REPORTS = 200_000  # log probabilities: about 6 MB of JSON, and 40 MB while they are collected

T = TypeVar("T")
Argument = TypeVar("Argument")


class ApiError(Exception):
    """A request that is answered with an error object.

    `param` is the name of the wrong parameter. `code` is OpenAI's word for some kinds of errors. A `param` that is not
    a name of ours may be a part of a prompt, so only `logged_as` goes into the log.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        logged_as: str | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.logged_as = logged_as or param or code or "path"

    def body(self) -> dict[str, object]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refusal(param: str, problem: str, code: str | None = None) -> ApiError:
    return ApiError(f"{param}: {problem}.", param=param, code=code)


def not_one_of(names: Iterable[str], value: object) -> str:
    """The problem of a value that is none of `names`."""
    return f"must be one of {', '.join(names)}" + (f", not {value[:40]}" if isinstance(value, str) else "")


def too_long(piece: str) -> ApiError | None:
    """The error to send instead of a piece of an answer that is too long for TorchServe."""
    if len(piece) <= MAX_PIECE_BYTES // 4 or (n_bytes := len(piece.encode())) <= MAX_PIECE_BYTES:
        return None
    problem = f"The answer has {n_bytes:,} bytes, but TorchServe passes on at most {MAX_PIECE_BYTES:,} at once"
    return ApiError(f"{problem}: send fewer prompts or texts, or request fewer log probabilities.", code="too_long")


def too_many_reports(n_tokens: int, logprobs: int | None) -> ApiError | None:
    """The refusal of more log probabilities than one answer can have. logprobs: how many for each token beside it."""
    count = 0 if logprobs is None else n_tokens * (1 + logprobs)
    if count <= MAX_REPORTS:
        return None
    problem = f"{count:,} log probabilities are too many for one answer, at most {MAX_REPORTS:,} are possible"
    return refusal("logprobs", f"{problem}: send fewer prompts, or request fewer of them", "too_long")


def checked(check: Callable[[Argument], T], value: Argument) -> T:
    """`check(value)`. Raises ApiError for InvalidParameter."""
    try:
        return check(value)
    except InvalidParameter as error:
        refused = refusal(error.name, error.problem)
        refused.logged_as = re.split(r"\.(?:parameters|input_schema)\b", error.name)[0]  # then come names of the client
        raise refused from error


def unknown(param: str) -> ApiError:
    """The refusal of a name that this server does not know. The log does not contain it."""
    problem = "this server does not know this parameter here"
    return ApiError(f"{param[:40]}: {problem}.", param=param[:40], logged_as="an unknown parameter")
