"""Files that a person may import: whatever is in them, the answer is a sentence or a conversation that can be shown.

test_store.py has the way there and back of sound files.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.chat import export
from apps.chat.answer_panel import caption_of
from apps.chat.context import gauge, messages_for
from apps.chat.export import ImportFailed, as_markdown, export_json, import_json
from apps.chat.store import ChatStore

USAGE = {"prompt_tokens": 5, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 2}}


def message(number: int, parent: int | None, role: str, **rest: object) -> dict[str, Any]:
    figures = {"usage": deepcopy(USAGE), "timings": {"predicted_per_second": 20.5}} if role == "assistant" else {}
    common: dict[str, Any] = {"id": number, "parent_id": parent, "role": role, "text": f"text {number}"}
    return common | {"ended": "sent" if role == "user" else "stop", "figures": figures, "created_at": 1.0} | rest


def document() -> dict[str, Any]:
    """A sound file: two turns, the first question with two answers, and a raw one."""
    messages = [
        message(1, None, "user"),
        message(2, 1, "assistant", together="abc"),
        message(3, 1, "assistant", together="abc", figures={}),
        message(4, 2, "user", is_raw=True),
        message(5, 4, "assistant", is_raw=True, ended="cut", problem="It was cut."),
    ]
    times = {"created_at": 1.0, "updated_at": 2.0}
    conversation = {"title": "Stars", "settings": {"top_k": 5, "system_prompt": "Be short."}, "leaf_id": 5, **times}
    return {"format": "llama-2-chatbot", "version": 1, "conversations": [conversation | {"messages": messages}]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatStore]:
    with closing(ChatStore(tmp_path_factory.mktemp("imports") / "chats.sqlite3")) as store:
        yield store


def import_and_show(store: ChatStore, text: str | bytes) -> bool:
    """Whether the file was imported. If so, everything that a page makes of it is made; if not, there is a sentence."""
    before = store.all_ids()
    imported, sentence = import_or_refuse(store, text)
    if sentence:
        assert sentence.endswith(".")
        assert 20 < len(sentence) < 400
        assert "\n" not in sentence
        assert store.all_ids() == before
    for conversation_id in imported:
        tree = store.tree(conversation_id)
        for each in tree.messages.values():
            tree.group(each)
            caption_of(each)
            tree.path(tree.newest_leaf(each.id))
        gauge(tree.path(), "", 4096)
        if tree.messages:
            messages_for(tree.path(), "")
        as_markdown(store, conversation_id)
    assert len(import_json(store, export_json(store, imported))) == len(imported)
    return not sentence


def import_or_refuse(store: ChatStore, text: str | bytes) -> tuple[list[str], str]:
    """The new ids, or the sentence."""
    try:
        return import_json(store, text), ""
    except ImportFailed as failure:
        return [], str(failure)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["user", "stop"]),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4),
    max_leaves=8,
)


def places(value: object) -> Iterator[tuple[Any, Any]]:
    """All containers in a document with their keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@st.composite
def damaged(draw: st.DrawFn, make: Callable[[], Any]) -> str:
    """A sound file in which up to four values are replaced, removed or copied from elsewhere."""
    damaged = make()
    for _ in range(draw(st.integers(1, 4))):
        found = list(places(damaged))
        container, key = found[draw(st.integers(0, len(found) - 1))]
        change = draw(st.sampled_from(["replace", "remove", "copy"]))
        if change == "remove":
            del container[key]
        elif change == "replace":
            container[key] = draw(json_values)
        else:
            source, source_key = found[draw(st.integers(0, len(found) - 1))]
            container[key] = deepcopy(source[source_key]) if contains(source, source_key) else None
        if not damaged:
            break
    return json.dumps(damaged)


def contains(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def test_the_sound_file_is_imported(store: ChatStore) -> None:
    assert import_and_show(store, json.dumps(document()))


@settings(max_examples=300)
@given(text=damaged(document))
def test_any_damage_is_a_sentence_or_harmless(store: ChatStore, text: str) -> None:
    import_and_show(store, text)


@settings(max_examples=100)
@given(content=st.binary(max_size=200), at=st.integers(0, 900))
def test_any_bytes_are_a_sentence(store: ChatStore, content: bytes, at: int) -> None:
    sound = json.dumps(document()).encode()
    import_and_show(store, sound[:at] + content + sound[at + len(content) :])
    import_and_show(store, content)


def change(path: list[str | int], value: object) -> str:
    damaged = document()
    container: Any = damaged
    for key in path[:-1]:
        container = container[key]
    container[path[-1]] = value
    return json.dumps(damaged)


MESSAGES: list[str | int] = ["conversations", 0, "messages"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(partial(change, [*MESSAGES, 0, "parent_id"], 5), "comes before", id="a cycle"),
        pytest.param(partial(change, [*MESSAGES, 1, "parent_id"], 2), "comes before", id="its own parent"),
        pytest.param(partial(change, [*MESSAGES, 1, "id"], 1), "id of an earlier one", id="one id twice"),
        pytest.param(partial(change, [*MESSAGES, 0, "role"], "assistant"), "without a question", id="answer first"),
        pytest.param(partial(change, [*MESSAGES, 3, "role"], "assistant"), "without a question", id="two answers"),
        pytest.param(partial(change, [*MESSAGES, 1, "ended"], "somehow"), "unknown end", id="an unknown end"),
        pytest.param(partial(change, ["conversations", 0, "leaf_id"], 4), "shown last", id="a question is last"),
        pytest.param(partial(change, ["conversations", 0, "leaf_id"], None), "shown last", id="nothing is shown"),
        pytest.param(partial(change, [*MESSAGES, 1, "text"], "x" * 2_000_001), "is longer than", id="a long answer"),
        pytest.param(
            partial(change, ["conversations", 0, "settings", "system_prompt"], "x" * 200_001),
            "a setting is longer",
            id="a long system prompt",
        ),
        pytest.param(lambda: '{"format": "llama-2-chatbot", "version": ' + "1" * 5000 + "}", "damaged", id="digits"),
        pytest.param(partial(change, ["version"], [[[]]]), "version unknown", id="a version that is none"),
        pytest.param(lambda: json.dumps(document()).encode("utf-16"), "damaged", id="utf-16"),
        pytest.param(lambda: b'{"format": "\xff"}', "damaged", id="no utf-8"),
        pytest.param(lambda: '{"a":' * 100_000, "nested too deeply", id="deep objects"),
    ],
)
def test_reason_is_named(store: ChatStore, make: Callable[[], str | bytes], reason: str) -> None:
    with pytest.raises(ImportFailed, match=reason):
        import_json(store, make())
    assert not import_and_show(store, make())


def test_file_and_conversation_have_largest_sizes(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportFailed, match="larger than 50 MB"):
        import_json(store, b" " * (export.LARGEST_FILE + 1))
    monkeypatch.setattr(export, "MOST_MESSAGES", 4)
    with pytest.raises(ImportFailed, match="more than 4 messages"):
        import_json(store, json.dumps(document()))


def test_figures_have_two_levels_of_objects_at_most(store: ChatStore) -> None:
    """Deeper ones could be imported and then not be read by a page, whose stack is deeper."""
    deep: dict[str, Any] = {"total_tokens": 1}
    for _ in range(500):
        deep = {"usage": deep, "total_tokens": 1}
    changed = document()
    changed["conversations"][0]["messages"][1]["figures"] = deep
    (imported,) = import_json(store, json.dumps(changed))
    figures = store.tree(imported).path()[1].figures
    assert figures == {"usage": {"usage": {"total_tokens": 1}, "total_tokens": 1}, "total_tokens": 1}


def test_ten_thousand_messages_in_one_branch_are_imported(store: ChatStore, tmp_path: Path) -> None:
    long = document()
    roles = ("assistant", "user")
    long["conversations"][0] |= {
        "messages": [message(number, number - 1 or None, roles[number % 2]) for number in range(1, 10_001)],
        "leaf_id": 10_000,
    }
    (imported,) = import_json(store, json.dumps(long))
    assert len(store.tree(imported).path()) == 10_000
    assert store.count_left_out(store.tree(imported).path()[-1].id) == 0
