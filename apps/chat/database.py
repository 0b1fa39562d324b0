"""One SQLite file that threads and processes share: opening it, transactions, and its errors as sentences.

Knows nothing of what the tables mean; schema.py makes them.
"""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apps.chat.schema import NewerSchema, migrate

LOCK_TIMEOUT_SECONDS = 30.0  # give up if another process holds the database lock for longer
OWNER_ONLY = 0o600  # SQLite gives its journal files the mode of the database file


JOURNALS = ("-wal", "-shm")


class StoreError(Exception):
    """The file cannot be used; the message says what to do."""


class Database:
    """The open file. Each statement is one transaction, unless it stands in `with transaction():`.

    Raises StoreError when the file is no such database, is from a newer version of this program, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_for_owner(path)
            # isolation_level None is autocommit: transaction() begins every longer transaction.
            self._connection = sqlite3.connect(
                path, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._use_wal()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            with self.transaction():
                migrate(self._connection)
        except NewerSchema as error:
            raise StoreError(f"{path} is too new ({error}): update the program, or choose another file.") from error
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{path} cannot be used for conversations ({error}): move it away.") from error

    def close(self) -> None:
        with self._lock:  # SQLite crashes if another thread is executing a statement
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; no other thread or process changes the file meanwhile."""
        with self._lock, self._errors_as_sentences():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Executes one statement and fetches all its rows: SQLite completes a statement with RETURNING only then."""
        with self._lock, self._errors_as_sentences():
            return self._connection.execute(sql, tuple(values)).fetchall()

    def row(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = self.rows(sql, values)
        return rows[0] if rows else None

    def _use_wal(self) -> None:
        """SQLite's own timeout does not apply to this pragma while another process creates the file (tried)."""
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    @contextmanager
    def _errors_as_sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._path} cannot be used for conversations ({error}): check the file and its disk."
            ) from error


def _create_for_owner(path: Path) -> None:
    """Creates the file with mode 0600 whatever the umask is, and takes rights of others away from existing files."""
    os.close(os.open(path, os.O_CREAT, OWNER_ONLY))
    for file in (path, *(path.with_name(path.name + ending) for ending in JOURNALS)):
        with suppress(FileNotFoundError):
            status = file.stat()
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != OWNER_ONLY:
                file.chmod(OWNER_ONLY)
