"""A real TorchServe for tests: its folder, free ports, start and stop, and archives that need no model."""

import contextlib
import io
import json
import os
import random
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml

from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.config_copy import N_PORTS, write_config_copy
from torchserve_client.java import find_java
from torchserve_client.running_server import find_server, is_listening

T = TypeVar("T")


_given_ports: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, below the system's range for outgoing connections. No port is returned twice.

    Each of several pytest processes (`pytest -n 2`) has a range of its own.
    """
    size = 12_000 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = 20_000 + size * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(first, first + size)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                found.append(port)
    return found


def make_home(path: Path, **overrides: object) -> ServerConfig:
    """Writes the project's config.properties with free ports into `path`. `overrides` replace or add properties."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model_store").mkdir(exist_ok=True)
    return write_config_copy(PROJECT / "config.properties", path / "config.properties", free_ports(N_PORTS), overrides)


@contextlib.contextmanager
def running_server(config: ServerConfig) -> Iterator[ServerConfig]:
    """TorchServe, started as the apps do it. At the end it is killed: its own shutdown takes four seconds."""
    try:
        torchserve_process.start(config)
        yield config
    finally:
        if server := find_server(config):
            server.kill()
            server.wait(timeout=30)
        torchserve_process.stop(config)


def start_by_hand(config: ServerConfig, folder: Path | None = None) -> None:
    """Starts TorchServe on the command line, in `folder` or the config's folder, with TorchServe's own log settings."""
    environment = {name: value for name, value in os.environ.items() if name != "TS_CONFIG_FILE"}
    environment |= {"JAVA_HOME": str(find_java().home), "TMPDIR": str(config.home), "TEMP": str(config.home)}
    options = ["--ts-config", str(config.path), "--model-store", str(config.model_store)]
    subprocess.run(
        [Path(sys.executable).with_name("torchserve"), "--start", "--ncs", *options],
        cwd=folder or config.home,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    wait_until(lambda: all(is_listening(host, port) for _, host, port in config.ports), 60, "TorchServe answers")


def wait_until(condition: Callable[[], T], timeout: float = 30.0, what: str = "the condition") -> T:
    """Returns the first true value of `condition()`. Fails after `timeout` seconds; the message names `what`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
        time.sleep(0.05)
    return value


def write_echo_archives(config: ServerConfig, handler: str = "") -> Path:
    """Writes both archives, with `handler` or one that repeats the prompt; they need no model. Returns a file's path.

    While that file exists, a worker fails to load if its batch size is at least the number in the file.
    """
    refuse = config.home / "refuse_batch_size"
    for name, continuous in (("llamacpp.tar.gz", "true"), ("llamacpp-dynamic.tar.gz", "false")):
        files = {
            "MAR-INF/MANIFEST.json": json.dumps(_MANIFEST),
            "model-config.yaml": f"continuousBatching: {continuous}\n",
            "echo_handler.py": (handler or _ECHO_HANDLER).replace("REFUSE_FILE", str(refuse)),
            "torch.py": (PROJECT / "llama_cpp_worker" / "torch_stand_in.py").read_text(),
        }
        with tarfile.open(config.model_store / name, "w:gz") as archive:
            for path, text in files.items():
                entry = tarfile.TarInfo(f"llamacpp/{path}")
                entry.size = len(text.encode())
                archive.addfile(entry, io.BytesIO(text.encode()))
    return refuse


def write_store(source: Path, store: Path, **settings: object) -> Path:
    """Copies the archives of a model store into a new one, with these settings of the handler (model-config.yaml)."""
    store.mkdir(parents=True)
    for archive in source.glob("*.tar.gz"):
        with tarfile.open(archive) as packed, tarfile.open(store / archive.name, "w:gz") as made:
            for entry in packed.getmembers():
                file = packed.extractfile(entry)
                content = file.read() if file else b""
                if entry.name.endswith("model-config.yaml"):
                    config = yaml.safe_load(content)
                    config["handler"] |= settings
                    content = yaml.safe_dump(config).encode()
                    entry.size = len(content)
                made.addfile(entry, io.BytesIO(content) if file else None)
    return store


_MANIFEST = {
    "createdOn": "01/01/2025 00:00:00",
    "runtime": "python",
    "model": {
        "modelName": "llamacpp",
        "modelVersion": "1.0",
        "handler": "echo_handler.py",
        "configFile": "model-config.yaml",
    },
    "archiverVersion": "0.12.0",
}


_ECHO_HANDLER = """
import json
from pathlib import Path


class EchoHandler:
    def initialize(self, context):
        refuse = Path("REFUSE_FILE")
        batch_size = context.system_properties["batch_size"]
        if refuse.exists() and batch_size >= int(refuse.read_text()):
            raise ValueError(f"batch size {batch_size} does not fit in memory")

    def handle(self, requests, context):
        return [self.answer(request.get("body") or {}, context, i) for i, request in enumerate(requests)]

    def answer(self, body, context, i):
        headers = context.get_all_request_header(i)
        path = headers.get("url_path") or headers.get("X-Api-Path", "")
        if path.endswith("models"):
            context.set_response_content_type(i, "application/json")
            return json.dumps({"object": "list", "data": [{"id": "llamacpp"}]})
        if "prompt" not in body:
            context.set_response_status(400, "Bad Request", i)
            context.set_response_content_type(i, "application/json")
            error = {"message": "prompt is missing", "type": "invalid_request_error", "param": "prompt", "code": 400}
            return json.dumps({"error": error})
        events = [{"choices": [{"text": body["prompt"], "finish_reason": "stop"}]}, {"choices": [], "usage": {"n": 1}}]
        context.set_response_content_type(i, "text/event-stream")
        return "".join(f"data: {json.dumps(event)}\\n\\n" for event in events) + "data: [DONE]\\n\\n"
"""
