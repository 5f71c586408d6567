"""What the page keeps on the server: sessions, and documents such as a half-made referral.

One private SQLite file, `web.sqlite3` in the outbox folder, shared by all of its processes. What a
browser holds is a random token; the file holds only its SHA-256. WAL and `synchronous=NORMAL`: what
was typed survives a crash of ours; a power cut may cost the last seconds. `secure_delete`: what
expires is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from referrals.errors import OutboxUnusable

_PATIENCE_S = 10.0
_TOUCH_EVERY = timedelta(seconds=30)
VERSION = 1


@dataclass(frozen=True)
class Session:
    """A browser's session. `csrf` stands in each form; `user` is None until one has signed in."""

    token: str = field(repr=False)
    csrf: str = field(repr=False)
    user: str | None
    roles: str
    title: str = field(repr=False)
    began_at: datetime
    seen_at: datetime


@dataclass(frozen=True)
class Document:
    """Something that is kept for one user until it expires. `body` is JSON's kind of value."""

    id: str
    owner: str
    body: dict[str, Any] = field(repr=False)
    saved_at: datetime
    expires_at: datetime


class Store:
    """Every method may be called from any thread; times are aware.

    All of it raises OutboxUnusable where the file can't be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._gate = threading.Lock()
        with self._writing() as connection:
            _migrate(connection)

    def close(self) -> None:
        with self._gate:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
            self._local = threading.local()

    # Sessions

    def begin(
        self, now: datetime, user: str | None = None, roles: str = "", title: str = ""
    ) -> Session:
        """A new session under a new token."""
        session = Session(
            token=secrets.token_urlsafe(32),
            csrf=secrets.token_urlsafe(32),
            user=user,
            roles=roles,
            title=title,
            began_at=now,
            seen_at=now,
        )
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO session (token, csrf, user, roles, title, began_at, seen_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (_hashed(session.token), session.csrf, user, roles, title, _s(now), _s(now)),
            )
        return session

    def session(
        self, token: str, now: datetime, idle: timedelta, longest: timedelta
    ) -> Session | None:
        """The session of a token, if it was seen within `idle` and began within `longest`."""
        key = _hashed(token)
        with self._reading() as connection:
            row = connection.execute("SELECT * FROM session WHERE token = ?", (key,)).fetchone()
        if row is None:
            return None
        began, seen = _moment(row["began_at"]), _moment(row["seen_at"])
        if not (seen - _TOUCH_EVERY <= now < seen + idle and now < began + longest):
            self.end(token)
            return None
        if now - seen >= _TOUCH_EVERY:
            with self._writing() as connection:
                connection.execute("UPDATE session SET seen_at = ? WHERE token = ?", (_s(now), key))
        return Session(token, row["csrf"], row["user"], row["roles"], row["title"], began, seen)

    def end(self, token: str) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM session WHERE token = ?", (_hashed(token),))

    def end_all(self, user: str) -> None:
        """End every session of a user, whose password or roles have changed."""
        with self._writing() as connection:
            connection.execute("DELETE FROM session WHERE user = ?", (user,))

    # Documents

    def save(
        self,
        kind: str,
        owner: str,
        body: Mapping[str, Any],
        now: datetime,
        keep: timedelta,
        document_id: str | None = None,
    ) -> Document:
        """Keep a document, or replace the one of this id; it expires `keep` from now.

        Another owner's is never replaced: then nothing is saved and LookupError is raised.
        """
        document_id = document_id or secrets.token_urlsafe(16)
        with self._writing() as connection:
            done = connection.execute(
                "INSERT INTO document (kind, id, owner, body, saved_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body,"
                " saved_at = excluded.saved_at, expires_at = excluded.expires_at"
                " WHERE owner = excluded.owner",
                (kind, document_id, owner, json.dumps(body), _s(now), _s(now + keep)),
            )
            if done.rowcount != 1:
                raise LookupError(kind)
        return Document(document_id, owner, dict(body), now, now + keep)

    def load(self, kind: str, owner: str, document_id: str, now: datetime) -> Document | None:
        """A user's own document that has not expired."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT * FROM document WHERE kind = ? AND id = ? AND owner = ? AND expires_at > ?",
                (kind, document_id, owner, _s(now)),
            ).fetchone()
        return _document(row) if row else None

    def listed(self, kind: str, owner: str, now: datetime) -> list[Document]:
        """A user's documents of a kind, the newest first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT * FROM document WHERE kind = ? AND owner = ? AND expires_at > ?"
                " ORDER BY saved_at DESC LIMIT 200",
                (kind, owner, _s(now)),
            ).fetchall()
        return [_document(row) for row in rows]

    def forget(self, kind: str, owner: str, document_id: str) -> None:
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM document WHERE kind = ? AND id = ? AND owner = ?",
                (kind, document_id, owner),
            )

    def expire(self, now: datetime, idle: timedelta, longest: timedelta) -> None:
        """Remove what has expired."""
        with self._writing() as connection:
            connection.execute("DELETE FROM document WHERE expires_at <= ?", (_s(now),))
            connection.execute(
                "DELETE FROM session WHERE seen_at <= ? OR began_at <= ?",
                (_s(now - idle), _s(now - longest)),
            )

    # The file

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, all of it or nothing."""
        try:
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise _unusable(self.path, error) from None

    def _connection(self) -> sqlite3.Connection:
        """This thread's own."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            found = sqlite3.connect(
                self.path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            found.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
                found.execute(f"PRAGMA {pragma}")
            self._local.connection = found
            with self._gate:
                self._opened.append(found)
        return found


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise sqlite3.OperationalError("made by a newer version")
    if version < VERSION:
        for statement in (files("referrals.web") / "store.sql").read_text("utf-8").split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _unusable(path: Path, error: Exception) -> OutboxUnusable:
    return OutboxUnusable(f"{path} can't be used: {error}. Nothing was changed.")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _s(moment: datetime) -> float:
    return moment.timestamp()


def _moment(seconds: float) -> datetime:
    from datetime import UTC

    return datetime.fromtimestamp(seconds, UTC)


def _document(row: sqlite3.Row) -> Document:
    return Document(
        row["id"],
        row["owner"],
        json.loads(row["body"]),
        _moment(row["saved_at"]),
        _moment(row["expires_at"]),
    )
