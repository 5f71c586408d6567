"""How long it takes to dump, restore and bring in order an outbox in PostgreSQL.

    python -m benchmarks.restore [COUNT]

Half of COUNT referrals (20,000) of a letter's size were relayed after the dump, and the relay's log
in Postfix's words has them and as many of other people's.
"""

from __future__ import annotations

import io
import random
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from referrals.outboxes.postgres import connections
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.postgres.steps import migrate
from referrals.relay_log import RelayLog
from referrals.restored import evidence_of, settle
from tests.postgres import Server
from tests.restoring import message_id, referrals

_LETTER = 9_000
_PORTION = 500
_WORDS = [f"{number:05}" for number in range(3_000)]


def letter(number: int) -> bytes:
    """Text that packs no better than letters do, more or less."""
    chance = random.Random(number)  # noqa: S311 - no secret
    words = (chance.choice(_WORDS) for _ in range(_LETTER // 6))
    return f"letter {number}\r\n{' '.join(words)}".encode()


def log_of(count: int) -> bytes:
    """Two lines for each message, every other one somebody else's."""
    lines = []
    for number in range(2 * count):
        named = message_id(number // 2 + 1) if number % 2 else f"<{number}@elsewhere.example>"
        start = "Nov 24 12:00:00 mx1 postfix/"
        lines.append(f"{start}cleanup[7]: Q{number:09}: message-id={named}")
        lines.append(
            f"{start}qmgr[3]: Q{number:09}: from=<a@b.example>, size=9, nrcpt=1 (queue active)"
        )
    return "\n".join(lines).encode()


def timed(what: str, run: Callable[[], Any]) -> Any:
    began = time.monotonic()
    result = run()
    print(f"{what:<40} {time.monotonic() - began:8.1f} s", flush=True)
    return result


def main(count: int) -> None:
    server, now = Server.make(), datetime.now(UTC)
    try:
        with server.connected() as db:
            db.execute("CREATE DATABASE old")
            db.execute("CREATE DATABASE new")
        migrate(server.database("old"))
        with PostgresOutbox.open(server.database("old"), "bench") as outbox:

            def queue_all() -> None:
                for first in range(1, count + 1, _PORTION):
                    some = range(first, min(first + _PORTION, count + 1))
                    outbox.queue(
                        [one for n in some for one in referrals(1, first=n, content=letter(n))],
                        now,
                    )

            timed(f"queue {count:,}", queue_all)
        at = ("-h", str(server.folder), "-U", "postgres")
        timed("pg_dump", lambda: server.run("pg_dump", *at, "-Fc", "-f", "dump", "old"))
        timed("pg_restore", lambda: server.run("pg_restore", *at, "-d", "new", "dump"))
        print(f"{'the dump':<40} {(server.folder / 'dump').stat().st_size / 1e6:8.0f} MB")
        octets, log = log_of(count // 2), RelayLog()
        timed(f"read a log of {2 * count:,} lines", lambda: log.read(io.BytesIO(octets)))
        with PostgresOutbox.open(server.database("new"), "bench") as copy:
            evidence = timed("look up its Message-IDs", lambda: evidence_of(copy, log, None))
            done = timed("outbox restored", lambda: settle(copy, copy.copied(), evidence, now))
        print(dict(done.counts))
    finally:
        connections.close_idle()
        server.remove()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
