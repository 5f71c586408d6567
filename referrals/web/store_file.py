"""The page's store in a private SQLite file, shared by all processes of this machine.

WAL and `synchronous=NORMAL`: what was typed survives a crash of ours; a power cut may cost the last
seconds, but for what changes who may come in. `secure_delete`: what expires is overwritten.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from referrals.errors import OutboxUnusable
from referrals.outboxes.sqlite.file import make_file

VERSION = 4

_PATIENCE_S = 10.0
_IDLE_CONNECTIONS = 8


class StoreFile:
    """`store.Tables`. One writer at a time, so every transaction is alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._gate = threading.Lock()
        with self.writing() as connection:
            _migrate(connection)

    def close(self) -> None:
        with self._gate:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def forget_log(self) -> None:
        """Empty SQLite's log, which still holds what was overwritten in the file.

        Where another process is in the way, the log is overwritten by what is written next.
        """
        with self._connection() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            yield connection

    @contextmanager
    def writing(self, *, surely: bool = False, alone: bool = False) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute(f"PRAGMA synchronous = {'FULL' if surely else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One that nobody else has: threads come and go, so each takes what lies ready."""
        try:
            with self._gate:
                found = self._idle.pop() if self._idle else None
            found = found or self._opened()
            try:
                yield found
            finally:
                with self._gate:
                    kept = not found.in_transaction and len(self._idle) < _IDLE_CONNECTIONS
                    if kept:
                        self._idle.append(found)
                if not kept:
                    found.close()
        except (sqlite3.Error, OSError) as error:
            raise OutboxUnusable(
                f"{self.path} can't be used: {error}. Nothing was changed."
            ) from None

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_file(self.path)
        opened = sqlite3.connect(
            self.path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
        )
        opened.row_factory = sqlite3.Row
        for pragma in ("journal_mode = WAL", "secure_delete = ON"):
            opened.execute(f"PRAGMA {pragma}")
        return opened


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.OperationalError("made by a newer version")
    if version < VERSION:
        if 0 < version < 3:  # those who are signed in do so once more
            connection.execute("DROP TABLE session")
        for statement in (files("referrals.web") / "store.sql").read_text("utf-8").split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
