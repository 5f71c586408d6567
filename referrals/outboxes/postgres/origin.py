"""Where the outbox in PostgreSQL lives; a restored copy lives elsewhere, and is brought in order.

Whoever first writes to a copy notes with what it was made, so that what is queued from then on is
known to be new.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from referrals.delivery import DeliveryStatus
from referrals.errors import NotPossibleNow
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.connections import Connection, one
from referrals.outboxes.postgres.database import Row
from referrals.outboxes.postgres.holds import PostgresHolds
from referrals.relay_log import reference_of
from referrals.restored import (
    HELD_WORDS,
    NOTED,
    RELAYED_WORDS,
    SAID_SO,
    STILL_WAITS,
    Copied,
    Unsettled,
    Verdict,
    is_possible,
    moment_of,
    settled_words,
)

_PLACE = "system_identifier", "database", "tables", "timeline"
_DIFFERS = {
    "system_identifier": "it lies in another server than it did",
    "database": "it lies in another database than it did",
    "tables": "its tables were made anew from a dump",
    "timeline": "its server was recovered from a backup, or is a standby that was promoted",
}


# Not by the job: what waits for an agency that is held has none.
_WAITS = "(due_at IS NOT NULL OR lease_until IS NOT NULL)"


class PostgresOrigin(PostgresHolds):
    """See `ports.Restoring`."""

    _copied: Copied | None = None  # as our connection knows it
    _looking: Connection | None = None
    _looked: Connection | None = None

    def _begun(self, connection: Connection) -> None:
        super()._begun(connection)
        if connection is not self._looked:  # the server may be another one now
            self._copied = self._look(connection)
            self._looking = connection

    def _kept(self) -> None:
        super()._kept()
        self._looked = self._looking

    def _refuse_a_copy(self, db: Connection, *, look: bool = False) -> None:
        """Raises OutboxRestored."""
        if look or self._copied is not None:
            self._copied = self._look(db)
        if self._copied is not None:
            raise self._copied.refusal(self.name)

    @staticmethod
    def _look(db: Connection) -> Copied | None:
        """What it is; if it is a copy, that is noted with the transaction."""
        copied, is_noted, origin = _found(db)
        if copied is not None and not is_noted:
            # Not if somebody has brought it in order meanwhile.
            db.execute(
                "UPDATE origin SET copied_as_of = %s, last_message = %s WHERE copied_as_of IS NULL"
                " AND (system_identifier, database, tables, timeline) = (%s, %s, %s, %s)",
                (copied.as_of, copied.last_message, *origin),
            )
        return copied

    def copied(self) -> Copied | None:
        with self.database.reader() as reader:
            return _found(reader)[0]

    def take_for_copy(self, now: datetime, *, only_say: bool = False) -> Copied:
        def run(db: Connection) -> Copied:
            db.execute("SELECT 1 FROM origin FOR UPDATE")
            copied = self._look(db)
            if copied is None:
                copied = Copied(SAID_SO, *_end(db))
                if not only_say:
                    db.execute(
                        "UPDATE origin SET copied_as_of = %s, last_message = %s",
                        (copied.as_of, copied.last_message),
                    )
                    self._copied = copied
            return copied

        return self._do(run)

    def settled(self, now: datetime, detail: Mapping[str, Any]) -> bool:
        def run(db: Connection) -> bool:
            if not self._is_copy(db):
                return False
            if db.execute(
                f"SELECT 1 FROM message, origin WHERE {_WAITS}"  # noqa: S608 - ours
                " AND message.id <= origin.last_message LIMIT 1"
            ).fetchone():
                raise NotPossibleNow(STILL_WAITS)
            self._settle_here(db)
            self._log(now, NOTED, "", "", detail)
            return True

        return self._do(run)

    def lost_nothing(self, now: datetime) -> bool:
        def run(db: Connection) -> bool:
            if not self._is_copy(db):
                return False
            self._settle_here(db)
            self._log(now, "outbox moved", "", "", {})
            return True

        return self._do(run)

    def _is_copy(self, db: Connection) -> bool:
        db.execute("SELECT 1 FROM origin FOR UPDATE")
        self._copied = self._look(db)
        return self._copied is not None

    def _settle_here(self, db: Connection) -> None:
        db.execute(
            "UPDATE origin SET (system_identifier, database, tables, timeline) ="
            " (SELECT * FROM here()), copied_as_of = NULL, last_message = NULL"
        )
        self._copied = None

    def unsettled(self, *, waiting: bool, after: int = 0, limit: int) -> list[Unsettled]:
        of = (
            f"{_WAITS} AND id <= coalesce((SELECT last_message FROM origin),"  # noqa: S608 - ours
            " (SELECT max(id) FROM message))"
            if waiting
            else f"NOT {_WAITS} AND status IN ('uncertain', 'failed')"
        )
        rows = self._read(
            "SELECT id, reference, message_id, status, purged_at,"  # noqa: S608 - ours
            " (SELECT min(started_at) FROM attempt WHERE attempt.message = message.id"
            "  AND (outcome IS NULL OR outcome = 'uncertain')) AS doubtful_since,"
            " NOT EXISTS (SELECT 1 FROM message AS newer WHERE newer.reference = message.reference"
            "  AND newer.id > message.id) AS is_last"
            f" FROM message WHERE id > %s AND {of} ORDER BY id LIMIT %s",
            (after, limit),
        )
        return [
            Unsettled(
                id=row["id"],
                reference=row["reference"],
                message_id=row["message_id"],
                status=DeliveryStatus(row["status"]),
                doubtful_since=row["doubtful_since"],
                is_whole=row["purged_at"] is None,
                is_last=row["is_last"],
            )
            for row in rows
        ]

    def settle(self, verdicts: Mapping[int, Verdict], now: datetime) -> Counter[Verdict]:
        if not verdicts:
            return Counter()

        def run(db: Connection) -> Counter[Verdict]:
            cursor = db.cursor(row_factory=dict_row)
            rows = cursor.execute(
                "SELECT * FROM message WHERE id = ANY(%s) ORDER BY id FOR UPDATE", (list(verdicts),)
            ).fetchall()
            found: dict[Verdict, list[Row]] = {verdict: [] for verdict in Verdict}
            for row in rows:
                verdict = verdicts[row["id"]]
                waits = row["due_at"] is not None or row["lease_until"] is not None
                if is_possible(verdict, DeliveryStatus(row["status"]), waits, row["purged_at"]):
                    found[verdict].append(row)
            copied = self._look(db)
            as_of = min(copied.as_of, now) if copied else now
            for verdict, some in found.items():
                if verdict is Verdict.DUE:
                    _make_due(db, some, now)
                else:
                    _put_to_rest(db, some, verdict, as_of, now)
                for row in some:
                    action, detail = settled_words(verdict, row["status"])
                    self._log(now, action, row["reference"], row["case_reference"], detail)
            return Counter({verdict: len(some) for verdict, some in found.items() if some})

        return self._do(run)

    def surely_relayed(self, since: datetime, before: datetime | None = None) -> list[str]:
        rows = self._read(
            "SELECT DISTINCT message_id FROM attempt JOIN message ON message.id = attempt.message"
            " WHERE outcome = 'relayed' AND code IS NOT NULL AND started_at >= %s"
            " AND started_at < coalesce(%s, 'infinity'::timestamptz) ORDER BY message_id",
            (since, before),
        )
        return [row["message_id"] for row in rows]

    def unknown(self, message_ids: Sequence[str]) -> list[str]:
        found: list[str] = []
        for first in range(0, len(message_ids), 1_000):
            some = message_ids[first : first + 1_000]
            rows = self._read(
                "SELECT message_id FROM message WHERE reference = ANY(%s)",
                ([reference_of(each) for each in some],),
            )
            here = {row["message_id"] for row in rows}
            found += [each for each in some if each not in here]
        return found


def _make_due(db: Connection, rows: Sequence[Row], now: datetime) -> None:
    numbers = [row["id"] for row in rows]
    turns = jobs.turns(db, [row["agency"] for row in rows])
    deferred = jobs.defer_due(db, numbers, turns)
    db.execute(
        "UPDATE message SET status = 'queued', due_at = %s, failures = 0, job = new.job,"
        " turn = coalesce(new.turn, message.turn)"
        " FROM unnest(%s::bigint[], %s::bigint[], %s::integer[]) AS new (id, job, turn)"
        " WHERE message.id = new.id",
        (now, numbers, deferred, turns),
    )


def _put_to_rest(
    db: Connection, rows: Sequence[Row], verdict: Verdict, as_of: datetime, now: datetime
) -> None:
    relayed = verdict is Verdict.RELAYED
    jobs.forget(db, [row["job"] for row in rows if row["job"] is not None])
    db.execute(
        _REST,
        {
            "messages": [row["id"] for row in rows],
            "now": now,
            "as_of": as_of,
            "status": "relayed" if relayed else "uncertain",
            "words": RELAYED_WORDS if relayed else HELD_WORDS,
            "relayed": now if relayed else None,
            "doubled": not relayed,
        },
    )


def _found(db: Connection) -> tuple[Copied | None, bool, tuple[Any, ...]]:
    """What it is, whether that was noted, and where it was known to be."""
    row = one(db.execute(_WHERE))
    (then, now), (as_of, last) = (row[:4], row[4:8]), row[8:10]
    moved = [
        name
        for name, was, is_now in zip(_PLACE, then, now, strict=True)
        if is_now not in (was, None)
    ]
    if not moved and as_of is None:
        return None, False, then
    if as_of is not None:
        return Copied(_why(moved), as_of, last), True, then
    return Copied(_why(moved), *_end(db)), False, then


def _end(db: Connection) -> tuple[datetime, int]:
    """The last moment that the audit knows of, and the last message."""
    moment, last = one(
        db.execute(
            "SELECT (SELECT at FROM audit ORDER BY number DESC LIMIT 1),"
            " (SELECT coalesce(max(id), 0) FROM message)"
        )
    )
    return moment_of(moment), last


def _why(moved: Sequence[str]) -> str:
    return _DIFFERS[moved[0]] if moved else SAID_SO


_WHERE = """
SELECT origin.system_identifier, origin.database, origin.tables, origin.timeline,
    here.system_identifier, here.database, here.tables, here.timeline, copied_as_of, last_message
FROM origin, here()
"""

# What was under way ends so; of the rest, an attempt is put down of which we know nothing more.
_REST = """
WITH ended AS (
    UPDATE attempt SET ended_at = %(now)s, outcome = %(status)s, words = %(words)s
    WHERE message = ANY(%(messages)s) AND ended_at IS NULL RETURNING message
), added AS (
    INSERT INTO attempt (message, started_at, ended_at, outcome, words)
    SELECT id, %(as_of)s, %(now)s, %(status)s, %(words)s
    FROM unnest(%(messages)s::bigint[]) AS wanted (id) WHERE id NOT IN (SELECT message FROM ended)
    RETURNING message
)
UPDATE message SET status = %(status)s, due_at = NULL, lease_until = NULL, lease_owner = NULL,
    job = NULL, attempts = attempts + (id IN (SELECT message FROM added))::integer,
    maybe_doubled = maybe_doubled OR %(doubled)s,
    relayed_at = coalesce(relayed_at, %(relayed)s::timestamptz)
WHERE id = ANY(%(messages)s)
"""
