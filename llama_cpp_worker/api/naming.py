"""Lets an error name the field of the client, where a family of the API translates it into one of another name."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llama_cpp_worker.api.errors import ApiError


@contextmanager
def errors_name(names: Mapping[str, str]) -> Iterator[None]:
    """Replaces the beginning of an ApiError's message and parameter.

    names: by a pattern of our name (a regular expression), what the client calls it.
    """
    try:
        yield
    except ApiError as error:
        message, param = str(error), error.param or ""
        for pattern, name in names.items():
            message = re.sub(rf"^{pattern}(?![a-z_])", name, message)
            param = re.sub(rf"^{pattern}(?![a-z_])", name, param)
        raise ApiError(message, param or None, error.status, error.code, error.logged_as) from error
