"""Saved conversations in one SQLite file: trees of messages, saved while they are generated, with undo of a deletion.

Every thread, tab and process may use the same file. The process that generates an answer saves it several times a
second and so sets its heartbeat (`written_at`); an unfinished answer without a heartbeat is marked as cut.

Knows nothing of servers and pages.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from apps.chat.database import Database, StoreError
from apps.chat.messages import (
    LONGEST_TITLE,
    NOT_STORED,
    Conversation,
    ListEntry,
    Message,
    MessageTree,
    random_id,
    title_from,
    without,
)
from apps.chat.removal import forget, hidden, hide, unhide
from apps.chat.search import excerpt_of, search_query, words_of

HEARTBEAT_SECONDS = 5.0  # an unfinished answer without a heartbeat for this long is marked as cut
UNDO_SECONDS = 24 * 3600.0  # a deleted conversation can be restored for this long
NO_HEARTBEAT = "The app ended while it generated this answer. Continue it, or ask again."

logger = logging.getLogger(__name__)


class ConversationDeleted(Exception):
    """A message's conversation has been deleted, perhaps in another tab."""


@dataclass(frozen=True, slots=True)
class NewAnswers:
    """Answers to be generated. `waits_for` is the unfinished answer before their question, if there is one."""

    ids: list[int]
    waits_for: int | None = None


class ChatStore:
    """The file. Threads may share one; each method is one transaction.

    Raises StoreError when the file is no store, is from a newer version of this program, or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._database = Database(path)
        self._purge_deleted()

    def close(self) -> None:
        self._database.close()

    # --- conversations

    def create(self, settings: dict[str, Any], wanted_id: str = "") -> str:
        """A new conversation without a title. Returns its id: not the wanted one if a deleted conversation has that."""
        now = self._clock()
        with self._database.transaction():
            is_taken = self._database.row("SELECT 1 FROM conversations WHERE id = ?", (wanted_id,))
            conversation_id = random_id() if is_taken or not wanted_id else wanted_id
            self._database.rows(
                "INSERT INTO conversations (id, settings, created_at, updated_at) VALUES (?, ?, ?, ?)",
                (conversation_id, json.dumps(settings), now, now),
            )
        return conversation_id

    def get(self, conversation_id: str) -> Conversation | None:
        """None if no conversation has this id, or if it was deleted."""
        row = self._database.row(
            "SELECT id, title, settings, leaf_id, created_at, updated_at, is_pinned FROM conversations "
            "WHERE id = ? AND deleted_at IS NULL",
            (conversation_id,),
        )
        if row is None:
            return None
        id, title, settings, leaf_id, created_at, updated_at, is_pinned = row
        return Conversation(id, title, json.loads(settings), leaf_id, created_at, updated_at, bool(is_pinned))

    def conversation_id_of(self, message_id: int) -> str:
        """Raises ConversationDeleted, also if the message alone is deleted."""
        row = self._database.row(
            "SELECT conversations.id FROM messages JOIN conversations ON conversations.id = conversation_id "
            "WHERE messages.id = ? AND deleted_at IS NULL AND removed_at IS NULL",
            (message_id,),
        )
        if row is None:
            raise ConversationDeleted
        return str(row[0])

    def latest(self, limit: int, words: str = "") -> list[ListEntry]:
        """Pinned conversations first, then the latest ones.

        With `words`, only those that have all of them in one message or in the title.
        """
        if searched := words_of(words):
            rows = self._database.rows(*search_query(searched, limit))
            return [
                ListEntry(id, title, at, bool(is_pinned), message_id, excerpt_of(text, searched))
                for id, title, at, is_pinned, message_id, text in rows
            ]
        rows = self._database.rows(
            "SELECT id, title, updated_at, is_pinned FROM conversations WHERE deleted_at IS NULL "
            "ORDER BY is_pinned DESC, updated_at DESC LIMIT ?",
            (limit,),
        )
        return [ListEntry(id, title, at, bool(is_pinned)) for id, title, at, is_pinned in rows]

    def all_ids(self) -> list[str]:
        """The ids of all conversations that are not deleted, oldest first."""
        rows = self._database.rows("SELECT id FROM conversations WHERE deleted_at IS NULL ORDER BY created_at")
        return [row[0] for row in rows]

    def rename(self, conversation_id: str, title: str) -> None:
        """Cuts titles above LONGEST_TITLE, which the page's field does not let anybody type."""
        self._change(conversation_id, "title = ?", title.strip()[:LONGEST_TITLE])

    def pin(self, conversation_id: str, is_pinned: bool) -> None:
        self._change(conversation_id, "is_pinned = ?", is_pinned)

    def save_settings(self, conversation_id: str, settings: dict[str, Any]) -> None:
        self._change(conversation_id, "settings = ?", json.dumps(settings))

    def delete(self, conversation_id: str) -> None:
        """Hides the conversation and stops its answers; `undelete` restores it within UNDO_SECONDS."""
        sql = "UPDATE messages SET stop_wanted = 1 WHERE conversation_id = ? AND ended = ''"
        self._database.rows(sql, (conversation_id,))
        self._change(conversation_id, "deleted_at = ?", self._clock())

    def undelete(self, conversation_id: str) -> None:
        self._change(conversation_id, "deleted_at = ?", None)

    def revision(self) -> int:
        """Another number after any change by any process, except for the text of unfinished answers."""
        row = self._database.row("SELECT total(revision) + count(*) FROM conversations")
        return int(row[0]) if row else 0

    # --- messages

    def tree(self, conversation_id: str) -> MessageTree:
        """All messages. Marks answers without a heartbeat as cut first."""
        self._end_orphans()
        return self._tree(conversation_id)

    def message(self, message_id: int) -> Message:
        """Marks answers without a heartbeat as cut first."""
        self._end_orphans()
        row = self._database.row(f"{_SELECT} WHERE id = ?", (message_id,))
        assert row is not None, _PURGED_LATER
        return _message(row)

    def count_left_out(self, message_id: int) -> int:
        """How many messages on the path to this one are marked as not sent."""
        row = self._database.row(
            "WITH RECURSIVE path (id, parent_id, is_left_out, removed_at) AS ("
            " SELECT id, parent_id, is_left_out, removed_at FROM messages WHERE id = ?"
            " UNION ALL SELECT messages.id, messages.parent_id, messages.is_left_out, messages.removed_at"
            " FROM messages JOIN path ON messages.id = path.parent_id"
            ") SELECT total(is_left_out) FROM path WHERE removed_at IS NULL",
            (message_id,),
        )
        return int(row[0]) if row else 0

    def ask(self, conversation_id: str, question: str, is_raw: bool = False, answers: int = 1) -> NewAnswers:
        """Adds a question and its unfinished answers at the end of the branch that is shown."""
        with self._database.transaction():
            leaf = self._database.row("SELECT leaf_id FROM conversations WHERE id = ?", (conversation_id,))
            return self._ask(conversation_id, leaf[0] if leaf else None, question, is_raw, answers)

    def ask_instead(self, question_id: int, question: str, is_raw: bool = False, answers: int = 1) -> NewAnswers:
        """Adds a question and its unfinished answers as a branch beside an earlier question."""
        with self._database.transaction():
            parent, conversation_id = self._parents(question_id)
            return self._ask(conversation_id, parent, question, is_raw, answers)

    def answer_again(self, question_id: int, is_raw: bool = False, answers: int = 1) -> NewAnswers:
        """Adds unfinished answers as branches of an existing question."""
        with self._database.transaction():
            _, conversation_id = self._parents(question_id)
            return self._add_answers(conversation_id, question_id, is_raw, answers)

    def show(self, message_id: int) -> None:
        """Shows the branch through this message."""
        _, conversation_id = self._parents(message_id)
        leaf = self.tree(conversation_id).newest_leaf(message_id)
        self._change(conversation_id, "leaf_id = ?", leaf)

    def leave_out(self, message_ids: Sequence[int], is_left_out: bool = True) -> None:
        """Marks messages of one conversation as no longer sent to the model, or as sent again."""
        if not message_ids:
            return
        _, conversation_id = self._parents(message_ids[0])
        with self._database.transaction():
            for message_id in message_ids:
                self._database.rows("UPDATE messages SET is_left_out = ? WHERE id = ?", (is_left_out, message_id))
            self._touch(conversation_id)

    def edit_answer(self, answer_id: int, text: str) -> None:
        """Adds this text as a branch beside an answer, and shows it."""
        answer = self.message(answer_id)
        _, conversation_id = self._parents(answer_id)
        edited = Message(
            0, answer.parent_id, "assistant", text, "edited", is_raw=answer.is_raw, created_at=self._clock()
        )
        with self._database.transaction():
            new_id = self._add_message(conversation_id, answer.parent_id, edited)
            self._change(conversation_id, "leaf_id = ?", new_id)

    def remove(self, message_id: int) -> None:
        """Deletes a message, a question with its answers; `restore` brings them back within UNDO_SECONDS.

        What followed a deleted message then follows the one before it.
        """
        parent, conversation_id = self._parents(message_id)
        with self._database.transaction():
            hide(self._database, conversation_id, message_id, self._clock())
            tree = self._tree(conversation_id)
            if tree.leaf_id not in tree.messages:
                gone = hidden(self._database, conversation_id)
                while parent in gone:
                    parent = gone[parent]
                leaf = tree.newest_leaf(parent) if parent else max(tree.messages, default=None)
                self._change(conversation_id, "leaf_id = ?", leaf)
            self._touch(conversation_id)

    def restore(self, message_id: int) -> None:
        """Brings back what `remove` has deleted, and shows the branch through it."""
        unhide(self._database, message_id)
        self.show(message_id)

    # --- an unfinished answer

    def save(self, message_id: int, text: str, figures: dict[str, Any]) -> bool:
        """Saves the text so far and sets the heartbeat; True if another process or tab wants the answer to stop."""
        row = self._database.row(
            "UPDATE messages SET text = ?, figures = ?, written_at = ? WHERE id = ? AND ended = '' "
            "RETURNING stop_wanted",
            (text, json.dumps(figures), self._clock(), message_id),
        )
        return bool(row and row[0])

    def finish(self, message_id: int, text: str, ended: str, problem: str, figures: dict[str, Any]) -> None:
        """Saves an answer and the reason of its end; `save` then no longer changes it, unless it is reopened."""
        _, conversation_id = self._parents(message_id)
        with self._database.transaction():
            self._database.rows(
                "UPDATE messages SET text = ?, ended = ?, problem = ?, figures = ? WHERE id = ?",
                (text, ended, problem, json.dumps(figures), message_id),
            )
            self._touch(conversation_id)

    def reopen(self, message_id: int) -> bool:
        """Makes an ended answer unfinished again, to be continued; False if it is unfinished already."""
        _, conversation_id = self._parents(message_id)
        with self._database.transaction():
            row = self._database.row(
                "UPDATE messages SET ended = '', problem = '', stop_wanted = 0, written_at = ? "
                "WHERE id = ? AND ended != '' RETURNING id",
                (self._clock(), message_id),
            )
            self._touch(conversation_id)
        return row is not None

    def want_stop(self, message_id: int) -> None:
        """Asks the process that generates this answer to stop: its next `save` returns True."""
        self._database.rows("UPDATE messages SET stop_wanted = 1 WHERE id = ? AND ended = ''", (message_id,))

    # --- whole conversations, for export and import

    def add(self, conversation: Conversation, messages: Sequence[Message]) -> None:
        """Adds a conversation under its id; its messages, parents first, get new ids."""
        new_ids: dict[int, int] = {}
        with self._database.transaction():
            texts = (conversation.id, conversation.title, json.dumps(conversation.settings))
            self._database.rows(
                "INSERT INTO conversations (id, title, settings, created_at, updated_at, is_pinned) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (*texts, conversation.created_at, conversation.updated_at, conversation.is_pinned),
            )
            for message in messages:
                parent = None if message.parent_id is None else new_ids[message.parent_id]
                new_ids[message.id] = self._add_message(conversation.id, parent, message)
            leaf = None if conversation.leaf_id is None else new_ids[conversation.leaf_id]
            self._database.rows("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf, conversation.id))

    # --- settings under a name

    def saved_settings(self) -> dict[str, dict[str, Any]]:
        """All saved settings by their names, in the order of the alphabet."""
        rows = self._database.rows("SELECT name, settings FROM saved_settings ORDER BY name COLLATE NOCASE")
        return {name: json.loads(settings) for name, settings in rows}

    def save_under_name(self, name: str, settings: dict[str, Any]) -> None:
        """Saves settings, in place of those that had this name."""
        sql = "INSERT OR REPLACE INTO saved_settings (name, settings) VALUES (?, ?)"
        self._database.rows(sql, (name, json.dumps(settings)))

    def delete_saved(self, name: str) -> None:
        self._database.rows("DELETE FROM saved_settings WHERE name = ?", (name,))

    # --- internal

    def _ask(self, conversation_id: str, parent: int | None, question: str, is_raw: bool, answers: int) -> NewAnswers:
        message = Message(0, parent, "user", question, "sent", is_raw=is_raw, created_at=self._clock())
        question_id = self._add_message(conversation_id, parent, message)
        self._database.rows(
            "UPDATE conversations SET title = ? WHERE id = ? AND title = ''", (title_from(question), conversation_id)
        )
        return self._add_answers(conversation_id, question_id, is_raw, answers)

    def _tree(self, conversation_id: str) -> MessageTree:
        rows = self._database.rows(f"{_SELECT} WHERE conversation_id = ? ORDER BY id", (conversation_id,))
        leaf = self._database.row("SELECT leaf_id FROM conversations WHERE id = ?", (conversation_id,))
        messages = without([_message(row) for row in rows], hidden(self._database, conversation_id))
        return MessageTree(messages, leaf[0] if leaf else None)

    def _add_answers(self, conversation_id: str, question_id: int, is_raw: bool, count: int) -> NewAnswers:
        together = random_id() if count > 1 else None
        now = self._clock()
        answer = Message(0, question_id, "assistant", "", "", is_raw=is_raw, together=together, created_at=now)
        ids = [self._add_message(conversation_id, question_id, answer) for _ in range(count)]
        self._database.rows("UPDATE conversations SET leaf_id = ? WHERE id = ?", (ids[0], conversation_id))
        self._touch(conversation_id)
        before = self._database.row(
            "SELECT id FROM messages WHERE ended = '' AND id = (SELECT parent_id FROM messages WHERE id = ?)",
            (question_id,),
        )
        return NewAnswers(ids, before[0] if before else None)

    def _add_message(self, conversation_id: str, parent: int | None, message: Message) -> int:
        values = {name: getattr(message, name) for name in _COLUMNS if name != "id"}
        values |= {"conversation_id": conversation_id, "parent_id": parent, "written_at": self._clock()}
        values["figures"] = json.dumps(message.figures)
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO messages ({', '.join(values)}) VALUES ({marks}) RETURNING id"
        row = self._database.row(sql, tuple(values.values()))
        assert row is not None
        return int(row[0])

    def _parents(self, message_id: int) -> tuple[int | None, str]:
        row = self._database.row("SELECT parent_id, conversation_id FROM messages WHERE id = ?", (message_id,))
        assert row is not None, _PURGED_LATER
        return row[0], row[1]

    def _touch(self, conversation_id: str) -> None:
        self._change(conversation_id, "updated_at = ?", self._clock())

    def _change(self, conversation_id: str, assignment: str, value: object) -> None:
        sql = f"UPDATE conversations SET {assignment}, revision = revision + 1 WHERE id = ?"
        self._database.rows(sql, (value, conversation_id))

    def _end_orphans(self) -> None:
        """A file that cannot be written can still be read, so a failure is only logged."""
        try:
            self._mark_orphans()
        except StoreError as error:
            logger.warning("Answers without a heartbeat were not marked as cut: %s", error)

    def _mark_orphans(self) -> None:
        oldest = self._clock() - HEARTBEAT_SECONDS
        is_orphan = "ended = '' AND written_at < ?"
        if self._database.row(f"SELECT 1 FROM messages WHERE {is_orphan}", (oldest,)):  # a write would lock the file
            sql = f"UPDATE messages SET ended = 'cut', problem = ? WHERE {is_orphan}"
            self._database.rows(sql, (NO_HEARTBEAT, oldest))

    def _purge_deleted(self) -> None:
        """Of a removed message only its text goes: other messages follow it."""
        oldest = self._clock() - UNDO_SECONDS
        self._database.rows("DELETE FROM conversations WHERE deleted_at < ?", (oldest,))
        forget(self._database, oldest)


_PURGED_LATER = "a message is removed only with its conversation, UNDO_SECONDS after its deletion"
_COLUMNS = tuple(field.name for field in fields(Message) if field.name not in NOT_STORED)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM messages"


def _message(row: tuple[Any, ...]) -> Message:
    values = dict(zip(_COLUMNS, row, strict=True))
    flags = {name: bool(values[name]) for name in ("is_raw", "is_left_out")}
    return Message(**values | flags | {"figures": json.loads(values["figures"])})
