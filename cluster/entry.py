"""The entry of the cluster: the front (front/) with nodes instead of one TorchServe behind it.

It checks the key, finds the conversation's node through Ray Serve, and passes the node's answer on as it comes.
"""

import secrets
import socket
import time
from asyncio import create_task, sleep
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from anyio import to_thread
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cluster.affinity import session_key
from cluster.listening import listen_at_own_address
from cluster.messages import Cut
from cluster.node_facts import describe_nodes, routing
from front.app import check_key, make_app
from front.errors import ApiError
from front.server import listen, make_server
from front.torchserve import cut

N_TRIES = 4  # nodes that end before an answer has begun
PORT_FREE_SECONDS = 30.0
NO_NODE = "No node serves now: one is starting, or `python -m cluster` says what is wrong."
FULL = "All nodes are busy and their queues are full: try again in a moment."


class Nodes:
    """The nodes as an Upstream of the front."""

    key_command = ".venv/bin/python -m cluster.key"

    def __init__(self, handle: DeploymentHandle, key: str, max_body_bytes: int) -> None:
        self._handle, self._key, self.max_body_bytes = handle.options(stream=True), key, max_body_bytes

    async def close(self) -> None:
        """Ray Serve ends the connections to the nodes."""

    async def accepts(self, keys: Iterable[str]) -> bool:
        return any(secrets.compare_digest(key.encode(), self._key.encode()) for key in keys)

    async def problem(self) -> str:
        return "" if routing.reports else NO_NODE

    @asynccontextmanager
    async def answer(
        self, path: str, body: tuple[bytes, str] | None, session: str = ""
    ) -> AsyncIterator[httpx.Response]:
        """The answer of the conversation's node, as soon as it has begun. Raises ApiError.

        A node that ends before it has begun to answer is replaced by another one.
        """
        if not routing.reports:
            raise ApiError(503, NO_NODE)
        handle = self._handle.options(session_id=session_key(session, body[0] if body else b""))
        for _ in range(N_TRIES):
            pieces = handle.answer.remote(path, body)
            try:
                status, headers = await anext(pieces)
                break
            except BackPressureError as error:
                raise ApiError(503, FULL) from error
            except (RayActorError, Cut):
                continue
            except RayError as error:
                raise cut() from error
            except BaseException:  # the client has hung up
                pieces.cancel()
                raise
        else:
            raise cut()
        try:
            yield httpx.Response(status, headers=headers, stream=_Pieces(pieces))
        except httpx.HTTPError as error:
            raise cut() from error
        finally:
            pieces.cancel()


class _Pieces(httpx.AsyncByteStream):
    """The pieces of an answer. Raises httpx.ReadError if the node ends, as httpx does for one TorchServe."""

    def __init__(self, pieces: DeploymentResponseGenerator) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._pieces:
                yield piece
        except (RayError, Cut) as error:
            raise httpx.ReadError("the node has ended") from error


@dataclass(frozen=True, slots=True)
class EntrySettings:
    """hosts: the names by which clients reach the cluster."""

    host: str
    port: int
    hosts: tuple[str, ...]
    max_body_bytes: int
    key: str = field(repr=False)


class Entry:
    """The deployment, one replica on the head.

    It listens itself, because Ray Serve's proxy costs each request two calls more.
    """

    async def __init__(self, nodes: DeploymentHandle, settings: EntrySettings) -> None:  # type: ignore[misc]
        # Ray Serve awaits it, which Python's own constructor could not be.
        listen_at_own_address()
        self._nodes = Nodes(nodes, settings.key, settings.max_body_bytes)
        app = make_app(self._nodes, settings.hosts, origins=())
        app.router.routes.append(Route("/cluster", self._describe))
        self._server = make_server(app)
        self._serving = create_task(self._server.serve([await _listen_when_free(settings.host, settings.port)]))

    async def _describe(self, request: Request) -> JSONResponse:
        """What each node does, for the dashboard. Needs the key."""
        await check_key(self._nodes, request)
        nodes = await to_thread.run_sync(describe_nodes)
        return JSONResponse({"nodes": nodes, "waiting": routing.n_waiting()})

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose check raises."""
        if self._serving.done():
            raise RuntimeError("the entry does not listen any more")

    async def __del__(self) -> None:
        """Ray Serve calls it before another replica takes this one's place."""
        self._server.should_exit = True
        await self._serving


async def _listen_when_free(host: str, port: int) -> socket.socket:
    """Waits while an entry that is replaced still listens. Raises OSError if another program does not stop."""
    deadline = time.monotonic() + PORT_FREE_SECONDS
    while True:
        try:
            return listen(host, port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await sleep(0.1)
