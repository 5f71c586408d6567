"""A PostgreSQL of the benchmark's own, and what it spends: processor, log, waits for the disk."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from procrastinate.schema import SchemaManager

from benchmarks.cold_start import ROOT
from referrals.outboxes.postgres import connections, steps
from referrals.outboxes.postgres.jobs import QUEUE
from referrals.outboxes.postgres.outbox import PostgresOutbox
from tests.postgres import Server

# PostgreSQL's own defaults, which the tests' server does not have.
_DEFAULTS = {
    "max_connections": "100",
    "shared_buffers": "128MB",
    "jit": "on",
    "deadlock_timeout": "1s",
    "log_min_messages": "warning",
}
_SAMPLED_EVERY_S = 0.05
_TICKS = os.sysconf("SC_CLK_TCK")
_OURS = ("message", "content", "attempt", "audit")


@dataclass(frozen=True)
class Spent:
    """Since the server started: seconds of processor, bytes of log, waits for the disk, commits."""

    cpu_s: float
    wal_bytes: float
    syncs: float
    commits: float

    def __sub__(self, before: Spent) -> Spent:
        return Spent(
            self.cpu_s - before.cpu_s,
            self.wal_bytes - before.wal_bytes,
            self.syncs - before.syncs,
            self.commits - before.commits,
        )

    @classmethod
    def typical(cls, several: Sequence[Spent]) -> Spent:
        """The median of each."""
        rows = zip(*map(astuple, several), strict=True)
        return cls(*(statistics.median(row) for row in rows))


@dataclass(frozen=True)
class Base:
    """A server, and one database of it."""

    server: Server
    name: str

    @cached_property
    def url(self) -> str:
        return self.server.url(self.name)

    def outbox(self, actor: str = "bench") -> PostgresOutbox:
        return PostgresOutbox.open(self.server.database(self.name), actor)

    def ask(self, statement: str, values: Any = ()) -> Any:
        """The first row."""
        with self.server.connected(self.name) as db:
            return db.execute(statement.encode(), values).fetchone()

    # How far it is

    def entries(self) -> int:
        """Entries of the audit: one for each message queued, one for each relayed."""
        return int(self.ask("SELECT number FROM referrals.chain")[0])

    def waiting(self, after: int = 0) -> int:
        """Of the messages with higher numbers."""
        return int(
            self.ask(
                "SELECT count(*) FROM referrals.message WHERE id > %s AND job IS NOT NULL", (after,)
            )[0]
        )

    def last(self) -> int:
        """The number of the newest message."""
        return int(self.ask("SELECT coalesce(max(id), 0) FROM referrals.message")[0])

    def workers(self) -> int:
        return int(self.ask("SELECT count(*) FROM procrastinate.procrastinate_workers")[0])

    # What it spent

    def spent(self) -> Spent:
        with self.server.connected(self.name) as db:
            db.execute("SELECT pg_stat_force_next_flush()")
            row: Any = db.execute(
                "SELECT wal_bytes, wal_sync, (SELECT sum(xact_commit) FROM pg_stat_database)"
                " FROM pg_stat_wal"
            ).fetchone()
        return Spent(self._cpu_s(), *map(float, row))

    def _cpu_s(self) -> float:
        """Of the server's processes, those that have ended included."""
        head = int((self.server.folder / "data" / "postmaster.pid").read_text().split()[0])
        ticks = sum(_ticks(head))
        for pid in _children(head):
            ticks += sum(_ticks(pid)[:2])
        return ticks / _TICKS

    def bytes_a_message(self) -> dict[str, float]:
        """Of each table with its indexes, over all messages there are."""
        count = max(self.last(), 1)
        sizes = {
            table: self.ask("SELECT pg_total_relation_size(%s)", (f"referrals.{table}",))[0] / count
            for table in _OURS
        }
        events = "procrastinate.procrastinate_events", "procrastinate.procrastinate_jobs"
        sizes["jobs"] = (
            sum(self.ask("SELECT pg_total_relation_size(%s)", (table,))[0] for table in events)
            / count
        )
        return sizes

    def dead_jobs(self) -> int:
        row = self.ask(
            "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'procrastinate_jobs'"
        )
        return int(row[0])

    def fetch_ms(self, times: int = 20) -> float:
        """Median time in the server to find the job whose turn it is; what is taken is put back."""
        with self.server.connected(self.name) as db:
            db.execute("SET search_path = procrastinate")
            db.execute("BEGIN")
            taken = []
            for _ in range(times):
                row: Any = db.execute(
                    "WITH began AS MATERIALIZED (SELECT clock_timestamp() AS at)"
                    " SELECT extract(epoch FROM clock_timestamp() - began.at),"
                    " (job).id FROM began, LATERAL (SELECT began.at,"
                    " procrastinate_fetch_job_v2(ARRAY[%s]::varchar[], NULL) AS job) AS fetched",
                    (QUEUE,),
                ).fetchone()
                taken.append(float(row[0]))
            db.execute("ROLLBACK")
        return sorted(taken)[times // 2] * 1000

    @contextmanager
    def sampled(self) -> Iterator[Counter[str]]:
        """What the server's processes that serve us wait for, looked at twenty times a second."""
        found: Counter[str] = Counter()
        over = threading.Event()

        def look() -> None:
            with self.server.connected(self.name) as db:
                while not over.wait(_SAMPLED_EVERY_S):
                    rows = db.execute(
                        "SELECT coalesce(wait_event_type || ':' || wait_event, 'processor')"
                        " FROM pg_stat_activity WHERE datname = %s AND state = 'active'"
                        " AND pid <> pg_backend_pid()",
                        (self.name,),
                    ).fetchall()
                    found.update(event for (event,) in rows)
                    found["looks"] += 1

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()


@contextmanager
def started(top: Path) -> Iterator[Server]:
    """A server with PostgreSQL's defaults, all that is promised on the disk (fsync)."""
    server = Server.make(top, **_DEFAULTS)
    try:
        yield server
    finally:
        connections.close_idle()
        server.remove()


def new_outbox(server: Server) -> Base:
    name = server.empty_database()
    steps.migrate(server.database(name))
    return Base(server, name)


def new_jobs(server: Server) -> Base:
    """Procrastinate's tables alone, with what we have its planner told."""
    base = Base(server, server.empty_database())
    with server.connected(base.name) as db:
        db.execute("CREATE SCHEMA procrastinate")
        db.execute("SET search_path = procrastinate")
        db.execute(SchemaManager.get_schema().encode())
        ours = ROOT / "referrals" / "outboxes" / "postgres" / "schema" / "0001_outbox.sql"
        db.execute(
            ours.read_text(encoding="utf-8").rpartition("DO $$")[2].join(("DO $$", "")).encode()
        )
    return base


def version(server: Server) -> str:
    words = subprocess.run(
        [server.programs / "postgres", "--version"], capture_output=True, text=True
    )
    return words.stdout.strip().removeprefix("postgres (PostgreSQL) ")


def _ticks(pid: int) -> list[int]:
    """Of itself, as user and as system; then of its children that have ended (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [0, 0, 0, 0]
    return [int(one) for one in fields[11:15]]


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
