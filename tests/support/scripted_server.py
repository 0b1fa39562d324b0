"""A small HTTP server that speaks TorchServe's wire, and answers as a test tells it to."""

from __future__ import annotations

import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from torchserve_client.config import ServerConfig

HOLD_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Reply:
    """How the server answers one question; a cut reply ends without finish reason and `[DONE]`."""

    text: str = "It is Proxima Centauri."
    finish_reason: str = "stop"
    is_cut: bool = False
    is_held: bool = False  # nothing comes after the first word before the server `goes_on`
    refusal: str = ""
    code: str | None = None
    overload: bool = False  # TorchServe's own refusal when its queue is full


class Server(ThreadingHTTPServer):
    """TorchServe's inference port with one model. `questions` is what was asked, `replies` what comes next."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.replies: deque[Reply] = deque()
        self.has_model = True
        self.chat_template = "model"
        self.context_window = 4096  # another one is another model
        self.descriptions = 0  # how often a worker was asked about the model
        self.is_loaded = threading.Event()  # a worker answers
        self.is_loaded.set()
        self.is_quick = threading.Event()  # TorchServe itself answers
        self.is_quick.set()
        self.goes_on = threading.Event()
        self.waiting = 0  # who asked it meanwhile
        self.keys: set[str | None] = set()
        self.valid_key = ""  # "" takes any
        self.key_file: Path | None = None

    @property
    def fingerprint(self) -> str:
        return f"fp_{self.context_window}"

    def close(self) -> None:
        self.is_loaded.set()
        self.is_quick.set()
        self.goes_on.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_OPTIONS(self) -> None:
        self.server.waiting += not self.server.is_quick.is_set()
        self.server.is_quick.wait(HOLD_SECONDS)
        if not self._refuses_key():
            self._describe()

    def do_GET(self) -> None:
        if self.path.startswith("/token?type=inference"):
            self._renew()
        elif not self._refuses_key():
            self.server.is_loaded.wait(HOLD_SECONDS)
            self.server.descriptions += 1
            self._describe()

    def do_POST(self) -> None:
        if self._refuses_key():
            return
        self.server.keys.add(self.headers["Authorization"])
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.questions.append((self.headers["X-Api-Path"].removeprefix("v1/"), question))
        reply = self.server.replies.popleft() if self.server.replies else Reply()
        if reply.overload:
            self._send(503, {"code": 503, "type": "ServiceUnavailableException", "message": "Model has no worker"})
            return
        if reply.refusal:
            error = {"message": reply.refusal, "type": "invalid_request_error", "param": "prompt", "code": reply.code}
            self._send(400, {"error": error})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        head = {"system_fingerprint": self.server.fingerprint}
        for text in re.split(r"(?= )", reply.text):
            choice = {"delta": {"content": text}} if "messages" in question else {"text": text}
            self._event({**head, "choices": [choice]})
            if reply.is_held:
                self.server.goes_on.wait(HOLD_SECONDS)
        if not reply.is_cut:
            ending = {"delta": {}, "text": "", "finish_reason": reply.finish_reason}
            counts = {"prompt_tokens": 25, "completion_tokens": 5, "total_tokens": 30}
            usage = {**counts, "prompt_tokens_details": {"cached_tokens": 20}}
            figures = {"usage": usage, "timings": {"predicted_per_second": 12.34}}
            self._event({**head, "choices": [ending], **figures})
            self.wfile.write(b"data: [DONE]\n\n")

    def _refuses_key(self) -> bool:
        if not self.server.valid_key or self.headers["Authorization"] == f"Bearer {self.server.valid_key}":
            return False
        self._send(400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"})
        return True

    def _renew(self) -> None:
        """As TorchServe does: with the API key, a new key goes into the key file."""
        if self.headers["Authorization"] != "Bearer api-key":
            self._send(400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"})
            return
        assert self.server.key_file
        self.server.valid_key = "renewed-key"
        write_keys(self.server.key_file, self.server.valid_key)
        self._send(200, {})

    def _describe(self) -> None:
        if self.server.has_model:
            meta = {
                "context_window": self.server.context_window,
                "chat_template": self.server.chat_template,
                "fingerprint": self.server.fingerprint,
            }
            model = {"id": "llamacpp", "object": "model", "meta": meta}
            self._send(200, {"object": "list", "data": [model]})
        else:
            self._send(404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: llamacpp"})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def write_keys(file: Path, inference_key: str) -> None:
    file.write_text(json.dumps({"inference": {"key": inference_key}, "API": {"key": "api-key"}}))


@contextmanager
def running_scripted_server(home: Path) -> Iterator[tuple[Server, ServerConfig]]:
    """The server, and a configuration in `home` that leads to it without a key."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = home / "config.properties"
    config.write_text(f"inference_address={address}\ndisable_token_authorization=true\n", encoding="utf-8")
    try:
        yield server, ServerConfig.load(config)
    finally:
        server.close()
        thread.join()
