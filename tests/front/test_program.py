"""`python -m front` as a process: its options, its end, and that it prints neither prompts nor keys."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from front.__main__ import main
from tests.front.conftest import Front
from tests.front.upstream import KEY, SSE, Answer
from tests.support.serving import free_ports, wait_until
from torchserve_client.config import PROJECT
from torchserve_client.running_server import is_listening

PROMPT = "a prompt that nobody else may see"
STREAM = Answer((b"data: 1\n\n", None), content_type=SSE, is_chunked=True)


@contextmanager
def running_program(home: Path, port: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "front", "--port", str(port), *options],
        cwd=PROJECT,
        env=os.environ | {"TS_CONFIG_FILE": str(home / "config.properties")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: process.poll() is not None or is_listening("127.0.0.1", port))
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_of_the_front_cuts_open_answers_in_words_and_prints_no_prompt(
    front: Front, number: signal.Signals
) -> None:
    front.upstream.answer = STREAM
    (port,) = free_ports(1)
    with running_program(front.home, port) as process, httpx.Client(headers={"x-api-key": KEY}, timeout=60) as client:
        request = client.build_request("POST", f"http://127.0.0.1:{port}/v1/completions", json={"prompt": PROMPT})
        pieces = client.send(request, stream=True).iter_raw()
        assert next(pieces) == b"data: 1\n\n"
        process.send_signal(number)
        assert b"The answer was cut" in b"".join(pieces)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if number == signal.SIGINT else -number)
    assert printed.startswith(f"The front listens at http://127.0.0.1:{port}/v1.")
    assert not any(text in printed for text in (PROMPT, KEY, "Traceback"))
    wait_until(lambda: front.upstream.n_hung_up == 1, 10)


def test_the_options_name_further_hosts_and_origins(front: Front) -> None:
    (port,) = free_ports(1)
    origin = "https://app.example"
    with running_program(front.home, port, "--allow-host", "box.example", "--allow-origin", origin) as process:
        headers = {"x-api-key": KEY, "Host": "box.example", "Origin": origin}
        response = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers, timeout=60)
        assert process.poll() is None
    assert (response.status_code, response.headers["Access-Control-Allow-Origin"]) == (200, origin)


def test_the_front_listens_on_this_machine_only(front: Front) -> None:
    (port,) = free_ports(1)
    with running_program(front.home, port) as process:
        addresses = {each.laddr for each in psutil.Process(process.pid).net_connections("tcp")}
    assert addresses == {("127.0.0.1", port)}


@pytest.mark.parametrize("origin", ["*", "localhost:3000", "http://localhost:3000/", "http://*.example"])
def test_what_is_no_origin_is_refused(origin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--allow-origin", origin])
    assert "is no origin: write one like http://localhost:3000" in capsys.readouterr().err


def test_a_missing_configuration_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TS_CONFIG_FILE", "/nowhere/config.properties")
    assert main([]) == 1
    assert "restore it, or set TS_CONFIG_FILE" in capsys.readouterr().err


def test_a_port_in_use_ends_the_program_with_a_sentence(front: Front) -> None:
    with running_program(front.home, front.port) as process:
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    sentence = f"The front cannot listen at http://127.0.0.1:{front.port}: choose another --port or --host."
    assert printed.startswith(sentence), "it does not say before that it listens"
    assert "ddress already in use" in printed
