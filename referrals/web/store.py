"""What the page keeps on the server: sessions, documents such as a half-made referral, accounts.

It lies where the queue lies, so that machines which share the one share the other: in a private
file beside the outbox's (`store_file`), or in PostgreSQL (`store_postgres`). What a browser or a
program holds is a random token; the store has only its SHA-256.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from referrals import bootstrap
from referrals.errors import OutboxUnusable
from referrals.web.repeated import repeated
from referrals.web.site import Role, User, roles_with

if TYPE_CHECKING:
    from referrals.settings import Settings

log = logging.getLogger(__name__)

_TOUCH_EVERY = timedelta(seconds=30)
_CLOCKS_APART = timedelta(minutes=2)
"""Of two machines; a clock that was set back further ends sessions."""
_TOKEN_TOUCH_EVERY = timedelta(minutes=1)
_TIDY_EVERY = timedelta(minutes=10)
_MOST_DOCUMENTS = 500
"""Of one kind and owner; the oldest make room."""
_WHATEVER = 1_000_000_000
"""A limit that is none: SQLite takes no OFFSET without one."""
FORGET_AFTER = timedelta(days=1)
"""How long counts of attempts to sign in are kept after the last one."""
LAPSED_FOR = timedelta(days=1)
"""How long a session that has lapsed is remembered, for the forms that are still open."""


class Found(Protocol):
    """What a statement found or changed. Of a row, `row["name"]` is the value of a column."""

    @property
    def rowcount(self) -> int: ...

    def fetchone(self) -> Any: ...

    def fetchall(self) -> list[Any]: ...


class Statements(Protocol):
    """Takes what SQLite and PostgreSQL read alike: `?` for a value, `"user"` for the column."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Found: ...


class Tables(Protocol):
    """Where the tables lie that `store.sql` tells of. For any thread; OutboxUnusable if they fail.

    Within a transaction, each statement sees what others have committed before it, unless the
    transaction is alone.
    """

    def reading(self) -> AbstractContextManager[Statements]: ...

    def writing(
        self, *, surely: bool = False, alone: bool = False
    ) -> AbstractContextManager[Statements]:
        """One transaction, all of it or nothing.

        Args:
            surely: on the disk when the block is left, whatever becomes of the power.
            alone: what it reads is so until it is committed, if whoever changes that is alone too.
        """
        ...

    def close(self) -> None: ...


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

    All of it raises OutboxUnusable where the tables can't be used.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.reading, self.writing = tables.reading, tables.writing
        self._key = self._read_key()

    def close(self) -> None:
        self.tables.close()

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
                'INSERT INTO session (token, csrf, "user", roles, title, began_at, seen_at)'
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
        if now < found.seen_at - _CLOCKS_APART:  # somebody set the clock back
            self.end(token)
            return None
        if row["lapsed_at"] is not None:
            return None
        if now >= min(found.seen_at + idle, found.began_at + longest):
            with self.writing() as connection:
                _lapse(connection, now, idle, longest, key)
            return None
        if now - found.seen_at >= _TOUCH_EVERY:
            with self.writing() as connection:
                connection.execute(
                    "UPDATE session SET seen_at = ? WHERE token = ? AND seen_at < ?",
                    (_s(now), key, _s(now)),
                )
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
                'SELECT 1 FROM session WHERE "user" = ? AND csrf = ? AND lapsed_at > ?',
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
            row = connection.execute(
                "SELECT count(*) AS count FROM session"
                ' WHERE "user" IS NOT NULL AND lapsed_at IS NULL AND seen_at > ?',
                (_s(now - idle),),
            ).fetchone()
        return int(row["count"])

    def end_all(self, user: str) -> None:
        """End every session of a user, whose password or roles have changed."""
        with self.writing() as connection:
            connection.execute('DELETE FROM session WHERE "user" = ?', (user,))

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
                " WHERE document.owner = excluded.owner",
                (kind, document_id, owner, json.dumps(body), _s(now), _s(now + keep)),
            )
            if done.rowcount != 1:
                raise LookupError(kind)
            connection.execute(
                "DELETE FROM document WHERE kind = ? AND id IN (SELECT id FROM document"
                " WHERE kind = ? AND owner = ? ORDER BY saved_at DESC LIMIT ? OFFSET ?)",
                (kind, kind, owner, _WHATEVER, _MOST_DOCUMENTS),
            )
            if most is not None:
                connection.execute(
                    "DELETE FROM document WHERE kind = ? AND id IN (SELECT id FROM document"
                    " WHERE kind = ? ORDER BY saved_at DESC LIMIT ? OFFSET ?)",
                    (kind, kind, _WHATEVER, most),
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
        with self.writing(alone=True) as connection:
            _expire(connection, now, idle, longest)

    def tidy(self, now: datetime, idle: timedelta, longest: timedelta) -> bool:
        """The same, unless another process has done so within ten minutes; whether we did."""
        with self.writing(alone=True) as connection:
            connection.execute(
                "INSERT INTO chore (name, done_at) VALUES ('tidy', 0) ON CONFLICT DO NOTHING"
            )
            # Done in the future: somebody's clock was set back since.
            ours = connection.execute(
                "UPDATE chore SET done_at = ?"
                " WHERE name = 'tidy' AND (done_at <= ? OR done_at > ?)",
                (_s(now), _s(now - _TIDY_EVERY), _s(now + _CLOCKS_APART)),
            )
            if ours.rowcount != 1:
                return False
            _expire(connection, now, idle, longest)
        return True

    def kept_tidy(self, idle: timedelta, longest: timedelta) -> AbstractAsyncContextManager[None]:
        """While the block runs, what has expired is removed every ten minutes."""

        def tidy() -> None:
            try:
                self.tidy(bootstrap.now(), idle, longest)
            except OutboxUnusable as error:
                log.warning("What has expired was not removed: %s", error)

        return repeated(tidy, _TIDY_EVERY.total_seconds())

    def _read_key(self) -> bytes:
        with self.writing(surely=True) as connection:
            connection.execute(
                "INSERT INTO key (name, octets) VALUES ('signing', ?) ON CONFLICT DO NOTHING",
                (secrets.token_bytes(32),),
            )
            row = connection.execute("SELECT octets FROM key WHERE name = 'signing'").fetchone()
        return bytes(row["octets"])


def open_store(settings: Settings) -> Store:
    """The store that the settings name, for a page or a command.

    Raises:
        OutboxUnusable: it can't be used, or was made by another version.
        ConfigurationError: see `bootstrap.database_of`.
    """
    if settings.database is None:
        from referrals.web.store_file import StoreFile

        return Store(StoreFile(settings.outbox / "web.sqlite3"))
    database = bootstrap.database_of(settings)
    from referrals.web.store_postgres import StoreDatabase

    return Store(StoreDatabase(database))


def _expire(connection: Statements, now: datetime, idle: timedelta, longest: timedelta) -> None:
    connection.execute("DELETE FROM document WHERE expires_at <= ?", (_s(now),))
    _lapse(connection, now, idle, longest)
    connection.execute("DELETE FROM session WHERE lapsed_at <= ?", (_s(now - LAPSED_FOR),))
    connection.execute("DELETE FROM attempt WHERE last_at <= ?", (_s(now - FORGET_AFTER),))


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _s(moment: datetime) -> float:
    return moment.timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _lapse(
    connection: Statements, now: datetime, idle: timedelta, longest: timedelta, key: str = ""
) -> None:
    """Mark what has lapsed, with the time when it did, and forget what it is not remembered for.

    Args:
        key: of one session; by default all.
    """
    idle_s, longest_s = idle.total_seconds(), longest.total_seconds()
    connection.execute(
        "UPDATE session SET title = '', lapsed_at = CASE WHEN seen_at + ? <= began_at + ?"
        " THEN seen_at + ? ELSE began_at + ? END"
        " WHERE lapsed_at IS NULL AND (seen_at <= ? OR began_at <= ?) AND (token = ? OR ? = '')",
        (idle_s, longest_s, idle_s, longest_s, _s(now - idle), _s(now - longest), key, key),
    )
    connection.execute(
        'DELETE FROM session WHERE lapsed_at IS NOT NULL AND "user" IS NULL'
        " AND (token = ? OR ? = '')",
        (key, key),
    )


def _session(token: str, row: Any) -> Session:
    return Session(
        token,
        row["csrf"],
        row["user"],
        row["roles"],
        row["title"],
        _moment(row["began_at"]),
        _moment(row["seen_at"]),
    )


def _document(row: Any) -> Document:
    return Document(
        row["id"],
        row["owner"],
        json.loads(row["body"]),
        _moment(row["saved_at"]),
        _moment(row["expires_at"]),
    )


def _moment_if(seconds: float | None) -> datetime | None:
    return None if seconds is None else _moment(seconds)


def _token(row: Any) -> Token:
    return Token(
        row["name"],
        Role(row["role"]),
        row["made_by"],
        _moment(row["made_at"]),
        _moment(row["expires_at"]),
        _moment_if(row["last_used_at"]),
        _moment_if(row["revoked_at"]),
    )
