"""The page's stores that keep one contract: in a file, and in PostgreSQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import SecretStr

from referrals.outboxes.postgres.connections import Connection
from referrals.settings import Settings, WebSettings
from referrals.web.store import Store
from referrals.web.store_file import StoreFile
from tests.postgres import server

KINDS = ("file", "postgres")


def settings_of(kind: str, folder: Path, **web: Any) -> Settings:
    """Those of a page whose store is empty."""
    made = Settings(outbox=folder / "outbox", web=WebSettings(port=0, **web))
    if kind == "file":
        return made
    return made.model_copy(update={"database": SecretStr(server().url(server().emptied()))})


def octets(store: Store) -> bytes:
    """All that is kept, as it is kept; of a file its log too."""
    if isinstance(store.tables, StoreFile):
        file = store.tables.path
        log = file.with_name(f"{file.name}-wal")
        return file.read_bytes() + (log.read_bytes() if log.exists() else b"")
    with store.reading() as statements:
        connection: Connection = statements._cursor.connection  # type: ignore[attr-defined]
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'page'"
        ).fetchall()
        assert len(tables) >= 7
        found = b""
        for (name,) in tables:
            with connection.cursor().copy(f"COPY page.{name} TO STDOUT".encode()) as copy:
                found += b"".join(bytes(part) for part in copy)
    return found


def once_tidied(store: Store) -> bytes:
    """The same; of a file, once the log is written into it."""
    if isinstance(store.tables, StoreFile):
        with store.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return octets(store)
