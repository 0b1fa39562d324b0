"""What a node sends to the entry: a Head, then bytes. Ray carries both between machines."""

from typing import NamedTuple


class Head(NamedTuple):
    """The beginning of an answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]


class Cut(Exception):
    """The answer is not complete, or has not begun: the node's TorchServe or its worker has ended."""
