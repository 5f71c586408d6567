"""A process that queues and delivers, and kills itself at one of the steps on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from asyncio import selector_events
from collections.abc import Callable
from pathlib import Path
from typing import Any

from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Worker
from tests.conftest import NOW
from tests.queued import submissions

_STEPS_OF_SQLITE = (
    "BEGIN",
    "COMMIT",
    "INSERT",
    "UPDATE",
    "DELETE",
    "CREATE",
    "PRAGMA user_version",
)


class Steps:
    """Counts what happens and ends the process, without a word, at the chosen step."""

    def __init__(self, last: int, log: Path) -> None:
        self._left = last
        self._log = log

    def __call__(self, what: str) -> None:
        self._left -= 1
        if self._left == 0:
            self._log.write_text(what, encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)


def _watch_sqlite(step: Callable[[str], None]) -> None:
    connect = sqlite3.connect

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            return self._stepped(super().execute, statement, *values)

        def executemany(self, statement: str, *values: Any) -> sqlite3.Cursor:
            return self._stepped(super().executemany, statement, *values)

        @staticmethod
        def _stepped(
            run: Callable[..., sqlite3.Cursor], statement: str, *values: Any
        ) -> sqlite3.Cursor:
            if not statement.lstrip().startswith(_STEPS_OF_SQLITE):
                return run(statement, *values)
            what = " ".join(statement.split()[:3])
            step(f"before {what}")
            cursor = run(statement, *values)
            step(f"after {what}")
            return cursor

    def watched_connect(*arguments: Any, **more: Any) -> sqlite3.Connection:
        return connect(*arguments, **more, factory=Watched)

    sqlite3.connect = watched_connect  # type: ignore[assignment]


def watch_sockets(step: Callable[[str], None]) -> None:
    transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
    write = transport.write

    def watched(self: Any, octets: bytes) -> None:
        ends = octets.endswith(b"\r\n.\r\n")
        what = "the dot" if ends else octets[:4].decode("latin-1").strip()
        step(f"before writing {what}")
        write(self, octets)
        step(f"after writing {what}")

    transport.write = watched


def work(place: Path, port: int, count: int, lanes: int, last_step: int, log: Path) -> None:
    """Queue so many referrals and deliver what is due, unless the step comes before."""
    step = Steps(last_step, log)
    _watch_sqlite(step)
    watch_sockets(step)
    relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=20.0)
    with SqliteOutbox.open(place, "killed") as outbox:
        outbox.queue(submissions(count), NOW)
        log.with_suffix(".queued").touch()
        worker = Worker(
            outbox,
            SmtpTransport(relay),
            DeliveryOptions(lanes=lanes),
            now=lambda: NOW,
            jitter=lambda: 0.0,
        )
        asyncio.run(worker.deliver_due())
