"""Data of components keep their order in a browser that calls their scripts in another one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from playwright.sync_api import Page

from apps.shared import copy_button
from apps.shared.ordered_data import ordered
from tests.support.browser import running_browser

CHAT = Path(__file__).parents[2] / "apps" / "chat"


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    session: dict[str, Any] = {}
    monkeypatch.setattr(st, "session_state", session)
    return session


def test_changed_data_have_a_greater_number_and_unchanged_data_the_same(state: dict[str, Any]) -> None:
    first = ordered("answer", {"text": "a"})
    assert ordered("answer", {"text": "a"}) == first
    second = ordered("answer", {"text": "b"})
    third = ordered("answer", {"text": "a"})
    assert first["number"] < second["number"] < third["number"]


def test_numbers_grow_when_the_clock_is_put_back(state: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = ordered("answer", {"text": "a"})["number"]
    monkeypatch.setattr("apps.shared.ordered_data.time.time_ns", lambda: 1)
    assert ordered("answer", {"text": "b"})["number"] == first + 1


def test_a_new_session_has_greater_numbers(state: dict[str, Any]) -> None:
    first = ordered("answer", {"text": "a"})["number"]
    state.clear()
    assert ordered("answer", {"text": "b"})["number"] > first


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with running_browser() as chromium:
        yield chromium.new_page()


SCRIPTS = {
    "message": (CHAT / "message_element" / "message.js").read_text(encoding="utf-8"),
    "copy button": copy_button._SCRIPT,
}
CALL = """async ([script, isIsolated, drawn]) => {
    const box = document.createElement("div");
    const parentElement = isIsolated ? box.attachShadow({ mode: "open" }) : box; // as Streamlit calls the script
    parentElement.innerHTML = "<button><svg></svg><span></span></button>";
    const { default: draw } = await import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
    for (const data of drawn) {
        const component = { data, parentElement, setTriggerValue() {} };
        if (globalThis.chatMessages) globalThis.chatMessages.push(component);
        else draw(component);
    }
    delete globalThis.chatMessages;
    return parentElement.textContent;
}"""
MESSAGE = {"id": "7", "role": "answer", "text": "", "blocks": [], "thought": 0, "thought_label": "", "size": 0}
MESSAGE |= {"thinks": False, "about": "", "actions": [], "branch": None}
QUEUED = MESSAGE | {"is_live": True, "figures": "queued", "problem": ""}
FAILED = MESSAGE | {"is_live": False, "figures": "", "problem": "Too long."}


@pytest.mark.browser
@pytest.mark.parametrize(
    ("script", "older", "newer", "shown"),
    [("message", QUEUED, FAILED, "Too long."), ("copy button", {"label": "Old"}, {"label": "New"}, "New")],
)
def test_a_script_leaves_out_data_that_come_late(
    page: Page, script: str, older: dict[str, Any], newer: dict[str, Any], shown: str
) -> None:
    older, newer = older | {"number": 1}, newer | {"number": 2}
    assert page.evaluate(CALL, [SCRIPTS[script], script == "copy button", [older, newer]]) == shown
    assert page.evaluate(CALL, [SCRIPTS[script], script == "copy button", [newer, older]]) == shown
