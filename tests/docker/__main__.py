"""Proves Dockerfile and compose.yaml without a container engine: builds the image in chroots, and runs its services.

    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm BASE
    python -m tests.docker BASE FOLDER

Needs root and the network. Debian's Python 3.11 stands for the base image's. Prints each step's seconds, and sizes.
A second run with the same FOLDER uses the image that is there.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.docker.containers import ADDRESS, Compose, Container, network
from tests.docker.image import Build
from torchserve_client.config import PROJECT

QUESTION = json.dumps({"messages": [{"role": "user", "content": "Say hello in one sentence."}], "max_tokens": 16})
APPS = {"server": 8501, "chat": 8502}
ASK = (
    "from apps.__main__ import request_answer; from torchserve_client.config import ServerConfig;"
    "print(request_answer(ServerConfig.load()))"
)
FRONT = f"http://{ADDRESS}:8000"


def pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.docker", description=__doc__)
    parser.add_argument("base", type=Path, help="a folder that debootstrap made")
    parser.add_argument("folder", type=Path, help="where image and volumes are made")
    parser.add_argument("--build-arg", action="append", default=[], type=pair, metavar="NAME=VALUE")
    parser.add_argument("--env", action="append", default=[], type=pair, metavar="NAME=VALUE", help="of each program")
    parser.add_argument("--bind", action="append", default=[], metavar="FOLDER", help="of this machine, to be used too")
    chosen = parser.parse_args()
    environment, binds = dict(chosen.env), tuple(chosen.bind)
    build = Build(PROJECT, chosen.base, chosen.folder / "image", dict(chosen.build_arg), environment, binds)
    image = build.run()
    sizes = {root: _megabytes(root) for root in (chosen.base, image.root, image.root / "opt/venv", image.root / "app")}
    print("\n".join(f"{size:6,} MB  {root}" for root, size in sizes.items()))
    volumes = chosen.folder / "volumes"
    volumes.mkdir(exist_ok=True)
    with network():
        prove(Compose(PROJECT / "compose.yaml", image, volumes), binds, environment)
    print("Everything is as it should be.")
    return 0


def prove(compose: Compose, binds: tuple[str, ...], environment: dict[str, str]) -> None:
    """Packages the demo model, starts all services, asks each one, and stops them. Raises AssertionError."""
    began = time.monotonic()
    package = compose.start("package", binds=binds, environment=environment)
    assert package.process.wait(600) == 0, package.log.read_text()
    say(began, f"package: {package.log.read_text().splitlines()[-2]}")
    running: dict[str, Container] = {}
    try:
        for name in ("server", "chat", "front"):
            began = time.monotonic()
            running[name] = compose.start(name, beside=running.get("server"))
            running[name].await_health()
            say(began, f"{name} is healthy")
        check_isolation(running["server"])
        for name, port in APPS.items():
            check_app(running[name], port)
        answer = running["chat"].run("python", "-c", ASK)  # as the chat asks TorchServe
        assert answer.stdout.strip(), answer.stderr
        say(began, f"TorchServe answers the chat's container: {answer.stdout.strip()!r}")
        check_front(running["server"])
        began = time.monotonic()
        statuses = {name: running.pop(name).stop() for name in ("front", "chat", "server")}
        say(began, f"stopped: {statuses}")
    finally:
        for container in running.values():
            os.kill(container.first, signal.SIGKILL)


def check_isolation(server: Container) -> None:
    """The user, its capabilities, what it may write, and which ports another machine reaches."""
    status = server.run("cat", "/proc/self/status").stdout
    assert re.search(r"^Uid:\t10001\t", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
    for folder in ("/app", "/opt/venv", "/etc", "/app/models", "/app/model_store"):
        assert server.run("touch", f"{folder}/new").returncode != 0, folder
    for port in (8080, 8081, 8082, 7070, 7071):
        try:
            requests.get(f"http://{ADDRESS}:{port}", timeout=5)
        except requests.ConnectionError:
            continue
        raise AssertionError(f"port {port} is open")


def check_app(container: Container, port: int) -> None:
    """Without the token that the container prints, the app shows nothing."""
    url, headers = f"http://{ADDRESS}:{port}/", {"Host": f"127.0.0.1:{port}"}
    assert "needs its token" in requests.get(url, headers=headers, timeout=30).text
    assert requests.get(url, headers={"Host": "evil.example"}, timeout=30).status_code == 403
    (token,) = set(re.findall(rf"http://localhost:{port}/\?token=(\S+)", container.log.read_text()))
    browser = requests.Session()
    welcome = browser.get(url, params={"token": token}, headers=headers, timeout=30)
    cookie = welcome.headers["Set-Cookie"].partition(";")[0]
    page = browser.get(url, headers={**headers, "Cookie": cookie}, timeout=30)
    assert page.status_code == 200
    assert "streamlit" in page.text.lower()


def check_front(server: Container) -> None:
    key = server.run("python", "-m", "torchserve_client.keys").stdout.strip()
    began = time.monotonic()
    url, host = f"{FRONT}/v1/chat/completions", {"Host": "127.0.0.1:8000"}
    assert requests.post(url, data=QUESTION, headers=host, timeout=60).status_code == 401
    answer = requests.post(url, data=QUESTION, headers={**host, "Authorization": f"Bearer {key}"}, timeout=60)
    text = answer.json()["choices"][0]["message"]["content"]
    assert text.strip(), answer.text
    say(began, f"the front answers: {text!r}")


def say(began: float, sentence: str) -> None:
    print(f"{time.monotonic() - began:6.1f} s  {sentence}", flush=True)


def _megabytes(folder: Path) -> int:
    counted = subprocess.run(["du", "-sxm", folder], capture_output=True, text=True, check=True)
    return int(counted.stdout.split()[0])


if __name__ == "__main__":
    sys.exit(main())
