"""Starts the front: http://127.0.0.1:8000/v1 for the clients of OpenAI's API, http://127.0.0.1:8000 for Anthropic's.

The TorchServe of config.properties (or TS_CONFIG_FILE) answers. Clients send its inference key, which
`.venv/bin/python -m torchserve_client.keys` prints. /health needs no key. No request is logged. Ctrl-C ends the front.
"""

import argparse
import contextlib
import re
import sys

from front.app import make_app
from front.server import listen, make_server
from front.torchserve import TorchServe
from torchserve_client.config import ServerConfig, TorchServeError


def origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no origin: write one like http://localhost:3000")
    return text


def main(arguments: list[str] | None = None) -> int:
    """Runs until a signal arrives; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m front", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default %(default)s)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this host")
    parser.add_argument(
        "--allow-origin", action="append", default=[], type=origin, metavar="ORIGIN", help="web page that may use it"
    )
    chosen = parser.parse_args(arguments)
    try:
        torchserve = TorchServe(ServerConfig.load())
    except TorchServeError as error:
        print(error, file=sys.stderr)
        return 1
    host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host  # as URLs and the Host header have it
    url = f"http://{host}:{chosen.port}"
    hosts = ("127.0.0.1", "localhost", "[::1]", host, *chosen.allow_host)
    server = make_server(make_app(torchserve, hosts, chosen.allow_origin))
    try:
        listener = listen(chosen.host, chosen.port)
    except (OSError, OverflowError) as error:  # OverflowError: no port has such a number
        print(f"The front cannot listen at {url}: choose another --port or --host. ({error})", file=sys.stderr)
        return 1
    print(f"The front listens at {url}/v1. Press Ctrl-C to stop it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it after an orderly end
        server.run([listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
