"""Runs the checks of one client and prints a JSON object for each: {"check": …, "error": null or a sentence}.

Knows no client. Uses only the standard library: each client's environment has other packages.
The environment variables BASE_URL (it ends in /v1), KEY, MODEL and WRONG_KEY_STATUS describe the server.
"""

import asyncio
import inspect
import json
import os
from collections.abc import Callable
from typing import Any

BASE_URL = os.environ["BASE_URL"]
KEY = os.environ["KEY"]
MODEL = os.environ["MODEL"]
WRONG_KEY_STATUS = int(os.environ["WRONG_KEY_STATUS"])  # the front answers 401, TorchServe itself 400
QUESTION = "What is the closest star to Earth?"
ANSWER = "Proxima"  # the demo model's greedy answer has this word

_checks: list[tuple[str, Callable[[], Any]]] = []


def check(name: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Marks a function, or a coroutine function, as a check. An exception is its failure."""

    def add(function: Callable[[], Any]) -> Callable[[], Any]:
        _checks.append((name, function))
        return function

    return add


def causes(error: BaseException) -> list[BaseException]:
    """`error`, the error that caused it, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    return chain


def fails(function: Callable[[], Any], status: int) -> BaseException:
    """Calls `function`, which must fail because the server answers with the HTTP status `status`. Returns the error."""
    try:
        result = function()
        if inspect.isawaitable(result):
            asyncio.run(_wait(result))
    except Exception as error:
        found = [getattr(cause, "status_code", None) for cause in causes(error)]
        if status in found:
            return error
        raise AssertionError(f"status {status} expected, not {found}: {error}") from error
    raise AssertionError(f"no error: {result!r:.200}")


def run() -> None:
    """Runs all checks in the order of the file. One failure does not stop the others."""
    for name, function in _checks:
        error = None
        try:
            result = function()
            if inspect.isawaitable(result):
                asyncio.run(_wait(result))
        except Exception as failure:
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:1000]
        print("\n" + json.dumps({"check": name, "error": error}), flush=True)  # a client may have left a line open


async def _wait(result: Any) -> None:
    await result
