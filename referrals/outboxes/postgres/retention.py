"""What the outbox forgets, and which addresses somebody has asked about; the account stays."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from referrals.audit import Entry
from referrals.delivery import DeliveryStatus
from referrals.outboxes.postgres.account import PostgresAccount, held_of
from referrals.outboxes.postgres.connections import Connection, is_text, one
from referrals.queueing import Held, still_waiting

if TYPE_CHECKING:
    from referrals.verification import Verification

_PORTION = 500

_FINISHED = (
    "(status = 'relayed' AND relayed_at < %(before)s)"
    " OR (status = 'cancelled' AND queued_at < %(before)s)"
)

# When something last happened to a message, beside a person's decision.
_TOUCHED = (
    "coalesce((SELECT max(coalesce(ended_at, started_at)) FROM attempt"
    " WHERE attempt.message = message.id), queued_at)"
)


class PostgresRetention(PostgresAccount):
    """How content is forgotten, and that it was written down."""

    def purge(self, relayed_before: datetime, now: datetime) -> int:
        """Forget the content of what was relayed or cancelled before a time. Returns how many."""
        return self._purge(_FINISHED, relayed_before, now)

    def purgeable(self, relayed_before: datetime) -> int:
        """How many `purge` would forget."""
        [row] = self._read(
            f"SELECT count(*) AS number FROM message WHERE purged_at IS NULL AND ({_FINISHED})",  # noqa: S608 - ours
            {"before": relayed_before},
        )
        return int(row["number"])

    def unfinished(self, untouched_since: datetime) -> list[tuple[Held, datetime]]:
        """Whole messages neither relayed nor cancelled, with when each was last tried or queued.

        Only those to which nothing has happened since a time; the oldest first.
        """
        rows = self._read(
            f"SELECT * FROM (SELECT *, {_TOUCHED} AS touched FROM message"  # noqa: S608 - ours
            " WHERE status IN ('queued', 'sending', 'delayed', 'failed', 'uncertain')"
            " AND purged_at IS NULL AND queued_at < %(before)s) AS old"
            " WHERE touched < %(before)s ORDER BY touched, id",
            {"before": untouched_since},
        )
        return [(held_of(row), row["touched"]) for row in rows]

    def purge_unfinished(self, untouched_since: datetime, now: datetime) -> int:
        """Forget the content of what failed or stays uncertain, if nothing happened to it since.

        It can't be tried again, so the same referral may be queued anew. What waits for the relay
        is never forgotten. Returns how many.
        """
        return self._purge(
            "status IN ('failed', 'uncertain') AND due_at IS NULL AND lease_until IS NULL"
            f" AND {_TOUCHED} < %(before)s",
            untouched_since,
            now,
        )

    def _purge(self, where: str, before: datetime, now: datetime) -> int:
        """In portions, so that whoever delivers meanwhile need not wait for long."""
        gone = after = 0
        while True:
            values = {"before": before, "after": after}
            portion = self._do(
                lambda db, values=values: self._forget(  # type: ignore[misc]
                    db, f"id > %(after)s AND ({where})", values, "purged", now, limit=_PORTION
                )
            )
            gone += len(portion)
            if len(portion) < _PORTION:
                return gone
            after = portion[-1]

    def erase(self, case_reference: str, now: datetime) -> int:
        """Forget the content of everything of one case; the audit of it stays.

        Raises:
            NotPossibleNow: something of it is being submitted just now, or waits to be.
        """
        if not is_text(case_reference):
            return 0

        def run(db: Connection) -> int:
            waiting = len(
                db.execute(
                    "SELECT id FROM message WHERE case_reference = %s"
                    " AND (due_at IS NOT NULL OR lease_until IS NOT NULL) ORDER BY id FOR UPDATE",
                    (case_reference,),
                ).fetchall()
            )
            if waiting:
                raise still_waiting(case_reference, waiting)
            values = {"case": case_reference}
            return len(self._forget(db, "case_reference = %(case)s", values, "erased", now))

        return self._do(run)

    def _forget(
        self,
        db: Connection,
        where: str,
        values: Mapping[str, Any],
        action: str,
        now: datetime,
        *,
        limit: int | None = None,
    ) -> list[int]:
        """The ids of those whose content is gone now."""
        rows = db.execute(
            "SELECT id, reference, case_reference, status FROM message"  # noqa: S608 - ours
            f" WHERE purged_at IS NULL AND ({where}) ORDER BY id LIMIT %(limit)s FOR UPDATE",
            {**values, "limit": limit},
        ).fetchall()
        numbers = [number for number, *_ in rows]
        db.execute("DELETE FROM content WHERE message = ANY(%s)", (numbers,))
        # Of the failed and uncertain the key is free again, since `retry` is possible no more.
        db.execute(
            "UPDATE message SET sender = '', purged_at = %s, content_key = CASE"
            " WHEN status IN ('failed', 'uncertain') THEN content_key || ':purged:' || id"
            " ELSE content_key END WHERE id = ANY(%s)",
            (now, numbers),
        )
        for _, reference, case_reference, status in rows:
            detail = {} if status == DeliveryStatus.RELAYED else {"status": status}
            self._log(now, action, reference, case_reference, detail)
        return numbers

    def note(
        self, action: str, detail: Mapping[str, Any], now: datetime, *, case_reference: str = ""
    ) -> None:
        """Write into the audit what was done to the whole outbox, or to what lies beside it."""
        self._do(lambda _: self._log(now, action, "", case_reference, detail))

    def last_noted(self, action: str) -> datetime | None:
        """When something was last written down with `note`."""
        rows = self._read(
            "SELECT * FROM audit WHERE action = %s ORDER BY number DESC LIMIT 1", (action,)
        )
        return Entry(*rows[0].values()).at if rows else None

    # Addresses

    def verify(self, given: Verification, now: datetime) -> None:
        """Record it, in place of what was recorded of that agency and address before."""

        def run(db: Connection) -> None:
            db.execute(
                "INSERT INTO verification VALUES (%s, %s, %s, %s) ON CONFLICT (agency, address)"
                " DO UPDATE SET verified_on = excluded.verified_on,"
                " verified_by = excluded.verified_by",
                (given.agency, given.address, given.on, given.by),
            )
            self._log(now, "address verified", "", "", given.detail)

        self._do(run)

    def withdraw(self, agency: str, address: str, now: datetime) -> None:
        """Take a record back; what config/ says stays.

        Raises:
            NotPossibleNow: there is none.
        """
        from referrals.verification import Verification, none_recorded

        def run(db: Connection) -> None:
            cursor = db.execute(
                "DELETE FROM verification WHERE agency = %s AND address = %s"
                " RETURNING verified_on, verified_by",
                (agency, address),
            )
            if not cursor.rowcount:
                raise none_recorded(agency, address)
            gone = Verification(agency, address, *one(cursor))
            self._log(now, "address verification withdrawn", "", "", gone.detail)

        self._do(run)
