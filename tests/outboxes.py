"""The outboxes that keep one contract, each opened as its harness says."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from referrals.outboxes.memory.outbox import MemoryOutbox
from referrals.outboxes.memory.state import Memory
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from tests.postgres import ClockedOutbox, Server, server

Durable = SqliteOutbox | PostgresOutbox
Outbox = Durable | MemoryOutbox
DURABLE = ("sqlite", "postgres")
KINDS = ("memory", *DURABLE)

durable = pytest.mark.parametrize("harness", DURABLE, indirect=True)
"""For a test of several processes, of a commit, or of a disk: an outbox in memory has none."""


@dataclass(frozen=True)
class Harness:
    """One outbox, opened as often as asked; unless it is in memory, also by other processes."""

    place: Path
    server: Server | None = None
    database: str = ""
    memory: Memory | None = field(default=None, repr=False)

    @classmethod
    def of(cls, kind: str, folder: Path) -> Harness:
        place = folder / "outbox" / "outbox.sqlite3"
        match kind:
            case "memory":
                return cls(place, memory=Memory())
            case "sqlite":
                return cls(place)
            case _:
                return cls(place, server(), server().emptied())

    @property
    def takes_turns(self) -> bool:
        """Whether a message's turn is given when it is queued, not found when one is claimed."""
        return self.server is not None

    def open(self, actor: str = "tester") -> Outbox:
        return self.open_durable(actor) if self.memory is None else MemoryOutbox(self.memory, actor)

    def open_durable(self, actor: str = "tester") -> Durable:
        """For a test that is marked `durable`."""
        if self.server is None:
            return SqliteOutbox.open(self.place, actor)
        return ClockedOutbox.of(self.server, self.database, actor)

    def falsify(self, message: int, content: bytes) -> None:
        """Put other octets in its place, as somebody with the database in his hands can."""
        if self.memory is not None:
            state = self.memory.state
            state.change(state.messages[message], content=content)
            return
        octets = f"'\\x{content.hex()}'" if self.server else f"x'{content.hex()}'"
        change = f"octets = {octets} WHERE message = {message}"
        self.tamper("content_is_immutable", "content", change)

    def tamper(self, trigger: str, table: str, change: str) -> None:
        """Change rows that a trigger protects, in a database."""
        if self.server is None:
            with closing(sqlite3.connect(self.place)) as db:
                db.execute(f"DROP TRIGGER {trigger}")
                db.execute(f"UPDATE {table} SET {change}")
                db.commit()
            return
        with self.server.connected(self.database) as postgres:
            postgres.execute("SET session_replication_role = replica")
            postgres.execute(f"UPDATE referrals.{table} SET {change}".encode())


def disk_full(outbox: Durable) -> Exception:
    """What the database then says."""
    if isinstance(outbox, SqliteOutbox):
        return sqlite3.OperationalError("database or disk is full")
    return psycopg.errors.DiskFull("could not extend file: disk is full")
