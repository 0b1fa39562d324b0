"""The chat with TorchServe and the demo model in a real browser: stopping, simultaneous answers, a killed server."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from apps.shared.labels import WORD_JOINER
from tests.chat.chat_page import (
    ANSWER_MS,
    GREEDY,
    READY,
    attach,
    import_file,
    message,
    messages,
    open_chat_page,
    text_of,
    wait_for_end,
    wait_for_text,
    write_export,
)
from tests.support.browser import running_app, send
from tests.support.serving import make_home, wait_until, write_store
from tests.support.wire import Stream, chat_body, engine_metrics, headers
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig
from torchserve_client.management import ManagementClient
from torchserve_client.status import ServingSettings

FREED_SECONDS = 1.0  # from the click on Stop to the free slot
LA = "Repeat the word la forever: la la la la la la la la la la la"


@pytest.fixture(scope="module")
def url(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app("client_app.py", server, tmp_path_factory.mktemp("app") / "client.log") as address:
        yield address


@pytest.fixture
def open_chat(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """Opens tabs on the chat, and closes them at the end."""
    pages: list[Page] = []

    def open_one(settings: str = GREEDY) -> Page:
        pages.append(open_chat_page(browser, url, settings))
        return pages[-1]

    yield open_one
    for page in pages:
        page.context.close()


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


def test_stop_while_queued_cancels_the_request_before_its_turn(
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
        expect(message(page, 2).get_by_text("queued")).to_be_visible(timeout=ANSWER_MS)
        page.get_by_role("button", name="Stop").click()
        expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=ANSWER_MS)
        assert not any(other.is_done for other in others)

        others.pop().hang_up()  # TorchServe hands out the stopped request now, and the engine drops it
        wait_until(lambda: engine_metrics(server)["llamacpp_requests_cancelled_total"] == left + 2, what="both to go")
        wait_until(lambda: busy_slots(server) == 7, what="the free slot")
    finally:
        for other in others:
            other.hang_up()
    wait_for_idle(server)


def test_stop_during_prefill_frees_the_slot(open_chat: Callable[..., Page], server: ServerConfig) -> None:
    freed: list[float] = []
    while len(freed) < 3 and min(freed, default=FREED_SECONDS) >= FREED_SECONDS:  # a busy machine gets another chance
        page = open_chat(f"{GREEDY}&max_tokens=2000")
        wait_for_idle(server)
        before = engine_metrics(server)["llamacpp_completion_tokens_total"]
        send(page, f"{time.time()} " + "Read this and say nothing. " * 900)
        expect(message(page, 2).get_by_text(re.compile(r"reading the prompt, \d+ %"))).to_be_visible(timeout=ANSWER_MS)
        wait_until(lambda: busy_slots(server) == 1, what="one busy slot")
        seconds = press_stop(page, server)
        expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=ANSWER_MS)
        is_in_time = engine_metrics(server)["llamacpp_completion_tokens_total"] == before
        freed.append(seconds if is_in_time else FREED_SECONDS)
    assert min(freed) < FREED_SECONDS


def test_stop_during_decode_keeps_the_text_and_continue_appends(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000")
    wait_for_idle(server)
    send(page, LA)
    wait_for_text(page, 2)
    freed = press_stop(page, server)
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=ANSWER_MS)
    saved = text_of(page, 2)
    assert len(saved) > 20

    page.get_by_role("button", name="Continue").click()
    wait_for_text(page, 2, length=len(saved) + 20)
    assert min(freed, press_stop(page, server)) < FREED_SECONDS
    expect(message(page, 2).get_by_text("stopped by you")).to_be_visible(timeout=ANSWER_MS)
    assert text_of(page, 2).startswith(saved)
    expect(messages(page)).to_have_count(3)


def test_benchmark_of_the_page_measures_when_text_is_drawn(
    browser: Browser, server: ServerConfig, tmp_path: Path
) -> None:
    """How long it takes depends on the machine: `python -m benchmarks.page`."""
    from benchmarks.page import converse, relayed

    with relayed(server) as (seen, relay), running_app("client_app.py", seen, tmp_path / "client.log") as address:
        (lag,) = converse(browser, address, relay, questions=1, max_tokens=150)
    assert len(relay.passed) > 10, "the server sends many events"
    assert lag.first > 0
    assert lag.last > 0


def test_four_simultaneous_answers_run_together_and_stop_together(
    open_chat: Callable[..., Page], server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=2000&answers=4")
    wait_for_idle(server)
    send(page, LA)
    wait_until(lambda: busy_slots(server) == 4, what="four busy slots")
    answer = message(page, 2)
    expect(answer.get_by_text(re.compile(r"tokens/s"))).to_have_count(5, timeout=ANSWER_MS)  # each one's, and the total
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=ANSWER_MS)
    expect(answer.get_by_text("stopped by you").first).to_be_visible()  # others may just have ended by themselves
    wait_for_idle(server)
    expect(answer.get_by_text(re.compile(r"4 answers · [\d,]+ tokens in .* tokens/s together"))).to_be_visible()


def test_another_server_can_be_used_by_its_base_url(open_chat: Callable[..., Page], server: ServerConfig) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=12&sidebar=Settings")
    page.get_by_text("Server", exact=True).click()
    base_url = page.get_by_role("textbox", name="base URL")
    base_url.fill(f"{server.inference_url}/predictions/llamacpp/1.0/v1")
    base_url.press("Enter")
    expect(page.get_by_text("No server answers at this base URL.")).to_be_visible(timeout=ANSWER_MS)  # it wants a key
    key = page.get_by_role("textbox", name="API key")
    key.fill(headers(server)["Authorization"].removeprefix("Bearer "))
    key.press("Enter")
    expect(page.get_by_text(READY)).to_be_visible(timeout=ANSWER_MS)
    assert key.get_attribute("type") == "password"
    send(page, "What is the capital of Peru?")
    assert wait_for_end(page, 2)
    address = re.escape(server.inference_url.removeprefix("http://")).replace(":", f":{WORD_JOINER}?")
    expect(page.get_by_text(re.compile(f"llamacpp at {address}/predictions/llamacpp/1.0"))).to_be_visible()


def test_an_attached_file_is_counted_and_a_question_about_it_answered(
    open_chat: Callable[..., Page], tmp_path: Path, server: ServerConfig
) -> None:
    page = open_chat(f"{GREEDY}&max_tokens=12")
    notes, book = tmp_path / "notes.txt", tmp_path / "book.txt"
    notes.write_text("Lima is the capital of Peru.")
    book.write_text("la " * 20_000)
    attach(page, book)
    send(page, "What is this?")
    expect(page.get_by_text(re.compile("Nothing was sent: .* too many"))).to_be_visible(timeout=ANSWER_MS)
    assert messages(page).count() == 1

    attach(page, notes)
    page.get_by_test_id("stChatInputTextArea").press("Enter")
    assert wait_for_end(page, 2)


@pytest.fixture(scope="module")
def small_server(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerConfig]:
    """A second server, which a test kills, with a small context window."""
    home = tmp_path_factory.mktemp("small")
    config = make_home(home, model_store=write_store(demo_store, home / "store", n_ctx=512))
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
        page = open_chat_page(browser, address, f"{GREEDY}&max_tokens=200")
        yield page
        page.context.close()


def test_oldest_turns_can_be_left_out_of_a_full_context_window(small_page: Page, tmp_path: Path) -> None:
    page = small_page
    turns = [(f"Question {number}?", f"Answer {number}: " + "a llama walks on. " * 12) for number in range(9)]
    import_file(page, write_export(tmp_path / "long.json", turns))
    expect(page.get_by_text(re.compile(r"about [\d,]+ / 512 tokens of context"))).to_be_visible(timeout=ANSWER_MS)

    send(page, "Who walks?")
    expect(message(page, 20).get_by_text(re.compile(r"too long for the model.*512"))).to_be_visible(timeout=ANSWER_MS)
    page.get_by_role("button", name="Leave out the oldest turns").click()
    assert wait_for_end(page, 20)
    expect(message(page, 1).get_by_text("Question 0?")).to_be_visible()
    expect(message(page, 1).get_by_text("Not sent to the model any more.")).to_be_visible()
    expect(message(page, 17).get_by_text("Not sent to the model any more.")).to_have_count(0)
    expect(page.get_by_text(re.compile(r"The \d+ messages above are not sent."))).to_be_visible()
    expect(page.get_by_text(re.compile(r"^\d+ / 512 tokens of context"))).to_be_visible()

    page.get_by_role("button", name="Send them again").click()
    expect(page.get_by_text("Not sent to the model any more.")).to_have_count(0)
    send(page, "Who else?")
    expect(message(page, 22).get_by_text(re.compile(r"too long for the model"))).to_be_visible(timeout=ANSWER_MS)
    page.get_by_role("button", name="Start anew with this question").click()
    expect(messages(page)).to_have_count(3, timeout=ANSWER_MS)
    assert wait_for_end(page, 2)


def test_text_survives_a_killed_server_and_the_page_recovers(small_page: Page, small_server: ServerConfig) -> None:
    page = small_page
    send(page, LA)
    wait_for_text(page, 2)
    torchserve_process.stop(small_server)
    expect(message(page, 2).get_by_text("The answer was cut")).to_be_visible(timeout=ANSWER_MS)
    expect(page.get_by_text("TorchServe is not running. Press Start Server")).to_be_visible(timeout=ANSWER_MS)
    saved = text_of(page, 2)
    assert len(saved) > 20
    page.get_by_test_id("stChatInputTextArea").fill("half a question")

    start_small(small_server)
    expect(page.get_by_text(READY)).to_be_visible(timeout=ANSWER_MS)
    expect(page.get_by_test_id("stChatInputTextArea")).to_have_value("half a question")
    page.get_by_role("button", name="Continue").click()
    assert wait_for_end(page, 2).startswith(saved)
