"""The walls around a Streamlit app: its middleware, and what happens when it starts and stops.

`streamlit run` does not open a browser for an `st.App` (1.67), so that is done here, at the bare address.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import streamlit as st
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from streamlit.cli_util import open_browser
from streamlit.web.server.server_util import get_display_address, get_url

from apps.shared.access import TOKEN, Access, Answer, Attempt, without_token
from apps.shared.access_page import STATUS, page
from apps.shared.app_links import AppName, published_address
from apps.shared.complete_runs import complete_runs
from apps.shared.peer import Peers
from apps.shared.security_headers import SecurityHeaders
from apps.shared.token_file import remove_token_file, token_file, write_token_file

FORWARDED = "x-forwarded-for"  # uvicorn takes the client's address from this header, so anybody can name any address
POLICY_VIOLATION = 1008  # RFC 6455; as long as the handshake has not ended, the client gets HTTP 403


class Walls:
    """Of one app. `folder` is where its token file and its address are written; `at_end` is called before it ends.

    Uvicorn ends the process by the signal that it got, so nothing that is registered with atexit would be called.

    >>> walls = Walls(folder, "chat")
    >>> app = st.App("page.py", middleware=walls.middleware(), lifespan=walls.lifespan)
    """

    def __init__(self, folder: Path, app: AppName, at_end: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._app = app
        self._at_end = at_end
        self.access = Access(owner=os.geteuid())
        self.peers = Peers()

    def middleware(self) -> list[Middleware]:
        return [Middleware(SecurityHeaders), Middleware(Doorkeeper, walls=self)]

    @property
    def address(self) -> str:
        return get_url(get_display_address(st.get_option("server.address") or "localhost"))

    @property
    def token_file(self) -> Path:
        return token_file(self._folder, self.access.port)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """Runs when the port is known and open, and before the first request is read."""
        complete_runs()
        self.access = replace(self.access, port=st.get_option("server.port"))
        address = f"{self.address}/?{TOKEN}={self.access.token}"
        problem = write_token_file(self.token_file, address)
        print(f"  With the token, for other accounts: {address}\n", file=sys.stdout, flush=True)
        if problem:
            print(f"  {problem}\n", file=sys.stderr, flush=True)
        if not st.get_option("server.headless"):
            asyncio.get_running_loop().call_soon(open_browser, self.address)
        try:
            with published_address(self._folder, self._app, self.address):
                yield
        finally:
            remove_token_file(self.token_file, address)
            if self._at_end:
                await run_in_threadpool(self._at_end)


class Doorkeeper:
    """ASGI middleware: lets requests in, or answers them itself."""

    def __init__(self, app: ASGIApp, walls: Walls) -> None:
        self._app = app
        self._walls = walls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        attempt = await self._attempt(scope)
        answer = self._walls.access.decide(attempt)
        if answer is Answer.SERVE:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        else:
            await self._response(answer, attempt, scope["path"])(scope, receive, send)

    async def _attempt(self, scope: Scope) -> Attempt:
        headers = dict(Headers(scope=scope))
        client, server = scope.get("client"), scope.get("server")
        account = None
        if client and server and FORWARDED not in headers:
            account = await run_in_threadpool(self._walls.peers.account, client, server)
        return Attempt(
            headers=headers,
            query=scope["query_string"].decode("latin-1"),
            account=account,
            is_websocket=scope["type"] == "websocket",
            method=scope.get("method", "GET"),
        )

    def _response(self, answer: Answer, attempt: Attempt, path: str) -> HTMLResponse:
        access, address = self._walls.access, self._walls.address
        query = without_token(attempt.query)
        target = quote(f"/{path.lstrip('/')}") + (f"?{query}" if query else "")
        html = page(answer, str(self._walls.token_file), address, target)
        response = HTMLResponse(html, STATUS.get(answer, 403), headers={"Cache-Control": "no-store"})
        if answer is Answer.WELCOME:
            response.set_cookie(access.cookie_name, access.cookie(attempt.account), httponly=True, samesite="strict")
        return response
