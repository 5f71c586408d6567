"""Connections to one PostgreSQL database: opened, kept for the next who asks, and their faults."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from referrals.errors import OutboxUnusable

Connection = psycopg.Connection[tuple[Any, ...]]

SEARCH_PATH = "referrals, procrastinate"
_MOST_IDLE = 8
_STOPPED_S = 15
"""A process that is stopped in mid-transaction keeps others out for no longer than this."""
_LOCKED_S = 20

_idle: dict[str, deque[Connection]] = {}
_gate = threading.Lock()


@dataclass(frozen=True)
class Database:
    """Where it is. What connects us may hold a password, so it is in no repr and no message."""

    conninfo: str = field(repr=False)
    search_path: str = SEARCH_PATH
    connect_s: int = 10

    @classmethod
    def of(cls, url: str, password: str | None = None) -> Database:
        """Raises ValueError, which does not repeat the URL, if it is none of PostgreSQL's."""
        try:
            given = {"password": password} if password else {}
            return cls(make_conninfo(url, **given))
        except psycopg.Error:
            raise ValueError("it is not a PostgreSQL URL") from None

    @cached_property
    def name(self) -> str:
        """For people: the database and where it is."""
        given = conninfo_to_dict(self.conninfo)
        host, port = given.get("host") or "this machine", given.get("port")
        return f"{given.get('dbname') or 'database'} on {host}{f':{port}' if port else ''}"

    def connect(self) -> Connection:
        """A new connection, ready for statements. Raises psycopg.Error."""
        given = conninfo_to_dict(self.conninfo)
        own: dict[str, Any] = {
            "connect_timeout": self.connect_s,
            "application_name": "referrals",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 30_000,
        }
        connection = psycopg.connect(make_conninfo("", **own | given), autocommit=True)
        try:
            # What is claimed or recorded must outlast the server, whatever its default is.
            connection.execute(
                "SELECT set_config('search_path', %s, false), set_config('TimeZone', 'UTC', false),"
                " set_config('idle_in_transaction_session_timeout', %s, false),"
                " set_config('lock_timeout', %s, false),"
                " CASE WHEN current_setting('synchronous_commit') IN ('off', 'local')"
                " THEN set_config('synchronous_commit', 'on', false) END",
                (self.search_path, f"{_STOPPED_S}s", f"{_LOCKED_S}s"),
            )
        except BaseException:
            connection.close()
            raise
        return connection

    def take(self) -> Connection:
        """A connection for a while: one that was given back, or a new one."""
        while True:
            with _gate:
                idle = _idle.get(self._key)
                connection = idle.pop() if idle else None
            if connection is None:
                return self.connect()
            with suppress(psycopg.Error):
                connection.execute("SELECT 1")
                return connection
            connection.close()

    def give_back(self, connection: Connection) -> None:
        """Keep it for the next who asks; one that is in the middle of something is closed."""
        free = connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        with _gate:
            idle = _idle.setdefault(self._key, deque())
            if free and not connection.closed and len(idle) < _MOST_IDLE:
                idle.append(connection)
                return
        connection.close()

    @contextmanager
    def reader(self) -> Iterator[Connection]:
        """Raises OutboxUnusable for what psycopg raises."""
        with translated(self):
            connection = self.take()
            try:
                yield connection
            finally:
                self.give_back(connection)

    @property
    def _key(self) -> str:
        return f"{self.search_path}\0{self.conninfo}"


def close_idle() -> None:
    """Close what is kept for the next who asks."""
    with _gate:
        connections = [one for idle in _idle.values() for one in idle]
        _idle.clear()
    for one in connections:
        one.close()


def is_text(value: object) -> bool:
    """Whether PostgreSQL can hold it; what it can't hold is nowhere to be found in it."""
    if not isinstance(value, str):
        return True
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def one(cursor: psycopg.Cursor[Any]) -> Any:
    """The row that there surely is."""
    row = cursor.fetchone()
    if row is None:
        raise psycopg.InternalError("a row is missing that must be there")
    return row


@contextmanager
def translated(database: Database) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        if not is_of_the_job(error):
            raise unusable(database, error) from None
        raise


def is_of_the_job(error: BaseException) -> bool:
    """Whether it is the caller's mistake, and says nothing of the database."""
    wrong = psycopg.IntegrityError | psycopg.DataError | psycopg.ProgrammingError
    return isinstance(error, wrong) and _remedy(error) is None


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may well succeed in a moment: nothing of it was kept."""
    again = (
        psycopg.errors.DeadlockDetected
        | psycopg.errors.SerializationFailure
        | psycopg.errors.AdminShutdown
        | psycopg.errors.CrashShutdown
        | psycopg.errors.CannotConnectNow
        | psycopg.errors.TooManyConnections
        | psycopg.errors.IdleInTransactionSessionTimeout
    )
    if isinstance(error, again):
        return True
    # Without a code there was no server, the link broke, or it refused us while we connected.
    lasting = (_REMEDIES["28"], _REMEDIES["3D000"], _REMEDIES["42501"])
    return (
        isinstance(error, psycopg.OperationalError)
        and error.sqlstate is None
        and _remedy(error) not in lasting
    )


def _remedy(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    if not state:  # refused while we connected: then there are only words
        text = str(error)
        state = next((code for words, code in _WORDS.items() if words in text), "")
    return next((remedy for code, remedy in _REMEDIES.items() if state.startswith(code)), None)


_WORDS = {
    "authentication failed": "28",
    "no password supplied": "28",
    "no pg_hba.conf entry": "28",
    "does not exist": "3D000",
    "permission denied for database": "42501",
    "too many clients": "53300",
    "connection slots": "53300",
    "too many connections": "53300",
    "starting up": "57",
    "shutting down": "57",
    "recovery mode": "57",
}


_REMEDIES = {
    "28": "Check the user and the password (PGPASSFILE, or database_password among the secrets).",
    "3D000": "Make the database, then `referrals migrate`.",
    "3F000": "Run `referrals migrate`.",
    "42P01": "Run `referrals migrate`.",
    "42501": "Give the database's role what docs/postgres.md lists.",
    "53100": "Free some room on the server.",
    "53300": "Allow more connections (max_connections), or run fewer processes.",
    "55P03": "Another process keeps it locked: see pg_stat_activity.",
    "57": "Try again once the server is up.",
    "25006": "It is read-only: a standby, perhaps. Name the primary.",
}
_REMEDY = "See that the server runs and can be reached."


def unusable(database: Database, error: BaseException) -> OutboxUnusable:
    # Only the server's own first line: the others may quote a row.
    told = getattr(getattr(error, "diag", None), "message_primary", None)
    first = told or (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, psycopg.ProgrammingError) and told is None:
        first = type(error).__name__
    return OutboxUnusable(
        f"The outbox in {database.name} can't be used: {first.rstrip('.')}. Nothing of this step "
        f"was kept; what was queued before is safe. {_remedy(error) or _REMEDY}"
    )
