"""What is recorded of addresses in PostgreSQL, read without opening the whole of the outbox."""

from __future__ import annotations

import time
from dataclasses import replace

from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres.connections import Connection, Database, translated
from referrals.verification import Verification

_CONNECT_S = 3
_AGAIN_S = 10.0
"""A database that was away is left alone for so long: who reads a page can't wait at each one."""


class PostgresVerified:
    """As `verified.Verified`: for whoever asks again and again, from any thread.

    Where the database can't be read, nothing is known to be verified: drafting goes on, and
    submitting asks.
    """

    def __init__(self, database: Database) -> None:
        self._database = replace(database, connect_s=_CONNECT_S)
        self._away_until = 0.0

    def read(self) -> tuple[Verification, ...]:
        """By agency and address."""
        if time.monotonic() < self._away_until:
            return ()
        try:
            with translated(self._database), self._database.reader() as reader:
                return _records(reader)
        except OutboxUnusable:
            self._away_until = time.monotonic() + _AGAIN_S
            return ()

    def close(self) -> None:
        """Nothing is kept open."""


def _records(reader: Connection) -> tuple[Verification, ...]:
    rows = reader.execute(
        "SELECT agency, address, verified_on, verified_by FROM verification"
        " ORDER BY agency, address"
    ).fetchall()
    return tuple(
        Verification(agency=agency, address=address, on=on, by=by)
        for agency, address, on, by in rows
    )
