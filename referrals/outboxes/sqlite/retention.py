"""What the outbox forgets: content by age or by case, while the account of it stays."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from referrals.audit import Entry
from referrals.delivery import DeliveryStatus
from referrals.errors import OutboxUnusable
from referrals.outboxes.sqlite.account import SqliteAccount, held_of, micros, moment
from referrals.queueing import Held, still_waiting

_PORTION = 500
_BETWEEN_S = 0.025
"""Whoever waits for the file looks for it every 20 ms, so that it is free for longer."""

_FINISHED = (
    "(status = 'relayed' AND relayed_at < :before)"
    " OR (status = 'cancelled' AND queued_at < :before)"
)

# When something last happened to a message, beside a person's decision.
_TOUCHED = (
    "coalesce((SELECT max(coalesce(ended_at, started_at)) FROM attempt"
    " WHERE attempt.message = message.id), queued_at)"
)


class SqliteRetention(SqliteAccount):
    """How content is forgotten, and that it was written down."""

    def purge(self, relayed_before: datetime, now: datetime) -> int:
        """Forget the content of what was relayed or cancelled before a time. Returns how many."""
        return self._purge(_FINISHED, relayed_before, now)

    def purgeable(self, relayed_before: datetime) -> int:
        """How many `purge` would forget."""
        rows = self._read(
            f"SELECT count(*) FROM message WHERE purged_at IS NULL AND ({_FINISHED})",  # noqa: S608 - ours
            {"before": micros(relayed_before)},
        )
        return int(rows[0][0])

    def unfinished(self, untouched_since: datetime) -> list[tuple[Held, datetime]]:
        """Whole messages neither relayed nor cancelled, with when each was last tried or queued.

        Only those to which nothing has happened since a time; the oldest first.
        """
        rows = self._read(
            f"SELECT *, {_TOUCHED} AS touched FROM message"  # noqa: S608 - ours
            " WHERE status IN ('queued', 'sending', 'delayed', 'failed', 'uncertain')"
            " AND purged_at IS NULL AND queued_at < :before AND touched < :before"
            " ORDER BY touched, id",
            {"before": micros(untouched_since)},
        )
        return [(held_of(row), moment(row["touched"])) for row in rows]

    def purge_unfinished(self, untouched_since: datetime, now: datetime) -> int:
        """Forget the content of what failed or stays uncertain, if nothing happened to it since.

        It can't be tried again, so the same referral may be queued anew. What waits for the relay
        is never forgotten. Returns how many.
        """
        return self._purge(
            "status IN ('failed', 'uncertain') AND due_at IS NULL AND lease_until IS NULL"
            f" AND {_TOUCHED} < :before",
            untouched_since,
            now,
        )

    def _purge(self, where: str, before: datetime, now: datetime) -> int:
        """In portions, so that whoever delivers meanwhile need not wait for long."""
        gone = after = 0
        while True:
            values = {"before": micros(before), "after": after}
            portion = self._do(
                lambda db, values=values: self._forget(  # type: ignore[misc]
                    db, f"id > :after AND ({where})", values, "purged", now, limit=_PORTION
                )
            )
            gone += len(portion)
            if len(portion) < _PORTION:
                break
            after = portion[-1]
            time.sleep(_BETWEEN_S)
        self._forget_log()
        return gone

    def erase(self, case_reference: str, now: datetime) -> int:
        """Forget the content of everything of one case; the audit of it stays.

        Raises:
            NotPossibleNow: something of it is being submitted just now, or waits to be.
        """

        def run(db: sqlite3.Connection) -> int:
            waiting = db.execute(
                "SELECT count(*) FROM message WHERE case_reference = ?"
                " AND (due_at IS NOT NULL OR lease_until IS NOT NULL)",
                (case_reference,),
            ).fetchone()[0]
            if waiting:
                raise still_waiting(case_reference, waiting)
            return len(self._forget(db, "case_reference = :case", values, "erased", now))

        values = {"case": case_reference}
        gone = self._do(run)
        self._forget_log()
        return gone

    def _forget(
        self,
        db: sqlite3.Connection,
        where: str,
        values: Mapping[str, Any],
        action: str,
        now: datetime,
        *,
        limit: int = -1,
    ) -> list[int]:
        """The ids of those whose content is gone now."""
        rows = db.execute(
            "SELECT id, reference, case_reference, status FROM message"  # noqa: S608 - ours
            f" WHERE purged_at IS NULL AND ({where}) ORDER BY id LIMIT {limit}",
            values,
        ).fetchall()
        gone = []
        for row in rows:
            db.execute("DELETE FROM content WHERE message = ?", (row["id"],))
            db.execute(
                "UPDATE message SET sender = '', purged_at = ? WHERE id = ?",
                (micros(now), row["id"]),
            )
            # Of these the key is free again, since `retry` is possible no more.
            if row["status"] in (DeliveryStatus.FAILED, DeliveryStatus.UNCERTAIN):
                db.execute(
                    "UPDATE message SET content_key = content_key || ':purged:' || id WHERE id = ?",
                    (row["id"],),
                )
            detail = {} if row["status"] == DeliveryStatus.RELAYED else {"status": row["status"]}
            gone.append((row["reference"], row["case_reference"], detail))
        self._log_all(db, now, action, gone)
        return [row["id"] for row in rows]

    def _forget_log(self) -> None:
        """Empty SQLite's log, which still holds what was overwritten in the file.

        Where another process is in the way, the log is overwritten by what is written next.
        """
        with suppress(OutboxUnusable):
            self._read("PRAGMA wal_checkpoint(TRUNCATE)")

    def note(
        self, action: str, detail: Mapping[str, Any], now: datetime, *, case_reference: str = ""
    ) -> None:
        """Write into the audit what was done to the whole outbox, or to what lies beside it."""
        self._do(lambda db: self._log(db, now, action, "", case_reference, detail))

    def last_noted(self, action: str) -> datetime | None:
        """When something was last written down with `note`."""
        rows = self._read(
            "SELECT * FROM audit WHERE action = ? ORDER BY number DESC LIMIT 1", (action,)
        )
        return Entry(*rows[0]).at if rows else None
