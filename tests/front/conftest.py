"""The front with the settings of `python -m front`, in a thread, before a scripted upstream."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from front.app import make_app
from front.server import listen, make_server
from front.torchserve import TorchServe
from tests.front.upstream import KEY, Upstream
from tests.support.scripted_server import write_keys
from tests.support.serving import free_ports, wait_until
from torchserve_client.config import ServerConfig

ORIGIN = "http://localhost:3000"
MAX_BODY = 1000
TIMEOUT = 60


@dataclass(frozen=True)
class Front:
    upstream: Upstream
    home: Path
    port: int
    client: httpx.Client  # sends the right key

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def running_front(config: ServerConfig) -> Iterator[int]:
    """Yields the port."""
    (port,) = free_ports(1)
    app = make_app(TorchServe(config), ("127.0.0.1", "localhost"), (ORIGIN,))
    server = make_server(app)
    thread = threading.Thread(target=server.run, args=([listen("127.0.0.1", port)],))
    thread.start()
    try:
        wait_until(lambda: server.started, what="the front listens")
        yield port
    finally:
        server.should_exit = True
        thread.join(TIMEOUT)
    assert not thread.is_alive(), "the front did not stop"


@pytest.fixture(scope="module")
def shared_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    home = tmp_path_factory.mktemp("home")
    with Upstream() as upstream:
        thread = threading.Thread(target=upstream.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address = f"http://127.0.0.1:{upstream.server_port}"
        file = home / "config.properties"
        file.write_text(f"inference_address={address}\nmanagement_address={address}\nmax_request_size={MAX_BODY}\n")
        write_keys(home / "key_file.json", KEY)
        headers = {"Authorization": f"Bearer {KEY}"}
        with (
            running_front(ServerConfig.load(file)) as port,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=TIMEOUT) as client,
        ):
            yield Front(upstream, home, port, client)
        upstream.goes_on.set()
        upstream.shutdown()
        thread.join()


@pytest.fixture
def front(shared_front: Front) -> Front:
    shared_front.upstream.reset()
    write_keys(shared_front.home / "key_file.json", KEY)
    return shared_front
