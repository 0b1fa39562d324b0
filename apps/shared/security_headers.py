"""The headers that keep a page to itself: nothing is loaded from other hosts, and no other site can show or read it.

What Streamlit 1.67 needs was measured in Chromium on both apps (docs/streamlit-facts.md): its own files, one script in
index.html, styles in the document, and modules from memory for the elements that this project defines.
"""

import base64
import hashlib
import re
from pathlib import Path

import streamlit
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.shared.access import is_local_name

INDEX = Path(streamlit.__file__).parent / "static" / "index.html"

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "X-DNS-Prefetch-Control": "off",  # else the names of hosts in an answer's links are looked up without a click
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def content_security_policy(host: str, script_hashes: list[str]) -> str:
    """The policy for a page whose Host header is `host`.

    The websocket is named beside 'self', because older versions of Safari do not count it among 'self'.
    """
    return "; ".join(
        (
            "default-src 'self'",
            " ".join(("script-src 'self' blob:", *script_hashes)),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            f"connect-src 'self' ws://{host} wss://{host}",
            "object-src 'none'",
            "frame-ancestors 'none'",
            "form-action 'self'",
            "base-uri 'none'",
        )
    )


def inline_script_hashes(html: str) -> list[str]:
    """The sources that allow exactly the scripts which stand in the document."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]


class SecurityHeaders:
    """ASGI middleware: adds the headers to each HTTP response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._hashes = inline_script_hashes(INDEX.read_text(encoding="utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        policy = content_security_policy(host if is_local_name(host) else "localhost", self._hashes)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["Content-Security-Policy"] = policy
            await send(message)

        await self._app(scope, receive, send_with_headers)
