"""Saved conversations: no program loses a message, and a thousand conversations are listed quickly."""

import json
import os
import random
import re
import sqlite3
import stat
import string
import threading
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from apps.chat.database import StoreError
from apps.chat.export import ImportFailed, as_markdown, export_json, import_json
from apps.chat.messages import Conversation, Message, title_from
from apps.chat.schema import MIGRATIONS
from apps.chat.store import HEARTBEAT_SECONDS, UNDO_SECONDS, ChatStore, ConversationDeleted

SETTINGS = {"temperature": 0.5}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> ChatStore:
    return ChatStore(tmp_path / "chats.sqlite3", clock)


def answered(store: ChatStore, conversation_id: str, question: str, answer: str) -> int:
    (message_id,) = store.ask(conversation_id, question).ids
    store.finish(message_id, answer, "stop", "", {})
    return message_id


def texts(store: ChatStore, conversation_id: str) -> list[str]:
    return [message.text for message in store.tree(conversation_id).path()]


def titles(store: ChatStore, words: str = "") -> list[str]:
    return [found.title for found in store.latest(100, words)]


def test_a_conversation_survives_closing_the_file(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "What is a llama?", "An animal.")
    store.close()

    again = ChatStore(store.path, clock)

    conversation = again.get(conversation_id)
    assert conversation is not None
    assert (conversation.title, conversation.settings) == ("What is a llama?", SETTINGS)
    assert texts(again, conversation_id) == ["What is a llama?", "An animal."]


@pytest.mark.parametrize(
    ("question", "title"),
    [
        pytest.param("What is it?", "What is it?", id="short"),
        pytest.param("\n  First line \nsecond", "First line", id="first line with text"),
        pytest.param("word " * 30, "word " * 10 + "word…", id="long, cut at a word"),
        pytest.param("字" * 100, "字" * 59 + "…", id="without blanks"),
        pytest.param(" \n ", "Untitled", id="nothing but blanks"),
    ],
)
def test_title_comes_from_the_question(question: str, title: str) -> None:
    assert title_from(question) == title


def test_title_is_the_first_question_until_a_person_renames_it(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "First", "1")
    answered(store, conversation_id, "Second", "2")
    assert titles(store) == ["First"]
    store.rename(conversation_id, "  Mine  ")
    assert titles(store) == ["Mine"]


def test_the_latest_conversation_is_listed_first(store: ChatStore) -> None:
    first, second = store.create(SETTINGS), store.create(SETTINGS)
    answered(store, first, "one", "1")
    answered(store, second, "two", "2")
    assert titles(store) == ["two", "one"]
    answered(store, first, "three", "3")
    assert titles(store) == ["one", "two"]
    assert len(store.latest(1)) == 1


# --- branches


def test_an_edited_question_is_a_branch_and_both_can_be_shown(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "one", "1")
    answered(store, conversation_id, "two", "2")
    question = store.tree(conversation_id).path()[2]

    (other,) = store.ask_instead(question.id, "zwei").ids
    store.finish(other, "II", "stop", "", {})

    assert texts(store, conversation_id) == ["one", "1", "zwei", "II"]
    tree = store.tree(conversation_id)
    assert [branch.text for branch in tree.siblings(tree.path()[2])] == ["two", "zwei"]
    store.show(question.id)
    assert texts(store, conversation_id) == ["one", "1", "two", "2"]


def test_a_branch_is_shown_down_to_its_newest_message(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    first = answered(store, conversation_id, "one", "1")
    question = store.tree(conversation_id).path()[0]
    store.answer_again(question.id)
    assert texts(store, conversation_id) == ["one", ""]
    store.show(first)
    answered(store, conversation_id, "two", "2")
    store.ask_instead(question.id, "eins")
    assert texts(store, conversation_id) == ["eins", ""]
    store.show(question.id)
    assert texts(store, conversation_id) == ["one", "1", "two", "2"]


def test_simultaneous_answers_are_one_group_without_later_answers(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    ids = store.ask(conversation_id, "one", answers=3).ids
    question = store.tree(conversation_id).path()[0]
    (alone,) = store.answer_again(question.id).ids
    tree = store.tree(conversation_id)
    assert [message.id for message in tree.group(tree.messages[ids[1]])] == ids
    assert tree.group(tree.messages[alone]) == [tree.messages[alone]]
    assert len(tree.siblings(tree.messages[alone])) == 4


# --- deleting


def test_deleted_conversation_comes_back_whole_with_undo(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "one", "1")
    store.delete(conversation_id)
    assert titles(store) == titles(store, "one") == []
    assert store.get(conversation_id) is None
    store.undelete(conversation_id)
    assert texts(store, conversation_id) == ["one", "1"]
    assert titles(store) == ["one"]


def test_deleted_conversation_is_gone_from_the_file_after_a_day(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "secret words", "1")
    store.delete(conversation_id)
    clock.now += UNDO_SECONDS + 1

    ChatStore(store.path, clock)

    database = sqlite3.connect(store.path)
    counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("messages", "search")]
    assert counts == [0, 0]


# --- unfinished answers


def test_answer_without_a_heartbeat_is_marked_as_cut_with_its_text(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one").ids
    store.save(message_id, "half an ans", {})

    again = ChatStore(store.path, clock)
    assert again.tree(conversation_id).path()[-1].ended == ""
    clock.now += HEARTBEAT_SECONDS + 1

    message = again.tree(conversation_id).path()[-1]
    assert (message.text, message.ended) == ("half an ans", "cut")
    assert "Continue" in message.problem
    assert titles(again, "half an") == ["one"]


def test_a_file_that_cannot_be_written_can_still_be_read(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "Question").ids
    store.save(message_id, "half", {})
    with sqlite3.connect(store.path) as database:
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON messages BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    clock.now += HEARTBEAT_SECONDS + 1

    assert (store.message(message_id).text, store.message(message_id).ended) == ("half", "")
    assert [message.text for message in store.tree(conversation_id).path()] == ["Question", "half"]


def test_eight_programs_can_create_one_file_at_the_same_time(tmp_path: Path) -> None:
    for number in range(10):
        with ThreadPoolExecutor(8) as programs:
            stores = list(programs.map(ChatStore, [tmp_path / f"{number}.sqlite3"] * 8))
        assert len({each.create(SETTINGS) for each in stores} & set(stores[0].all_ids())) == 8
        for each in stores:
            each.close()


def test_answer_with_a_heartbeat_is_not_marked_as_cut(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one").ids
    for _ in range(3):
        clock.now += HEARTBEAT_SECONDS - 1
        store.save(message_id, "", {})
        assert store.tree(conversation_id).path()[-1].ended == ""


def test_stop_reaches_the_next_save_of_another_process(store: ChatStore, clock: Clock) -> None:
    (message_id,) = store.ask(store.create(SETTINGS), "one").ids
    assert not store.save(message_id, "a", {})
    ChatStore(store.path, clock).want_stop(message_id)
    assert store.save(message_id, "ab", {})


def test_an_ended_answer_changes_only_after_it_is_reopened(store: ChatStore) -> None:
    message_id = answered(store, store.create(SETTINGS), "one", "whole")
    store.save(message_id, "late", {})
    assert store.message(message_id).text == "whole"
    assert store.reopen(message_id)
    assert not store.reopen(message_id)
    store.save(message_id, "whole and more", {})
    assert store.message(message_id).text == "whole and more"


def test_two_stores_on_one_file_lose_no_message(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)

    def write(number: int) -> None:
        own = ChatStore(store.path)
        for turn in range(10):
            answered(own, conversation_id, f"question {number}.{turn}", f"answer {number}.{turn}")

    programs = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    path = texts(store, conversation_id)
    assert len(path) == len(set(path)) == 80


def test_every_change_but_text_of_unfinished_answers_gives_a_new_revision(store: ChatStore) -> None:
    seen = {store.revision()}
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one").ids
    before = store.revision()
    store.save(message_id, "text", {})
    assert store.revision() == before
    changes: list[Callable[[], None]] = [
        lambda: store.finish(message_id, "text", "stop", "", {}),
        lambda: store.rename(conversation_id, "Mine"),
        lambda: store.leave_out([message_id]),
        lambda: store.delete(conversation_id),
    ]
    for change in changes:
        seen.add(store.revision())
        change()
        assert store.revision() not in seen


# --- searching


@pytest.mark.parametrize(
    ("words", "found"),
    [
        pytest.param("Proxima", True, id="a word of the answer"),
        pytest.param("PROXIMA closest", False, id="words of two messages"),
        pytest.param("proxima centauri", True, id="several words of one message"),
        pytest.param("entaur", True, id="within a word"),
        pytest.param("closest", True, id="a word of the question, which is the title"),
        pytest.param("is", True, id="two letters"),
        pytest.param("比邻", True, id="two CJK characters"),
        pytest.param("比邻星 is", True, id="long and short ones together"),
        pytest.param("100%", True, id="a sign that LIKE knows"),
        pytest.param("100_", False, id="another"),
        pytest.param('"sure"', True, id="quotation marks"),
        pytest.param("AND OR", False, id="words that FTS knows"),
        pytest.param("Betelgeuse", False, id="absent word"),
        pytest.param("is " * 5_000, True, id="more words than SQLite compares"),
        pytest.param("%" * 60_000, False, id="a longer word than SQLite compares"),
        pytest.param("is\0sure", True, id="a null between two words"),
    ],
)
def test_search_finds_what_is_there(store: ChatStore, words: str, found: bool) -> None:
    answered(store, store.create(SETTINGS), "Which star is closest?", 'Proxima Centauri (比邻星) is, 100% "sure".')
    assert bool(store.latest(10, words)) is found


def test_search_shows_where(store: ChatStore) -> None:
    answered(store, store.create(SETTINGS), "Which?", "x " * 100 + "here it is " + "y " * 100)
    (found,) = store.latest(10, "here")
    assert "here it is" in found.excerpt
    assert len(found.excerpt) < 100


def quickest(act: Callable[[], object]) -> float:
    """Seconds, the least of three: other programs may be busy meanwhile."""
    return min(timeit.repeat(act, number=1, repeat=3))


def test_a_thousand_conversations_are_searched_in_half_a_second(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "many.sqlite3")
    dice = random.Random(1)
    words = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(3000)]
    for number in range(1000):
        messages = [
            Message(
                i, i - 1 if i else None, "assistant" if i % 2 else "user", " ".join(dice.choices(words, k=30)), "stop"
            )
            for i in range(20)
        ]
        store.add(Conversation(f"c{number}", f"Title {number}", {}, 19, number, number), messages)

    for wanted in ("", words[0], " ".join(words[1:3]), "title 77", "a", "zq", "betelgeuse"):
        assert quickest(partial(store.latest, 21, wanted)) < 0.5, wanted
    assert len(store.tree("c500").path()) == 20
    assert quickest(partial(store.tree, "c500")) < 0.5


def test_answers_wait_for_the_unfinished_answer_before_their_question(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    first = store.ask(conversation_id, "one")
    second = store.ask(conversation_id, "two")
    assert (first.waits_for, second.waits_for) == (None, first.ids[0])
    store.finish(first.ids[0], "1", "stop", "", {})
    question_id = store.message(second.ids[0]).parent_id or 0
    assert store.ask_instead(question_id, "zwei").waits_for is None


def test_left_out_messages_are_counted_on_the_branch_only(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    first = answered(store, conversation_id, "one", "1")
    (other,) = store.ask_instead(store.message(first).parent_id or 0, "eins").ids
    store.leave_out([first, other])
    assert store.count_left_out(first) == store.count_left_out(other) == 1


def test_message_of_a_deleted_conversation_is_recognised(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    message_id = answered(store, conversation_id, "one", "1")
    assert store.conversation_id_of(message_id) == conversation_id
    store.delete(conversation_id)
    for missing in (message_id, 999):
        with pytest.raises(ConversationDeleted):
            store.conversation_id_of(missing)


def test_only_the_owner_can_read_the_files(store: ChatStore) -> None:
    answered(store, store.create(SETTINGS), "one", "1")
    modes = {file.name: file.stat().st_mode & 0o777 for file in store.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert len(modes) == 3, "the database, its write-ahead log and the log's index"


# --- the schema


def test_a_file_of_the_first_schema_is_migrated_and_searchable(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite3"
    database = sqlite3.connect(path)
    database.executescript(MIGRATIONS[0])
    database.execute("PRAGMA user_version = 1")
    database.execute(
        "INSERT INTO conversations (id, title, leaf_id, created_at, updated_at) VALUES ('a', 'Old', 2, 1, 1)"
    )
    rows = [(1, None, "user", "an old question", "sent"), (2, 1, "assistant", "an old answer", "stop")]
    database.executemany(
        "INSERT INTO messages (id, conversation_id, parent_id, role, text, ended, created_at, written_at) "
        "VALUES (?, 'a', ?, ?, ?, ?, 1, 1)",
        rows,
    )
    database.commit()
    database.close()

    store = ChatStore(path)

    assert texts(store, "a") == ["an old question", "an old answer"]
    assert titles(store, "answer") == ["Old"]
    answered(store, "a", "a new question", "a new answer")
    assert titles(store, "new answer") == ["Old"]


def test_a_file_of_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite3"
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(StoreError, match="update the program"):
        ChatStore(path)


def test_the_error_about_a_file_that_is_no_database_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    path.write_text("This is a letter, not a database. " * 100)
    with pytest.raises(StoreError, match=r"chats\.sqlite3"):
        ChatStore(path)


# --- export and import


def filled(store: ChatStore) -> str:
    conversation_id = store.create(SETTINGS)
    answered(store, conversation_id, "Which star?", "Proxima 😀 比邻星")
    answered(store, conversation_id, "How far?", "4.2 light-years")
    question = store.tree(conversation_id).path()[2]
    (cut,) = store.ask_instead(question.id, "How big?").ids
    store.finish(cut, "Sm", "cut", "The answer was cut.", {"usage": {"total_tokens": 9}})
    store.leave_out([message.id for message in store.tree(conversation_id).path()[:2]])
    return conversation_id


def without_ids(store: ChatStore, conversation_id: str) -> tuple[Conversation, list[tuple[Message, str | None]]]:
    """Everything of a conversation, with parents named by their text."""
    conversation, tree = store.get(conversation_id), store.tree(conversation_id)
    assert conversation is not None
    messages = [
        (replace(message, id=0, parent_id=None), tree.messages[message.parent_id].text if message.parent_id else None)
        for message in tree.messages.values()
    ]
    leaf = tree.messages[conversation.leaf_id].text if conversation.leaf_id else None
    return replace(conversation, id=str(leaf), leaf_id=None), messages


def test_import_restores_an_exported_conversation_with_all_branches(store: ChatStore, tmp_path: Path) -> None:
    conversation_id = filled(store)
    other = ChatStore(tmp_path / "other.sqlite3")

    (imported,) = import_json(other, export_json(store, [conversation_id]))

    assert without_ids(other, imported) == without_ids(store, conversation_id)
    assert titles(other, "light-years")


def test_import_overwrites_nothing(store: ChatStore) -> None:
    conversation_id = filled(store)
    import_json(store, export_json(store, [conversation_id]))
    assert len(titles(store)) == 2
    assert texts(store, conversation_id)[-1] == "Sm"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda text: "{", "not JSON", id="no JSON"),
        pytest.param(lambda text: "[1]", "not an export", id="a list"),
        pytest.param(lambda text: text.replace("llama-2-chatbot", "other"), "not an export", id="another format"),
        pytest.param(lambda text: text.replace('"version": 1', '"version": 9'), "version 9", id="a newer version"),
        pytest.param(lambda text: text.replace('"role": "user"', '"role": "boss"'), "damaged", id="an unknown role"),
        pytest.param(lambda text: text.replace('"leaf_id": ', '"leaf_id": 9'), "damaged", id="an unknown leaf"),
        pytest.param(lambda text: text.replace('"parent_id": 1', '"parent_id": 77'), "damaged", id="no such parent"),
        pytest.param(lambda text: text.replace('"title"', '"tilte"'), "damaged", id="a field missing"),
        pytest.param(lambda text: text.replace('"usage": {', '"usage": "x", "y": {'), "damaged", id="usage is a text"),
        pytest.param(lambda text: text.replace('"figures": {}', '"figures": []'), "damaged", id="figures are a list"),
        pytest.param(lambda text: text.replace('"together": null', '"together": {}'), "damaged", id="wrong group"),
        pytest.param(lambda text: text.replace('"parent_id": 1', '"parent_id": []'), "damaged", id="parent is a list"),
        pytest.param(lambda text: re.sub('"created_at": [0-9.]+', '"created_at": NaN', text), "damaged", id="no time"),
        pytest.param(
            lambda text: re.sub('"created_at": [0-9.]+', '"created_at": 1e300', text), "damaged", id="far future"
        ),
        pytest.param(lambda text: text.replace("Which star?", r"\ud800"), "damaged", id="half a character"),
        pytest.param(lambda text: "[" * 100_000, "nested too deeply", id="deep nesting"),
    ],
)
def test_a_file_that_cannot_be_imported_adds_nothing_and_says_why(
    store: ChatStore, change: Callable[[str], str], problem: str
) -> None:
    broken = change(export_json(store, [filled(store)]))
    with pytest.raises(ImportFailed, match=problem):
        import_json(store, broken)
    assert len(titles(store)) == 1


def test_markdown_has_the_branch_that_is_shown(store: ChatStore) -> None:
    text = as_markdown(store, filled(store))
    assert text.startswith("# Which star?\n")
    assert text.index("## You\n\nHow big?") < text.index("## Assistant\n\nSm")
    assert "*The answer was cut.*" in text
    assert "light-years" not in text


def test_an_import_needs_no_id_and_leaves_out_nested_settings(store: ChatStore) -> None:
    conversation = {"title": "Birds", "settings": {"top_k": 5, "nested": {"a": 1}}, "leaf_id": None}
    times = {"created_at": 1.0, "updated_at": 2.0}
    document = {"format": "llama-2-chatbot", "version": 1, "conversations": [conversation | times | {"messages": []}]}
    (imported,) = import_json(store, json.dumps(document))
    found = store.get(imported)
    assert found is not None
    assert (found.title, found.settings) == ("Birds", {"top_k": 5})


# --- the file's mode


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_file_and_its_journals_are_for_their_owner_with_any_umask(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "chats.sqlite3"
    before = os.umask(umask)
    try:
        with closing(ChatStore(file)) as store:
            store.create({})
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys(["chats.sqlite3", "chats.sqlite3-wal", "chats.sqlite3-shm"], 0o600)


def test_older_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    file = tmp_path / "chats.sqlite3"
    with closing(ChatStore(file)):
        for path in tmp_path.iterdir():
            path.chmod(0o644)
        with closing(ChatStore(file)):
            assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_pinned_conversation_stands_first_and_survives_an_export(store: ChatStore) -> None:
    pinned, later = filled(store), filled(store)
    store.pin(pinned, True)

    assert [(entry.id, entry.is_pinned) for entry in store.latest(9)] == [(pinned, True), (later, False)]
    (again,) = import_json(store, export_json(store, [pinned]))
    copy = store.get(again)
    assert copy and copy.is_pinned
    store.pin(pinned, False)
    assert not any(entry.id == pinned and entry.is_pinned for entry in store.latest(9))


def test_search_names_the_newest_message_with_the_words_on_a_hidden_branch_too(store: ChatStore) -> None:
    conversation_id = store.create({})
    first = store.ask(conversation_id, "A name for a boat?")
    store.finish(first.ids[0], "Sturdy Vessel.", "stop", "", {})
    question_id = store.message(first.ids[0]).parent_id
    assert question_id is not None
    store.finish(store.answer_again(question_id).ids[0], "Sea Star.", "stop", "", {})

    (found,) = store.latest(9, "sturdy vessel")

    assert found.message_id == first.ids[0]
    assert found.message_id not in [message.id for message in store.tree(conversation_id).path()]
    (in_title,) = store.latest(9, "boat")
    assert in_title.message_id == question_id


def test_settings_are_saved_replaced_and_deleted_under_their_name(store: ChatStore) -> None:
    store.save_under_name("pirate", {"system_prompt": "Arr", "temperature": 1.3})
    store.save_under_name("Lawyer", {"system_prompt": "Hm"})
    store.save_under_name("pirate", {"system_prompt": "Ahoy"})

    assert list(store.saved_settings().items()) == [
        ("Lawyer", {"system_prompt": "Hm"}),
        ("pirate", {"system_prompt": "Ahoy"}),
    ]
    store.delete_saved("pirate")
    assert list(store.saved_settings()) == ["Lawyer"]
