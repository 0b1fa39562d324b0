"""What `streamlit run` gives a person, as README.md says it: a browser that opens by itself, and hot reload."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.chat.chat_page import READY
from tests.support.browser import PAGE_SECONDS, open_page
from tests.support.scripted_server import running_scripted_server
from tests.support.serving import free_ports, wait_until
from torchserve_client.config import PROJECT, ServerConfig

OPENERS = ("xdg-open", "open")  # how Streamlit opens a browser on Linux and macOS
COPIED = (".streamlit", "apps", "cluster", "experiments", "llama_cpp_worker", "torchserve_client", "client_app.py")


@contextmanager
def streamlit_run(project: Path, config: ServerConfig, folder: Path, *options: str) -> Iterator[Path]:
    """`streamlit run client_app.py` on a screen. Yields the file that gets the address which a browser would open."""
    opened, programs = folder / "opened", folder / "programs"
    programs.mkdir()
    for name in OPENERS:
        (programs / name).write_text(f'#!/bin/sh\necho "$@" > "{opened}"\n')
        (programs / name).chmod(0o755)
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "streamlit", "run", "client_app.py", f"--server.port={port}", *options]
    environment = os.environ | {
        "TS_CONFIG_FILE": str(config.path),
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "DISPLAY": ":0",
        "HOME": str(folder),
        "STREAMLIT_SERVER_SHOW_EMAIL_PROMPT": "false",
    }
    log = folder / "app.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield opened
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(timeout=PAGE_SECONDS)


def test_browser_that_opens_by_itself_has_a_working_page_and_no_token(browser: Browser, tmp_path: Path) -> None:
    with running_scripted_server(tmp_path) as (_, config), streamlit_run(PROJECT, config, tmp_path) as opened:
        wait_until(lambda: opened.is_file() and opened.read_text().endswith("\n"), what="a browser that is opened")
        address = opened.read_text().strip()
        assert address.startswith("http://127.0.0.1:")
        assert "token" not in address, "every account can read the arguments of a program"
        page = open_page(browser, address)
        expect(page.get_by_text(READY)).to_be_visible()
        page.context.close()


def test_page_is_drawn_anew_when_its_file_is_saved(browser: Browser, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for name in COPIED:
        if (PROJECT / name).is_file():
            shutil.copy(PROJECT / name, project)
        else:
            shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    script = project / "apps" / "chat" / "page.py"
    options = ("--server.fileWatcherType=poll", "--server.runOnSave=true")
    with running_scripted_server(tmp_path) as (_, config), streamlit_run(project, config, tmp_path, *options) as opened:
        wait_until(lambda: opened.is_file() and opened.read_text().endswith("\n"), what="a browser that is opened")
        page = open_page(browser, opened.read_text().strip())
        expect(page.get_by_text("How may I assist you today?")).to_be_visible()
        script.write_text(script.read_text().replace("How may I assist you today?", "What shall it be?"))
        expect(page.get_by_text("What shall it be?")).to_be_visible()
        page.context.close()
