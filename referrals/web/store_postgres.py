"""The page's store in PostgreSQL, shared by all web machines: the schema `page`.

It is a schema apart from the queue's, so that a role which delivers or only reads can be kept out
of sessions, accounts and half-made referrals as a whole. Every commit is on the server's disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg
from psycopg.rows import dict_row

from referrals.outboxes.postgres import steps
from referrals.outboxes.postgres.connections import Connection, Database, is_passing, translated

_SEARCH_PATH = "page"
_MOST_AT_ONCE = 16
"""Connections of one process; whoever comes beyond that waits for one."""
_CONNECT_S = 3
_PATIENCE_S = 2.0
"""How long a request waits for a server that is just being restarted."""
_PAUSE_S = 0.05
_ALONE = 7_261_005
"""Of PostgreSQL's advisory locks, the one of transactions that are to be alone."""


class StoreDatabase:
    """`store.Tables`. Raises OutboxUnusable if the tables are of another version."""

    def __init__(self, database: Database) -> None:
        self._database = replace(database, search_path=_SEARCH_PATH, connect_s=_CONNECT_S)
        self._turns = threading.BoundedSemaphore(_MOST_AT_ONCE)
        self._is_away = False
        with self._connection() as connection:
            steps.check(connection, self._database)
            # With its schema's name: else who may not look into that is told that it is not there.
            connection.execute("SELECT FROM page.key LIMIT 0")

    def close(self) -> None:
        """Nothing is kept open that others do not use too."""

    @contextmanager
    def reading(self) -> Iterator[_Statements]:
        with self._connection() as connection:
            yield _Statements(connection)

    @contextmanager
    def writing(self, *, surely: bool = False, alone: bool = False) -> Iterator[_Statements]:
        with self._connection("BEGIN ISOLATION LEVEL READ COMMITTED") as connection:
            try:
                if alone:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ALONE,))
                yield _Statements(connection)
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connection(self, first: str = "") -> Iterator[Connection]:
        """One that nobody else has, on which that statement went through."""
        with self._turns, translated(self._database):
            connection = self._taken(first)
            try:
                yield connection
            finally:
                self._database.give_back(connection)

    def _taken(self, first: str) -> Connection:
        """Waits a little for a server that has gone away; not again until it has come back."""
        until = time.monotonic() + (0.0 if self._is_away else _PATIENCE_S)
        while True:
            try:
                connection = self._database.take()
                try:
                    if first:
                        connection.execute(first.encode())
                except BaseException:
                    connection.close()
                    raise
            except psycopg.Error as error:
                if not is_passing(error) or time.monotonic() >= until:
                    self._is_away = is_passing(error)
                    raise
            else:
                self._is_away = False
                return connection
            time.sleep(_PAUSE_S)


class _Statements:
    """Those of `store.Statements`, as psycopg takes them."""

    def __init__(self, connection: Connection) -> None:
        self._cursor = connection.cursor(row_factory=dict_row)

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> psycopg.Cursor[Any]:
        return self._cursor.execute(statement.replace("?", "%s").encode(), [*map(_held, values)])


def _held(value: Any) -> Any:
    """What PostgreSQL can hold. Nothing that we keep has a backslash, so what it can't is not
    found; and a Role is plain text.
    """
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    return value
