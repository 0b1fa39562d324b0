"""A small HTTP server that speaks TorchServe's wire; a test scripts its responses."""

import json
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from torchserve_client.config import ServerConfig

HOLD_SECONDS = 120
WORD_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Reply:
    """How the server answers one question. A cut reply ends without finish reason and `[DONE]`."""

    text: str = "It is Proxima Centauri."
    finish_reason: str = "stop"
    is_cut: bool = False
    pauses: bool = False  # nothing comes after the first word until the test sets `goes_on`
    n_words: int = 0  # if not 0, the text is this many times "la", one every 20 ms
    refusal: str = ""
    code: str | None = None
    overload: bool = False  # TorchServe's own refusal when its queue is full


class Server(ThreadingHTTPServer):
    """TorchServe's inference and management API on one port, with one model.

    `questions` are the requests so far, `replies` the next responses.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.is_quick = threading.Event()  # set: queries of the state are answered at once
        self.goes_on = threading.Event()
        self.reset()

    def reset(self) -> None:
        """Forgets all requests and the script."""
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.replies: deque[Reply] = deque()
        self.has_model = True
        self.model_ids = ["llamacpp"]
        self.chat_template = "model"
        self.context_window = 4096  # another one is another version of the model
        self.descriptions = 0  # requests for the model's description
        self.is_loaded = True  # whether a worker is ready
        self.is_quick.set()
        self.goes_on.clear()
        self.n_waiting = 0  # queries of the state since is_quick was cleared
        self.n_disconnected = 0  # answers whose client disconnected
        self.keys: set[str | None] = set()
        self.valid_key = ""  # "" accepts any
        self.cluster: tuple[int, str] = (404, "")  # the status and the body of GET /cluster
        self.key_file: Path | None = None

    def close(self) -> None:
        self.is_quick.set()
        self.goes_on.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path.startswith("/token?type="):
            self._renew()
        elif self.path == "/cluster":
            self._send_cluster()
        elif self.path.startswith("/models/"):
            self.server.n_waiting += not self.server.is_quick.is_set()
            self.server.is_quick.wait(HOLD_SECONDS)
            if not self._refuses_key():
                self._describe_version()
        elif not self._refuses_key():
            self.server.descriptions += 1
            self._describe_model()

    def do_POST(self) -> None:
        if self._refuses_key():
            return
        self.server.keys.add(self.headers["Authorization"])
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.headers["X-Api-Path"] or self.path  # TorchServe's header, or as any other server
        if path == "tokenize":
            self._send(200, {"tokens": question["content"].split()})
            return
        self.server.questions.append((path.removeprefix("/").removeprefix("v1/"), question))
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
        for text in ["la "] * reply.n_words or re.split(r"(?= )", reply.text):
            choice = {"delta": {"content": text}} if "messages" in question else {"text": text}
            try:
                self._event({"choices": [choice]})
            except OSError:
                self.server.n_disconnected += 1
                return
            if reply.n_words:
                time.sleep(WORD_SECONDS)
            if reply.pauses:
                self.server.goes_on.wait(HOLD_SECONDS)
        if not reply.is_cut:
            ending = {"delta": {}, "text": "", "finish_reason": reply.finish_reason}
            counts = {"prompt_tokens": 25, "completion_tokens": 5, "total_tokens": 30}
            usage = {**counts, "prompt_tokens_details": {"cached_tokens": 20}}
            figures = {"usage": usage, "timings": {"predicted_per_second": 12.34}}
            self._event({"choices": [ending], **figures})
            self.wfile.write(b"data: [DONE]\n\n")

    def _refuses_key(self) -> bool:
        if not self.server.valid_key or self.headers["Authorization"] == f"Bearer {self.server.valid_key}":
            return False
        self._send(400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"})
        return True

    def _renew(self) -> None:
        """As TorchServe: for a request with the API key it writes a new key into the key file."""
        if self.headers["Authorization"] != "Bearer api-key":
            self._send(400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"})
            return
        assert self.server.key_file
        self.server.valid_key = "renewed-key"
        write_keys(self.server.key_file, self.server.valid_key)
        self._send(200, {})

    @property
    def _version(self) -> str:
        return f"{self.server.context_window}.0"

    def _describe_version(self) -> None:
        if not self.server.has_model:
            self._send(404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: llamacpp"})
            return
        status = "READY" if self.server.is_loaded else "UNLOADING"
        worker = {"id": "9000", "pid": os.getpid(), "status": status, "startTime": "2026-01-01T00:00:00.000Z"}
        model = {"modelName": "llamacpp", "modelVersion": self._version, "modelUrl": "llamacpp.tar.gz"}
        settings = {"batchSize": 8, "maxBatchDelay": 0, "minWorkers": 1}
        self._send(200, [model | settings | {"workers": [worker]}])

    def _describe_model(self) -> None:
        meta = {"context_window": self.server.context_window, "chat_template": self.server.chat_template}
        models = [{"id": id, "object": "model", "meta": meta} for id in self.server.model_ids]
        self._send(200, {"object": "list", "data": models})

    def _send_cluster(self) -> None:
        """As the entry of a cluster, which is another program than TorchServe: it refuses a wrong key with 401."""
        self.server.n_waiting += not self.server.is_quick.is_set()
        self.server.is_quick.wait(HOLD_SECONDS)
        if self.server.valid_key and self.headers["Authorization"] != f"Bearer {self.server.valid_key}":
            self._send(401, {"error": {"message": "The key is missing or wrong."}})
        else:
            status, text = self.server.cluster
            self._send_text(status, text)

    def _send(self, status: int, answer: object) -> None:
        self._send_text(status, json.dumps(answer))

    def _send_text(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def write_keys(file: Path, key: str, is_expired: bool = False) -> None:
    entry = {"key": key, "expiration time": "2001-01-01T00:00:00Z" if is_expired else "2126-01-01T00:00:00Z"}
    file.write_text(json.dumps({"inference": entry, "management": entry, "API": {"key": "api-key"}}))


@contextmanager
def running_scripted_server(home: Path) -> Iterator[tuple[Server, ServerConfig]]:
    """The server, and a configuration in `home` with its address and without a key."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    config = home / "config.properties"
    config.write_text(
        f"inference_address={address}\nmanagement_address={address}\ndisable_token_authorization=true\n",
        encoding="utf-8",
    )
    try:
        yield server, ServerConfig.load(config)
    finally:
        server.close()
        thread.join()
