"""What the page keeps on the server: sessions, documents such as a half-made referral, accounts.

One private SQLite file, `web.sqlite3` in the outbox folder, shared by all of its processes. What a
browser or a program holds is a random token; the file holds only its SHA-256. WAL and
`synchronous=NORMAL`: what was typed survives a crash of ours; a power cut may cost the last
seconds, but for what changes who may come in. `secure_delete`: what expires is overwritten.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from referrals import bootstrap
from referrals.errors import OutboxUnusable
from referrals.outboxes.sqlite_file import make_file
from referrals.web.repeated import repeated
from referrals.web.site import Role, User, roles_with

log = logging.getLogger(__name__)

_PATIENCE_S = 10.0
_TOUCH_EVERY = timedelta(seconds=30)
_TOKEN_TOUCH_EVERY = timedelta(minutes=1)
_TIDY_EVERY_S = 600.0
_MOST_DOCUMENTS = 500
"""Of one kind and owner; the oldest make room."""
_IDLE_CONNECTIONS = 8
FORGET_AFTER = timedelta(days=1)
"""How long counts of attempts to sign in are kept after the last one."""
LAPSED_FOR = timedelta(days=1)
"""How long a session that has lapsed is remembered, for the forms that are still open."""
VERSION = 3


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


@dataclass(frozen=True)
class Token:
    """A program's way in. The token itself is shown once, when it is made."""

    name: str
    role: Role
    made_by: str
    made_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    def is_good(self, now: datetime) -> bool:
        return self.revoked_at is None and now < self.expires_at

    @property
    def user(self) -> User:
        """No account's name has a colon, so no token can pass for a person."""
        return User(f"token:{self.name}", roles_with([self.role]))


class Store:
    """Every method may be called from any thread; times are aware.

    All of it raises OutboxUnusable where the file can't be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._gate = threading.Lock()
        with self.writing() as connection:
            _migrate(connection)
        self._key = self._read_key()

    def close(self) -> None:
        with self._gate:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def signed(self, *parts: str) -> str:
        """A digest of the parts that nobody can make without the store's own key."""
        whole = json.dumps(parts).encode()
        return hmac.new(self._key, whole, hashlib.sha256).hexdigest()

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
        with self.writing() as connection:
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
        with self.reading() as connection:
            row = connection.execute("SELECT * FROM session WHERE token = ?", (key,)).fetchone()
        if row is None:
            return None
        found = _session(token, row)
        if now < found.seen_at - _TOUCH_EVERY:  # somebody set the clock back
            self.end(token)
            return None
        if row["lapsed_at"] is not None:
            return None
        if now >= min(found.seen_at + idle, found.began_at + longest):
            with self.writing() as connection:
                _lapse(connection, now, idle, longest)
            return None
        if now - found.seen_at >= _TOUCH_EVERY:
            with self.writing() as connection:
                connection.execute("UPDATE session SET seen_at = ? WHERE token = ?", (_s(now), key))
        return found

    def lapsed(self, token: str, now: datetime) -> Session | None:
        """The session of a token that lapsed within a day. It was not ended: nobody signed out."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT * FROM session WHERE token = ? AND lapsed_at > ?",
                (_hashed(token), _s(now - LAPSED_FOR)),
            ).fetchone()
        return _session(token, row) if row else None

    def has_lapsed(self, user: str, csrf: str, now: datetime) -> bool:
        """Whether a form is of a session of this user that lapsed within a day."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT 1 FROM session WHERE user = ? AND csrf = ? AND lapsed_at > ?",
                (user, csrf, _s(now - LAPSED_FOR)),
            ).fetchone()
        return row is not None

    def end(self, token: str) -> None:
        """End a session, lapsed or not: nothing is remembered of it."""
        with self.writing() as connection:
            connection.execute("DELETE FROM session WHERE token = ?", (_hashed(token),))

    def signed_in(self, now: datetime, idle: timedelta) -> int:
        """How many sessions of people are open."""
        with self.reading() as connection:
            [count] = connection.execute(
                "SELECT count(*) FROM session"
                " WHERE user IS NOT NULL AND lapsed_at IS NULL AND seen_at > ?",
                (_s(now - idle),),
            ).fetchone()
        return int(count)

    def end_all(self, user: str) -> None:
        """End every session of a user, whose password or roles have changed."""
        with self.writing() as connection:
            connection.execute("DELETE FROM session WHERE user = ?", (user,))

    def end_everybodys(self) -> int:
        """End every session; how many were open."""
        with self.writing(surely=True) as connection:
            connection.execute("DELETE FROM session WHERE lapsed_at IS NOT NULL")
            return connection.execute("DELETE FROM session").rowcount

    # Documents

    def save(
        self,
        kind: str,
        owner: str,
        body: Mapping[str, Any],
        now: datetime,
        keep: timedelta,
        document_id: str | None = None,
        most: int | None = None,
    ) -> Document:
        """Keep a document, or replace the one of this id; it expires `keep` from now.

        Another owner's is never replaced: then nothing is saved and LookupError is raised. Of one
        kind and owner the newest 500 are kept.

        Args:
            most: of this kind, whoever's, the newest so many are kept.
        """
        document_id = document_id or secrets.token_urlsafe(16)
        with self.writing() as connection:
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
            connection.execute(
                "DELETE FROM document WHERE kind = ? AND id IN (SELECT id FROM document"
                " WHERE kind = ? AND owner = ? ORDER BY saved_at DESC LIMIT -1 OFFSET ?)",
                (kind, kind, owner, _MOST_DOCUMENTS),
            )
            if most is not None:
                connection.execute(
                    "DELETE FROM document WHERE kind = ? AND id IN (SELECT id FROM document"
                    " WHERE kind = ? ORDER BY saved_at DESC LIMIT -1 OFFSET ?)",
                    (kind, kind, most),
                )
        return Document(document_id, owner, dict(body), now, now + keep)

    def load(self, kind: str, owner: str, document_id: str, now: datetime) -> Document | None:
        """A user's own document that has not expired."""
        with self.reading() as connection:
            row = connection.execute(
                "SELECT * FROM document WHERE kind = ? AND id = ? AND owner = ? AND expires_at > ?",
                (kind, document_id, owner, _s(now)),
            ).fetchone()
        return _document(row) if row else None

    def listed(self, kind: str, owner: str, now: datetime) -> list[Document]:
        """A user's documents of a kind, the newest first."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT * FROM document WHERE kind = ? AND owner = ? AND expires_at > ?"
                " ORDER BY saved_at DESC LIMIT 200",
                (kind, owner, _s(now)),
            ).fetchall()
        return [_document(row) for row in rows]

    def take(self, kind: str, owner: str, document_id: str, now: datetime) -> dict[str, Any] | None:
        """The body of a document that is to be used once: it is forgotten in the same step."""
        with self.writing() as connection:
            row = connection.execute(
                "DELETE FROM document WHERE kind = ? AND id = ? AND owner = ? RETURNING *",
                (kind, document_id, owner),
            ).fetchone()
        found = _document(row) if row else None
        return found.body if found and found.expires_at > now else None

    def forget(self, kind: str, owner: str, document_id: str) -> None:
        with self.writing() as connection:
            connection.execute(
                "DELETE FROM document WHERE kind = ? AND id = ? AND owner = ?",
                (kind, document_id, owner),
            )

    # Tokens of programs

    def add_token(
        self, name: str, role: Role, made_by: str, now: datetime, keep: timedelta
    ) -> str | None:
        """The new token, to be told once; None if there is one of that name that is still good."""
        # What finds secrets in files that should hold none knows it by its beginning.
        token = f"referrals_{secrets.token_urlsafe(32)}"
        with self.writing(surely=True) as connection:
            connection.execute(
                "DELETE FROM token WHERE name = ? AND (revoked_at IS NOT NULL OR expires_at <= ?)",
                (name, _s(now)),
            )
            done = connection.execute(
                "INSERT INTO token (digest, name, role, made_by, made_at, expires_at)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (_hashed(token), name, role, made_by, _s(now), _s(now + keep)),
            )
        return token if done.rowcount == 1 else None

    def tokens(self) -> list[Token]:
        with self.reading() as connection:
            rows = connection.execute("SELECT * FROM token ORDER BY name").fetchall()
        return [_token(row) for row in rows]

    def revoke_token(self, name: str, now: datetime) -> bool:
        """Whether there was one to revoke."""
        with self.writing(surely=True) as connection:
            done = connection.execute(
                "UPDATE token SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL",
                (_s(now), name),
            )
        return done.rowcount == 1

    def token_user(self, token: str, now: datetime | None = None) -> User | None:
        """Whom a bearer token (RFC 6750) stands for; None if it is none of ours, or not any more.

        Args:
            now: by default, the clock's.
        """
        now = now or bootstrap.now()
        digest = _hashed(token)
        with self.reading() as connection:
            row = connection.execute("SELECT * FROM token WHERE digest = ?", (digest,)).fetchone()
        found = _token(row) if row else None
        if found is None or not found.is_good(now):
            return None
        if found.last_used_at is None or now - found.last_used_at >= _TOKEN_TOUCH_EVERY:
            with self.writing() as connection:
                connection.execute(
                    "UPDATE token SET last_used_at = ? WHERE digest = ?", (_s(now), digest)
                )
        return found.user

    # What has had its time

    def expire(self, now: datetime, idle: timedelta, longest: timedelta) -> None:
        """Remove what has expired, and sessions a day after they lapsed."""
        with self.writing() as connection:
            connection.execute("DELETE FROM document WHERE expires_at <= ?", (_s(now),))
            _lapse(connection, now, idle, longest)
            connection.execute("DELETE FROM session WHERE lapsed_at <= ?", (_s(now - LAPSED_FOR),))
            connection.execute("DELETE FROM attempt WHERE last_at <= ?", (_s(now - FORGET_AFTER),))

    def kept_tidy(self, idle: timedelta, longest: timedelta) -> AbstractAsyncContextManager[None]:
        """While the block runs, what has expired is removed every ten minutes."""

        def tidy() -> None:
            try:
                self.expire(bootstrap.now(), idle, longest)
            except OutboxUnusable as error:
                log.warning("What has expired was not removed: %s", error)

        return repeated(tidy, _TIDY_EVERY_S)

    # The file

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            yield connection

    @contextmanager
    def writing(self, *, surely: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction, all of it or nothing.

        Args:
            surely: on the disk when the block is left, whatever becomes of the power.
        """
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
            raise _unusable(self.path, error) from None

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

    def _read_key(self) -> bytes:
        with self.writing(surely=True) as connection:
            connection.execute(
                "INSERT INTO key (name, octets) VALUES ('signing', ?) ON CONFLICT DO NOTHING",
                (secrets.token_bytes(32),),
            )
            [octets] = connection.execute("SELECT octets FROM key").fetchone()
        return bytes(octets)


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


def _unusable(path: Path, error: Exception) -> OutboxUnusable:
    return OutboxUnusable(f"{path} can't be used: {error}. Nothing was changed.")


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _s(moment: datetime) -> float:
    return moment.timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _lapse(
    connection: sqlite3.Connection, now: datetime, idle: timedelta, longest: timedelta
) -> None:
    """Mark what has lapsed, with the time when it did, and forget what it is not remembered for."""
    connection.execute(
        "UPDATE session SET lapsed_at = min(seen_at + ?, began_at + ?), title = ''"
        " WHERE lapsed_at IS NULL AND (seen_at <= ? OR began_at <= ?)",
        (idle.total_seconds(), longest.total_seconds(), _s(now - idle), _s(now - longest)),
    )
    connection.execute("DELETE FROM session WHERE lapsed_at IS NOT NULL AND user IS NULL")


def _session(token: str, row: sqlite3.Row) -> Session:
    return Session(
        token,
        row["csrf"],
        row["user"],
        row["roles"],
        row["title"],
        _moment(row["began_at"]),
        _moment(row["seen_at"]),
    )


def _document(row: sqlite3.Row) -> Document:
    return Document(
        row["id"],
        row["owner"],
        json.loads(row["body"]),
        _moment(row["saved_at"]),
        _moment(row["expires_at"]),
    )


def _moment_if(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)


def _token(row: sqlite3.Row) -> Token:
    return Token(
        row["name"],
        Role(row["role"]),
        row["made_by"],
        _moment(row["made_at"]),
        _moment(row["expires_at"]),
        _moment_if(row["last_used_at"]),
        _moment_if(row["revoked_at"]),
    )
