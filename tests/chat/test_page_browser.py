"""The chat's page in a real browser against a scripted server: tabs, reload, stop, branches, safe text."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, FloatRect, Page, expect

from tests.chat.chat_page import (
    ENDED,
    TEXT,
    attach,
    import_file,
    message,
    messages,
    open_chat_page,
    press,
    press_in_menu,
    running_chat,
    shown_text,
    text_of,
    wait_for_end,
    wait_for_text,
    write_export,
)
from tests.support.browser import open_page, send
from tests.support.pdf_file import pdf_file
from tests.support.scripted_server import Reply, Server
from tests.support.serving import wait_until


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with running_chat(tmp_path_factory.mktemp("page")) as chat:
        yield chat


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
    expect(other.get_by_role("button", name="What is the capital of Peru?")).to_be_visible()
    expect(other).to_have_title("What is the capital of Peru?")
    other.get_by_role("tab", name="Settings").click()
    expect(other.get_by_role("slider", name="max_tokens")).to_have_value("16")
    other.reload()
    expect(other.get_by_role("slider", name="max_tokens")).to_have_value("16")
    other.context.close()


def test_deletion_can_be_undone_and_search_finds_the_answer(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "a.json", [("Which bird?", "A quetzalcoatl.")], title="About birds"))
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    press_in_menu(page, "Delete")
    expect(messages(page)).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()

    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    search = page.get_by_placeholder("Search conversations")
    search.press_sequentially("nowhere to be found")
    expect(page.get_by_text("No conversation has all these words.")).to_be_visible()
    search.fill("quetzal")
    page.get_by_role("button", name="About birds").click()
    expect(message(page, 2).get_by_text("A quetzalcoatl.")).to_be_visible()


def test_search_scrolls_to_the_message_while_it_is_typed(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    turns = [(f"Question {number}", "A line.\n\n" * 8) for number in range(30)]
    turns[3] = ("Which bird flies?", "The albatross.")
    page = open_chat()
    import_file(page, write_export(tmp_path / "h.json", turns, title="A long talk"))
    expect(page.get_by_text("Question 29", exact=True)).to_be_in_viewport()
    expect(page.get_by_text("The albatross.", exact=True)).to_have_count(0)  # only the newest messages are drawn

    page.get_by_placeholder("Search conversations").press_sequentially("albatross")
    expect(page.get_by_test_id("stSidebar").get_by_text("The albatross.")).to_be_visible()  # the hit's excerpt
    expect(page.get_by_text("Question 29", exact=True)).to_be_in_viewport()
    page.get_by_role("button", name="A long talk").click()

    expect(messages(page).get_by_text("The albatross.", exact=True)).to_be_in_viewport()


def test_sidebar_of_a_phone_closes_after_a_conversation_is_opened(
    browser: Browser, app: tuple[Server, str], open_chat: Callable[..., Page], tmp_path: Path
) -> None:
    import_file(open_chat(), write_export(tmp_path / "p.json", [("On the way", "Yes.")], title="On the way"))
    phone = open_page(browser, app[1], width=390, height=844)
    phone.get_by_test_id("stExpandSidebarButton").click()
    phone.get_by_role("button", name="On the way").first.click()

    expect(phone.get_by_role("button", name="New chat")).not_to_be_in_viewport()
    expect(message(phone, 2).get_by_text("Yes.")).to_be_in_viewport()
    phone.context.close()


# A person can type before the server has opened the new chat.
CLICK_AND_TYPE = """button => {
    button.click();
    const box = document.querySelector('[data-testid="stChatInputTextArea"]');
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set.call(box, 'typed at once');
    box.dispatchEvent(new Event('input', { bubbles: true }));
}"""


def test_draft_stays_with_its_conversation(open_chat: Callable[..., Page]) -> None:
    page = open_chat()
    box = page.get_by_test_id("stChatInputTextArea")
    send(page, "Name a lake of Chile, please.")
    wait_for_end(page, 2)
    box.press_sequentially("a draft")

    page.get_by_role("button", name="New chat").click()
    expect(box).to_have_value("")
    page.get_by_role("button", name="Name a lake of Chile, please.").click()
    expect(box).to_have_value("a draft")

    page.get_by_role("button", name="New chat").evaluate(CLICK_AND_TYPE)
    expect(messages(page)).to_have_count(1)
    expect(box).to_have_value("typed at once")
    page.get_by_role("button", name="Name a lake of Chile, please.").click()
    expect(box).to_have_value("a draft")


def test_title_is_renamed_where_it_stands(open_chat: Callable[..., Page]) -> None:
    page = open_chat()
    send(page, "Name a river of Chile, please.")
    wait_for_end(page, 2)
    press_in_menu(page, "Rename")
    field = page.get_by_role("textbox", name="Title")
    expect(field).to_be_focused()
    field.fill("Rivers")
    field.press("Enter")

    expect(page.get_by_role("button", name="Rivers")).to_be_visible()
    expect(page).to_have_title("Rivers")
    expect(field).to_have_count(0)


def test_exported_conversation_can_be_imported(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    send(page, "Name a river of Peru, please.")
    answer = wait_for_end(page, 2)
    files = {}
    for label in ("Export as JSON", "Export as Markdown"):
        with page.expect_download() as download:
            press_in_menu(page, label)
        files[label] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[label])
        page.keyboard.press("Escape")
    assert "## You\n\nName a river of Peru, please." in files["Export as Markdown"].read_text()

    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    import_file(page, files["Export as JSON"])
    assert wait_for_end(page, 2) == answer
    expect(page.get_by_role("button", name="Name a river of Peru, please.")).to_have_count(2)


def test_clearing_the_chat_while_an_answer_streams_cancels_it(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply(n_words=5_000))
    page = open_chat("sidebar=Settings")
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
    press(page, 2, "Another answer")
    expect(message(page, 2).get_by_text("2/2")).to_be_visible()
    assert wait_for_end(page, 2) == "Polly."
    press(page, 2, "The earlier version")
    expect(message(page, 2).get_by_text("1/2")).to_be_visible()
    expect(shown_text(page, 2)).to_have_text(["Dolly."])

    send(page, "And another one?")
    assert wait_for_end(page, 4) == "Molly."
    press(page, 1, "Edit and send again")
    page.get_by_role("textbox", name="Question", exact=True).fill("Invent a name for a boat.")
    page.get_by_role("button", name="Send", exact=True).click()
    expect(messages(page)).to_have_count(3)
    assert wait_for_end(page, 2) == "Sea Star."
    expect(message(page, 1).get_by_text("Invent a name for a boat.")).to_be_visible()

    press(page, 1, "The earlier version")
    expect(messages(page)).to_have_count(5)
    expect(shown_text(page, 2)).to_have_text(["Dolly."])
    expect(message(page, 3).get_by_text("And another one?")).to_be_visible()


def test_another_answer_takes_the_place_of_the_one_before_at_once(
    open_chat: Callable[..., Page], server: Server
) -> None:
    page = open_chat()
    server.replies.extend([Reply("Dolly."), Reply(pauses=True)])
    send(page, "Invent a name for a llama.")
    wait_for_end(page, 2)
    press(page, 2, "Another answer")
    expect(message(page, 2).locator('[aria-busy="true"] .text')).to_have_text("It")
    expect(shown_text(page, 2)).to_have_text(["It"])
    server.goes_on.set()
    wait_for_end(page, 2)


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
    page = open_chat("max_tokens=300&sidebar=Settings")
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
    page = open_chat("sidebar=Settings")
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
    page = open_chat("answers=3&sidebar=Settings")
    send(page, "Invent a name for a llama.")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(3)
    third = shown_text(page, 2).nth(2).inner_text()
    page.get_by_role("button", name="Use this answer").last.click()
    expect(page.get_by_role("button", name="This answer is used")).to_be_disabled()
    page.get_by_role("slider", name="simultaneous answers").press("Home")

    send(page, "Why?")
    wait_for_end(page, 4)
    assert text_of(page, 2) == third
    expect(message(page, 2).get_by_text("3/3")).to_be_visible()
    assert server.questions[-1][1]["messages"][1]["content"] == third


def test_cards_of_answers_are_readable_and_wrap_on_a_phone(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat("answers=4")
    send(page, "Invent a name for a llama.")
    expect(message(page, 2).get_by_text(ENDED)).to_have_count(4)

    assert {round(box["width"]) for box in card_boxes(page)} == {280}
    page.set_viewport_size({"width": 390, "height": 844})
    wait_until(lambda: len({box["x"] for box in card_boxes(page)}) == 1, what="one card below the other")
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in card_boxes(page))


def card_boxes(page: Page) -> list[FloatRect]:
    """Where the answers' cards stand."""
    cards = message(page, 2).get_by_test_id("stVerticalBlock").filter(has_text=re.compile("^Answer"))
    return [box for card in cards.all() if (box := card.bounding_box())]


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
    expect(bubble.locator("math")).to_have_count(1)
    expect(bubble.locator("pre code")).to_have_text("print('$x')\n")
    expect(bubble.get_by_role("button", name="Copy the code")).to_be_visible()
    expect(bubble.get_by_text("![pixel](http://127.0.0.1:9/p.png) 你好 😀")).to_be_visible()
    assert page.evaluate("window.injected") is None
    assert bubble.locator(f"{TEXT} :is(img, script)").count() == 0
    hebrew = bubble.get_by_text("שלום").evaluate(
        """element => { const range = document.createRange(); const text = element.lastChild;
        const x = at => (range.setStart(text, at), range.setEnd(text, at + 1), range.getBoundingClientRect().x);
        const comma = text.data.indexOf(','), mark = text.data.indexOf('!'); return [x(comma), x(mark)]; }"""
    )
    assert hebrew[1] < hebrew[0], "the last sign of a right-to-left line is its leftmost"


def test_selected_text_stays_selected_while_an_answer_grows(open_chat: Callable[..., Page], server: Server) -> None:
    server.replies.append(Reply(n_words=300))
    page = open_chat()
    send(page, "Sing.")
    wait_for_text(page, 2)
    select = "text => getSelection().setBaseAndExtent(text.firstChild.firstChild, 0, text.firstChild.firstChild, 8)"
    shown_text(page, 2).evaluate(select)
    wait_for_text(page, 2, length=200)
    assert page.evaluate("getSelection().toString()") == "la la la"


def test_a_question_comes_into_view_although_the_page_was_scrolled_up(
    open_chat: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "f.json", [("Hello", "A line.\n\n" * 30)] * 5))
    expect(messages(page)).to_have_count(11)
    message(page, 1).scroll_into_view_if_needed()
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -20_000)
    expect(message(page, 1)).to_be_in_viewport()
    page.wait_for_timeout(500)  # the end of its smooth scrolling
    server.replies.append(Reply(n_words=20))
    send(page, "And now?")
    expect(message(page, 11).get_by_text("And now?")).to_be_in_viewport()
    wait_for_end(page, 12)
    expect(shown_text(page, 12)).to_be_in_viewport()


def test_stop_stays_in_one_place_and_a_second_click_starts_nothing(
    open_chat: Callable[..., Page], server: Server
) -> None:
    server.replies.append(Reply(n_words=2000))
    page = open_chat()
    send(page, "Sing.")
    wait_for_text(page, 2)
    stop = page.get_by_role("button", name="Stop")
    box = stop.bounding_box()
    assert box
    wait_for_text(page, 2, length=300)
    assert stop.bounding_box() == box, "it has not moved while the answer has grown"
    for _ in range(4):
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_timeout(200)
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible()
    expect(stop).to_have_count(0)
    expect(message(page, 2).get_by_text("1/2")).to_have_count(0)
    assert len(server.questions) == 1


def test_escape_stops_the_answer_and_the_composer_always_has_the_focus(
    open_chat: Callable[..., Page], server: Server
) -> None:
    server.replies.append(Reply(n_words=2000))
    page = open_chat()
    composer = page.get_by_test_id("stChatInputTextArea")
    expect(composer).to_be_focused()
    send(page, "Sing.")
    wait_for_text(page, 2)
    expect(composer).to_be_focused()
    page.keyboard.press("Escape")
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible()
    expect(composer).to_be_focused()
    page.get_by_role("button", name="New chat").click()
    expect(messages(page)).to_have_count(1)
    expect(composer).to_be_focused()


def test_an_edited_answer_is_another_version_that_the_model_continues(
    open_chat: Callable[..., Page], server: Server
) -> None:
    page = open_chat()
    send(page, "Which star is near?")
    assert wait_for_end(page, 2) == "It is Proxima Centauri."
    press(page, 2, "Edit")
    editor = page.get_by_role("textbox", name="Answer", exact=True)
    expect(editor).to_be_focused()
    editor.fill("It is called")
    page.get_by_role("button", name="Save").click()
    expect(message(page, 2).get_by_text("edited by you")).to_be_visible()
    expect(message(page, 2).get_by_text("2/2")).to_be_visible()
    server.replies.append(Reply(" Sol."))
    press(page, 2, "Continue")
    assert wait_for_end(page, 2) == "It is called Sol."
    assert server.questions[-1][1]["messages"][-1] == {"role": "assistant", "content": "It is called"}
    press(page, 2, "The earlier version")
    expect(message(page, 2).get_by_text("It is Proxima Centauri.")).to_be_visible()


def test_a_deleted_turn_is_not_sent_and_comes_back_by_undo(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat()
    for number, question in enumerate(("First", "Second", "Third")):
        send(page, question)
        wait_for_end(page, 2 * number + 2)
    press(page, 3, "Delete the question and its answer")
    expect(messages(page)).to_have_count(5)
    expect(message(page, 3).get_by_text("Third")).to_be_visible()
    press(page, 4, "Delete")
    expect(messages(page)).to_have_count(4)
    page.get_by_role("button", name="Undo").click()
    expect(messages(page)).to_have_count(5)
    send(page, "Fourth")
    wait_for_end(page, 6)
    sent = [each["content"] for each in server.questions[-1][1]["messages"] if each["role"] == "user"]
    assert sent == ["First", "Third", "Fourth"]


def test_a_thought_is_open_while_it_is_written_and_folded_after_it(
    open_chat: Callable[..., Page], server: Server
) -> None:
    server.replies.append(Reply("<think>\nHm, a **star**.\n</think>\n\nIt is Sol.", pauses=True))
    page = open_chat()
    send(page, "Which star is near?")
    thought = message(page, 2).locator("details.thought")
    expect(thought.locator("summary")).to_have_text("Thinking…")
    expect(thought.get_by_text("Hm,")).to_be_visible()
    server.goes_on.set()
    expect(message(page, 2).get_by_text("It is Sol.")).to_be_visible()
    expect(thought.locator("summary")).to_have_text(re.compile(r"Thought for \d+ s"))
    expect(thought.locator("strong")).to_be_hidden()
    thought.locator("summary").click()
    expect(thought.locator("strong")).to_be_visible()
    send(page, "Sure?")
    wait_for_end(page, 4)
    assert server.questions[-1][1]["messages"][1]["content"] == "It is Sol.", "a thought is not sent again"


POSITION = "main => [main.scrollTop, main.scrollHeight - main.clientHeight]"


def test_a_page_that_is_scrolled_up_stays_there_while_an_answer_grows(
    open_chat: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "g.json", [("Hello", "A line.\n\n" * 30)] * 2))
    expect(messages(page)).to_have_count(5)
    server.replies.append(Reply("la\n\n" + " la\n\n" * 400, pauses=True))  # pauses after the first paragraph
    send(page, "Sing.")
    wait_for_text(page, 6, length=0)
    main = page.get_by_test_id("stMain")
    page.mouse.move(700, 400)
    page.mouse.wheel(0, -150)
    button = page.get_by_role("button", name="To the end")
    expect(button).to_be_visible()
    before, end = main.evaluate(POSITION)
    server.goes_on.set()
    wait_for_end(page, 6)
    assert main.evaluate(POSITION)[0] == before
    assert main.evaluate(POSITION)[1] > end
    button.click()
    expect(button).to_be_hidden()
    expect(message(page, 6).get_by_text(ENDED)).to_be_in_viewport()


def test_buttons_of_messages_have_names_and_are_large_enough(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "d.json", [("Hello", "Hi.\n\n```py\nx\n```")]))
    expect(message(page, 2).get_by_role("button", name="Copy", exact=True)).to_be_visible()
    buttons = page.locator(".chat-message button:visible")
    for button in buttons.all():
        box = button.bounding_box()
        assert box and box["width"] >= 24 and box["height"] >= 24
        assert button.evaluate("button => button.ariaLabel || button.textContent.trim()")
    assert buttons.count() == 7


def test_a_refused_file_leaves_the_typed_text_in_the_composer(
    open_chat: Callable[..., Page], server: Server, tmp_path: Path
) -> None:
    page = open_chat()
    scan, notes = tmp_path / "scan.pdf", tmp_path / "notes.txt"
    scan.write_bytes(pdf_file(""))
    notes.write_text("Proxima Centauri is 4.2 light-years away.")
    attach(page, scan)
    send(page, "How far is it?")
    expect(page.get_by_text("'scan.pdf' has no text")).to_be_visible()
    box = page.get_by_test_id("stChatInputTextArea")
    expect(box).to_have_value("How far is it?")

    attach(page, notes)
    box.press("Enter")
    wait_for_end(page, 2)

    assert "4.2 light-years" in text_of(page, 1)
    (sent,) = [question["messages"][0]["content"] for _, question in server.questions]
    assert sent.startswith("How far is it?\n\n--- File: notes.txt ---")
    expect(page.get_by_text("'scan.pdf' has no text")).to_have_count(0)


PAGE_END_NUMBER = "document.querySelector('.to-end').parentElement.dataNumber"  # apps/shared/ordered_data.py


def test_shortcuts_work_and_a_question_mark_lists_them(open_chat: Callable[..., Page], server: Server) -> None:
    page = open_chat()
    composer, search = page.get_by_test_id("stChatInputTextArea"), page.get_by_role("searchbox")
    send(page, "Hello?")  # the question mark is typed
    wait_for_end(page, 2)
    expect(page.get_by_text("search the conversations")).to_be_hidden()

    composer.press("Control+Shift+O")
    expect(messages(page)).to_have_count(1)
    page.keyboard.press("Control+k")
    expect(search).to_be_focused()
    page.keyboard.press("Control+Shift+O")
    expect(composer).to_be_focused()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    expect(page.get_by_text("search the conversations")).to_be_visible()


def test_a_new_chat_that_is_drawn_late_takes_the_focus_from_no_field(
    open_chat: Callable[..., Page], server: Server
) -> None:
    page = open_chat()
    send(page, "Hello?")
    wait_for_end(page, 2)
    before = page.evaluate(PAGE_END_NUMBER)
    server.is_quick.clear()
    page.get_by_role("button", name="New chat").click()
    wait_until(lambda: server.n_waiting > 0, what="a run that waits for TorchServe")
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    server.is_quick.set()
    expect(messages(page)).to_have_count(1)
    wait_until(lambda: page.evaluate(PAGE_END_NUMBER) > before, what="the end of the new chat's page")
    expect(page.get_by_role("searchbox")).to_be_focused()


def test_a_long_question_is_folded(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    import_file(page, write_export(tmp_path / "e.json", [("word\n" * 400, "Yes.")]))
    question = shown_text(page, 1)
    expect(message(page, 1).get_by_role("button", name="Show all of it")).to_be_visible()
    assert question.evaluate("text => text.clientHeight") < 300
    message(page, 1).get_by_role("button", name="Show all of it").click()
    assert question.evaluate("text => text.clientHeight") > 5000
    message(page, 1).get_by_role("button", name="Show less").click()
    assert question.evaluate("text => text.clientHeight") < 300


def test_copy_button_copies_the_original_text(open_chat: Callable[..., Page], tmp_path: Path) -> None:
    page = open_chat()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    answer = "**bold** & <b>$5</b>\n\n```sh\necho  '<$A>'\n```"
    import_file(page, write_export(tmp_path / "c.json", [("Say it.", answer)]))
    for button, copied in (("Copy", answer), ("Copy the code", "echo  '<$A>'\n")):
        press(page, 2, button)
        expect(message(page, 2).get_by_title("Copied")).to_be_visible()
        assert page.evaluate("navigator.clipboard.readText()") == copied
        expect(message(page, 2).get_by_title("Copied")).to_have_count(0)
