"""Exports of ChatGPT and Open WebUI become conversations; small files written by hand, after the sources that
foreign_exports.py names."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings

from apps.chat import foreign_exports
from apps.chat.export import ImportFailed, import_json
from apps.chat.messages import Message
from apps.chat.store import ChatStore
from tests.chat.test_export import damaged, import_and_show


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatStore]:
    with closing(ChatStore(tmp_path_factory.mktemp("imports") / "chats.sqlite3")) as store:
        yield store


def said(role: str, text: str, parent: str | None, at: float, **rest: Any) -> dict[str, Any]:
    """A node of ChatGPT's tree."""
    content = {"content_type": "text", "parts": [text]}
    message = {"author": {"role": role}, "create_time": at, "content": content, "recipient": "all"} | rest
    return {"parent": parent, "children": [], "message": message}


def chatgpt() -> list[dict[str, Any]]:
    """A question with two answers; the first one, with a call of a tool in it, was followed."""
    mapping = {
        "root": {"id": "root", "parent": None, "children": ["system"], "message": None},
        "system": said("system", "", "root", 1.0),
        "q": said("user", "Which star is closest?", "system", 2.0),
        "a1": said("assistant", "I search.", "q", 3.0),
        "call": said("assistant", "search(star)", "a1", 4.0, recipient="browser"),
        "tool": said("tool", "results", "call", 5.0),
        "a2": said("assistant", "The Sun\ue200cite\ue202turn0\ue201.", "tool", 6.0),
        "other": said("assistant", "Proxima Centauri.", "q", 7.0),
        "q2": said("user", "How far?", "a2", 8.0),
        "a3": said("assistant", "150 million km.", "q2", 9.0),
    }
    times = {"create_time": 1.5, "update_time": 9.5}
    return [{"title": "Stars", "mapping": mapping, "current_node": "a3", **times}]


def open_web_ui() -> list[dict[str, Any]]:
    """Two answers of which the newer one is shown; Open WebUI's own times are in seconds and in milliseconds."""
    messages = {
        "q": {"id": "q", "parentId": None, "childrenIds": ["a", "b"], "role": "user", "content": "Hi", "timestamp": 5},
        "a": {"id": "a", "parentId": "q", "childrenIds": [], "role": "assistant", "content": "Hello.", "timestamp": 6},
        "b": {"id": "b", "parentId": "q", "role": "assistant", "content": "Hey!", "timestamp": 1_700_000_000_000},
    }
    chat = {"title": "Greeting", "history": {"messages": messages, "currentId": "b"}, "params": {"system": "Be kind."}}
    return [{"id": "1", "title": "Greeting", "chat": chat, "created_at": 5, "updated_at": 7, "pinned": True}]


def imported(store: ChatStore, document: object) -> str:
    (conversation_id,) = import_json(store, json.dumps(document))
    return conversation_id


def texts(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


def test_chatgpts_tree_keeps_its_branches_and_joins_the_parts_of_an_answer(store: ChatStore) -> None:
    conversation_id = imported(store, chatgpt())

    tree = store.tree(conversation_id)
    assert texts(tree.path()) == [
        ("user", "Which star is closest?"),
        ("assistant", "I search.\n\nThe Sun."),
        ("user", "How far?"),
        ("assistant", "150 million km."),
    ]
    assert [message.text for message in tree.siblings(tree.path()[1])] == ["I search.\n\nThe Sun.", "Proxima Centauri."]
    conversation = store.get(conversation_id)
    assert conversation and (conversation.title, conversation.updated_at) == ("Stars", 9.5)


def test_open_webuis_chat_keeps_its_branches_pin_and_system_prompt(store: ChatStore) -> None:
    conversation_id = imported(store, open_web_ui())

    tree = store.tree(conversation_id)
    assert texts(tree.path()) == [("user", "Hi"), ("assistant", "Hey!")]
    assert [message.text for message in tree.siblings(tree.path()[1])] == ["Hello.", "Hey!"]
    assert tree.path()[1].created_at == 1_700_000_000
    conversation = store.get(conversation_id)
    assert conversation and conversation.is_pinned and conversation.settings == {"system_prompt": "Be kind."}


def test_picture_is_named_and_hidden_messages_are_not_imported(store: ChatStore) -> None:
    document = chatgpt()
    question = document[0]["mapping"]["q2"]["message"]
    question["content"] = {"content_type": "multimodal_text", "parts": [{"asset_pointer": "file"}, "What is this?"]}
    document[0]["mapping"]["other"]["message"]["metadata"] = {"is_visually_hidden_from_conversation": True}

    tree = store.tree(imported(store, document))

    assert tree.path()[2].text == f"{foreign_exports.PICTURE}\n\nWhat is this?"
    assert tree.siblings(tree.path()[1]) == [tree.path()[1]]


def test_question_without_an_answer_can_be_tried_again(store: ChatStore) -> None:
    document = chatgpt()
    del document[0]["mapping"]["a3"]
    document[0]["current_node"] = "q2"

    last = store.tree(imported(store, document)).path()[-1]

    assert (last.role, last.text, last.ended, last.problem) == ("assistant", "", "cut", foreign_exports.NO_ANSWER)


def test_answer_without_a_question_stands_under_an_empty_one(store: ChatStore) -> None:
    document = chatgpt()
    document[0]["mapping"] = {"a": said("assistant", "Welcome!", None, 1.0)}
    document[0]["current_node"] = "a"

    assert texts(store.tree(imported(store, document)).path()) == [("user", "…"), ("assistant", "Welcome!")]


def change_node(name: str, key: str, value: object) -> list[dict[str, Any]]:
    document = chatgpt()
    document[0]["mapping"][name][key] = value
    return document


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        pytest.param(change_node("root", "parent", "a3"), "in a circle", id="a cycle"),
        pytest.param(change_node("q", "parent", "q"), "in a circle", id="its own parent"),
        pytest.param(change_node("q", "message", "text"), "damaged", id="a message that is a text"),
        pytest.param(change_node("q", "parent", 5), "damaged", id="a parent that is a number"),
        pytest.param(
            change_node("q", "message", said("user", "x" * 2_000_001, None, 1)["message"]), "longer", id="long"
        ),
        pytest.param([{**chatgpt()[0], "create_time": 1e300}], "damaged", id="far future"),
        pytest.param([{**chatgpt()[0], "mapping": []}], "damaged", id="a mapping that is a list"),
        pytest.param([{"chat": {"history": {}}}], "damaged", id="a chat without messages"),
        pytest.param([{"chat": None}], "damaged", id="no chat"),
        pytest.param([], "not an export", id="an empty list"),
        pytest.param([*chatgpt(), 5], "not an export", id="a number among conversations"),
    ],
)
def test_reason_is_named(store: ChatStore, document: object, reason: str) -> None:
    with pytest.raises(ImportFailed, match=reason):
        import_json(store, json.dumps(document))
    assert not import_and_show(store, json.dumps(document))


def test_branches_that_repeat_a_long_beginning_are_refused(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a small file could fill the memory: each of many answers repeats the part before it."""
    monkeypatch.setattr(foreign_exports, "LARGEST_TOTAL", 5_000)
    mapping = {"q": said("user", "Go", None, 1.0), "a": said("assistant", "x" * 1_000, "q", 2.0)}
    mapping |= {f"b{number}": said("assistant", "y", "a", 3.0) for number in range(10)}

    with pytest.raises(ImportFailed, match="too long together"):
        imported(store, [{"title": "Long", "mapping": mapping}])


def test_ten_thousand_parts_of_one_answer_are_joined(store: ChatStore) -> None:
    mapping = {"0": said("user", "Go", None, 0.0)}
    mapping |= {str(number): said("assistant", "y", str(number - 1), 0.0) for number in range(1, 10_001)}

    path = store.tree(imported(store, [{"title": "Long", "mapping": mapping}])).path()

    assert [len(message.text) for message in path] == [2, 29_998]


@settings(max_examples=150)
@given(text=damaged(chatgpt) | damaged(open_web_ui))
def test_any_damage_is_a_sentence_or_harmless(store: ChatStore, text: str) -> None:
    import_and_show(store, text)


def test_one_file_may_have_conversations_of_both_formats(store: ChatStore) -> None:
    ids = import_json(store, json.dumps([*chatgpt(), *open_web_ui()]))

    assert [len(store.tree(conversation_id).messages) for conversation_id in ids] == [5, 3]
