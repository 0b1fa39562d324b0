"""Texts of a model in a real browser: every character is read back from the page, and nothing is loaded.

HOSTILE_TEXTS is the number of generated texts (docs/CONTRIBUTING.md).
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from apps.chat.markdown_html import answer_blocks
from apps.shared.labels import WORD_JOINER
from tests.chat.chat_page import (
    ENDED,
    UPLOADER,
    import_file,
    message,
    messages,
    open_chat_page,
    running_chat,
    shown_text,
    wait_for_end,
    write_export,
)
from tests.support.browser import send
from tests.support.model_texts import model_texts
from tests.support.scripted_server import Reply, Server
from tests.support.visible_text import visible_text

N_TEXTS = int(os.environ.get("HOSTILE_TEXTS", "200"))
IN_A_CONVERSATION = 300
ANSWERS = 8  # at once
IN_AN_ANSWER = 5
IN_A_CHAT = 10  # questions; a page shows the newest 40 messages

HOSTILE = (
    "Here is the README:\n\n```markdown\n# Tool\n```python\nprint(1)\n```\n\n![logo](IMAGE)\n",
    "> ```\n![logo](IMAGE)\n",
    "Look:\n    ```\n![logo](IMAGE)\n",
    "``` `\n![logo](IMAGE)\n",
    "So \\( a$ ![logo](IMAGE) \\) holds.",
    "So \\[ a $$ ![logo](IMAGE) \\] holds.",
    "# One `\n![logo](IMAGE)\n# Two `\n",
    '![plain](IMAGE) ![by reference][r] [![in a link](IMAGE)](IMAGE) <img src="IMAGE">\n\n[r]: IMAGE',
)
# Answers that other chats, or Streamlit's Markdown, show wrongly: the text, and what is to be read.
REPORTED: dict[str, str] = {
    case["text"]: case["shown"]
    for case in json.loads(Path(__file__).with_name("reported_texts.json").read_text(encoding="utf-8"))
}
# What a person types, or a file or a server says. Streamlit's own Markdown would change each of them.
WORDS = (
    "![x](IMAGE) and <img src=IMAGE>",
    ":material/delete: and :smile: and :streamlit:",
    "a -> b <- c -- d >= e, ~~gone~~ or ~5~",
    "$x$ costs $5, **b** `c` :red[d] :red-badge[e]",
    "[click](javascript:alert(1)) <script>alert(2)</script> IMAGE",
)
ACTIVE = ":is(img, script, style, iframe, form, input, object, embed, video, svg image)"

# What a person reads in all answers and questions. The list of languages is in the bar of each block of code.
READ = """elements => elements.map(text => {
  const copy = text.cloneNode(true);
  copy.querySelectorAll('[data-ui]').forEach(bar => bar.remove());
  copy.querySelectorAll('math').forEach(math => math.replaceWith(math.querySelector('annotation').textContent));
  return copy.textContent;
})"""


@dataclass(frozen=True, slots=True)
class Site:
    """Another site's picture, and the requests that came for it."""

    image: str
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with running_chat(tmp_path_factory.mktemp("hostile")) as chat:
        yield chat


@pytest.fixture
def open_chat(browser: Browser, app: tuple[Server, str]) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def open_one(settings: str = "") -> Page:
        app[0].reset()
        pages.append(open_chat_page(browser, app[1], settings))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()


@pytest.fixture
def site() -> Iterator[Site]:
    requests: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Site(f"http://127.0.0.1:{server.server_port}/p.png?q=secret", requests)
        server.shutdown()


def parts(texts: Sequence[str], length: int) -> list[list[str]]:
    return [list(texts[start : start + length]) for start in range(0, len(texts), length)]


def texts_for(site: Site, seed: int) -> list[str]:
    known = [text.replace("IMAGE", site.image) for text in HOSTILE]
    return known + list(model_texts(N_TEXTS - len(known), site.image, seed))


def without_marks(text: str) -> str:
    """What is to be read. test_markdown_html.py compares it with another parser and with the words of the text."""
    return visible_text("".join(block.html for block in answer_blocks(text)))


def without_spaces(text: str) -> str:
    return "".join(text.split())


def read(page: Page, role: str, number: int | None = None) -> list[str]:
    place = page.locator("body") if number is None else message(page, number)
    found: list[str] = place.locator(f".chat-message.{role} .text").evaluate_all(READ)
    return found


def show_all(page: Page, count: int) -> None:
    """Waits for `count` messages beside the greeting."""
    shown = 40
    while shown < count:
        expect(messages(page)).to_have_count(shown + 1)
        page.get_by_role("button", name="Show earlier").click()
        shown *= 2
    expect(messages(page)).to_have_count(count + 1)


def wait_for_all(page: Page, number: int) -> None:
    """Until all simultaneous answers are complete: the end of one is shown just before its last characters."""
    expect(message(page, number).get_by_text(ENDED)).to_have_count(ANSWERS)
    expect(page.locator('.chat-message[aria-busy="true"]')).to_have_count(0)


def test_hostile_texts_are_shown_and_load_nothing(open_chat: Callable[..., Page], tmp_path: Path, site: Site) -> None:
    page = open_chat()
    for texts in parts(texts_for(site, seed=5), IN_A_CONVERSATION):
        turns = [(text, text) for text in texts]
        import_file(page, write_export(tmp_path / "hostile.json", turns, title=texts[0]))
        expect(messages(page).last).to_contain_text("ended by itself")
        show_all(page, 2 * len(texts))
        drawn = page.locator(".chat-message.answer .text > :first-child")
        expect(drawn).to_have_count(sum(bool(answer_blocks(text)) for text in texts))
        expect(page.locator(".chat-message.question .text")).to_have_count(len(texts))
        assert read(page, "question") == texts
        for text, shown in zip(texts, read(page, "answer"), strict=True):
            assert without_spaces(shown) == without_spaces(without_marks(text)), text
        assert page.locator(f".chat-message {ACTIVE}").count() == 0
        page.get_by_role("button", name="New chat").click()
        expect(messages(page)).to_have_count(1)
    assert site.requests == []


def test_hostile_texts_load_nothing_while_they_are_written(
    open_chat: Callable[..., Page], app: tuple[Server, str], site: Site
) -> None:
    page = open_chat(f"answers={ANSWERS}")
    written = ["\n\n".join(texts) for texts in parts(texts_for(site, seed=6), IN_AN_ANSWER)]
    for question, answers in enumerate(parts(written, ANSWERS)):
        if question and question % IN_A_CHAT == 0:
            page.get_by_role("button", name="New chat").click()
            expect(messages(page)).to_have_count(1)
        answers += ["The end."] * (ANSWERS - len(answers))
        app[0].replies.extend(Reply(answer) for answer in answers)
        send(page, f"Go on {question}.")
        group = 2 * (question % IN_A_CHAT) + 2
        wait_for_all(page, group)
        expected = {without_spaces(without_marks(answer)) for answer in answers}
        shown = set(map(without_spaces, read(page, "answer", group)))
        assert shown == expected, (shown - expected, expected - shown)
        assert page.locator(f".chat-message {ACTIVE}").count() == 0
    assert site.requests == []


def test_reported_texts_are_shown_rightly_when_imported_and_while_they_are_written(
    open_chat: Callable[..., Page], app: tuple[Server, str], tmp_path: Path
) -> None:
    page = open_chat(f"answers={len(REPORTED)}")
    import_file(page, write_export(tmp_path / "reported.json", [("Go on.", text) for text in REPORTED]))
    last = 2 * len(REPORTED)
    wait_for_end(page, last)
    for number, shown in enumerate(REPORTED.values()):
        (answer,) = read(page, "answer", 2 * number + 2)
        assert without_spaces(answer) == without_spaces(shown)
    answers = page.locator(".chat-message.answer")
    expect(answers.locator("del")).to_have_text(["this"])
    expect(answers.locator("math")).to_have_count(4)
    expect(answers.locator("pre")).to_have_count(3)
    expect(answers.locator("a")).to_have_count(1)
    expect(answers.locator("a")).to_have_attribute("href", "https://example.org")
    directions = "elements => elements.map(element => getComputedStyle(element).direction)"
    blocks = message(page, last).locator(":is(p, li, p code)")
    assert blocks.evaluate_all(directions) == ["rtl", "ltr", "rtl", "rtl", "rtl", "ltr", "rtl"]

    app[0].replies.extend(Reply(text) for text in REPORTED)
    page.get_by_role("tab", name="Settings").click()
    slider = page.get_by_role("slider", name="simultaneous answers")
    slider.press("End")
    expect(slider).to_have_value(str(len(REPORTED)))
    send(page, "All of them.")
    wait_for_all(page, last + 2)
    written = sorted(map(without_spaces, read(page, "answer", last + 2)))
    assert written == sorted(map(without_spaces, REPORTED.values()))


def named(words: str, content: bytes) -> FilePayload:
    return {"name": f"{words}.json", "mimeType": "application/json", "buffer": content}


def test_titles_prompts_files_and_errors_are_only_text(
    open_chat: Callable[..., Page], app: tuple[Server, str], site: Site, tmp_path: Path
) -> None:
    page = open_chat()
    sidebar = page.get_by_test_id("stSidebar")
    all_words = [words.replace("IMAGE", site.image) for words in WORDS]
    for number, words in enumerate(all_words):
        export = write_export(tmp_path / "a.json", [(words, "Yes.")], title=words)
        if number == 0:
            import_file(page, export)
        else:
            page.get_by_test_id(UPLOADER).set_input_files(named(words, export.read_bytes()))
        expect(shown_text(page, 1)).to_have_text(words)
    buttons = page.locator('[class*="st-key-open_"] button').all()
    titles = [button.inner_text().replace(WORD_JOINER, "").rstrip("…") for button in buttons]
    for words in all_words:
        assert any(words.startswith(title) for title in titles), (words, titles)

    page.get_by_test_id(UPLOADER).set_input_files(named(all_words[0], all_words[0].encode()))
    expect(sidebar.get_by_text("The file ")).to_be_visible()
    for number, words in enumerate(all_words):
        app[0].replies.append(Reply(refusal=words))
        send(page, words)
        expect(page.locator(".chat-message .problem:visible").nth(number)).to_contain_text(words)
    assert read(page, "question") == [all_words[-1], *all_words]
    assert page.locator(f".chat-message {ACTIVE}").count() == 0
    assert sidebar.locator(":is(img, script, a)").count() == 0
    assert site.requests == []
