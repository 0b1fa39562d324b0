"""The chat's page in a real browser: its messages, buttons and files, for the browser tests."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import open_page, running_app
from tests.support.scripted_server import Server, running_scripted_server
from tests.support.serving import wait_until

ANSWER_MS = 120_000  # an answer on a busy machine
ENDED = re.compile("ended by itself|length limit reached|context window full")
READY = "Proceed to entering your prompt message!"
GREEDY = "temperature=0.01"
TEXT = ".chat-message .text"


@contextmanager
def running_chat(home: Path) -> Iterator[tuple[Server, str]]:
    """The chat app before a scripted server, and its address."""
    with (
        running_scripted_server(home) as (server, config),
        running_app("client_app.py", config, home / "client.log") as address,
    ):
        yield server, address


def open_chat_page(browser: Browser, url: str, settings: str = GREEDY) -> Page:
    page = open_page(browser, f"{url}/?{settings}")
    expect(page.get_by_text(READY)).to_be_visible(timeout=ANSWER_MS)
    return page


def messages(page: Page) -> Locator:
    """All bubbles: 0 is the greeting, 1 the first question, 2 its answer."""
    return page.get_by_test_id("stChatMessage")


def message(page: Page, number: int) -> Locator:
    return messages(page).nth(number)


def shown_text(page: Page, number: int) -> Locator:
    """The text of a bubble. One that was in its place may still be there, hidden (docs/streamlit-facts.md, 6)."""
    return message(page, number).locator(TEXT).filter(visible=True)


def text_of(page: Page, number: int) -> str:
    return shown_text(page, number).first.inner_text()


def wait_for_end(page: Page, number: int) -> str:
    expect(message(page, number).get_by_text(ENDED).filter(visible=True)).to_be_visible(timeout=ANSWER_MS)
    return text_of(page, number)


def wait_for_text(page: Page, number: int, length: int = 20) -> None:
    wait_until(lambda: messages(page).count() > number, what=f"bubble {number}")
    wait_until(lambda: len(text_of(page, number)) > length, what="text of the answer", timeout=ANSWER_MS / 1000)


def press(page: Page, number: int, name: str) -> None:
    """Presses a button of a bubble."""
    message(page, number).get_by_role("button", name=name, exact=True).click()


def press_in_menu(page: Page, name: str) -> None:
    """Presses an entry of the open conversation's menu."""
    page.locator("[class*=st-key-more_] button").first.click()
    page.get_by_test_id("stPopoverBody").get_by_role("button", name=name, exact=True).click()


UPLOADER = "stFileUploaderDropzoneInput"  # of the sidebar; the composer has another one for files


def write_export(path: Path, turns: list[tuple[str, str]], title: str = "Imported") -> Path:
    """An exported conversation of these questions and answers."""
    common: dict[str, Any] = {"problem": "", "figures": {}, "is_raw": False, "is_left_out": False, "together": None}
    entries: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        for role, text, ended in (("user", question, "sent"), ("assistant", answer, "stop")):
            id = len(entries) + 1
            entry = {"id": id, "parent_id": id - 1 or None, "role": role, "text": text, "ended": ended}
            entries.append({**common, **entry, "created_at": float(number)})
    conversation = {"title": title, "settings": {}, "leaf_id": len(entries), "created_at": 1.0, "updated_at": 2.0}
    conversations = [conversation | {"messages": entries}]
    path.write_text(json.dumps({"format": "llama-2-chatbot", "version": 1, "conversations": conversations}))
    return path


def import_file(page: Page, path: Path) -> None:
    """Waits for the list without a file: the uploader is drawn anew after each import."""
    page.get_by_role("tab", name="Conversations").click()
    if not page.get_by_test_id(UPLOADER).is_visible():
        page.get_by_text("Import and export").click()
    page.get_by_test_id(UPLOADER).set_input_files(path)


def attach(page: Page, file: Path) -> None:
    """Puts a file into the chat input, to go with the next question. While it is uploaded, nothing can be sent."""
    with page.expect_response(lambda response: "/upload_file/" in response.url and response.request.method == "PUT"):
        page.get_by_test_id("stChatInput").locator("input[type=file]").set_input_files(file)
    expect(page.get_by_test_id("stChatInput").get_by_text(file.name)).to_be_visible()
    expect(page.get_by_test_id("stChatInputSubmitButton")).to_be_enabled()
