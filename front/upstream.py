"""What the front asks of what is behind it: one TorchServe (front/torchserve.py), or a cluster (cluster/entry.py)."""

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import httpx

SESSION_HEADER = "x-session-id"  # names the conversation of a request, as vLLM's router and Ray Serve have it


class Upstream(Protocol):
    """key_command: prints the key for the clients. max_body_bytes: larger bodies are refused."""

    key_command: str
    max_body_bytes: int

    async def accepts(self, keys: Iterable[str]) -> bool: ...

    async def problem(self) -> str: ...

    def answer(
        self, path: str, body: tuple[bytes, str] | None, session: str
    ) -> AbstractAsyncContextManager[httpx.Response]: ...

    async def close(self) -> None: ...
