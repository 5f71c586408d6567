"""The embedded outbox: SQLite statements that queue, claim and record, over `file`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from referrals.delivery import (
    JITTER,
    DeliveryStatus,
    Envelope,
    Outgoing,
    RetryPolicy,
    Submission,
    next_attempt,
)
from referrals.errors import LeaseLost
from referrals.outboxes.owed import Owed
from referrals.outboxes.sqlite.account import MICROSECOND, micros, moment
from referrals.outboxes.sqlite.file import nothing
from referrals.outboxes.sqlite.links import SqliteLinks
from referrals.queueing import Claimed, NotYet, Outcome, Queued, decided, storable

_Row = tuple[Any, ...]


class SqliteOutbox(SqliteLinks):
    """`ports.Outbox` in one file. Every method waits until its change is on the disk.

    All of them raise OutboxUnusable when the disk, SQLite or another process says no; then nothing
    of the call is kept, and the same call may be made again.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self._turns: _Turns | None = None
        self._owed: Owed[int, tuple[Claimed, str]] = Owed()  # to be released, by attempt
        super().__init__(*args, **more)

    # Queueing

    def queue(self, submissions: Sequence[Submission], now: datetime) -> list[Queued]:
        """Put finished messages into the queue, all or none; on the disk when this returns."""
        return self.queue_soon(submissions, now).result()

    def queue_soon(self, submissions: Sequence[Submission], now: datetime) -> Future[list[Queued]]:
        """As `queue`, but on the disk when the answer is there."""
        return self._ask(lambda db: self._queue(db, submissions, now))

    def known(self, content_keys: Iterable[str]) -> dict[str, Queued]:
        """Which of these were queued before, and what became of them."""
        with self._reader() as reader:
            return self._known(reader, content_keys)

    @staticmethod
    def _known(db: sqlite3.Connection, content_keys: Iterable[str]) -> dict[str, Queued]:
        rows = db.execute(
            "SELECT content_key, id, status FROM message"
            " WHERE content_key IN (SELECT value FROM json_each(?))",
            (json.dumps(list(content_keys)),),
        )
        return {
            key: Queued(number, new=False, status=DeliveryStatus(status))
            for key, number, status in rows
        }

    def _queue(
        self, db: sqlite3.Connection, submissions: Sequence[Submission], now: datetime
    ) -> list[Queued]:
        known = self._known(db, [one.content_key for one in submissions])
        known |= self._known_elsewhere(db, [s for s in submissions if s.content_key not in known])
        (number,) = db.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()
        at = micros(now)
        answers, messages, contents, entries = [], [], [], []
        for one in submissions:
            before = known.get(one.content_key)
            if before is not None:
                answers.append(before)
                continue
            number += 1
            known[one.content_key] = Queued(number, new=False, status=DeliveryStatus.QUEUED)
            answers.append(Queued(number, new=True, status=DeliveryStatus.QUEUED))
            outgoing = one.outgoing
            envelope, content = outgoing.envelope, outgoing.content
            messages.append(
                (
                    number,
                    outgoing.reference,
                    one.case_reference,
                    one.intervention,
                    one.agency,
                    one.content_key,
                    envelope.sender,
                    envelope.recipient,
                    one.message_id,
                    one.sha256,
                    len(content),
                    at,
                    at,
                    "queued",
                    at,
                    one.acknowledge_by.isoformat(),
                    one.facts_key,
                )
            )
            contents.append((number, content))
            entries.append((outgoing.reference, one.case_reference, one.disclosure))
        db.executemany(
            "INSERT INTO message (id, reference, case_reference, intervention, agency, content_key,"
            " sender, recipient, message_id, sha256, size, queued_at, trying_since, status, due_at,"
            " acknowledge_by, facts_key)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            messages,
        )
        db.executemany("INSERT INTO content VALUES (?, ?)", contents)
        self._log_all(db, now, "queued", entries)
        return answers

    # Delivering

    def listening(self, heard: Callable[[], None]) -> AbstractContextManager[None]:
        """SQLite tells nobody what other processes write."""
        return nullcontext()

    async def claim(
        self,
        owner: str,
        now: datetime,
        lease: timedelta,
        *,
        only: int | None = None,
        every: timedelta | None = None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | NotYet | None:
        """See `ports.Deliveries`."""
        return await self._await(
            lambda db: self._claim(db, owner, now, lease, only, every, pace),
            lambda result: self._owe(result, owner),
        )

    def _claim(
        self,
        db: sqlite3.Connection,
        owner: str,
        now: datetime,
        lease: timedelta,
        only: int | None,
        every: timedelta | None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | NotYet | None:
        if only is None:
            row = self._due(db, now)
        else:
            self._refuse_a_copy(db)
            row = db.execute(_ONE, (only,)).fetchone()
        if row is None:
            return None
        until = self._paced(db, now, every, pace) if every or pace else None
        return self._take(db, owner, now, lease, row) if until is None else NotYet(until)

    def _due(self, db: sqlite3.Connection, now: datetime) -> _Row | None:
        self._refuse_a_copy(db)
        at = micros(now)
        if self._turns is None or self._turns.at > at:
            self._turns = _Turns(db, at)
        return self._turns.next(db, at)

    @staticmethod
    def _take(
        db: sqlite3.Connection, owner: str, now: datetime, lease: timedelta, row: _Row
    ) -> Claimed:
        at = micros(now)
        (number, reference, case_reference, sender, recipient, agency, sha256, status, due,
         failures, queued, since, doubled, octets) = row  # fmt: skip
        # Counted from the first attempt: that a machine was off for days is no relay's doing.
        trying_since = moment(since) if failures else now
        cursor = db.execute("INSERT INTO attempt (message, started_at) VALUES (?, ?)", (number, at))
        db.execute(
            "UPDATE message SET status = 'sending', due_at = NULL, lease_until = ?,"
            " lease_owner = ?, attempts = attempts + 1, trying_since = ? WHERE id = ?",
            (micros(now + lease), owner, micros(trying_since), number),
        )
        return Claimed(
            id=number,
            attempt=int(cursor.lastrowid or 0),
            case_reference=case_reference,
            agency=agency,
            outgoing=Outgoing(reference, Envelope(sender, recipient), octets),
            sha256=sha256,
            status=DeliveryStatus(status),
            due_at=moment(due),
            failures=failures,
            queued_at=moment(queued),
            trying_since=trying_since,
            maybe_doubled=bool(doubled),
        )

    @staticmethod
    def _paced(
        db: sqlite3.Connection,
        now: datetime,
        every: timedelta | None,
        pace: tuple[str, timedelta] | None,
    ) -> datetime | None:
        """Take the next place in each pace that all processes keep together, or say when it is.

        What a clock put back has left in the future counts as now, so nobody waits for longer than
        one place.
        """
        at, until = micros(now), micros(now)
        paces: list[tuple[tuple[str, str], tuple[str, ...], timedelta]] = []
        if every is not None:
            paces.append((_PACE, (), every))
        if pace is not None:
            relay, wait = pace
            db.execute("INSERT OR IGNORE INTO relay_pace VALUES (?, NULL)", (relay,))
            paces.append((_RELAY_PACE, (relay,), wait))
        for (read, write), which, wait in paces:
            (last,) = db.execute(read, which).fetchone()
            if last is not None and last > at:
                db.execute(write, (at, *which))
                last = at
            if last is not None:
                until = max(until, last + wait // MICROSECOND)
        if until > at:
            return moment(until)
        for (_, write), which, _ in paces:
            db.execute(write, (at, *which))
        return None

    async def record(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> DeliveryStatus:
        """See `ports.Deliveries`."""
        return await self._await(
            lambda db: self._record(
                db, claimed, owner, outcome, now, policy, jitter, hold_uncertain
            )
        )

    async def record_and_claim(
        self,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        lease: timedelta,
        *,
        jitter: float = 0.0,
        hold_uncertain: bool = False,
    ) -> tuple[DeliveryStatus | None, Claimed | None]:
        """See `ports.Deliveries`."""

        def run(db: sqlite3.Connection) -> tuple[DeliveryStatus | None, Claimed | None]:
            try:
                status = self._record(
                    db, claimed, owner, outcome, now, policy, jitter, hold_uncertain
                )
            except LeaseLost:
                status = None
            row = self._due(db, now)
            return status, None if row is None else self._take(db, owner, now, lease, row)

        return await self._await(run, lambda result: self._owe(result[1], owner))

    def _record(
        self,
        db: sqlite3.Connection,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        jitter: float,
        hold_uncertain: bool,
    ) -> DeliveryStatus:
        reply, at = outcome.reply, micros(now)
        status, due, failures, doubled = decided(
            outcome.status, claimed, now, policy, jitter, hold_uncertain
        )
        values = (
            status,
            micros(due) if due else None,
            failures,
            doubled,
            at if status is DeliveryStatus.RELAYED else None,
            claimed.id,
        )
        if db.execute(_RECORD_OURS, (*values, owner, claimed.attempt)).rowcount:
            if self._turns is not None:
                self._turns.free(claimed.agency)
        elif db.execute(_KEPT, (claimed.attempt, outcome.status, outcome.relay)).fetchone():
            return status
        elif outcome.status is DeliveryStatus.RELAYED:
            db.execute(_RECORD, values)
        else:
            raise LeaseLost(f"{claimed.outgoing.reference} was taken over by another process.")
        db.execute(
            "UPDATE attempt SET ended_at = ?, outcome = ?, stage = ?, code = ?, enhanced = ?,"
            " words = ?, relay = ? WHERE id = ?",
            (
                at,
                outcome.status,
                outcome.stage,
                reply.code if reply else None,
                reply.enhanced if reply else None,
                storable(reply.text if reply else outcome.words),
                outcome.relay,
                claimed.attempt,
            ),
        )
        if status is not DeliveryStatus.DELAYED:
            reference = claimed.outgoing.reference
            self._log(db, now, str(status), reference, claimed.case_reference, outcome.detail)
        return status

    async def release(self, claimed: Claimed, owner: str) -> None:
        """See `ports.Deliveries`."""
        self._owe(claimed, owner)
        await self._await(nothing)

    def _owe(self, claimed: Claimed | NotYet | None, owner: str) -> None:
        """Release a message with whatever is written next."""
        if isinstance(claimed, Claimed):
            self._owed.add(claimed.attempt, (claimed, owner))

    def _begun(self, connection: sqlite3.Connection) -> None:
        super()._begun(connection)
        for claimed, owner in self._owed.pay():
            self._release(connection, claimed, owner)

    def _kept(self) -> None:
        super()._kept()
        self._owed.paid()

    def _is_owing(self) -> bool:
        return bool(self._owed) or super()._is_owing()

    def _forget_reads(self) -> None:
        super()._forget_reads()
        self._turns = None

    def _release(self, db: sqlite3.Connection, claimed: Claimed, owner: str) -> None:
        gone = db.execute(
            "DELETE FROM attempt WHERE id = ? AND ended_at IS NULL AND EXISTS (SELECT 1"
            " FROM message WHERE id = ? AND status = 'sending' AND lease_owner = ?)",
            (claimed.attempt, claimed.id, owner),
        ).rowcount
        if gone:
            db.execute(
                "UPDATE message SET status = ?, due_at = ?, lease_until = NULL,"
                " lease_owner = NULL, attempts = attempts - 1 WHERE id = ?",
                (claimed.status, micros(claimed.due_at), claimed.id),
            )

    async def recover(
        self,
        now: datetime,
        policy: RetryPolicy,
        *,
        is_gone: Callable[[str], bool] = lambda _: False,
        hold_uncertain: bool = False,
    ) -> int:
        """See `ports.Deliveries`."""
        return await self._await(lambda db: self._recover(db, now, policy, is_gone, hold_uncertain))

    def _recover(
        self,
        db: sqlite3.Connection,
        now: datetime,
        policy: RetryPolicy,
        is_gone: Callable[[str], bool],
        hold_uncertain: bool,
    ) -> int:
        self._refuse_a_copy(db)
        self._mend_due(db, now, policy)
        leased = db.execute(
            "SELECT id, reference, case_reference, lease_owner, lease_until, failures,"
            " trying_since FROM message WHERE lease_until IS NOT NULL"
        ).fetchall()
        rows = sorted(
            (
                row
                for row in leased
                if row["lease_until"] < micros(now) or is_gone(row["lease_owner"])
            ),
            key=lambda row: int(row["id"]),
        )
        for row in rows:
            failures, since = row["failures"], moment(row["trying_since"])
            due = next_attempt(failures, since, now, policy) if failures else now
            db.execute(
                "UPDATE message SET status = 'uncertain', due_at = ?, lease_until = NULL,"
                " lease_owner = NULL, failures = failures + 1, maybe_doubled = 1 WHERE id = ?",
                (None if hold_uncertain or due is None else micros(due), row["id"]),
            )
            db.execute(
                "UPDATE attempt SET ended_at = ?, outcome = 'uncertain', words = ?"
                " WHERE message = ? AND ended_at IS NULL",
                (micros(now), "the process that was submitting it ended", row["id"]),
            )
            self._log(
                db, now, "uncertain", row["reference"], row["case_reference"], {"lease": "ended"}
            )
        return len(rows)

    @staticmethod
    def _mend_due(db: sqlite3.Connection, now: datetime, policy: RetryPolicy) -> None:
        """Make due now what a clock that was ahead has put off further than anything can be."""
        at, longest = micros(now), micros(now + policy.longest_wait * (1 + JITTER))
        for status, latest in (("queued", at), ("delayed", longest), ("uncertain", longest)):
            db.execute(
                "UPDATE message SET due_at = ? WHERE status = ? AND due_at > ?",
                (at, status, latest),
            )


class _Turns:
    """Whose turn it is, within one transaction: the message of each agency that is due longest."""

    def __init__(self, db: sqlite3.Connection, at: int) -> None:
        self.at = at
        self._heads: dict[str, tuple[int, int]] = {
            agency: (due, number)
            for agency, due, number in db.execute(_HEADS, {"now": at}).fetchall()
            if number is not None
        }
        self._busy: dict[str, int] = dict(db.execute(_BUSY).fetchall())
        self._taken: str | None = None

    def next(self, db: sqlite3.Connection, at: int) -> _Row | None:
        """The row to claim."""
        if self._taken is not None:
            self._look(db, self._taken)
            self._taken = None
        heads, busy = self._heads, self._busy
        while heads:
            agency = min(heads, key=lambda one: (busy.get(one, 0), heads[one]))
            _, number = heads[agency]
            row: _Row | None = db.execute(_DUE, (number, at)).fetchone()
            if row is not None:
                self._taken = agency
                busy[agency] = busy.get(agency, 0) + 1
                return row
            self._look(db, agency)
        return None

    def free(self, agency: str) -> None:
        """One of its messages is no longer under way."""
        self._busy[agency] = self._busy.get(agency, 0) - 1

    def _look(self, db: sqlite3.Connection, agency: str) -> None:
        head = db.execute(_HEAD, (agency, self.at)).fetchone()
        if head is None:
            self._heads.pop(agency, None)
        else:
            self._heads[agency] = tuple(head)


_RECORD = """
UPDATE message SET status = ?, due_at = ?, lease_until = NULL, lease_owner = NULL, failures = ?,
    maybe_doubled = maybe_doubled OR ?, relayed_at = coalesce(relayed_at, ?)
WHERE id = ?
"""
# The attempt as well: another worker in this process may have the same owner's name.
_RECORD_OURS = f"""{_RECORD} AND status = 'sending' AND lease_owner = ?
    AND EXISTS (SELECT 1 FROM attempt WHERE attempt.id = ? AND ended_at IS NULL)
"""  # noqa: S608 - ours

_PACE = "SELECT claimed_at FROM pace", "UPDATE pace SET claimed_at = ?"
_RELAY_PACE = (
    "SELECT claimed_at FROM relay_pace WHERE relay = ?",
    "UPDATE relay_pace SET claimed_at = ? WHERE relay = ?",
)

_KEPT = "SELECT 1 FROM attempt WHERE id = ? AND outcome = ? AND relay = ?"

_COLUMNS = """
SELECT id, reference, case_reference, sender, recipient, agency, sha256, status, due_at, failures,
       queued_at, trying_since, maybe_doubled, octets
FROM message JOIN content ON message = id
"""
_NOT_HELD = "agency NOT IN (SELECT agency FROM hold)"
_ONE = f"{_COLUMNS} WHERE id = ? AND due_at IS NOT NULL AND {_NOT_HELD}"
_DUE = f"{_COLUMNS} WHERE id = ? AND due_at <= ?"

# Of each agency that anything waits for, found by leaps over the index, not by reading all of it.
_HEADS = """
WITH RECURSIVE agencies (agency) AS (
    SELECT min(agency) FROM message WHERE due_at IS NOT NULL
    UNION ALL
    SELECT (SELECT min(agency) FROM message
            WHERE due_at IS NOT NULL AND agency > agencies.agency)
    FROM agencies WHERE agencies.agency IS NOT NULL
)
SELECT agency,
       (SELECT due_at FROM message AS m WHERE m.agency = agencies.agency AND due_at <= :now
        ORDER BY due_at, id LIMIT 1),
       (SELECT id FROM message AS m WHERE m.agency = agencies.agency AND due_at <= :now
        ORDER BY due_at, id LIMIT 1)
FROM agencies WHERE agency IS NOT NULL AND agency NOT IN (SELECT agency FROM hold)
"""
_HEAD = """
SELECT due_at, id FROM message WHERE agency = ? AND due_at <= ? ORDER BY due_at, id LIMIT 1
"""
_BUSY = "SELECT agency, count(*) FROM message WHERE lease_until IS NOT NULL GROUP BY agency"
