"""Both apps in a browser, with TorchServe and the demo model: from a stopped server to an answer."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import open_page, running_app, send
from tests.support.serving import make_home, wait_until
from tests.support.wire import engine_metrics
from torchserve_client import process as torchserve_process
from torchserve_client.config import ServerConfig
from torchserve_client.running_server import find_server

LONG = 120_000  # milliseconds; loading a model on a busy machine


@pytest.fixture(scope="module")
def client_url(server: ServerConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app("client_app.py", server, tmp_path_factory.mktemp("app") / "client.log") as url:
        yield url


def wait_for_answer(page: Page, number: int) -> str:
    """The text of the answer to question `number` (from 1), once the answer has ended."""
    bubble = page.get_by_test_id("stChatMessage").nth(2 * number)
    expect(bubble.get_by_text(re.compile("length limit reached|ended by itself"))).to_be_visible(timeout=LONG)
    return bubble.inner_text()


def test_from_a_stopped_server_to_an_answer_and_back(browser: Browser, demo_store: Path, tmp_path: Path) -> None:
    config = make_home(tmp_path / "home", model_store=demo_store)
    try:
        with (
            running_app("torchserve_server_app.py", config, tmp_path / "server.log") as server_url,
            running_app("client_app.py", config, tmp_path / "client.log") as chat_url,
        ):
            dashboard, chat = open_page(browser, server_url), open_page(browser, chat_url)
            expect(chat.get_by_text("TorchServe is not running").first).to_be_visible()

            dashboard.get_by_role("button", name="Start Server").click()
            expect(dashboard.get_by_text("running without a model")).to_be_visible(timeout=LONG)
            expect(chat.get_by_text("No model is registered. Press Register Llama2")).to_be_visible(timeout=LONG)
            dashboard.get_by_role("button", name="Register Llama2").click()
            expect(dashboard.get_by_text("1 of 1 workers ready").first).to_be_visible(timeout=LONG)
            expect(dashboard.get_by_text("continuous batching").first).to_be_visible()

            expect(chat.get_by_text("Proceed to entering your prompt message!")).to_be_visible(timeout=LONG)
            send(chat, "What is the closest star to Earth?")
            assert len(wait_for_answer(chat, 1)) > 20

            dashboard.get_by_role("button", name="Stop Server").click()
            expect(dashboard.get_by_text("TorchServe is not running").first).to_be_visible(timeout=LONG)
            expect(chat.get_by_text("TorchServe is not running").first).to_be_visible(timeout=LONG)
            assert find_server(config) is None
    finally:
        torchserve_process.stop(config)


def test_two_questions_build_a_conversation_and_clear_empties_it(
    browser: Browser, client_url: str, server: ServerConfig
) -> None:
    page = open_page(browser, f"{client_url}/?max_tokens=24&temperature=0.01")
    prompt_tokens = []
    for number, question in enumerate(("My name is Wilhelmina.", "What is my name?"), start=1):
        before = engine_metrics(server)["llamacpp_prompt_tokens_total"]
        send(page, question)
        wait_for_answer(page, number)
        prompt_tokens.append(engine_metrics(server)["llamacpp_prompt_tokens_total"] - before)
    assert prompt_tokens[1] > prompt_tokens[0] + 24, "the second prompt must hold the first question and its answer"

    page.get_by_role("tab", name="Settings").click()
    page.get_by_role("button", name="Clear Chat History").click()
    expect(page.get_by_test_id("stChatMessage")).to_have_count(1)
    expect(page.get_by_text("How may I assist you today?")).to_be_visible()


def test_a_raw_prompt_is_shown_with_its_completion(browser: Browser, client_url: str) -> None:
    page = open_page(browser, f"{client_url}/?max_tokens=24&temperature=0.01&sidebar=Settings")
    page.get_by_text("raw", exact=True).click()
    send(page, "Question: What is the closest star to Earth ? Answer:")
    assert re.search(r"Question: What is the closest star to Earth \? Answer:\s*\w", wait_for_answer(page, 1))


def test_two_client_apps_stream_at_the_same_time(
    browser: Browser, client_url: str, server: ServerConfig, tmp_path: Path
) -> None:
    with running_app("client_app.py", server, tmp_path / "second.log") as second_url:
        pages = [open_page(browser, f"{url}/?max_tokens=250&temperature=0.01") for url in (client_url, second_url)]
        for page in pages:  # both are ready before the first question is sent
            expect(page.get_by_test_id("stChatInputTextArea")).to_be_editable()
            expect(page.get_by_text("Proceed to entering your prompt message!")).to_be_visible()
        for page in pages:
            send(page, "Repeat the word la forever: la la la la la la la la la la la")
        wait_until(lambda: engine_metrics(server)["llamacpp_slots_busy"] == 2, what="two busy slots")
        for page in pages:
            assert len(wait_for_answer(page, 1)) > 20
