"""A small HTTP server that answers like a Hugging Face hub, for the real huggingface_hub: lists and serves files.

It can demand a token, lie about a file's size, and stop in the middle of a file. Not covered: Xet, datasets, uploads.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True)
class Hub:
    """repositories: the files of each. gated: the token that gets the files of a repository.

    stops_after: bytes of a file after which its first request ends ("cut") or waits for ever ("stalled").
    served: the files that were sent, with the first byte and the number of bytes of each request.
    """

    repositories: dict[str, dict[str, bytes]]
    gated: dict[str, str] = field(default_factory=dict)
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    stalled_after: dict[str, int] = field(default_factory=dict)
    is_broken: bool = False
    served: list[tuple[str, int, int]] = field(default_factory=list)
    stalled: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = self.path.partition("?")[0].strip("/"), self.hub
        is_listing = path.startswith("api/models/")
        repo, _, rest = path.removeprefix("api/models/").partition("/revision/" if is_listing else "/resolve/")
        name = rest.partition("/")[2]
        if hub.is_broken:
            self._refuse(500, "", "The hub is broken.")
        elif repo not in hub.repositories:
            has_token = "Authorization" in self.headers
            self._refuse(404 if has_token else 401, "RepoNotFound" if has_token else "", "Repository not found")
        elif is_listing:
            self._send_json(
                {
                    "id": repo,
                    "sha": COMMIT,
                    "siblings": [self._sibling(*item) for item in hub.repositories[repo].items()],
                }
            )
        elif repo in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.gated[repo]}":
            self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        elif name not in hub.repositories[repo]:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self._send_file(name, hub.repositories[repo][name])

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        size = self.hub.claimed_sizes.get(name, len(content))
        lfs = {"sha256": _etag(content), "size": size, "pointerSize": 134}
        return {"rfilename": name, "size": size, "blobId": "0" * 40, "lfs": lfs}

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, name: str, content: bytes) -> None:
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{_etag(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, stalled = self.hub.cut_after.pop(name, None), self.hub.stalled_after.pop(name, None)
        end = next((each for each in (cut, stalled) if each is not None), len(content))
        self.hub.served.append((name, begin, end - begin))
        self.wfile.write(content[begin:end])
        self.close_connection = cut is not None
        if stalled is not None:
            self.hub.stalled.set()
            self.hub.ended.wait()

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The base class would write to stderr."""


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def running_hub(hub: Hub) -> Iterator[Hub]:
    """The hub answers at hub.url."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
