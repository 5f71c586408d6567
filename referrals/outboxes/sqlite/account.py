"""The account of what is in the outbox: what a person asks of it and decides, and the audit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime, timedelta
from operator import attrgetter
from typing import Any

from referrals.audit import FIRST, Entry, new_entry
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox, NotPossibleNow
from referrals.outboxes.sqlite.file import SqliteFile
from referrals.queueing import (
    ANSWERABLE,
    CANCELLABLE,
    REROUTED_TO,
    RETRIABLE,
    Attempt,
    Held,
    decidable,
)

MICROSECOND = timedelta(microseconds=1)
_KEPT = " AND due_at IS NOT NULL AND agency IN (SELECT agency FROM hold)"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_OF_CASE = ("", "WHERE case_reference = :case")
_columns = attrgetter(*(one.name for one in fields(Entry)))


class SqliteAccount(SqliteFile):
    """What was queued and what became of it."""

    _last_entry: tuple[int, str] | None = None  # of the audit, as this transaction knows it

    # What there is

    def counts(self) -> dict[str, int]:
        """How many there are of each status."""
        return dict(self._read("SELECT status, count(*) FROM message GROUP BY status"))

    def oldest_due(self, now: datetime) -> datetime | None:
        """Since when the message has been due that has been so longest; None if none is."""
        [(due,)] = self._read(
            "SELECT min(due_at) FROM message WHERE due_at IS NOT NULL AND due_at <= ?"
            " AND agency NOT IN (SELECT agency FROM hold)",
            (micros(now),),
        )
        return moment_if(due)

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
        where = " AND ".join(f"{key} = :{key}" for key in given) or "TRUE"
        where += _KEPT if kept else ""
        rows = self._read(
            f"SELECT message.*, {REROUTED_TO} FROM message WHERE {where}"  # noqa: S608 - our own column names
            " ORDER BY id DESC LIMIT :limit OFFSET :offset",
            {**given, "limit": limit, "offset": offset},
        )
        return [held_of(row, row["rerouted_to"]) for row in rows]

    def attempts(self, message_id: int) -> list[Attempt]:
        rows = self._read("SELECT * FROM attempt WHERE message = ? ORDER BY id", (message_id,))
        return [
            Attempt(
                started_at=moment(row["started_at"]),
                ended_at=moment_if(row["ended_at"]),
                outcome=row["outcome"],
                stage=row["stage"],
                code=row["code"],
                enhanced=row["enhanced"],
                words=row["words"],
                relay=row["relay"],
            )
            for row in rows
        ]

    def content(self, message_id: int) -> bytes | None:
        """The queued bytes, or None once they are purged."""
        rows = self._read(
            "SELECT octets FROM message LEFT JOIN content ON message = id WHERE id = ?",
            (message_id,),
        )
        if not rows:
            raise NotInOutbox("There is no such message in the outbox.")
        found: bytes | None = rows[0]["octets"]
        return found

    def retry(self, reference: str, now: datetime) -> Held:
        """Make a delayed, failed or uncertain message due now, as if it were just queued.

        Of several with one reference, the newest: the others hold what was known before.

        Raises:
            NotInOutbox, NotPossibleNow.
        """

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            if row["purged_at"] is not None:
                raise NotPossibleNow(f"{reference}: its content was purged. Make it anew.")
            db.execute(
                "UPDATE message SET status = 'queued', due_at = ?, failures = 0 WHERE id = ?",
                (micros(now), row["id"]),
            )

        return self._decide(reference, "retried", RETRIABLE, now, change, newest=True)

    def cancel(self, reference: str, now: datetime) -> Held:
        """Keep a message that is not yet relayed from being tried (again).

        Raises:
            NotInOutbox, NotPossibleNow.
        """

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            # Its key is free again: the same referral may be queued once more.
            db.execute(
                "UPDATE message SET status = 'cancelled', due_at = NULL,"
                " content_key = content_key || ':cancelled:' || id WHERE id = ?",
                (row["id"],),
            )

        return self._decide(reference, "cancelled", CANCELLABLE, now, change)

    def acknowledge(self, reference: str, on: date, now: datetime) -> Held:
        """Record that the agency has answered: so it has arrived.

        Raises:
            NotInOutbox, NotPossibleNow: it is not relayed, and can't have arrived either.
        """

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            db.execute(
                "UPDATE message SET acknowledged_on = ?, status = 'relayed', due_at = NULL,"
                " lease_until = NULL, lease_owner = NULL, relayed_at = coalesce(relayed_at, ?)"
                " WHERE id = ?",
                (on.isoformat(), micros(now), row["id"]),
            )

        return self._decide(
            reference, "acknowledged", ANSWERABLE, now, change, or_maybe_arrived=True
        )

    def _decide(
        self,
        reference: str,
        action: str,
        allowed: Sequence[DeliveryStatus],
        now: datetime,
        change: Callable[[sqlite3.Connection, sqlite3.Row], None],
        *,
        newest: bool = False,
        or_maybe_arrived: bool = False,
    ) -> Held:
        """Do it to the newest message of a reference that it is possible for, else say why not.

        Facts that changed make another message with the same reference, which see `content_key`.
        """

        def run(db: sqlite3.Connection) -> Held:
            rows = db.execute(
                "SELECT * FROM message WHERE reference = ?"
                " ORDER BY acknowledged_on IS NOT NULL, id DESC",
                (reference,),
            ).fetchall()
            row = decidable(
                rows, reference, action, allowed, newest=newest, or_maybe_arrived=or_maybe_arrived
            )
            change(db, row)
            self._log(db, now, action, reference, row["case_reference"], {})
            after = db.execute("SELECT * FROM message WHERE id = ?", (row["id"],)).fetchone()
            return held_of(after)

        return self._do(run)

    def unacknowledged(self, today: date) -> list[Held]:
        """Relayed or uncertain, past their acknowledge-by date, and not acknowledged."""
        rows = self._read(
            "SELECT * FROM message WHERE status IN ('relayed', 'uncertain')"
            " AND acknowledged_on IS NULL AND acknowledge_by < ? ORDER BY acknowledge_by, id",
            (today.isoformat(),),
        )
        return [held_of(row) for row in rows]

    # The audit

    def _log(
        self,
        db: sqlite3.Connection,
        now: datetime,
        action: str,
        reference: str,
        case_reference: str,
        detail: Mapping[str, Any],
    ) -> None:
        self._log_all(db, now, action, [(reference, case_reference, detail)])

    def _log_all(
        self,
        db: sqlite3.Connection,
        now: datetime,
        action: str,
        what: Sequence[tuple[str, str, Mapping[str, Any]]],
    ) -> None:
        """Put something into the log for each reference, case reference and detail."""
        number, before = self._last_entry or self._find_last_entry(db)
        entries = []
        for reference, case_reference, detail in what:
            number += 1
            entry = new_entry(
                number=number,
                before=before,
                at=now,
                actor=self.actor,
                action=action,
                reference=reference,
                case_reference=case_reference,
                detail=detail,
            )
            before = entry.hash
            entries.append(_columns(entry))
        db.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", entries)
        self._last_entry = number, before

    @staticmethod
    def _find_last_entry(db: sqlite3.Connection) -> tuple[int, str]:
        last = db.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        return (last["number"], last["hash"]) if last else (0, FIRST)

    def _forget_reads(self) -> None:
        super()._forget_reads()
        self._last_entry = None

    def audit(self, case_reference: str | None = None) -> Iterator[Entry]:
        """Every entry in order, or those of one case."""
        where, values = (
            ("WHERE case_reference = ?", (case_reference,)) if case_reference else ("", ())
        )
        with self._reader() as reader:
            for row in reader.execute(f"SELECT * FROM audit {where} ORDER BY number", values):  # noqa: S608 - ours
                yield Entry(*row)

    def newest_entries(
        self, case_reference: str | None = None, *, limit: int, offset: int = 0
    ) -> list[Entry]:
        """Entries of the audit, or those of one case, the newest first."""
        rows = self._read(
            f"SELECT * FROM audit {_OF_CASE[case_reference is not None]}"  # noqa: S608 - ours
            " ORDER BY number DESC LIMIT :limit OFFSET :offset",
            {"case": case_reference, "limit": limit, "offset": offset},
        )
        return [Entry(*row) for row in rows]

    def count_entries(self, case_reference: str | None = None) -> int:
        [row] = self._read(
            f"SELECT count(*) FROM audit {_OF_CASE[case_reference is not None]}",  # noqa: S608 - ours
            {"case": case_reference},
        )
        return int(row[0])


def micros(when: datetime) -> int:
    return (when - _EPOCH) // MICROSECOND


def moment(micros: int) -> datetime:
    return _EPOCH + micros * MICROSECOND


def moment_if(micros: int | None) -> datetime | None:
    return None if micros is None else moment(micros)


def held_of(row: sqlite3.Row, rerouted_to: str | None = None) -> Held:
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
        queued_at=moment(row["queued_at"]),
        due_at=moment_if(row["due_at"]),
        attempts=row["attempts"],
        maybe_doubled=bool(row["maybe_doubled"]),
        relayed_at=moment_if(row["relayed_at"]),
        acknowledge_by=date.fromisoformat(row["acknowledge_by"]),
        acknowledged_on=(
            date.fromisoformat(row["acknowledged_on"]) if row["acknowledged_on"] else None
        ),
        purged_at=moment_if(row["purged_at"]),
        replaces=row["replaces"],
        rerouted_to=rerouted_to,
    )
