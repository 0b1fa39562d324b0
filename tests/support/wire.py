"""HTTP requests for the end-to-end tests. They do not use torchserve_client, which has separate tests."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import requests

from torchserve_client.config import ServerConfig
from torchserve_client.running_server import key_file

MODEL_PATH = "/predictions/llamacpp"
CHAT_PATH = f"{MODEL_PATH}/1.0/v1/chat/completions"
TIMEOUT = 300


def headers(config: ServerConfig) -> dict[str, str]:
    key = json.loads(key_file(config).read_text())["inference"]["key"]
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def post(config: ServerConfig, body: object, path: str = MODEL_PATH) -> requests.Response:
    payload = body if isinstance(body, bytes) else json.dumps(body)
    return requests.post(config.inference_url + path, data=payload, headers=headers(config), timeout=TIMEOUT)


def chat_body(question: str, **params: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], **params}


@dataclass
class Stream:
    """A streamed chat answer. A thread reads it until it ends or `hang_up` is called."""

    config: ServerConfig
    body: dict[str, Any]
    text: str = ""
    finish_reason: str | None = None
    timings: dict[str, Any] | None = None
    is_done: bool = False  # data: [DONE] has come
    failure: str | None = None
    first_at: float | None = None
    ended_at: float | None = None
    has_begun: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Self:
        self._response: requests.Response | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        try:
            self._response = requests.post(
                self.config.inference_url + CHAT_PATH,
                json={**self.body, "stream": True},
                headers=headers(self.config),
                stream=True,
                timeout=TIMEOUT,
            )
            assert self._response.status_code == 200, self._response.text
            for line in self._response.iter_lines(chunk_size=1):
                self._take(line.decode())
        except (requests.RequestException, AssertionError, AttributeError) as error:
            self.failure = repr(error)  # AttributeError: urllib3, when the connection was closed under it
        finally:
            self.ended_at = time.monotonic()
            self.has_begun.set()

    def _take(self, line: str) -> None:
        if line == "data: [DONE]":
            self.is_done = True
        elif line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            for choice in event.get("choices", []):
                if piece := choice["delta"].get("content"):
                    self.first_at = self.first_at or time.monotonic()
                    self.text += piece
                    self.has_begun.set()
                self.finish_reason = choice["finish_reason"] or self.finish_reason
            self.timings = event.get("timings", self.timings)

    def wait_for_text(self) -> Self:
        assert self.has_begun.wait(TIMEOUT), "no text came"
        assert self.text, self.failure
        return self

    def finish(self) -> Self:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), "the stream did not end"
        return self

    def hang_up(self) -> None:
        """Closes the connection, like a client that goes away."""
        assert self._response is not None
        connection = self._response.raw.connection
        connection.sock.shutdown(2)
        self.finish()


def stream_at_once(config: ServerConfig, bodies: list[dict[str, Any]]) -> list[Stream]:
    """Starts all at once and returns them when all have ended."""
    streams = [Stream(config, body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda stream: stream.start().finish(), streams))


def engine_metrics(config: ServerConfig) -> dict[str, float]:
    """The engine's metrics from TorchServe's metrics endpoint, summed over the workers."""
    text = requests.get(f"{config.metrics_url}/metrics", headers=headers(config), timeout=TIMEOUT).text
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(llamacpp_\w+)\{.*\} (\S+)$", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums
