"""The chat's page in a real browser against a scripted server: tabs, reload, stop, branches, safe text."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.chat.chat_page import (
    ENDED,
    TEXT,
    import_file,
    message,
    messages,
    open_chat_page,
    press_icon,
    text_of,
    wait_for_end,
    wait_for_text,
    write_export,
)
from tests.support.browser import open_page, running_app, running_browser, send
from tests.support.scripted_server import Reply, Server, running_scripted_server
from tests.support.serving import wait_until


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    home = tmp_path_factory.mktemp("page")
    with (
        running_scripted_server(home) as (server, config),
        running_app("client_app.py", config, home / "client.log") as address,
    ):
        yield server, address


@pytest.fixture
def server(app: tuple[Server, str]) -> Server:
    """The scripted server of all tests here, as if it had just started."""
    server, _ = app
    server.reset()
    return server


@pytest.fixture
def open_chat(browser: Browser, app: tuple[Server, str], server: Server) -> Iterator[Callable[..., Page]]:
    """Opens tabs on the chat, and closes them at the end."""
    pages: list[Page] = []

    def open_one(settings: str = "") -> Page:
        pages.append(open_chat_page(browser, app[1], settings))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()


def test_conversation_has_a_title_and_an_address_for_other_tabs(
    open_chat: Callable[..., Page], browser: Browser
) -> None:
    page = open_chat("max_tokens=16")
    send(page, "What is the capital of Peru?")
    answer = wait_for_end(page, 2)
    assert "conversation=" in page.url

    other = open_page(browser, re.sub("&?max_tokens=[^&]*", "", page.url))
    assert wait_for_end(other, 2) == answer
    expect(other.get_by_role("slider", name="max_tokens")).to_have_value("16")
    other.get_by_role("tab", name="Conversations").click()
    expect(other.get_by_role("button", name="What is the capital of Peru?")).to_be_visible()
    other.context.close()


def test_deletion_can_be_undone_and_search_finds_the_answer(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "a.json", [("Which bird?", "A quetzalcoatl.")], title="About birds"))
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    page.get_by_role("button", name="delete icon").click()
    expect(messages(page)).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    search = page.get_by_placeholder("Search conversations")
    search.fill("nowhere to be found")
    search.press("Enter")
    expect(page.get_by_text("No conversation has all these words.")).to_be_visible()
    search.fill("quetzal")
    search.press("Enter")
    page.get_by_role("button", name="About birds").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()


def test_exported_conversation_can_be_imported(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    send(page, "Name a river of Peru, please.")
    answer = wait_for_end(page, 2)
    page.get_by_role("tab", name="Conversations").click()
    files = {}
    for label in ("This one as JSON", "This one as Markdown"):
        page.get_by_test_id("stPopover").nth(1).get_by_role("button").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        files[label] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[label])
        page.keyboard.press("Escape")
    assert "## You\n\nName a river of Peru, please." in files["This one as Markdown"].read_text()

    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    expect(page.get_by_text("Import", exact=True)).to_have_count(1)
    page.get_by_text("Import", exact=True).click()
    page.locator("input[type=file]").set_input_files(files["This one as JSON"])
    assert wait_for_end(page, 2) == answer
    expect(page.get_by_role("button", name="Name a river of Peru, please.")).to_have_count(2)


def test_clearing_the_chat_while_an_answer_streams_cancels_it(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply(n_words=5_000))
    page = open_chat()
    send(page, "Sing for a long time.")
    wait_for_text(page, 2)
    page.get_by_role("button", name="Clear Chat History").click()
    expect(messages(page)).to_have_count(1)
    wait_until(lambda: server.n_disconnected == 1, what="the cancelled request")


def test_new_answers_and_edited_questions_are_branches(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.extend(Reply(name) for name in ("Dolly.", "Polly.", "Molly.", "Sea Star."))
    page = open_chat()
    send(page, "Invent a name for a llama.")
    assert wait_for_end(page, 2) == "Dolly."
    press_icon(page, 2, "refresh")
    expect(message(page, 2).get_by_text("2/2")).to_be_visible()
    assert wait_for_end(page, 2) == "Polly."
    press_icon(page, 2, "chevron_left")
    expect(message(page, 2).get_by_text("1/2")).to_be_visible()
    assert text_of(page, 2) == "Dolly."

    send(page, "And another one?")
    assert wait_for_end(page, 4) == "Molly."
    press_icon(page, 1, "edit")
    page.get_by_label("Question").fill("Invent a name for a boat.")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(messages(page)).to_have_count(3)
    assert wait_for_end(page, 2) == "Sea Star."
    expect(message(page, 1).get_by_text("Invent a name for a boat.")).to_be_visible()

    press_icon(page, 1, "chevron_left")
    expect(messages(page)).to_have_count(5)
    assert text_of(page, 2) == "Dolly."
    expect(message(page, 3).get_by_text("And another one?")).to_be_visible()


def test_reload_shows_a_streaming_answer_and_streams_its_rest(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply(n_words=400))
    page = open_chat()
    send(page, "Sing.")
    wait_for_text(page, 2, length=60)
    before = text_of(page, 2)
    page.reload()
    wait_for_text(page, 2)
    assert text_of(page, 2).startswith(before)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert wait_for_end(page, 2).split() == ["la"] * 400
    assert len(server.questions) == 1


def test_moving_a_slider_and_typing_cut_no_answer(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply(n_words=200))
    page = open_chat("max_tokens=300")
    send(page, "Sing.")
    wait_for_text(page, 2)
    page.get_by_role("slider", name="top_p").press("ArrowLeft")
    page.get_by_role("slider", name="max_tokens").press("ArrowLeft")
    page.get_by_test_id("stChatInputTextArea").fill("my next question")
    assert wait_for_end(page, 2).split() == ["la"] * 200
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("my next question")
    assert "top_p=0.94" in page.url
    assert "max_tokens=299" in page.url


def test_three_tabs_show_all_questions_and_each_can_stop(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply("Once-upon-a-time-there-was a llama.", pauses=True))
    first = open_chat()
    send(first, "First question")
    wait_for_text(first, 2)
    conversation = re.search("conversation=([^&]+)", first.url)
    assert conversation
    one, other = (open_chat(f"conversation={conversation[1]}") for _ in range(2))
    for page in (one, other):
        wait_for_text(page, 2)

    send(other, "Second question")
    for page in (first, one):
        expect(page.get_by_text("Second question", exact=True)).to_be_visible()  # while the first answer streams
    send(one, "Third question")
    expect(other.get_by_text("Third question", exact=True)).to_be_visible()
    assert len(server.questions) == 1, "a question waits for the answer before it"
    other.get_by_role("button", name="Stop").first.click()

    for page in (first, one, other):
        expect(messages(page)).to_have_count(7)
        for question in ("Second question", "Third question"):
            expect(page.get_by_text(question, exact=True)).to_have_count(1)
    expect(message(other, 2).get_by_text("stopped by you")).to_be_visible()
    wait_for_end(other, 4)
    expect(message(one, 4).get_by_text(ENDED)).to_be_visible()
    wait_for_end(other, 6)
    assert len(server.questions[2][1]["messages"]) == 5


def test_stop_works_while_the_server_sends_nothing(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply("A word and more.", pauses=True))
    page = open_chat()
    send(page, "Hello")
    expect(message(page, 2).get_by_text("A", exact=True)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible()


def test_click_right_after_a_question_loses_neither(open_chat: Callable[..., Page], server: Server) -> None:
    """The click aborts the run of the question: here while it waits for TorchServe's state."""
    page = open_chat()
    for number in range(1, 4):
        server.n_waiting = 0
        server.is_quick.clear()
        send(page, f"Question {number}")
        wait_until(lambda: server.n_waiting > 0, what="a run that waits for TorchServe")
        page.get_by_role("button", name=("Precise", "Balanced", "Creative")[number % 3]).click()
        server.is_quick.set()
        expect(messages(page).get_by_text(f"Question {number}", exact=True)).to_have_count(1)
        expect(messages(page)).to_have_count(1 + 2 * number)
        expect(page.get_by_role("slider", name="temperature")).to_have_value(("0.2", "0.8", "1.3")[number % 3])
        wait_for_end(page, 2 * number)
    assert [question["messages"][-1]["content"] for _, question in server.questions] == [
        f"Question {number}" for number in range(1, 4)
    ]


def test_back_and_new_chat_lead_away_from_a_new_question(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat()
    send(page, "Question A")
    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    expect(page).not_to_have_url(re.compile("conversation="))
    send(page, "Question B")
    expect(messages(page).get_by_text("Question B", exact=True)).to_be_visible()
    expect(messages(page)).to_have_count(3)
    expect(page).to_have_url(re.compile("conversation="))
    page.go_back()
    expect(messages(page)).to_have_count(1)
    page.go_forward()
    expect(messages(page).get_by_text("Question B")).to_be_visible()
    wait_until(lambda: len(server.questions) == 2, what="both questions at the server")
    contents = [[each["content"] for each in question["messages"]] for _, question in server.questions]
    assert sorted(contents) == [["Question A"], ["Question B"]]


def test_back_right_after_a_question_stays_back(open_chat: Callable[..., Page], server: Server) -> None:
    """The run of the question waits for TorchServe's state meanwhile."""
    page = open_chat()
    server.is_quick.clear()
    send(page, "Question C")
    expect(page).to_have_url(re.compile("conversation="))
    server.n_waiting = 0
    page.go_back()
    wait_until(lambda: server.n_waiting > 0, what="the run that Back started")
    server.is_quick.set()

    page.get_by_role("tab", name="Conversations").click()
    expect(page.get_by_role("button", name="Question C")).to_be_visible()  # sent nevertheless
    wait_until(lambda: len(server.questions) == 1, what="the question at the server")
    expect(messages(page)).to_have_count(1)
    expect(page).not_to_have_url(re.compile("conversation="))


def test_conversation_continues_with_the_chosen_simultaneous_answer(
    open_chat: Callable[..., Page], server: Server
) -> None:
    server.replies.extend(Reply(name) for name in ("Dolly.", "Polly.", "Molly."))
    page = open_chat("answers=3")
    send(page, "Invent a name for a llama.")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(3)
    columns = page.get_by_test_id("stColumn")
    third = columns.nth(2).locator(TEXT).nth(1).inner_text()  # below its heading
    columns.nth(2).get_by_test_id("stBaseButton-tertiary").first.click()
    expect(columns.nth(2).get_by_role("button", name="radio_button_checked icon")).to_be_visible()
    page.get_by_role("slider", name="simultaneous answers").press("Home")

    send(page, "Why?")
    wait_for_end(page, 4)
    assert text_of(page, 2) == third
    expect(message(page, 2).get_by_text("3/3")).to_be_visible()
    assert server.questions[-1][1]["messages"][1]["content"] == third


def test_text_of_a_model_is_shown_and_never_active(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    answer = (
        '<img src=x onerror="window.injected = 1"><script>window.injected = 1</script>\n\n'
        "It costs $5 or $6, and $e^{i\\pi} = -1$.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\nprint('$x')\n```\n\n![pixel](http://127.0.0.1:9/p.png) 你好 😀\n\nשלום, עולם!"
    )
    page = open_chat()
    import_file(page, write_export(tmp_path / "b.json", [("Show all.", answer)]))
    bubble = message(page, 2)
    expect(bubble.locator("table td").first).to_have_text("1")
    expect(bubble.get_by_text('<img src=x onerror="window.injected = 1">')).to_be_visible()
    expect(bubble.get_by_text("It costs $5 or $6, and")).to_be_visible()
    expect(bubble.locator(".katex")).to_have_count(1)
    expect(bubble.locator("pre code")).to_have_text("print('$x')")
    bubble.locator("pre").hover()
    expect(bubble.get_by_role("button", name="Copy to clipboard")).to_be_visible()
    expect(bubble.get_by_text("你好 😀")).to_be_visible()
    assert page.evaluate("window.injected") is None
    assert bubble.locator("img, script").count() == 0
    hebrew = bubble.get_by_text("שלום").evaluate(
        """element => { const range = document.createRange(); const text = element.lastChild;
        const x = at => (range.setStart(text, at), range.setEnd(text, at + 1), range.getBoundingClientRect().x);
        const comma = text.data.indexOf(','), mark = text.data.indexOf('!'); return [x(comma), x(mark)]; }"""
    )
    assert hebrew[1] < hebrew[0], "the last sign of a right-to-left line is its leftmost"


def test_copy_button_copies_the_original_text(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    import_file(page, write_export(tmp_path / "c.json", [("Say it.", "**bold** & <b>$5</b>")]))
    message(page, 2).get_by_role("button", name="Copy").click()
    expect(message(page, 2).get_by_title("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "**bold** & <b>$5</b>"
