"""The TorchServe behind the front: its key, its health, and its answers. Knows nothing of the front's clients."""

import re
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import httpx
from anyio import Lock, to_thread

from front.errors import ApiError
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.http import MODEL_NAME, ServerUnreachable, request_headers, torchserve_unreachable
from torchserve_client.keys import Keys
from torchserve_client.status import StatusClient

CONNECT_SECONDS = 3.0  # the only timeout: the queue and a long prefill take minutes, and a hang-up ends a request
HEALTH_SECONDS = 1.0  # how long an answer about the health is used again
TORCHSERVE_MAX_BYTES = 6_553_500  # its own default of max_request_size
KEY_COMMAND = ".venv/bin/python -m torchserve_client.keys"


class TorchServe:
    """One TorchServe and the default version of its model, as an Upstream. Belongs to one event loop."""

    key_command = KEY_COMMAND

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._keys = Keys(config, "inference")
        self._key: str | None = None  # as the key file had it last
        self.max_body_bytes = max_body_bytes(config)
        self._status = StatusClient(config)
        self._health = ""
        self._health_lock, self._health_expires = Lock(), 0.0
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def accepts(self, keys: Iterable[str]) -> bool:
        """Whether one of `keys` is the inference key, or none is needed. Raises ApiError if that is not known.

        Reads the key file only if none of `keys` is the last known one. TorchServe itself refuses a key of the past.
        """
        if not self._config.needs_token or self._is_known(keys):
            return True
        await self.read_key()
        return self._is_known(keys)

    async def read_key(self) -> None:
        """The key that answer() sends, as the key file has it now. Raises ApiError if it cannot be read."""
        try:
            self._key = await to_thread.run_sync(self._keys.current)
        except ServerUnreachable as error:
            raise ApiError(503, torchserve_unreachable(self._config.inference_url)) from error
        except TorchServeError as error:
            raise ApiError(503, str(error)) from error

    def _is_known(self, keys: Iterable[str]) -> bool:
        known = self._key
        return known is not None and any(secrets.compare_digest(key.encode(), known.encode()) for key in keys)

    async def problem(self) -> str:
        """Why no text can be generated now, as a sentence; "" if it can."""
        async with self._health_lock:
            if time.monotonic() > self._health_expires:
                state = await to_thread.run_sync(self._status.state)
                problem = state.problem or f"The model cannot answer ({state.availability}): see the server app."
                if state.availability == "down":
                    problem = torchserve_unreachable(self._config.inference_url)
                self._health = "" if state.availability == "ready" else problem
                self._health_expires = time.monotonic() + HEALTH_SECONDS
            return self._health

    @asynccontextmanager
    async def answer(
        self, path: str, body: tuple[bytes, str] | None, session: str = ""
    ) -> AsyncIterator[httpx.Response]:
        """The answer to a POST of the body with its content type, or to a GET, as soon as its status is there.

        session: not used, because one TorchServe answers all conversations.

        Raises ApiError. The request has new headers only. The end of the context disconnects if the answer is not
        complete, and TorchServe then cancels the request.
        """
        url = f"{self._config.inference_url}/predictions/{MODEL_NAME}"
        headers = request_headers(self._key, path) | {"Accept-Encoding": "identity"}
        content, content_type = body or (None, None)
        if content_type:
            headers["Content-Type"] = content_type
        try:
            method = "GET" if body is None else "POST"
            async with self._client.stream(method, url, headers=headers, content=content) as answer:
                yield answer
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ApiError(503, torchserve_unreachable(url)) from error
        except httpx.HTTPError as error:
            raise cut() from error


def max_body_bytes(config: ServerConfig) -> int:
    """The largest body that TorchServe accepts."""
    found = re.search(r"^max_request_size=(\d+)", config.path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else TORCHSERVE_MAX_BYTES


def cut() -> ApiError:
    return ApiError(502, "The answer was cut: the server or its worker ended. Ask again: a worker restarts in seconds.")
