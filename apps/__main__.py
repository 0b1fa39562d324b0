"""Starts everything, says where it is, and stops on Ctrl-C what it has started. `make chat` runs this.

TorchServe and a model that are already there are used as they are, and are left running at the end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import ServerConfig, TorchServeError
from torchserve_client.inference import InferenceClient
from torchserve_client.management import DEFAULT_SETTINGS, ManagementClient
from torchserve_client.process import find_server, start, stop

PROJECT = Path(__file__).resolve().parent.parent
APPS = {"Server": "torchserve_server_app.py", "Chat": "client_app.py"}
FIRST_APP_PORT = 8501  # Streamlit's own default; the next free ports are taken
APP_START_SECONDS = 60.0
APP_STOP_SECONDS = 75.0  # an experiment under way puts the settings back first (experiments/background.py)


class StopWanted(BaseException):
    """Ctrl-C, or the system asks us to end. Like KeyboardInterrupt, no `except Exception` may hold it up."""


def main() -> int:
    """Runs until it is interrupted; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _want_stop)
    try:
        with ExitStack() as running:
            config = ServerConfig.load()
            running.enter_context(torchserve(config))
            register(config)
            answer = ask(config)
            urls = {name: running.enter_context(app(name, script)) for name, script in APPS.items()}
            say(f'The model answers: "{answer}"')
            for name, (url, _) in urls.items():
                say(f"{name + ' app:':12} {url}")
            say("Press Ctrl-C to stop everything.")
            watch({name: process for name, (_, process) in urls.items()})
    except StopWanted:
        pass
    except TorchServeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    say("Everything that was started here has been stopped.")
    return 0


@contextmanager
def torchserve(config: ServerConfig) -> Iterator[None]:
    """TorchServe, running; stopped at the end if it was started here."""
    if find_server(config):
        say("TorchServe is already running; it will be left running.")
        start(config)  # and returns when it answers
        yield
        return
    say("Starting TorchServe …")
    try:
        say(start(config))
        yield
    finally:
        _ignore_further_signals()
        say("Stopping TorchServe …")
        stop(config)


def register(config: ServerConfig) -> None:
    """Loads the model unless it is there already."""
    management = ManagementClient(config)
    status = management.describe()
    if status is None:
        say("Loading the model …")
        management.register(DEFAULT_SETTINGS)
        status = management.describe()
    if status is not None:
        say(f"The model serves with {status.settings}.")


def ask(config: ServerConfig) -> str:
    """A short answer to a real question: proof that everything between us and the model works."""
    params = SamplingParams(temperature=0, max_tokens=16)
    pieces = InferenceClient(config).chat([{"role": "user", "content": "Say hello in one sentence."}], params)
    return "".join(piece.text for piece in pieces).strip()


@contextmanager
def app(name: str, script: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Streamlit app on a free port; yields its URL and process once it answers."""
    port = _free_port()
    command = [sys.executable, "-m", "streamlit", "run", script]
    command += ["--server.headless=true", "--server.address=127.0.0.1", f"--server.port={port}"]
    logs = PROJECT / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{Path(script).stem}.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C must reach only us, who stop things in order.
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + APP_START_SECONDS
        while not _answers(f"{url}/_stcore/health"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TorchServeError(f"The {name} app did not start: its reason is in {log}.")
            time.sleep(0.1)
        yield url, process
    finally:
        _ignore_further_signals()
        say(f"Stopping the {name} app …")
        process.terminate()
        try:
            process.wait(APP_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def watch(apps: dict[str, subprocess.Popen[bytes]]) -> None:
    """Waits; raises TorchServeError when an app ends by itself. TorchServe may come and go: its app can start it."""
    while True:
        for name, process in apps.items():
            if process.poll() is not None:
                raise TorchServeError(f"The {name} app has ended; its reason is in the folder logs.")
        time.sleep(0.5)


def say(sentence: str) -> None:
    print(sentence, flush=True)


def _want_stop(number: int, frame: FrameType | None) -> None:
    raise StopWanted


def _ignore_further_signals() -> None:
    """A second Ctrl-C while things are being stopped would leave some of them behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _free_port() -> int:
    for port in range(FIRST_APP_PORT, FIRST_APP_PORT + 100):
        with socket.socket() as probe:
            # As Streamlit binds: without it, a port that was used a minute ago would count as taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise TorchServeError(f"No port from {FIRST_APP_PORT} on is free: end some program.")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main())
