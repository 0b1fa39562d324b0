"""Saved conversations in one SQLite file: trees of messages, written while they stream, searched, deleted with undo.

Every thread, tab and process may use the same file; whoever writes an answer says every moment that it is still
at it (`written_at`), so that an answer whose writer has died is known as cut.

Knows nothing of servers and pages.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apps.chat.messages import TITLE_LENGTH, Conversation, Found, Message, Tree, new_id, title_from
from apps.chat.schema import NewerSchema, migrate

WRITER_SECONDS = 5.0  # an answer that nobody has written to for so long has lost its writer
LOCKED_SECONDS = 30.0  # so long another program may keep the file
KEEP_DELETED_SECONDS = 24 * 3600.0
LEAST_INDEXED = 3  # characters; the index knows every three of them, shorter words are looked for in all texts
LEFT = "The app ended while this answer was written. Continue it, or ask again."


logger = logging.getLogger(__name__)


class StoreError(Exception):
    """The file cannot be used; the message says what to do."""


class ChatStore:
    """The file. Threads may share one; each method is a transaction of its own.

    Raises StoreError when the file is no store, is from a newer version of this program, or cannot be written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: transactions begin where we say so.
            self._database = sqlite3.connect(
                path, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._use_wal()
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            with self._transaction() as database:
                migrate(database)
            self._forget_deleted()
        except NewerSchema as error:
            raise StoreError(f"{path} is too new ({error}): update the program, or choose another file.") from error
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be used for conversations ({error}): move it away.") from error

    def _use_wal(self) -> None:
        """SQLite does not wait here, as it does elsewhere, while another program makes the file (tried)."""
        deadline = time.monotonic() + LOCKED_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def close(self) -> None:
        with self._lock:  # SQLite would crash if another thread were in the middle of a statement
            self._database.close()

    # --- conversations

    def create(self, settings: dict[str, Any], wanted_id: str = "") -> str:
        """A new conversation without a title; returns its id: another one than wanted if that has been deleted."""
        now = self._clock()
        with self._transaction() as database:
            is_taken = database.execute("SELECT 1 FROM conversations WHERE id = ?", (wanted_id,)).fetchone()
            conversation_id = new_id() if is_taken or not wanted_id else wanted_id
            database.execute(
                "INSERT INTO conversations (id, settings, created_at, updated_at) VALUES (?, ?, ?, ?)",
                (conversation_id, json.dumps(settings), now, now),
            )
        return conversation_id

    def get(self, conversation_id: str) -> Conversation | None:
        """None if there is none of this id, or it has been deleted."""
        row = self._row(
            "SELECT id, title, settings, leaf_id, created_at, updated_at FROM conversations "
            "WHERE id = ? AND deleted_at IS NULL",
            (conversation_id,),
        )
        return Conversation(row[0], row[1], json.loads(row[2]), *row[3:]) if row else None

    def conversation_of(self, message_id: int) -> Conversation | None:
        """None if it has been deleted."""
        row = self._row("SELECT conversation_id FROM messages WHERE id = ?", (message_id,))
        return self.get(row[0]) if row else None

    def latest(self, limit: int, words: str = "") -> list[Found]:
        """The latest conversations first; with `words`, those that have all of them in one message or in the title."""
        if words.split():
            return self._search(words.split(), limit)
        rows = self._rows(
            "SELECT id, title, updated_at FROM conversations WHERE deleted_at IS NULL ORDER BY updated_at DESC LIMIT ?",
            (limit,),
        )
        return [Found(*row) for row in rows]

    def all_ids(self) -> list[str]:
        """Of all conversations that are not deleted, oldest first."""
        rows = self._rows("SELECT id FROM conversations WHERE deleted_at IS NULL ORDER BY created_at")
        return [row[0] for row in rows]

    def rename(self, conversation_id: str, title: str) -> None:
        self._change(conversation_id, "title = ?", title.strip()[:TITLE_LENGTH])

    def save_settings(self, conversation_id: str, settings: dict[str, Any]) -> None:
        self._change(conversation_id, "settings = ?", json.dumps(settings))

    def delete(self, conversation_id: str) -> None:
        """Hides it; `undelete` brings it back within a day."""
        self._change(conversation_id, "deleted_at = ?", self._clock())

    def undelete(self, conversation_id: str) -> None:
        self._change(conversation_id, "deleted_at = ?", None)

    def revision(self) -> int:
        """Another number after any change, by whomever, but for the text of answers being written."""
        row = self._row("SELECT total(revision) + count(*) FROM conversations")
        return int(row[0]) if row else 0

    # --- messages

    def tree(self, conversation_id: str) -> Tree:
        """All messages; an answer that has lost its writer is marked as cut before."""
        self._end_orphans()
        rows = self._rows(f"SELECT {_COLUMNS} FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,))
        leaf = self._row("SELECT leaf_id FROM conversations WHERE id = ?", (conversation_id,))
        return Tree([_message(row) for row in rows], leaf[0] if leaf else None)

    def message(self, message_id: int) -> Message:
        self._end_orphans()
        row = self._row(f"SELECT {_COLUMNS} FROM messages WHERE id = ?", (message_id,))
        assert row is not None, "messages go only with their conversation, a day after it was deleted"
        return _message(row)

    def ask(self, conversation_id: str, question: str, is_raw: bool = False, answers: int = 1) -> list[int]:
        """Adds a question at the end of the branch that is shown, and its answers to be; returns the answers' ids."""
        with self._transaction():
            leaf = self._row("SELECT leaf_id FROM conversations WHERE id = ?", (conversation_id,))
            return self._ask(conversation_id, leaf[0] if leaf else None, question, is_raw, answers)

    def ask_instead(self, question_id: int, question: str, is_raw: bool = False, answers: int = 1) -> list[int]:
        """Adds a question as a branch beside an earlier one; returns the ids of its answers to be."""
        with self._transaction():
            parent, conversation_id = self._place(question_id)
            return self._ask(conversation_id, parent, question, is_raw, answers)

    def answer_again(self, question_id: int, is_raw: bool = False, answers: int = 1) -> list[int]:
        """Adds answers to be as branches of a question that is there; returns their ids."""
        with self._transaction():
            _, conversation_id = self._place(question_id)
            return self._add_answers(conversation_id, question_id, is_raw, answers)

    def show(self, message_id: int) -> None:
        """Shows the branch through this message."""
        _, conversation_id = self._place(message_id)
        leaf = self.tree(conversation_id).newest_leaf(message_id)
        self._change(conversation_id, "leaf_id = ?", leaf)

    def leave_out(self, message_ids: Sequence[int], is_left_out: bool = True) -> None:
        """Marks messages as no longer sent to the model, or as sent again."""
        if not message_ids:
            return
        _, conversation_id = self._place(message_ids[0])
        with self._transaction() as database:
            marks = [(is_left_out, message_id) for message_id in message_ids]
            database.executemany("UPDATE messages SET is_left_out = ? WHERE id = ?", marks)
            self._touch(conversation_id)

    # --- an answer being written

    def write(self, message_id: int, text: str, figures: dict[str, Any]) -> bool:
        """Keeps what an answer has so far, and says that its writer is alive; True if somebody wants it to stop."""
        row = self._row(
            "UPDATE messages SET text = ?, figures = ?, written_at = ? WHERE id = ? AND ended = '' "
            "RETURNING stop_wanted",
            (text, json.dumps(figures), self._clock(), message_id),
        )
        return bool(row and row[0])

    def finish(self, message_id: int, text: str, ended: str, problem: str, figures: dict[str, Any]) -> None:
        """An answer's last word; nothing may write to it afterwards but `reopen`."""
        _, conversation_id = self._place(message_id)
        with self._transaction() as database:
            database.execute(
                "UPDATE messages SET text = ?, ended = ?, problem = ?, figures = ? WHERE id = ?",
                (text, ended, problem, json.dumps(figures), message_id),
            )
            self._touch(conversation_id)

    def reopen(self, message_id: int) -> bool:
        """Makes an ended answer one being written again, to be continued; False if it is being written already."""
        _, conversation_id = self._place(message_id)
        with self._transaction():
            row = self._row(
                "UPDATE messages SET ended = '', problem = '', stop_wanted = 0, written_at = ? "
                "WHERE id = ? AND ended != '' RETURNING id",
                (self._clock(), message_id),
            )
            self._touch(conversation_id)
        return row is not None

    def want_stop(self, message_id: int) -> None:
        """Tells the writer of an answer, in whatever process, to stop."""
        self._row("UPDATE messages SET stop_wanted = 1 WHERE id = ? AND ended = '' RETURNING id", (message_id,))

    # --- whole conversations, for export and import

    def add(self, conversation: Conversation, messages: Sequence[Message]) -> None:
        """A conversation under the id it has; its messages, parents first, get ids of their own."""
        new_ids: dict[int, int] = {}
        with self._transaction() as database:
            database.execute(
                "INSERT INTO conversations (id, title, settings, created_at, updated_at) VALUES (?, ?, ?, ?, ?)",
                (
                    conversation.id,
                    conversation.title,
                    json.dumps(conversation.settings),
                    conversation.created_at,
                    conversation.updated_at,
                ),
            )
            for message in messages:
                parent = None if message.parent_id is None else new_ids[message.parent_id]
                new_ids[message.id] = self._add_message(conversation.id, parent, message)
            leaf = None if conversation.leaf_id is None else new_ids[conversation.leaf_id]
            database.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (leaf, conversation.id))

    # --- inside

    def _search(self, words: Sequence[str], limit: int) -> list[Found]:
        likes = [f"%{_escaped(word)}%" for word in words]
        title_has = " AND ".join(["conversations.title LIKE ? ESCAPE '\\'"] * len(likes))
        text_has = " AND ".join(["messages.text LIKE ? ESCAPE '\\'"] * len(likes))
        indexed = [word for word in words if len(word) >= LEAST_INDEXED]
        phrases = " ".join('"' + word.replace('"', '""') + '"' for word in indexed)
        candidates = "messages JOIN search ON search.rowid = messages.id AND search MATCH ?" if indexed else "messages"
        rows = self._rows(
            f"""
            WITH found AS (
                SELECT conversation_id, max(messages.id) AS message_id FROM {candidates}
                WHERE {text_has} GROUP BY conversation_id
            )
            SELECT conversations.id, title, updated_at, coalesce(text, '') FROM conversations
            LEFT JOIN found ON found.conversation_id = conversations.id
            LEFT JOIN messages ON messages.id = found.message_id
            WHERE deleted_at IS NULL AND (found.message_id IS NOT NULL OR ({title_has}))
            ORDER BY updated_at DESC LIMIT ?
            """,
            (*([phrases] if indexed else []), *likes, *likes, limit),
        )
        return [Found(row[0], row[1], row[2], _excerpt(row[3], words)) for row in rows]

    def _ask(self, conversation_id: str, parent: int | None, question: str, is_raw: bool, answers: int) -> list[int]:
        message = Message(0, parent, "user", question, "sent", is_raw=is_raw, created_at=self._clock())
        question_id = self._add_message(conversation_id, parent, message)
        self._database.execute(
            "UPDATE conversations SET title = ? WHERE id = ? AND title = ''", (title_from(question), conversation_id)
        )
        return self._add_answers(conversation_id, question_id, is_raw, answers)

    def _add_answers(self, conversation_id: str, question_id: int, is_raw: bool, count: int) -> list[int]:
        together = new_id() if count > 1 else None
        answer = Message(
            0, question_id, "assistant", "", "", is_raw=is_raw, together=together, created_at=self._clock()
        )
        ids = [self._add_message(conversation_id, question_id, answer) for _ in range(count)]
        self._database.execute("UPDATE conversations SET leaf_id = ? WHERE id = ?", (ids[0], conversation_id))
        self._touch(conversation_id)
        return ids

    def _add_message(self, conversation_id: str, parent: int | None, message: Message) -> int:
        values = (
            conversation_id,
            parent,
            message.role,
            message.text,
            message.ended,
            message.problem,
            json.dumps(message.figures),
            message.is_raw,
            message.is_left_out,
            message.together,
            message.created_at,
            self._clock(),
        )
        row = self._row(
            "INSERT INTO messages (conversation_id, parent_id, role, text, ended, problem, figures, is_raw, "
            f"is_left_out, together, created_at, written_at) VALUES ({', '.join('?' * len(values))}) RETURNING id",
            values,
        )
        assert row is not None
        return int(row[0])

    def _place(self, message_id: int) -> tuple[int | None, str]:
        row = self._row("SELECT parent_id, conversation_id FROM messages WHERE id = ?", (message_id,))
        assert row is not None, "messages go only with their conversation, a day after it was deleted"
        return row[0], row[1]

    def _touch(self, conversation_id: str) -> None:
        self._database.execute(
            "UPDATE conversations SET updated_at = ?, revision = revision + 1 WHERE id = ?",
            (self._clock(), conversation_id),
        )

    def _change(self, conversation_id: str, assignment: str, value: object) -> None:
        with self._transaction() as database:
            database.execute(
                f"UPDATE conversations SET {assignment}, revision = revision + 1 WHERE id = ?", (value, conversation_id)
            )

    def _end_orphans(self) -> None:
        """A file that cannot be written can still be read."""
        try:
            self._mark_orphans()
        except StoreError:
            logger.exception("Answers without a writer could not be marked for now")

    def _mark_orphans(self) -> None:
        left_before = self._clock() - WRITER_SECONDS
        is_left = "ended = '' AND written_at < ?"
        if not self._row(f"SELECT 1 FROM messages WHERE {is_left}", (left_before,)):
            return
        with self._transaction() as database:
            database.execute(f"UPDATE messages SET ended = 'cut', problem = ? WHERE {is_left}", (LEFT, left_before))

    def _forget_deleted(self) -> None:
        with self._transaction() as database:
            database.execute("DELETE FROM conversations WHERE deleted_at < ?", (self._clock() - KEEP_DELETED_SECONDS,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else in between: neither a thread nor another process."""
        with self._lock, self._translated():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} cannot be used for conversations ({error}): look at it.") from error

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._translated():
            return self._database.execute(sql, tuple(values)).fetchall()

    def _row(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        rows = self._rows(sql, values)  # to the end: only then is a statement with RETURNING done
        return rows[0] if rows else None


_COLUMNS = "id, parent_id, role, text, ended, problem, figures, is_raw, is_left_out, together, created_at"


def _message(row: tuple[Any, ...]) -> Message:
    id, parent_id, role, text, ended, problem, figures, is_raw, is_left_out, together, created_at = row
    flags = bool(is_raw), bool(is_left_out)
    return Message(id, parent_id, role, text, ended, problem, json.loads(figures), *flags, together, created_at)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _excerpt(text: str, words: Sequence[str]) -> str:
    """The text around the first of the words, on one line."""
    at = min((place for word in words if (place := text.lower().find(word.lower())) >= 0), default=-1)
    if at < 0:
        return ""
    start, end = max(0, at - 20), at + 60
    return ("…" if start else "") + " ".join(text[start:end].split()) + ("…" if end < len(text) else "")
