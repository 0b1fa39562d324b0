"""The chat as a person uses it: real Chromium, the real app, TorchServe and the demo model."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.support.browser import open_page, running_app, running_browser, send
from tests.support.scripted_server import Reply, Server, running_scripted_server
from tests.support.serving import make_home, wait_until, write_small_window_store
from tests.support.wire import Stream, chat_body, engine_metrics, headers
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

LONG = 120_000  # milliseconds; an answer on a busy machine
FREED_SECONDS = 1.0  # from the click on Stop to the free slot
ENDED = re.compile("ended by itself|length limit reached|context window full")
LA = "Repeat the word la forever: la la la la la la la la la la la"
GREEDY = "temperature=0.01"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def url(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app("client_app.py", server, tmp_path_factory.mktemp("app") / "client.log") as address:
        yield address


@pytest.fixture
def open_chat(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens tabs on the chat, and closes them in the end."""
    pages: list[Page] = []

    def open_one(settings: str = GREEDY) -> Page:
        page = open_page(browser, f"{url}/?{settings}")
        pages.append(page)
        expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible(timeout=LONG)
        return page

    yield open_one
    for page in pages:
        page.context.close()


TEXT = "[data-testid=stMarkdownContainer]:not(button *)"  # a button's label is no text


def message(page: Page, number: int) -> Locator:
    """A bubble: 0 is the greeting, 1 the first question, 2 its answer."""
    return page.get_by_test_id("stChatMessage").nth(number)


def text_of(page: Page, number: int) -> str:
    return message(page, number).locator(TEXT).first.inner_text()


def wait_for_end(page: Page, number: int) -> str:
    expect(message(page, number).get_by_text(ENDED)).to_be_visible(timeout=LONG)
    return text_of(page, number)


def wait_for_text(page: Page, number: int, least: int = 20) -> None:
    wait_until(lambda: page.get_by_test_id("stChatMessage").count() > number, what=f"bubble {number}")
    wait_until(lambda: len(text_of(page, number)) > least, what="text of the answer", timeout=LONG / 1000)


def press(page: Page, number: int, icon: str) -> None:
    """A button of a bubble that has only an icon, by the icon's name."""
    message(page, number).get_by_role("button", name=f"{icon} icon").click()


def busy_slots(server: ServerConfig) -> float:
    return engine_metrics(server)["llamacpp_slots_busy"]


def wait_for_idle(server: ServerConfig) -> None:
    wait_until(lambda: busy_slots(server) == 0, what="an idle engine")


def press_stop(page: Page, server: ServerConfig) -> float:
    """Seconds until the engine's own gauges say that it is idle."""
    page.get_by_role("button", name="Stop").click()
    pressed = time.monotonic()
    wait_for_idle(server)
    return time.monotonic() - pressed


def export_file(path: Path, turns: list[tuple[str, str]], title: str = "Imported") -> Path:
    """An exported conversation of these questions and answers."""
    common: dict[str, Any] = {"problem": "", "figures": {}, "is_raw": False, "is_left_out": False, "together": None}
    messages = []
    for number, (question, answer) in enumerate(turns):
        for role, text, ended in (("user", question, "sent"), ("assistant", answer, "stop")):
            place = len(messages) + 1
            entry = {"id": place, "parent_id": place - 1 or None, "role": role, "text": text, "ended": ended}
            messages.append({**common, **entry, "created_at": float(number)})
    conversation = {"title": title, "settings": {}, "leaf_id": len(messages), "created_at": 1.0, "updated_at": 2.0}
    conversations = [conversation | {"messages": messages}]
    path.write_text(json.dumps({"format": "llama-2-chatbot", "version": 1, "conversations": conversations}))
    return path


def import_file(page: Page, path: Path) -> None:
    page.get_by_role("tab", name="Conversations").click()
    page.get_by_text("Import", exact=True).click()
    page.locator("input[type=file]").set_input_files(path)


# --- conversations


def test_a_conversation_is_titled_and_in_the_address_and_its_list_and_survives_a_new_tab(
    open_chat: Callable[..., Page], browser: Browser
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=16")
    send(page, "What is the capital of Peru?")
    answer = wait_for_end(page, 2)
    assert "conversation=" in page.url

    other = open_page(browser, re.sub("&?(max_tokens|temperature)=[^&]*", "", page.url))
    assert wait_for_end(other, 2) == answer
    expect(other.get_by_role("slider", name="max_tokens")).to_have_value("16")
    other.get_by_role("tab", name="Conversations").click()
    expect(other.get_by_role("button", name="What is the capital of Peru?")).to_be_visible()
    other.context.close()


def test_deleting_can_be_undone_and_searching_finds_the_answer(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, export_file(tmp_path / "a.json", [("Which bird?", "A quetzalcoatl.")], title="About birds"))
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    page.get_by_role("button", name="delete icon").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
    search = page.get_by_placeholder("Search conversations")
    search.fill("nowhere to be found")
    search.press("Enter")
    expect(page.get_by_text("No conversation has all these words.")).to_be_visible()
    search.fill("quetzal")
    search.press("Enter")
    page.get_by_role("button", name="About birds").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()


def test_what_is_exported_can_be_imported_and_read(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=12")
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
    expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
    expect(page.get_by_text("Import", exact=True)).to_have_count(1)
    page.get_by_text("Import", exact=True).click()
    page.locator("input[type=file]").set_input_files(files["This one as JSON"])
    assert wait_for_end(page, 2) == answer
    expect(page.get_by_role("button", name="Name a river of Peru, please.")).to_have_count(2)


# --- stopping, in each phase


def test_stop_while_queued_leaves_nothing_to_be_answered_when_its_turn_comes(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000")
    wait_for_idle(server)
    endless: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True}
    others = [Stream(server, chat_body(f"{number} {LA}", **endless)).start() for number in range(8)]
    try:
        for other in others:
            other.wait_for_text()
        wait_until(lambda: busy_slots(server) == 8, what="eight busy slots")
        left = engine_metrics(server)["llamacpp_requests_cancelled_total"]
        send(page, LA)
        expect(message(page, 2).get_by_text("queued")).to_be_visible(timeout=LONG)
        page.get_by_role("button", name="Stop").click()
        expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=LONG)
        assert not any(other.is_done for other in others)

        others.pop().hang_up()  # TorchServe hands out the stopped request now, and the engine drops it
        wait_until(lambda: engine_metrics(server)["llamacpp_requests_cancelled_total"] == left + 2, what="both to go")
        wait_until(lambda: busy_slots(server) == 7, what="the free slot")
    finally:
        for other in others:
            other.hang_up()
    wait_for_idle(server)


def test_stop_while_the_prompt_is_read_frees_the_slot_before_anything_is_written(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    freed: list[float] = []
    while len(freed) < 3 and min(freed, default=FREED_SECONDS) >= FREED_SECONDS:  # a busy machine gets another chance
        page = open_chat(f"{GREEDY}&max_tokens=2000")
        wait_for_idle(server)
        before = engine_metrics(server)["llamacpp_completion_tokens_total"]
        send(page, f"{time.time()} " + "Read this and say nothing. " * 900)
        expect(message(page, 2).get_by_text(re.compile(r"reading the prompt, \d+ %"))).to_be_visible(timeout=LONG)
        wait_until(lambda: busy_slots(server) == 1, what="one busy slot")
        freed.append(press_stop(page, server))
        expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=LONG)
        assert engine_metrics(server)["llamacpp_completion_tokens_total"] == before
    assert min(freed) < FREED_SECONDS


def test_stop_while_writing_keeps_the_text_and_continue_goes_on_from_it(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000")
    wait_for_idle(server)
    send(page, LA)
    wait_for_text(page, 2)
    freed = press_stop(page, server)
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=LONG)
    kept = text_of(page, 2)
    assert len(kept) > 20

    page.get_by_role("button", name="Continue").click()
    wait_for_text(page, 2, least=len(kept) + 20)
    assert min(freed, press_stop(page, server)) < FREED_SECONDS
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=LONG)
    assert text_of(page, 2).startswith(kept)
    expect(page.get_by_test_id("stChatMessage")).to_have_count(3)


def test_clearing_the_chat_in_mid_answer_frees_the_slot(open_chat: Callable[..., Page], server: ServerConfig) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000")
    wait_for_idle(server)
    send(page, LA)
    wait_for_text(page, 2)
    page.get_by_role("button", name="Clear Chat History").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
    wait_for_idle(server)


# --- branches


def test_regenerated_answers_and_edited_questions_are_branches_to_switch_between(
    open_chat: Callable[..., Page],
) -> None:
    page = open_chat("temperature=1.5&max_tokens=16")
    send(page, "Invent a name for a llama.")
    first = wait_for_end(page, 2)
    press(page, 2, "refresh")
    expect(message(page, 2).get_by_text("2/2")).to_be_visible(timeout=LONG)
    second = wait_for_end(page, 2)
    press(page, 2, "chevron_left")
    expect(message(page, 2).get_by_text("1/2")).to_be_visible()
    assert text_of(page, 2) == first

    send(page, "And another one?")
    wait_for_end(page, 4)
    press(page, 1, "edit")
    page.get_by_label("Question").fill("Invent a name for a boat.")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(3)
    wait_for_end(page, 2)
    expect(message(page, 1).get_by_text("Invent a name for a boat.")).to_be_visible()

    press(page, 1, "chevron_left")
    expect(page.get_by_test_id("stChatMessage")).to_have_count(5)
    assert text_of(page, 2) in (first, second)
    expect(message(page, 3).get_by_text("And another one?")).to_be_visible()


# --- a page that is left, moved, doubled


def test_reload_in_mid_answer_shows_what_had_come_and_follows_it_to_its_end(open_chat: Callable[..., Page]) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=1000")
    send(page, LA)
    wait_for_text(page, 2, least=60)
    had_come = text_of(page, 2)
    page.reload()
    wait_for_text(page, 2)
    assert text_of(page, 2).startswith(had_come)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    assert len(wait_for_end(page, 2)) > len(had_come)
    expect(message(page, 2).get_by_text("1,000 tokens")).to_be_visible()


def test_moving_a_slider_and_typing_cut_nothing(open_chat: Callable[..., Page]) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=300")
    send(page, LA)
    wait_for_text(page, 2)
    page.get_by_role("slider", name="top_p").press("ArrowLeft")
    page.get_by_role("slider", name="max_tokens").press("ArrowLeft")
    page.get_by_test_id("stChatInputTextArea").fill("my next question")
    wait_for_end(page, 2)
    expect(message(page, 2).get_by_text("300 tokens")).to_be_visible()
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("my next question")
    assert "top_p=0.94" in page.url and "max_tokens=299" in page.url


def test_two_tabs_see_and_lose_nothing_and_stop_works_from_the_other(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    first = open_chat(f"{GREEDY}&max_tokens=2000")
    send(first, LA)
    wait_for_text(first, 2)
    conversation = re.search("conversation=([^&]+)", first.url)
    assert conversation
    one, other = (open_chat(f"{GREEDY}&max_tokens=12&conversation={conversation[1]}") for _ in range(2))
    for page in (one, other):
        wait_for_text(page, 2)

    send(other, "Second question")
    for page in (first, one):
        expect(page.get_by_text("Second question", exact=True)).to_be_visible()  # while they follow the first answer
    send(one, "Third question")
    other.get_by_role("button", name="Stop").first.click()

    for page in (first, one, other):
        expect(page.get_by_test_id("stChatMessage")).to_have_count(7, timeout=LONG)
        for question in ("Second question", "Third question"):
            expect(page.get_by_text(question, exact=True)).to_have_count(1)
    expect(message(other, 2).get_by_text("stopped by you")).to_be_visible(timeout=LONG)
    wait_for_end(other, 4)
    expect(message(one, 4).get_by_text(ENDED)).to_be_visible(timeout=LONG)
    wait_for_end(other, 6)
    wait_for_idle(server)


@contextmanager
def scripted_chat(browser: Browser, tmp_path: Path) -> Iterator[tuple[Server, Page]]:
    """A server that answers as it is told to, and a page that is ready to ask it."""
    with (
        running_scripted_server(tmp_path) as (server, config),
        running_app("client_app.py", config, tmp_path / "client.log") as address,
    ):
        page = open_page(browser, f"{address}/?{GREEDY}")
        expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible()
        yield server, page


def test_stop_is_taken_while_nothing_comes(browser: Browser, tmp_path: Path) -> None:
    with scripted_chat(browser, tmp_path) as (server, page):
        server.replies.append(Reply("A word and more.", pauses=True))
        send(page, "Hello")
        expect(message(page, 2).get_by_text("A", exact=True)).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(message(page, 2).get_by_text("stopped by you")).to_be_visible()


def test_click_right_behind_a_question_loses_neither(browser: Browser, tmp_path: Path) -> None:
    """The click ends the run that the question began, wherever that is: here while it waits for TorchServe."""
    with scripted_chat(browser, tmp_path) as (server, page):
        for number in range(1, 4):
            server.n_waiting = 0
            server.is_quick.clear()
            send(page, f"Question {number}")
            wait_until(lambda: server.n_waiting > 0, what="a run that waits for TorchServe")
            page.get_by_role("button", name=("Precise", "Balanced", "Creative")[number % 3]).click()
            server.is_quick.set()
            asked = page.get_by_test_id("stChatMessage").get_by_text(f"Question {number}", exact=True)
            expect(asked).to_have_count(1)
            expect(page.get_by_test_id("stChatMessage")).to_have_count(1 + 2 * number)
            expect(page.get_by_role("slider", name="temperature")).to_have_value(("0.2", "0.8", "1.3")[number % 3])
            wait_until(lambda asked=number: len(server.questions) == asked, what="the question at the server")
    assert [question["messages"][-1]["content"] for _, question in server.questions] == [
        f"Question {number}" for number in range(1, 4)
    ]


def test_back_and_new_chat_lead_away_from_a_question_just_asked(browser: Browser, tmp_path: Path) -> None:
    with scripted_chat(browser, tmp_path) as (server, page):
        messages = page.get_by_test_id("stChatMessage")
        send(page, "Question 1")
        page.get_by_role("button", name="New chat").click()
        expect(messages).to_have_count(1)
        expect(page).not_to_have_url(re.compile("conversation="))
        send(page, "Question 2")
        expect(messages.get_by_text("Question 2", exact=True)).to_be_visible()
        expect(messages).to_have_count(3)
        expect(page).to_have_url(re.compile("conversation="))
        page.go_back()
        expect(messages).to_have_count(1)
        page.go_forward()
        expect(messages.get_by_text("Question 2")).to_be_visible()
        wait_until(lambda: len(server.questions) == 2, what="both questions at the server")
    assert sorted(question["messages"][-1]["content"] for _, question in server.questions) == [
        "Question 1",
        "Question 2",
    ]
    assert all(len(question["messages"]) == 1 for _, question in server.questions)


def test_back_right_behind_a_question_stays_back(browser: Browser, tmp_path: Path) -> None:
    """The question is still to be granted then: its run waits for TorchServe."""
    with scripted_chat(browser, tmp_path) as (server, page):
        server.is_quick.clear()
        send(page, "Question 1")
        expect(page).to_have_url(re.compile("conversation="))
        server.n_waiting = 0
        page.go_back()
        wait_until(lambda: server.n_waiting > 0, what="the run that Back began")
        server.is_quick.set()

        page.get_by_role("tab", name="Conversations").click()
        expect(page.get_by_role("button", name="Question 1")).to_be_visible()  # asked all the same
        wait_until(lambda: len(server.questions) == 1, what="the question at the server")
        expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
        expect(page).not_to_have_url(re.compile("conversation="))


def test_page_keeps_up_with_what_leaves_the_server(browser: Browser, server: ServerConfig, tmp_path: Path) -> None:
    """benchmarks/page.py measures; this only notices a page that draws seconds late, or only at the end."""
    from benchmarks.page import converse, relayed

    with relayed(server) as (seen, relay), running_app("client_app.py", seen, tmp_path / "client.log") as address:
        (lag,) = converse(browser, address, relay, questions=1, max_tokens=300)
    assert len(relay.passed) > 10, "the server tells of many pieces"
    assert lag.first < 2000
    assert lag.last < 2000


# --- simultaneous answers


def test_four_simultaneous_answers_run_together_and_stop_together(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000&answers=4")
    wait_for_idle(server)
    send(page, LA)
    wait_until(lambda: busy_slots(server) == 4, what="four busy slots")
    answer = message(page, 2)
    expect(answer.get_by_text(re.compile(r"tokens/s"))).to_have_count(5, timeout=LONG)  # each one's, and the total
    page.get_by_role("button", name="Stop all").click()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=LONG)
    expect(answer.get_by_text("stopped by you").first).to_be_visible()  # others may just have ended by themselves
    wait_for_idle(server)
    expect(answer.get_by_text(re.compile(r"4 answers · [\d,]+ tokens in .* tokens/s together"))).to_be_visible()


def test_a_conversation_goes_on_with_the_chosen_one_of_simultaneous_answers(open_chat: Callable[..., Page]) -> None:
    page = open_chat("temperature=1.5&max_tokens=12&answers=3")
    send(page, "Invent a name for a llama.")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(3, timeout=LONG)
    columns = page.get_by_test_id("stColumn")
    third = columns.nth(2).locator(TEXT).nth(1).inner_text()  # below its heading
    columns.nth(2).get_by_test_id("stBaseButton-tertiary").first.click()
    expect(columns.nth(2).get_by_role("button", name="radio_button_checked icon")).to_be_visible()
    page.get_by_role("slider", name="simultaneous answers").press("Home")

    send(page, "Why?")
    wait_for_end(page, 4)
    assert text_of(page, 2) == third
    expect(message(page, 2).get_by_text("3/3")).to_be_visible()


# --- what text may do


def test_what_a_model_writes_is_shown_and_never_active(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    answer = (
        '<img src=x onerror="window.injected = 1"><script>window.injected = 1</script>\n\n'
        "It costs $5 or $6, and $e^{i\\pi} = -1$.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\nprint('$x')\n```\n\n![pixel](http://127.0.0.1:9/p.png) 你好 😀\n\nשלום, עולם!"
    )
    page = open_chat()
    import_file(page, export_file(tmp_path / "b.json", [("Show all.", answer)]))
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


def test_copy_puts_the_answer_as_written_on_the_clipboard(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    import_file(page, export_file(tmp_path / "c.json", [("Say it.", "**bold** & <b>$5</b>")]))
    message(page, 2).get_by_role("button", name="Copy").click()
    expect(message(page, 2).get_by_title("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "**bold** & <b>$5</b>"


# --- other servers, and this one when it goes


def test_another_server_is_asked_by_its_base_url(open_chat: Callable[..., Page], server: ServerConfig) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=12")
    page.get_by_text("Server", exact=True).click()
    base_url = page.get_by_role("textbox", name="base URL")
    base_url.fill(f"{server.inference_url}/predictions/llamacpp/1.0/v1")
    base_url.press("Enter")
    expect(page.get_by_text("No server answers at this base URL.")).to_be_visible(timeout=LONG)  # it wants a key
    key = page.get_by_role("textbox", name="API key")
    key.fill(headers(server)["Authorization"].removeprefix("Bearer "))
    key.press("Enter")
    expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible(timeout=LONG)
    assert key.get_attribute("type") == "password"
    send(page, "What is the capital of Peru?")
    assert wait_for_end(page, 2)


@pytest.fixture(scope="module")
def small_server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """A server of its own, to be killed, whose context window is full soon."""
    home = tmp_path_factory.mktemp("small")
    config = make_home(home, model_store=write_small_window_store(demo_store, home / "store", n_ctx=512))
    try:
        start_small(config)
        yield config
    finally:
        torchserve_process.stop(config)


def start_small(config: ServerConfig) -> None:
    torchserve_process.start(config)
    ManagementClient(config).register(ServingSettings(batch_size=2, max_batch_delay_ms=20, workers=1))


@pytest.fixture
def small_page(browser: Browser, small_server: ServerConfig, tmp_path: Path) -> Iterator[Page]:
    with running_app("client_app.py", small_server, tmp_path / "client.log") as address:
        page = open_page(browser, f"{address}/?{GREEDY}&max_tokens=200")
        expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible(timeout=LONG)
        yield page
        page.context.close()


def test_a_full_context_window_is_told_and_the_oldest_turns_can_be_left_out(small_page: Page, tmp_path: Path) -> None:
    page = small_page
    turns = [(f"Question {number}?", f"Answer {number}: " + "a llama walks on. " * 12) for number in range(9)]
    import_file(page, export_file(tmp_path / "long.json", turns))
    expect(page.get_by_text(re.compile(r"Context: about \d+ of 512 tokens used"))).to_be_visible(timeout=LONG)

    send(page, "Who walks?")
    expect(message(page, 20).get_by_text(re.compile(r"do not fit.*512"))).to_be_visible(timeout=LONG)
    page.get_by_role("button", name="Leave out the oldest turns").click()
    assert wait_for_end(page, 20)
    expect(message(page, 1).get_by_text("Question 0?")).to_be_visible()
    expect(message(page, 1).get_by_text("Not sent to the model any more.")).to_be_visible()
    expect(message(page, 17).get_by_text("Not sent to the model any more.")).to_have_count(0)
    expect(page.get_by_text(re.compile(r"The \d+ messages above are not sent."))).to_be_visible()
    expect(page.get_by_text(re.compile(r"Context: \d+ of 512 tokens used"))).to_be_visible()

    page.get_by_role("button", name="history icon").click()
    expect(page.get_by_text("Not sent to the model any more.")).to_have_count(0)
    send(page, "Who else?")
    expect(message(page, 22).get_by_text(re.compile(r"do not fit"))).to_be_visible(timeout=LONG)
    page.get_by_role("button", name="Start anew with this question").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(3, timeout=LONG)
    assert wait_for_end(page, 2)


def test_server_killed_in_mid_answer_keeps_the_text_and_the_page_works_again_by_itself(
    small_page: Page, small_server: ServerConfig
) -> None:
    page = small_page
    send(page, LA)
    wait_for_text(page, 2)
    torchserve_process.stop(small_server)
    expect(message(page, 2).get_by_text("The answer was cut")).to_be_visible(timeout=LONG)
    expect(page.get_by_text("TorchServe is not running. Press Start Server")).to_be_visible(timeout=LONG)
    kept = text_of(page, 2)
    assert len(kept) > 20
    page.get_by_test_id("stChatInputTextArea").fill("half a question")

    start_small(small_server)
    expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible(timeout=LONG)
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("half a question")
    page.get_by_role("button", name="Continue").click()
    assert wait_for_end(page, 2).startswith(kept)
