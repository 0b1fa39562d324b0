"""A deleted message is hidden, what follows it stays, and its text is gone a day later."""

from pathlib import Path

from apps.chat.store import UNDO_SECONDS, ChatStore


def ask(store: ChatStore, conversation_id: str, question: str, figures: dict[str, object] | None = None) -> list[int]:
    """Asks, and answers with the question's words. Returns the ids of both."""
    (answer_id,) = store.ask(conversation_id, question).ids
    store.finish(answer_id, f"answer to {question}", "stop", "", figures or {})
    return [answer_id - 1, answer_id]


def texts(store: ChatStore, conversation_id: str) -> list[str]:
    return [message.text for message in store.tree(conversation_id).path()]


def test_what_follows_a_deleted_turn_follows_the_one_before_it(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "store")
    chat = store.create({})
    turns = [ask(store, chat, name, {"usage": {"total_tokens": 9}}) for name in "abc"]
    before = texts(store, chat)
    store.remove(turns[1][0])
    assert texts(store, chat) == ["a", "answer to a", "c", "answer to c"]
    assert "total_tokens" not in store.message(turns[2][1]).figures["usage"], "it was counted with the deleted turn"
    assert store.message(turns[0][1]).figures["usage"]["total_tokens"] == 9
    assert store.latest(9, "answer to b") == []
    store.restore(turns[1][0])
    assert texts(store, chat) == before


def test_deleting_the_last_messages_shows_what_is_left(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "store")
    chat = store.create({})
    question, answer = ask(store, chat, "a")
    (other,) = store.answer_again(question).ids
    store.finish(other, "another", "stop", "", {})
    store.remove(other)
    assert texts(store, chat) == ["a", "answer to a"], "the other version"
    store.remove(answer)
    assert texts(store, chat) == ["a"]
    store.remove(question)
    assert texts(store, chat) == []
    store.restore(question)
    assert texts(store, chat) == ["a"]
    store.restore(other)
    assert texts(store, chat) == ["a", "another"]
    ask(store, chat, "b")
    assert texts(store, chat)[-1] == "answer to b"


def test_deletion_stops_an_unfinished_answer(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "store")
    (answer,) = store.ask(store.create({}), "a").ids
    store.remove(answer - 1)
    assert store.save(answer, "half", {})


def test_the_text_of_a_deleted_message_is_gone_after_a_day(tmp_path: Path) -> None:
    now = 1000.0
    store = ChatStore(tmp_path / "store", clock=lambda: now)
    chat = store.create({})
    first, _ = ask(store, chat, "a secret")
    ask(store, chat, "b")
    store.remove(first)
    store.close()
    now += UNDO_SECONDS + 1
    store = ChatStore(tmp_path / "store", clock=lambda: now)
    assert texts(store, chat) == ["b", "answer to b"]
    assert store.message(first).text == ""
