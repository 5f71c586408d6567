"""The outboxes that keep one contract, each opened as its harness says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from referrals.outboxes.postgres import PostgresOutbox
from referrals.outboxes.sqlite import SqliteOutbox
from tests.postgres import ClockedOutbox, Server, server

Outbox = SqliteOutbox | PostgresOutbox
KINDS = ("sqlite", "postgres")


@dataclass(frozen=True)
class Harness:
    """One outbox, opened as often as asked, also by other processes."""

    place: Path
    server: Server | None = None
    database: str = ""

    @classmethod
    def of(cls, kind: str, folder: Path) -> Harness:
        place = folder / "outbox" / "outbox.sqlite3"
        return cls(place) if kind == "sqlite" else cls(place, server(), server().emptied())

    @property
    def kind(self) -> str:
        return "sqlite" if self.server is None else "postgres"

    def open(self, actor: str = "tester") -> Outbox:
        if self.server is None:
            return SqliteOutbox.open(self.place, actor)
        return ClockedOutbox.of(self.server, self.database, actor)

    def tamper(self, trigger: str, table: str, change: str) -> None:
        """Change rows that a trigger protects, as somebody with the database in his hands can."""
        if self.server is None:
            with closing(sqlite3.connect(self.place)) as db:
                db.execute(f"DROP TRIGGER {trigger}")
                db.execute(f"UPDATE {table} SET {change}")
                db.commit()
            return
        with self.server.connected(self.database) as postgres:
            postgres.execute("SET session_replication_role = replica")
            postgres.execute(f"UPDATE referrals.{table} SET {change}".encode())


def disk_full(outbox: Outbox) -> Exception:
    """What the database then says."""
    if isinstance(outbox, SqliteOutbox):
        return sqlite3.OperationalError("database or disk is full")
    return psycopg.errors.DiskFull("could not extend file: disk is full")
