"""A small HTTP server in the place of TorchServe. A test scripts its answer; it can be slow, cut and broken."""

import json
import os
import select
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "inference-key"
WAIT_SECONDS = 60
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """pieces: of the body; each is one chunk if `is_chunked`. None waits until the test sets `goes_on`.

    is_cut: the connection ends without the last chunk.
    """

    pieces: tuple[bytes | None, ...] = (b'{"object": "list"}',)
    status: int = 200
    content_type: str = JSON
    is_chunked: bool = False
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = b""


class Upstream(ThreadingHTTPServer):
    """`received` are the requests so far. `n_hung_up` counts the clients that disconnected during a wait."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()  # of the counters
        self.goes_on = threading.Event()
        self.reset()

    def reset(self) -> None:
        self.goes_on.set()  # ends the waits of the test before
        self.goes_on = threading.Event()
        self.answer = Answer()
        self.key = KEY  # the only one that is accepted
        self.worker_status = "READY"
        self.received: list[Received] = []
        self.n_waiting = 0
        self.n_hung_up = 0
        self.n_state_queries = 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits 40 ms behind the head
    server: Upstream

    def do_GET(self) -> None:
        if self.path.startswith("/models/"):
            self.server.n_state_queries += 1
            self._describe()
        else:
            self.do_POST()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.received.append(Received(self.command, self.path, dict(self.headers), body))
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            refusal = {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed"}
            self._send(Answer((json.dumps(refusal).encode(),), status=400))
            return
        self._send(self.server.answer)

    def _send(self, answer: Answer) -> None:
        if answer.is_chunked:
            has_begun = False
            for piece in answer.pieces:
                if piece is None:
                    if not self._wait():
                        self.close_connection = True
                        return
                    continue
                if not has_begun:  # TorchServe sends the status with the first piece
                    self._begin(answer, "Transfer-Encoding", "chunked")
                    has_begun = True
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if not answer.is_cut:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = answer.is_cut
            return
        if None in answer.pieces and not self._wait():
            self.close_connection = True
            return
        body = b"".join(piece for piece in answer.pieces if piece)
        self._begin(answer, "Content-Length", str(len(body) + answer.is_cut))
        self.wfile.write(body)
        self.close_connection = answer.is_cut

    def _begin(self, answer: Answer, name: str, value: str) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("x-request-id", "request-1")
        self.send_header(name, value)
        self.end_headers()

    def _wait(self) -> bool:
        """Waits for `goes_on`; returns False if the client disconnects meanwhile."""
        server, goes_on = self.server, self.server.goes_on
        with server.lock:
            server.n_waiting += 1
        for _ in range(int(WAIT_SECONDS / 0.02)):
            if goes_on.wait(0.01):
                return True
            if select.select([self.connection], [], [], 0.01)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                with server.lock:
                    server.n_hung_up += 1
                return False
        raise TimeoutError

    def _describe(self) -> None:
        worker = {"id": "9000", "pid": os.getpid(), "status": self.server.worker_status}
        model = {"modelName": "llamacpp", "modelVersion": "1.0", "modelUrl": "llamacpp.tar.gz", "workers": [worker]}
        settings = {"batchSize": 8, "maxBatchDelay": 0, "minWorkers": 1}
        self._send(Answer((json.dumps([model | settings]).encode(),)))

    def log_message(self, *_: object) -> None:
        pass
