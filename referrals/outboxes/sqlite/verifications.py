"""Which addresses somebody of ours has asked about: kept with the audit, in one transaction."""

from __future__ import annotations

import sqlite3
from datetime import date, datetime
from typing import TYPE_CHECKING

from referrals.outboxes.sqlite.retention import SqliteRetention

if TYPE_CHECKING:
    from referrals.verification import Verification


class SqliteVerifications(SqliteRetention):
    """`verified` reads what this writes."""

    def verify(self, one: Verification, now: datetime) -> None:
        """Record it, in place of what was recorded of that agency and address before."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO verification VALUES (?, ?, ?, ?) ON CONFLICT (agency, address)"
                " DO UPDATE SET verified_on = excluded.verified_on,"
                " verified_by = excluded.verified_by",
                (one.agency, one.address, one.on.isoformat(), one.by),
            )
            self._log(db, now, "address verified", "", "", one.detail)

        self._do(run)

    def withdraw(self, agency: str, address: str, now: datetime) -> None:
        """Take a record back; what config/ says stays.

        Raises:
            NotPossibleNow: there is none.
        """
        from referrals.verification import Verification, none_recorded

        def run(db: sqlite3.Connection) -> None:
            row = db.execute(
                "DELETE FROM verification WHERE agency = ? AND address = ?"
                " RETURNING verified_on, verified_by",
                (agency, address),
            ).fetchone()
            if row is None:
                raise none_recorded(agency, address)
            gone = Verification(agency, address, date.fromisoformat(row[0]), row[1])
            self._log(db, now, "address verification withdrawn", "", "", gone.detail)

        self._do(run)
