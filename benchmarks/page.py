"""Measures how soon the chat's page shows the text that has left the server, in a real browser.

    python -m benchmarks.page

A relay between the app and the real TorchServe notes when each text passes. The page notes when a text is longer and
its frame is drawn. Both use the clock of this machine. Prints milliseconds: the first character after the first token,
and the last character after the last token.
"""

import re
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, expect

from benchmarks import argument_parser
from tests.support.browser import open_page, running_app, running_browser, send
from tests.support.serving import free_ports, make_home, running_server
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import DEFAULT_SETTINGS

QUESTION = "Write a long story about a llama who walks through the mountains."
QUESTIONS = 3  # in each conversation: the first one also has to draw its page
TEXT = re.compile(rb'"(?:content|text)": "((?:[^"\\]|\\.)+)"')
# The page itself waits for the end: polling from outside would disturb the measurement.
WATCH = """number => {
  window.grown = [];
  window.ended = new Promise(resolve => {
    const record = () => {
      const answer = document.querySelectorAll('[data-testid="stChatMessage"]')[2 * number];
      const length = answer?.querySelector('.chat-message .text')?.textContent.length ?? 0;
      if (length > (window.grown.at(-1)?.[1] ?? 0)) window.grown.push([Date.now(), length]);
      if (/ended by itself|length limit reached/.test(answer?.textContent ?? '')) {
        observer.disconnect();
        resolve();
      }
    };
    const observer = new MutationObserver(() => requestAnimationFrame(record));
    observer.observe(document.body, {childList: true, subtree: true, characterData: true});
  });
}"""


@dataclass
class Relay:
    """Forwards bytes to the server and back. passed: when text came back, in milliseconds since 1970."""

    target: tuple[str, int]
    passed: list[float] = field(default_factory=list)

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(source, sink, is_answer), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        tail = b""  # a text may arrive in two parts
        try:
            while data := source.recv(65536):
                came_at = 1000 * time.time()
                sink.sendall(data)
                if is_answer and TEXT.search(tail + data):
                    self.passed.append(came_at)
                    tail = b""
                else:
                    tail = data[-200:]
        except OSError:
            pass  # one side has closed its connection; the other one is closed below
        finally:
            for end in (source, sink):
                end.close()


@contextmanager
def relayed(config: ServerConfig) -> Iterator[tuple[ServerConfig, Relay]]:
    """A config of the same server behind a relay."""
    parts = urlsplit(config.inference_url)
    relay = Relay((str(parts.hostname), int(parts.port or 80)))
    (port,) = free_ports(1)
    file = config.home / "relayed.properties"
    file.write_text(config.path.read_text().replace(config.inference_url, f"http://127.0.0.1:{port}"))
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=relay.serve, args=(listener,), daemon=True).start()
        yield ServerConfig.load(file), relay


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds from the relay to the drawn frame."""

    first: float
    last: float


def measure(page: Page, relay: Relay, number: int) -> Lag:
    """Sends question `number` of a conversation; the first one is 1."""
    page.evaluate(WATCH, number)
    relay.passed.clear()
    send(page, QUESTION)
    page.evaluate("window.ended")
    grown = page.evaluate("window.grown")
    return Lag(grown[0][0] - relay.passed[0], grown[-1][0] - relay.passed[-1])


def converse(browser: Browser, url: str, relay: Relay, questions: int, max_tokens: int) -> list[Lag]:
    """Opens a tab with a new conversation and sends `questions` questions."""
    page = open_page(browser, f"{url}/?max_tokens={max_tokens}&temperature=0.01")
    expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible()
    lags = [measure(page, relay, number) for number in range(1, questions + 1)]
    page.context.close()
    return lags


def run(store: Path, rounds: int, max_tokens: int) -> list[Lag]:
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        config = make_home(Path(folder), model_store=store)
        with running_server(config), relayed(config) as (relayed_config, relay):
            ManagementClient(config).register(DEFAULT_SETTINGS)
            with running_app("client_app.py", relayed_config, config.home / "client.log") as url:
                converse(browser, url, relay, questions=1, max_tokens=8)  # warm-up
                conversations = [converse(browser, url, relay, QUESTIONS, max_tokens) for _ in range(rounds)]
                return [lag for lags in conversations for lag in lags]


def main() -> None:
    parser = argument_parser("page", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=500)
    parser.add_argument("--model-store", type=Path, default=PROJECT / "model_store")
    given = parser.parse_args()
    lags = run(given.model_store, given.rounds, given.max_tokens)
    for name in ("first", "last"):
        values = sorted(getattr(lag, name) for lag in lags)
        print(f"{name} character: p50 {statistics.median(values):.0f} ms, {values[0]:.0f} to {values[-1]:.0f} ms")


if __name__ == "__main__":
    main()
