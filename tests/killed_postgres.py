"""As `killed`, with the outbox in PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Worker
from tests.conftest import NOW
from tests.killed import Steps, watch_sockets
from tests.postgres import ClockedOutbox, Server
from tests.queued import submissions

_STEPS = (
    "BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE", "WITH", "SELECT procrastinate", "SELECT id,",
    "SELECT  unnest", "SELECT * FROM procrastinate",
)  # fmt: skip


def watch_postgres(step: Callable[[str], None]) -> None:
    execute = psycopg.Connection.execute

    def watched(self: Any, statement: Any, *more: Any, **named: Any) -> Any:
        text = str(statement).strip()
        if not text.startswith(_STEPS):
            return execute(self, statement, *more, **named)
        what = " ".join(text.split("(")[0].split()[:3])
        step(f"before {what}")
        cursor = execute(self, statement, *more, **named)
        step(f"after {what}")
        return cursor

    psycopg.Connection.execute = watched  # type: ignore[method-assign,assignment]


def work(server: Server, database: str, port: int, count: int, last_step: int, log: Path) -> None:
    """Queue so many referrals and deliver what is due, unless the step comes before."""
    step = Steps(last_step, log)
    watch_postgres(step)
    watch_sockets(step)
    relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=20.0)
    with ClockedOutbox.of(server, database, "killed") as outbox:
        outbox.queue(submissions(count), NOW)
        log.with_suffix(".queued").touch()
        worker = Worker(
            outbox,
            SmtpTransport(relay),
            DeliveryOptions(lanes=1),
            now=lambda: NOW,
            jitter=lambda: 0.0,
        )
        asyncio.run(worker.deliver_due())
