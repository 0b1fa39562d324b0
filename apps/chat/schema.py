"""The schema of the conversations' SQLite file, version by version, and the way from each version to the next.

The file's `user_version` is the number of steps it has taken.
"""

import sqlite3
from collections.abc import Iterator

# One step from each version of the schema to the next; the file's user_version counts them.
MIGRATIONS = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        title TEXT NOT NULL DEFAULT '',
        settings TEXT NOT NULL DEFAULT '{}',
        leaf_id INTEGER,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        deleted_at REAL,
        revision INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX conversations_by_age ON conversations (updated_at DESC);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent_id INTEGER REFERENCES messages (id) ON DELETE CASCADE,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        text TEXT NOT NULL DEFAULT '',
        ended TEXT NOT NULL DEFAULT '',
        problem TEXT NOT NULL DEFAULT '',
        figures TEXT NOT NULL DEFAULT '{}',
        is_raw INTEGER NOT NULL DEFAULT 0,
        is_left_out INTEGER NOT NULL DEFAULT 0,
        together TEXT,
        created_at REAL NOT NULL,
        written_at REAL NOT NULL,
        stop_wanted INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX messages_by_conversation ON messages (conversation_id);
    CREATE INDEX messages_by_parent ON messages (parent_id);
    CREATE INDEX messages_being_written ON messages (written_at) WHERE ended = '';
    """,
    """
    CREATE VIRTUAL TABLE search USING fts5 (text, tokenize = 'trigram');
    INSERT INTO search (rowid, text) SELECT id, text FROM messages WHERE ended != '';
    CREATE TRIGGER index_written AFTER INSERT ON messages WHEN new.ended != '' BEGIN
        INSERT INTO search (rowid, text) VALUES (new.id, new.text);
    END;
    CREATE TRIGGER index_ended AFTER UPDATE OF ended ON messages WHEN new.ended != '' BEGIN
        DELETE FROM search WHERE rowid = new.id;
        INSERT INTO search (rowid, text) VALUES (new.id, new.text);
    END;
    CREATE TRIGGER index_deleted AFTER DELETE ON messages BEGIN
        DELETE FROM search WHERE rowid = old.id;
    END;
    """,
    """
    ALTER TABLE messages ADD COLUMN removed_at REAL;
    ALTER TABLE conversations ADD COLUMN is_pinned INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE saved_settings (name TEXT PRIMARY KEY, settings TEXT NOT NULL);
    """,
)


class NewerSchema(Exception):
    """The file was written by a newer version of this program."""


def migrate(database: sqlite3.Connection) -> None:
    """Brings a database, empty or of any version, to the latest schema; to be called within a transaction.

    Raises NewerSchema, and sqlite3.Error for a file that is no such database.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise NewerSchema(f"its schema is version {version}, and this program knows {len(MIGRATIONS)}")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in _statements(script):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {number}")


def _statements(script: str) -> Iterator[str]:
    """A script's statements one by one: executescript would commit the transaction it is in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
