"""Saved conversations: nothing is lost, by nobody, and a thousand of them are as quick as one."""

from __future__ import annotations

import random
import sqlite3
import string
import threading
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from apps.chat.export import ImportFailed, as_markdown, export_json, import_json
from apps.chat.messages import Conversation, Message, title_from
from apps.chat.schema import MIGRATIONS
from apps.chat.store import KEEP_DELETED_SECONDS, WRITER_SECONDS, ChatStore, StoreError

SETTINGS = {"temperature": 0.5}


class Clock:
    """Seconds that pass when told to."""

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
    (message_id,) = store.ask(conversation_id, question)
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


def test_title_stays_the_first_questions_until_it_is_renamed(store: ChatStore) -> None:
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

    (other,) = store.ask_instead(question.id, "zwei")
    store.finish(other, "II", "stop", "", {})

    assert texts(store, conversation_id) == ["one", "1", "zwei", "II"]
    tree = store.tree(conversation_id)
    assert [branch.text for branch in tree.siblings(tree.path()[2])] == ["two", "zwei"]
    store.show(question.id)
    assert texts(store, conversation_id) == ["one", "1", "two", "2"]


def test_a_branch_is_shown_as_far_as_it_was_left(store: ChatStore) -> None:
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


def test_simultaneous_answers_are_a_group_and_another_one_is_not_in_it(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)
    ids = store.ask(conversation_id, "one", answers=3)
    question = store.tree(conversation_id).path()[0]
    (alone,) = store.answer_again(question.id)
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
    clock.now += KEEP_DELETED_SECONDS + 1

    ChatStore(store.path, clock)

    database = sqlite3.connect(store.path)
    counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("messages", "search")]
    assert counts == [0, 0]


# --- writing


def test_text_is_kept_while_it_streams_and_an_answer_without_a_writer_counts_as_cut(
    store: ChatStore, clock: Clock
) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one")
    store.write(message_id, "half an ans", {})

    again = ChatStore(store.path, clock)
    assert again.tree(conversation_id).path()[-1].ended == ""
    clock.now += WRITER_SECONDS + 1

    message = again.tree(conversation_id).path()[-1]
    assert (message.text, message.ended) == ("half an ans", "cut")
    assert "Continue" in message.problem
    assert titles(again, "half an") == ["one"]


def test_a_file_that_cannot_be_written_can_still_be_read(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "Question")
    store.write(message_id, "half", {})
    with sqlite3.connect(store.path) as database:
        database.execute("CREATE TRIGGER full BEFORE UPDATE ON messages BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    clock.now += WRITER_SECONDS + 1

    assert (store.message(message_id).text, store.message(message_id).ended) == ("half", "")
    assert [message.text for message in store.tree(conversation_id).path()] == ["Question", "half"]


def test_many_may_open_a_file_that_is_not_there_yet(tmp_path: Path) -> None:
    for number in range(10):
        with ThreadPoolExecutor(8) as programs:
            stores = list(programs.map(ChatStore, [tmp_path / f"{number}.sqlite3"] * 8))
        assert len({each.create(SETTINGS) for each in stores} & set(stores[0].all_ids())) == 8
        for each in stores:
            each.close()


def test_a_writer_that_says_it_is_alive_keeps_its_answer(store: ChatStore, clock: Clock) -> None:
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one")
    for _ in range(3):
        clock.now += WRITER_SECONDS - 1
        store.write(message_id, "", {})
        assert store.tree(conversation_id).path()[-1].ended == ""


def test_stop_reaches_a_writer_in_another_process(store: ChatStore, clock: Clock) -> None:
    (message_id,) = store.ask(store.create(SETTINGS), "one")
    assert not store.write(message_id, "a", {})
    ChatStore(store.path, clock).want_stop(message_id)
    assert store.write(message_id, "ab", {})


def test_an_ended_answer_is_not_written_to_until_it_is_reopened(store: ChatStore) -> None:
    message_id = answered(store, store.create(SETTINGS), "one", "whole")
    store.write(message_id, "late", {})
    assert store.message(message_id).text == "whole"
    assert store.reopen(message_id)
    assert not store.reopen(message_id)
    store.write(message_id, "whole and more", {})
    assert store.message(message_id).text == "whole and more"


def test_two_stores_on_one_file_lose_no_message(store: ChatStore) -> None:
    conversation_id = store.create(SETTINGS)

    def write(number: int) -> None:
        own = ChatStore(store.path)
        for turn in range(10):
            answered(own, conversation_id, f"question {number}.{turn}", f"answer {number}.{turn}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    path = texts(store, conversation_id)
    assert len(path) == len(set(path)) == 80


def test_any_change_gives_another_revision_but_not_the_text_of_an_answer_being_written(store: ChatStore) -> None:
    seen = {store.revision()}
    conversation_id = store.create(SETTINGS)
    (message_id,) = store.ask(conversation_id, "one")
    before = store.revision()
    store.write(message_id, "text", {})
    assert store.revision() == before
    for change in (
        lambda: store.finish(message_id, "text", "stop", "", {}),
        lambda: store.rename(conversation_id, "Mine"),
        lambda: store.leave_out([message_id]),
        lambda: store.delete(conversation_id),
    ):
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
        pytest.param("Betelgeuse", False, id="not there"),
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
    """Seconds, the least of three: what another program does meanwhile is not ours."""
    return min(timeit.repeat(act, number=1, repeat=3))


def test_a_thousand_conversations_are_listed_and_searched_in_under_half_a_second(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "many.sqlite3")
    dice = random.Random(1)
    words = ["".join(dice.choices(string.ascii_lowercase, k=dice.randint(2, 9))) for _ in range(3000)]
    for number in range(1000):
        messages = [
            Message(
                i, i - 1 if i else None, "assistant" if i % 2 else "user", " ".join(dice.choices(words, k=30)), "stop"
            )
            for i in range(50)
        ]
        store.add(Conversation(f"c{number}", f"Title {number}", {}, 49, number, number), messages)

    for wanted in ("", words[0], " ".join(words[1:3]), "title 77", "a", "zq", "betelgeuse"):
        assert quickest(partial(store.latest, 21, wanted)) < 0.5, wanted
    assert len(store.tree("c500").path()) == 50
    assert quickest(partial(store.tree, "c500")) < 0.5


# --- the schema


def test_a_file_of_the_first_schema_is_brought_up_and_can_be_searched(tmp_path: Path) -> None:
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


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
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
    (cut,) = store.ask_instead(question.id, "How big?")
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


def test_export_and_import_give_the_same_conversation_with_all_its_branches(store: ChatStore, tmp_path: Path) -> None:
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
        pytest.param(
            lambda text: text.replace('"leaf_id": ', '"leaf_id": 9'), "damaged", id="a leaf that is not there"
        ),
        pytest.param(lambda text: text.replace('"parent_id": 1', '"parent_id": 77'), "damaged", id="no such parent"),
        pytest.param(lambda text: text.replace('"title"', '"tilte"'), "damaged", id="a field missing"),
    ],
)
def test_a_file_that_cannot_be_imported_adds_nothing_and_is_told_why(store: ChatStore, change, problem: str) -> None:  # type: ignore[no-untyped-def]
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
