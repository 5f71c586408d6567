"""The account of what is in the outbox: what a person asks of it and decides, and the audit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime

from psycopg.rows import dict_row

from referrals.audit import Entry
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox, NotPossibleNow
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.connections import Connection, is_text, one
from referrals.outboxes.postgres.database import PostgresDatabase, Row
from referrals.queueing import (
    ANSWERABLE,
    CANCELLABLE,
    REROUTED_TO,
    RETRIABLE,
    Attempt,
    Held,
    decidable,
)

_NOT_RELAYED = [
    str(one)
    for one in DeliveryStatus
    if one not in (DeliveryStatus.RELAYED, DeliveryStatus.DRAFTED)
]
_KEPT = " AND due_at IS NOT NULL AND agency IN (SELECT agency FROM hold)"
# The relayed ones by the tally: they are most, and ever more.
_COUNTS = """
SELECT status, count(*) AS number FROM message WHERE status = ANY(%s) GROUP BY status
UNION ALL SELECT status, number FROM tally WHERE number > 0
"""
# A leap into the index for each status, whatever waits.
_OLDEST_DUE = """
SELECT min(head.due_at) AS since FROM unnest(%s::text[]) AS waiting (status), LATERAL (
    SELECT due_at FROM message
    WHERE message.status = waiting.status AND due_at IS NOT NULL AND due_at <= %s
        AND job IS NOT NULL
    ORDER BY due_at LIMIT 1
) AS head
"""
_OF_CASE = ("", "WHERE case_reference = %(case)s")


class PostgresAccount(PostgresDatabase):
    """What was queued and what became of it."""

    # What there is

    def counts(self) -> dict[str, int]:
        """How many there are of each status."""
        rows = self._read(_COUNTS, (_NOT_RELAYED,))
        return {row["status"]: row["number"] for row in rows}

    def oldest_due(self, now: datetime) -> datetime | None:
        """Since when the message has been due that has been so longest; None if none is."""
        [row] = self._read(_OLDEST_DUE, (_NOT_RELAYED, now))
        since: datetime | None = row["since"]
        return since

    def held(
        self,
        *,
        message_id: int | None = None,
        status: DeliveryStatus | None = None,
        reference: str | None = None,
        case_reference: str | None = None,
        kept: bool = False,
        limit: int = 1_000,
        offset: int = 0,
    ) -> list[Held]:
        """Messages, the newest first."""
        wanted = {
            "id": message_id,
            "status": status,
            "reference": reference,
            "case_reference": case_reference,
        }
        given = {key: value for key, value in wanted.items() if value is not None}
        if not all(map(is_text, given.values())):
            return []
        where = " AND ".join(f"{key} = %({key})s" for key in given) or "TRUE"
        where += _KEPT if kept else ""
        rows = self._read(
            f"SELECT message.*, {REROUTED_TO} FROM message WHERE {where} ORDER BY id DESC"  # noqa: S608 - our own column names
            " LIMIT %(limit)s OFFSET %(offset)s",
            {**given, "limit": limit, "offset": offset},
        )
        return [held_of(row, row["rerouted_to"]) for row in rows]

    def attempts(self, message_id: int) -> list[Attempt]:
        rows = self._read(
            "SELECT started_at, ended_at, outcome, stage, code, enhanced, words, relay"
            " FROM attempt WHERE message = %s ORDER BY id",
            (message_id,),
        )
        return [Attempt(**row) for row in rows]

    def content(self, message_id: int) -> bytes | None:
        """The queued bytes, or None once they are purged."""
        rows = self._read(
            "SELECT octets FROM message LEFT JOIN content ON message = id WHERE id = %s",
            (message_id,),
        )
        if not rows:
            raise NotInOutbox("There is no such message in the outbox.")
        found: bytes | None = rows[0]["octets"]
        return found

    # What a person decides

    def retry(self, reference: str, now: datetime) -> Held:
        """Make a delayed, failed or uncertain message due now, as if it were just queued.

        Of several with one reference, the newest: the others hold what was known before.

        Raises:
            NotInOutbox, NotPossibleNow.
        """

        def change(db: Connection, row: Row) -> None:
            if row["purged_at"] is not None:
                raise NotPossibleNow(f"{reference}: its content was purged. Make it anew.")
            self._forget_job(db, row)
            (turn,) = one(db.execute("SELECT next_turn(%s)", (row["agency"],)))
            (job,) = jobs.defer(db, [(row["id"], turn)])
            db.execute(
                "UPDATE message SET status = 'queued', due_at = %s, failures = 0, job = %s,"
                " turn = %s WHERE id = %s",
                (now, job, turn, row["id"]),
            )

        return self._decide(reference, "retried", RETRIABLE, now, change, newest=True)

    def cancel(self, reference: str, now: datetime) -> Held:
        """Keep a message that is not yet relayed from being tried (again).

        Raises:
            NotInOutbox, NotPossibleNow.
        """

        def change(db: Connection, row: Row) -> None:
            self._forget_job(db, row)
            # Its key is free again: the same referral may be queued once more.
            db.execute(
                "UPDATE message SET status = 'cancelled', due_at = NULL, job = NULL,"
                " content_key = content_key || ':cancelled:' || id WHERE id = %s",
                (row["id"],),
            )

        return self._decide(reference, "cancelled", CANCELLABLE, now, change)

    def acknowledge(self, reference: str, on: date, now: datetime) -> Held:
        """Record that the agency has answered: so it has arrived.

        Raises:
            NotInOutbox, NotPossibleNow: it is not relayed, and can't have arrived either.
        """

        def change(db: Connection, row: Row) -> None:
            self._forget_job(db, row)
            db.execute(
                "UPDATE message SET acknowledged_on = %s, status = 'relayed', due_at = NULL,"
                " lease_until = NULL, lease_owner = NULL, job = NULL,"
                " relayed_at = coalesce(relayed_at, %s) WHERE id = %s",
                (on, now, row["id"]),
            )

        return self._decide(
            reference, "acknowledged", ANSWERABLE, now, change, or_maybe_arrived=True
        )

    @staticmethod
    def _forget_job(db: Connection, row: Row) -> None:
        if row["lease_until"] is not None:
            jobs.finish(db, row["job"])
        elif row["job"] is not None:
            jobs.cancel(db, row["job"])

    def _decide(
        self,
        reference: str,
        action: str,
        allowed: Sequence[DeliveryStatus],
        now: datetime,
        change: Callable[[Connection, Row], None],
        *,
        newest: bool = False,
        or_maybe_arrived: bool = False,
    ) -> Held:
        """Do it to the newest message of a reference that it is possible for, else say why not.

        Facts that changed make another message with the same reference, which see `content_key`.
        """

        def run(db: Connection) -> Held:
            cursor = db.cursor(row_factory=dict_row)
            cursor.execute(
                "SELECT * FROM message WHERE reference = %s"
                " ORDER BY acknowledged_on IS NOT NULL, id DESC FOR UPDATE",
                (reference if is_text(reference) else "",),
            )
            rows = cursor.fetchall()
            row = decidable(
                rows, reference, action, allowed, newest=newest, or_maybe_arrived=or_maybe_arrived
            )
            change(db, row)
            self._log(now, action, reference, row["case_reference"], {})
            cursor.execute("SELECT * FROM message WHERE id = %s", (row["id"],))
            return held_of(one(cursor))

        return self._do(run)

    def unacknowledged(self, today: date) -> list[Held]:
        """Relayed or uncertain, past their acknowledge-by date, and not acknowledged."""
        rows = self._read(
            "SELECT * FROM message WHERE status IN ('relayed', 'uncertain')"
            " AND acknowledged_on IS NULL AND acknowledge_by < %s ORDER BY acknowledge_by, id",
            (today,),
        )
        return [held_of(row) for row in rows]

    # The audit

    def audit(self, case_reference: str | None = None) -> Iterator[Entry]:
        """Every entry in order, or those of one case."""
        if not is_text(case_reference):
            return
        where = _OF_CASE[case_reference is not None]
        for row in self._stream(
            f"SELECT * FROM audit {where} ORDER BY number",  # noqa: S608 - ours
            {"case": case_reference},
        ):
            yield Entry(*row)

    def newest_entries(
        self, case_reference: str | None = None, *, limit: int, offset: int = 0
    ) -> list[Entry]:
        """Entries of the audit, or those of one case, the newest first."""
        if not is_text(case_reference):
            return []
        rows = self._read(
            f"SELECT * FROM audit {_OF_CASE[case_reference is not None]}"  # noqa: S608 - ours
            " ORDER BY number DESC LIMIT %(limit)s OFFSET %(offset)s",
            {"case": case_reference, "limit": limit, "offset": offset},
        )
        return [Entry(*row.values()) for row in rows]

    def count_entries(self, case_reference: str | None = None) -> int:
        if not is_text(case_reference):
            return 0
        [row] = self._read(
            f"SELECT count(*) AS number FROM audit {_OF_CASE[case_reference is not None]}",  # noqa: S608 - ours
            {"case": case_reference},
        )
        return int(row["number"])


def held_of(row: Row, rerouted_to: str | None = None) -> Held:
    return Held(
        id=row["id"],
        reference=row["reference"],
        case_reference=row["case_reference"],
        intervention=row["intervention"],
        agency=row["agency"],
        recipient=row["recipient"],
        message_id=row["message_id"],
        sha256=row["sha256"],
        size=row["size"],
        status=DeliveryStatus(row["status"]),
        queued_at=row["queued_at"],
        due_at=row["due_at"],
        attempts=row["attempts"],
        maybe_doubled=row["maybe_doubled"],
        relayed_at=row["relayed_at"],
        acknowledge_by=row["acknowledge_by"],
        acknowledged_on=row["acknowledged_on"],
        purged_at=row["purged_at"],
        replaces=row["replaces"],
        rerouted_to=rerouted_to,
    )
