"""The chat for everybody: what axe-core finds, names, the keyboard, live regions, zoom and narrow pages."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.chat.chat_page import ENDED, READY, import_file, message, running_chat, wait_for_end, write_export
from tests.support.accessibility import SCHEMES, expect_no_violations, violations
from tests.support.accounts import STRANGER, running_relay
from tests.support.browser import open_page, send
from tests.support.scripted_server import Reply, Server

ANSWER = """# A title

It costs **$5** and $e^{i\\pi} = -1$, see [this](https://example.org).

| a | b |
|---|---|
| 1 | 2 |

```python
# a comment
class A(int):
    x = 12.5
    def f(self) -> str:  # another
        return f'{self.x}' + 'abc'
```

> a quote

- an item with `code`
"""
WIDE = "| " + " | ".join("a rather long head" for _ in range(9)) + " |\n" + "|---" * 9 + "|\n" + "| cell " * 9 + "|"

# What Streamlit 1.67 draws itself, and neither the theme, CSS, a label nor another widget changes.
DROP_ZONE = ("presentation-role-conflict", 'data-testid="stFileUploaderDropzone"')  # a role, but also a label

# All elements outside the page on the right, other than those in a box that scrolls by itself.
TOO_WIDE = "document.scrollingElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with running_chat(tmp_path_factory.mktemp("accessibility")) as chat:
        yield chat


@pytest.fixture
def server(app: tuple[Server, str]) -> Server:
    server, _ = app
    server.reset()
    return server


@pytest.fixture
def open_chat(browser: Browser, app: tuple[Server, str], server: Server) -> Iterator[Callable[..., Page]]:
    """Opens a tab on the chat with an answer, and closes it at the end."""
    pages: list[Page] = []

    def open_one(width: int = 1440, height: int = 900, settings: str = "") -> Page:
        pages.append(open_page(browser, f"{app[1]}/?{settings}", width, height))
        expect(pages[-1].get_by_test_id("stChatInputTextArea")).to_be_visible()
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()


def test_axe_finds_nothing_in_an_empty_chat_and_its_settings(open_chat: Callable[..., Page]) -> None:
    page = open_chat(height=2600)  # nothing is half below the page's end
    expect(page.get_by_text(READY)).to_be_visible()
    expect_no_violations(page)
    page.get_by_role("tab", name="Settings").click()
    page.get_by_text("More parameters").click()
    page.get_by_text("Server", exact=True).click()
    expect(page.get_by_role("textbox", name="base URL")).to_be_visible()
    expect_no_violations(page)


def test_axe_finds_nothing_in_a_conversation(open_chat: Callable[..., Page], server: Server, tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "a.json", [("Show all.", ANSWER)], title="Everything"))
    expect(message(page, 2).locator("table td").first).to_be_visible()
    expect_no_violations(page, DROP_ZONE)
    message(page, 1).get_by_role("button", name="Edit and send again").click()
    expect(page.get_by_label("Question")).to_be_visible()
    expect_no_violations(page, DROP_ZONE)

    page.get_by_role("tab", name="Settings").click()
    server.replies.extend((Reply("A word and more.", pauses=True), Reply(refusal="This is too much.")))
    send(page, "Go on.")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect_no_violations(page)
    server.goes_on.set()
    wait_for_end(page, 4)
    send(page, "And fail.")
    expect(page.get_by_text("This is too much.")).to_be_visible()
    expect_no_violations(page)


def test_axe_finds_nothing_in_several_answers(open_chat: Callable[..., Page]) -> None:
    page = open_chat(settings="answers=3")
    send(page, "Why?")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(3)
    expect_no_violations(page)


def test_axe_finds_nothing_without_a_server(open_chat: Callable[..., Page], server: Server) -> None:
    server.has_model = False
    page = open_chat()
    expect(page.get_by_text("No model is registered.")).to_be_visible()
    expect_no_violations(page)


def test_every_button_has_a_name_in_words(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat(settings="answers=2")
    send(page, "Why?")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(2)
    import_file(page, write_export(tmp_path / "a.json", [("Show all.", ANSWER)]))
    expect(message(page, 2).locator("table td").first).to_be_visible()
    icons_only = page.get_by_role("button", name=re.compile(r"^\s*(\w+ icon)?\s*$"))
    assert [button.evaluate("button => button.outerHTML") for button in icons_only.all()] == []


def test_names_of_sliders_still_come_twice(open_chat: Callable[..., Page]) -> None:
    """Streamlit 1.67 does it, and nothing outside changes it: if it is mended, correct docs/streamlit-facts.md."""
    page = open_chat()
    page.get_by_role("tab", name="Settings").click()
    expect(page.get_by_role("slider", name="temperature")).to_have_accessible_name("temperature temperature")


def test_the_keyboard_reaches_the_question_within_five_tabs(open_chat: Callable[..., Page]) -> None:
    page = open_chat()
    expect(page.get_by_text(READY)).to_be_visible()
    question = page.get_by_test_id("stChatInputTextArea")
    page.get_by_role("link", name="Skip to main content").press("Enter")  # Streamlit's, the first stop
    for _ in range(4):
        if question.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(question).to_be_focused()


def test_headings_are_no_stops_of_the_keyboard(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "a.json", [("Show all.", ANSWER)]))
    expect(message(page, 2).get_by_role("heading", name="A title")).to_be_visible()
    assert page.locator(":is(h1, h2, h3, h4, h5, h6) :is(a, button)").count() == 0


def test_a_change_of_the_servers_state_is_announced(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat()
    state = page.get_by_test_id("stSidebar").locator('[role="status"], [role="alert"]')
    expect(state.get_by_text(READY)).to_be_visible()
    server.has_model = False
    expect(state.get_by_text("No model is registered.")).to_be_visible()
    expect(state).to_have_count(1)


def test_a_phone_shows_the_chat_and_nothing_is_too_wide(
    open_chat: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    server.replies.append(Reply(WIDE))
    page = open_chat(390, 800)
    expect(page.get_by_text("How may I assist you today?")).to_be_in_viewport()
    expect(page.get_by_test_id("stSidebar")).not_to_be_in_viewport()
    send(page, "A table, please.")
    wait_for_end(page, 2)
    expect(message(page, 2).locator("table")).to_be_in_viewport()
    assert page.evaluate(TOO_WIDE) <= 0
    assert message(page, 2).locator(".table").evaluate("box => box.scrollWidth > box.clientWidth")


def test_at_200_percent_the_conversation_has_half_of_the_page(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat(720, 450)  # what a window of 1440 × 900 shows at 200 %
    send(page, "Hello")
    wait_for_end(page, 2)
    assert page.evaluate(TOO_WIDE) <= 0
    top = page.get_by_test_id("stHeader").bounding_box()
    bottom = page.get_by_test_id("stBottom").bounding_box()
    assert top and bottom
    assert bottom["y"] - (top["y"] + top["height"]) >= 225


def test_axe_finds_nothing_in_the_page_that_asks_for_the_token(browser: Browser, app: tuple[Server, str]) -> None:
    with running_relay(STRANGER, int(app[1].rpartition(":")[2])) as relay:
        page = open_page(browser, f"http://localhost:{relay}/?token=wrong")
        expect(page.get_by_role("alert")).to_be_visible()
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert violations(page) == [], scheme
        page.context.close()
