"""The error that every part of the packaging raises."""


class PackagingError(Exception):
    """The message is one sentence: the thing, the problem, the next step."""
