"""The HTTP server of the front and of a cluster's entry."""

import socket

import uvicorn
from starlette.applications import Starlette

STOP_SECONDS = 5  # answers that are open when the server stops may end within this time


def listen(host: str, port: int) -> socket.socket:
    """An open port, before any message says so. Raises OSError and OverflowError."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def make_server(app: Starlette) -> uvicorn.Server:
    """The server for a port of `listen`."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",  # strict; uvicorn would take httptools where it is installed
            ws="none",
            log_config=None,  # uvicorn's would close the handlers of the program that it runs in
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )
