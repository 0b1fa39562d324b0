"""Which requests belong to one conversation."""

import json
from typing import Any

import pytest

from cluster.affinity import session_key

SYSTEM = {"role": "system", "content": "You are a poet."}
QUESTION = {"role": "user", "content": "What is a river?"}
LATER = [{"role": "assistant", "content": "Water."}, {"role": "user", "content": "Only water?"}]


def key(body: Any, header: str = "") -> str:
    return session_key(header, json.dumps(body).encode())


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = key({"messages": [SYSTEM, QUESTION]})
    assert first == key({"messages": [SYSTEM, QUESTION, *LATER], "temperature": 1})
    assert first != key({"messages": [SYSTEM, *LATER]})
    assert first != key({"messages": [{**SYSTEM, "content": "Be brief."}, QUESTION]})


def test_the_header_comes_before_the_cache_key_and_that_before_the_messages() -> None:
    body = {"messages": [QUESTION], "prompt_cache_key": "a"}
    assert key(body, "mine") == key({}, "mine") != key(body)
    assert key(body) == key({"prompt_cache_key": "a"}) != key({"messages": [QUESTION]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(
            {"system": "Be brief.", "messages": [QUESTION]},
            {"system": "Be brief.", "messages": [QUESTION, *LATER]},
            id="Anthropic's messages",
        ),
        pytest.param(
            {"instructions": "Be brief.", "input": [QUESTION]},
            {"instructions": "Be brief.", "input": [QUESTION, *LATER]},
            id="OpenAI's responses",
        ),
    ],
)
def test_other_apis_have_conversations_as_well(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert key(first) == key(second) != ""


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b'{"a": ' + b"[" * 100_000, b"\xff", b'{"model": "a"}'])
def test_a_body_without_a_conversation_has_no_key(body: bytes) -> None:
    assert session_key("", body) == ""


def test_a_key_contains_nothing_of_the_text() -> None:
    made = [key({"messages": [QUESTION]}), key({}, "river"), key({"prompt_cache_key": "river"})]
    assert all(len(each) == 32 and "river" not in each for each in made) and len(set(made)) == 3
