"""Which web pages may use the front: checks the Host header and the origin. Its refusals are error objects.

A browser lets every page send requests to this machine.
"""

import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from front.errors import ApiError, api_path

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:@/\[\]\s]+)(:\d*)?", re.IGNORECASE)  # a name or an address, and a port


class KnownHosts:
    """Refuses a page whose name resolves to this address (DNS rebinding): its Host header has that name."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            found = HOST.fullmatch(host)
            if not found or found[1].lower() not in self._hosts:
                problem = f"The Host header '{host[:80]}' names no host of this front"
                advice = "if it is another name of this machine, start the front with --allow-host NAME"
                error = ApiError(400, f"{problem}: {advice}.")
                return await JSONResponse(error.body(api_path(scope)), 400, error.headers)(scope, receive, send)
        await self._app(scope, receive, send)


class KnownOrigins(CORSMiddleware):
    """Answers a browser that asks whether a page may send a request (a preflight)."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        problem = (
            f"{bytes(response.body).decode()}: a page of {request_headers['origin'][:80]} may not send this request"
        )
        error = ApiError(
            response.status_code, f"{problem}. To allow a page, start the front with --allow-origin ORIGIN."
        )
        return JSONResponse(error.body(""), error.status_code, {"Vary": "Origin"})
