"""Starts TorchServe, the model and both apps, prints the apps' addresses, and stops everything on Ctrl-C.

`make chat` runs this, and so does compose.yaml. A TorchServe or a model that is already there is used, and continues to
run at the end.
"""

import argparse
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from apps.shared.token_file import token_file
from llama_cpp_worker.sampling_params import SamplingParams
from torchserve_client.config import PROJECT, ServerConfig, TorchServeError, config_file
from torchserve_client.inference import InferenceClient
from torchserve_client.management import ManagementClient
from torchserve_client.process import start, stop
from torchserve_client.running_server import find_server
from torchserve_client.status import DEFAULT_SETTINGS
from torchserve_client.stop_signals import StopRequested, ignore_signals, raise_on_signals

APPS = {"Server": "torchserve_server_app.py", "Chat": "client_app.py"}
HOST = "127.0.0.1"  # the apps are asked here whether they answer, also if they listen at 0.0.0.0
FIRST_APP_PORT = 8501  # Streamlit's default; the next free port is used if it is taken
APP_START_SECONDS = 60.0
APP_ANSWER_SECONDS = 5.0
APP_STOP_SECONDS = 75.0  # a running experiment restores the settings first (experiments/background.py)
OWNER_ONLY = 0o600
TICK_SECONDS = 4.0  # a terminal that shows nothing new for 5 s looks dead


def main() -> int:
    """Runs until a signal arrives; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m apps", description=__doc__)
    parser.add_argument("--host", default=HOST, help="address that the apps listen at (default %(default)s)")
    parser.add_argument("--app", choices=APPS, help="start only this app beside TorchServe")
    chosen = parser.parse_args()
    scripts = {name: script for name, script in APPS.items() if chosen.app in (None, name)}
    raise_on_signals()
    try:
        with ExitStack() as running:
            config = ServerConfig.load()
            running.enter_context(running_torchserve(config))
            register_model(config)
            answer = request_answer(config)
            with still_working("Starting the apps …"):
                apps = {
                    name: running.enter_context(running_app(name, script, chosen.host))
                    for name, script in scripts.items()
                }
            print_now(f'The model answers: "{answer}"')
            for name, (url, _) in apps.items():
                print_now(f"{name + ' app:':12} {url}")
            print_now("Press Ctrl-C to stop everything.")
            wait_for_end({name: process for name, (_, process) in apps.items()})
    except StopRequested:
        pass
    except TorchServeError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print_now("Everything that was started here has been stopped.")
    return 0


@contextmanager
def running_torchserve(config: ServerConfig) -> Iterator[None]:
    """Stops TorchServe at the end only if it was started here."""
    if find_server(config):
        print_now("TorchServe is already running and will continue to run at the end.")
        start(config)  # waits until TorchServe responds
        yield
        return
    try:
        with still_working("Starting TorchServe …"):
            started = start(config)
        print_now(started)
        yield
    finally:
        ignore_signals()
        print_now("Stopping TorchServe …")
        stop(config)


def register_model(config: ServerConfig) -> None:
    """Loads the model unless it is registered."""
    management = ManagementClient(config)
    status = management.describe()
    if status is None:
        with still_working("Loading the model …"):
            management.register(DEFAULT_SETTINGS)
        status = management.describe()
    if status is not None:
        print_now(f"The model serves with {status.settings}.")


def request_answer(config: ServerConfig) -> str:
    """Returns a short answer of the model, to check that everything up to the model works."""
    params = SamplingParams(temperature=0, max_tokens=16)
    with still_working("Asking the model a first question …"):
        pieces = InferenceClient(config).chat([{"role": "user", "content": "Say hello in one sentence."}], params)
        return "".join(piece.text for piece in pieces).strip()


@contextmanager
def running_app(name: str, script: str, host: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Starts a Streamlit app on a free port; yields its address and process as soon as it answers."""
    port = _free_port()
    address_file = token_file(config_file().parent, port)
    address_file.unlink(missing_ok=True)  # of an app that was killed
    command = [sys.executable, "-m", "streamlit", "run", script]
    command += ["--server.headless=true", f"--server.address={host}", f"--server.port={port}"]
    logs = config_file().parent / "logs"
    logs.mkdir(mode=0o700, exist_ok=True)
    log = logs / f"{Path(script).stem}.log"
    log.touch(mode=OWNER_ONLY)
    log.chmod(OWNER_ONLY)  # of an older file; the app prints its token
    with log.open("wb") as output:
        # In its own session the app gets no Ctrl-C from the terminal: this process stops things in order.
        process = subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + APP_START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TorchServeError(f"The {name} app did not start: its reason is in {log}.")
            time.sleep(0.1)
        yield address_file.read_text().strip() if address_file.exists() else f"http://{HOST}:{port}", process
    finally:
        ignore_signals()
        print_now(f"Stopping the {name} app …")
        process.terminate()
        try:
            process.wait(APP_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_end(apps: dict[str, subprocess.Popen[bytes]]) -> None:
    """Raises TorchServeError when an app has ended. TorchServe may end and start: the server app controls it."""
    while True:
        for name, process in apps.items():
            if process.poll() is not None:
                raise TorchServeError(f"The {name} app has ended; its reason is in the folder logs.")
        time.sleep(0.5)


@contextmanager
def still_working(sentence: str) -> Iterator[None]:
    """Prints the sentence, and then every few seconds how long it takes."""
    print_now(sentence)
    is_over, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while not is_over.wait(TICK_SECONDS):
            print_now(f"{sentence} {time.monotonic() - began:.0f} s")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        is_over.set()
        ticker.join()


def print_now(sentence: str) -> None:
    print(sentence, flush=True)


def _answers(port: int) -> bool:
    """Whether the app answers requests, if only to ask for its token."""
    connection = http.client.HTTPConnection(HOST, port, timeout=APP_ANSWER_SECONDS)
    try:
        connection.request("GET", "/_stcore/health")
        return connection.getresponse().status in (200, 403)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    for port in range(FIRST_APP_PORT, FIRST_APP_PORT + 100):
        with socket.socket() as probe:
            # Streamlit sets this option, too. Without it a recently closed port seems to be taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise TorchServeError(f"No port from {FIRST_APP_PORT} to {FIRST_APP_PORT + 99} is free: end another program.")


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main())
