"""The front as an ASGI application: checks a request, sends it upstream, and passes the answer on as it comes."""

import json
from asyncio import CancelledError, create_task
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
from anyio import CancelScope
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from front.body import read_body
from front.errors import WITHOUT_V1, ApiError, api_path, error_response, invalid_key
from front.torchserve import cut
from front.upstream import SESSION_HEADER, Upstream
from front.web_pages import KnownHosts, KnownOrigins
from torchserve_client.http import refusal

ERROR_OBJECTS = (b'{"error"', b'{"type": "error"')  # how OpenAI's and Anthropic's begin; TorchServe's own do not


class Relay:
    """The endpoint of all paths of the API. Neither parses nor changes a stream."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before an answer has begun. A client that disconnects cancels its request at any time."""
        request, path = Request(scope, receive), api_path(scope)
        await check_key(self._upstream, request)
        if not (path.isascii() and path.isprintable() and path == path.strip()):  # the path becomes a header
            raise HTTPException(404)
        try:
            body = await read_body(request, self._upstream.max_body_bytes) if request.method == "POST" else None
        except ClientDisconnect:
            return
        with CancelScope() as cancel_scope:
            listener = create_task(_cancel_at_disconnect(receive, cancel_scope))
            try:
                session = request.headers.get(SESSION_HEADER, "")
                async with self._upstream.answer(path, body, session) as answer:
                    if answer.headers.get("content-type", "").startswith("text/event-stream"):
                        return await _pass_on(answer, path, send)
                    await answer.aread()
                await _whole(answer, self._upstream.key_command)(scope, receive, send)
            except CancelledError as error:
                if cancel_scope.cancel_called:
                    raise
                raise cut() from error  # the front stops
            finally:
                listener.cancel()


async def check_key(upstream: Upstream, request: Request) -> None:
    """Raises ApiError unless the request has the key, as OpenAI's or as Anthropic's clients send it."""
    headers = request.headers
    if "content-length" in headers and "transfer-encoding" in headers:  # a proxy may have read another body
        raise ApiError(400, "Send either Content-Length or Transfer-Encoding, not both.")
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    keys = [bearer.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", "")]
    if not await upstream.accepts(keys):
        raise invalid_key(upstream.key_command)


async def _cancel_at_disconnect(receive: Receive, cancel_scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel_scope.cancel()


async def _pass_on(answer: httpx.Response, path: str, send: Send) -> None:
    """Sends each piece of a stream when it comes. A stream that is cut ends with an event that says so.

    TorchServe cuts it, or uvicorn when the front stops. If the client has disconnected, the event goes nowhere.
    """
    headers = [(name.encode(), value.encode()) for name, value in _headers(answer).items()]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
    try:
        async for piece in answer.aiter_raw():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except (httpx.HTTPError, CancelledError):
        event = f"\n\nevent: error\ndata: {json.dumps(cut().body(path))}\n\n"  # \n\n ends an event that was cut
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _whole(answer: httpx.Response, key_command: str) -> Response:
    """An answer that is not streamed. Raises ApiError for an error of TorchServe itself."""
    status, is_error_object = answer.status_code, answer.content.startswith(ERROR_OBJECTS)
    if status >= 400 and not is_error_object:
        refused = refusal(status, answer.content)
        if refused.type == "InvalidKeyException":
            raise invalid_key(key_command)
        raise ApiError(status, str(refused), "model_not_found" if status == 404 else None)
    # A model that fails after TorchServe has sent its status answers 200 with an error object.
    return Response(answer.content, 500 if status == 200 and is_error_object else status, _headers(answer))


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in ("content-type", "x-request-id") if name in answer.headers}


def make_app(upstream: Upstream, hosts: Sequence[str], origins: Sequence[str]) -> Starlette:
    """hosts: the names by which clients reach the front. origins: those of web pages that may use it."""

    async def health(_: Request) -> Response:
        if problem := await upstream.problem():
            raise ApiError(503, problem)
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await upstream.close()

    endpoint = Relay(upstream)
    paths = ("/v1/{path:path}", *(f"/{path}" for path in WITHOUT_V1))
    known_origins = Middleware(
        KnownOrigins,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
        allow_private_network=True,
    )
    return Starlette(
        routes=[
            *(Route(path, health) for path in ("/health", "/v1/health")),
            *(Route(path, endpoint, methods=["GET", "POST"]) for path in paths),
        ],
        middleware=[Middleware(KnownHosts, hosts), known_origins],
        exception_handlers={HTTPException: error_response},
        lifespan=lifespan,
    )
