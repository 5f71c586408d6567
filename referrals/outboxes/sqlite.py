"""The embedded outbox: one SQLite file, safe for several processes on one machine.

WAL and `synchronous=FULL`: a change is on the disk before its call returns. One thread writes, and
puts into one transaction whatever was asked for while it wrote the one before; so eight lanes that
each record one outcome and claim one message cost one fsync, and each still waits for its own.

`secure_delete`: what is purged or erased is overwritten, in the file and in its log.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import queue
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, field
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar

from referrals.audit import FIRST, Entry, new_entry
from referrals.delivery import (
    JITTER,
    DeliveryStatus,
    Envelope,
    Outgoing,
    Reply,
    RetryPolicy,
    Submission,
    next_attempt,
)
from referrals.errors import DeliveryError, LeaseLost, NotInOutbox, NotPossibleNow, OutboxUnusable

VERSION = 1
_PATIENCE_S = 20.0
_MOST_IN_ONE_TRANSACTION = 1_000
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# What is the caller's mistake and says nothing of the file: it costs only its own job.
_OF_THE_JOB = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Queued:
    """`new` is false where the same referral was queued before; then nothing was changed."""

    id: int
    new: bool
    status: DeliveryStatus


@dataclass(frozen=True)
class Claimed:
    """A message that is ours to attempt until the lease ends.

    `status` and `due_at` are what it had before, and has again if it is released untried.
    """

    id: int
    attempt: int
    agency: str
    outgoing: Outgoing
    sha256: str
    status: DeliveryStatus
    due_at: datetime
    failures: int
    queued_at: datetime
    trying_since: datetime
    maybe_doubled: bool

    @property
    def is_intact(self) -> bool:
        """Whether these are still the bytes that were queued."""
        return hashlib.sha256(self.outgoing.content).hexdigest() == self.sha256


@dataclass(frozen=True)
class Outcome:
    """What an attempt came to. `status` is relayed, delayed, failed or uncertain."""

    status: DeliveryStatus
    relay: str
    stage: str = ""
    reply: Reply | None = None
    words: str = ""
    fault: DeliveryError | None = field(default=None, repr=False)
    """The error behind it, for whoever waits for this very message; not kept."""


@dataclass(frozen=True)
class Attempt:
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    stage: str | None
    code: int | None
    enhanced: str | None
    words: str | None
    relay: str | None


@dataclass(frozen=True)
class Held:
    """A message in the outbox, without its content."""

    id: int
    reference: str
    case_reference: str
    intervention: str
    agency: str
    recipient: str
    message_id: str
    sha256: str
    size: int
    status: DeliveryStatus
    queued_at: datetime
    due_at: datetime | None
    attempts: int
    maybe_doubled: bool
    relayed_at: datetime | None
    acknowledge_by: date
    acknowledged_on: date | None
    purged_at: datetime | None


@dataclass
class _Job:
    run: Callable[[sqlite3.Connection], Any]
    done: Future[Any] = field(default_factory=Future)


class SqliteOutbox:
    """Opened with `open`, closed with `close` or as a context manager.

    Every method waits until its change is on the disk. Methods are called from any thread; the
    `async` ones from any loop. All of them raise OutboxUnusable when the disk, SQLite or another
    process says no; then nothing of the call is kept, and the same call may be made again.
    """

    def __init__(
        self, path: Path, actor: str, connection: sqlite3.Connection, patience_s: float
    ) -> None:
        self.path = path
        # A name that is not UTF-8 is no reason to refuse a referral.
        self.actor = actor.encode(errors="backslashreplace").decode()
        self._connection = connection
        self._patience_s = patience_s
        self._file = _identity(path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()  # nothing is put into `_jobs` once `_closed`
        self._closed = False
        self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, path: Path, actor: str, *, patience_s: float = _PATIENCE_S) -> Self:
        """Open the file, or make it: 0600, in a folder 0700.

        Args:
            patience_s: how long to wait for another process that has the file locked.

        Raises:
            OutboxUnusable: the system or SQLite says no, or it was made by a newer version.
        """
        try:
            _make_private(path)
            connection = _connect(path, patience_s)
        except (OSError, sqlite3.Error) as error:
            raise _unusable(path, error) from None
        try:
            _version(connection, path)  # refuse before anything is changed
            _use_wal(connection, path, patience_s)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")
            _migrate(connection, path)
            return cls(path, actor, connection, patience_s)
        except (OSError, sqlite3.Error) as error:
            connection.close()
            raise _unusable(path, error) from None
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Finish what was asked for, then close; whatever is asked for later is refused."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._writer.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The one writer

    def _write(self) -> None:
        jobs: list[_Job] = []
        try:
            closing = False
            while not closing:
                jobs, closing = self._taken()
                self._commit(jobs)
        finally:
            # Should this thread ever die, nobody is to wait for it.
            with self._gate:
                self._closed = True
                while not self._jobs.empty():
                    job = self._jobs.get()
                    if job is not None:
                        jobs.append(job)
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(self._is_closed())

    def _taken(self) -> tuple[list[_Job], bool]:
        """At least one job and what has gathered behind it; and whether to close after them."""
        jobs: list[_Job] = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == _MOST_IN_ONE_TRANSACTION:
                return jobs, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return jobs, False
        return jobs, True

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """Run the jobs in one transaction, and tell each what came of it once that is kept."""
        if not jobs:
            return
        try:
            results = self._in_one_transaction(jobs)
        except BaseException as error:
            for job in jobs:  # to each its own: an exception that threads share grows in each
                is_ours = isinstance(error, (OSError, sqlite3.Error))
                job.done.set_exception(_unusable(self.path, error) if is_ours else error)
            return
        for job, (result, wrong) in zip(jobs, results, strict=True):
            if wrong is None:
                job.done.set_result(result)
            else:
                job.done.set_exception(wrong)

    def _in_one_transaction(self, jobs: Sequence[_Job]) -> list[tuple[Any, Exception | None]]:
        """A job that fails takes back its own changes only; a fault of the disk, those of all."""
        connection = self._connection
        results: list[tuple[Any, Exception | None]] = []
        try:
            if _identity(self.path) != self._file:
                raise OutboxUnusable(
                    f"The outbox {self.path} was moved or replaced while it was in use. Nothing of "
                    "this step was kept. Put it back, or start again."
                )
            connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                connection.execute("SAVEPOINT job")
                try:
                    results.append((job.run(connection), None))
                except Exception as error:
                    if isinstance(error, sqlite3.Error) and not isinstance(error, _OF_THE_JOB):
                        raise
                    connection.execute("ROLLBACK TO job")
                    results.append((None, error))
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.rollback()
            raise
        return results

    def _ask(self, run: Callable[[sqlite3.Connection], T]) -> Future[T]:
        job = _Job(run)
        # From here on it can't be cancelled: who stops waiting does not undo what he asked for.
        job.done.set_running_or_notify_cancel()
        with self._gate:
            if self._closed:
                raise self._is_closed()
            self._jobs.put(job)
        return job.done

    def _is_closed(self) -> OutboxUnusable:
        return OutboxUnusable(f"The outbox {self.path} is closed. Nothing of this step was kept.")

    def _do(self, run: Callable[[sqlite3.Connection], T]) -> T:
        return self._ask(run).result()

    async def _await(self, run: Callable[[sqlite3.Connection], T]) -> T:
        return await asyncio.wrap_future(self._ask(run))

    # Queueing

    def queue(self, submissions: Sequence[Submission], now: datetime) -> list[Queued]:
        """Put finished messages into the queue, all or none; on the disk when this returns."""
        return self._do(lambda db: [self._queue(db, one, now) for one in submissions])

    def _queue(self, db: sqlite3.Connection, one: Submission, now: datetime) -> Queued:
        known = db.execute(
            "SELECT id, status FROM message WHERE content_key = ?", (one.content_key,)
        ).fetchone()
        if known:
            return Queued(known[0], new=False, status=DeliveryStatus(known[1]))
        outgoing = one.outgoing
        digest = hashlib.sha256(outgoing.content).hexdigest()
        cursor = db.execute(
            "INSERT INTO message (reference, case_reference, intervention, agency, content_key,"
            " sender, recipient, message_id, sha256, size, queued_at, trying_since, status, due_at,"
            " acknowledge_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                outgoing.reference,
                one.case_reference,
                one.intervention,
                one.agency,
                one.content_key,
                outgoing.envelope.sender,
                outgoing.envelope.recipient,
                one.message_id,
                digest,
                len(outgoing.content),
                _micros(now),
                _micros(now),
                DeliveryStatus.QUEUED,
                _micros(now),
                one.acknowledge_by.isoformat(),
            ),
        )
        number = int(cursor.lastrowid or 0)
        db.execute("INSERT INTO content VALUES (?, ?)", (number, outgoing.content))
        detail = {
            **one.detail,
            "address": outgoing.envelope.recipient,
            "agency": one.agency,
            "intervention": one.intervention,
            "sha256": digest,
        }
        self._log(db, now, "queued", outgoing.reference, one.case_reference, detail)
        return Queued(number, new=True, status=DeliveryStatus.QUEUED)

    # Delivering

    async def claim(
        self, owner: str, now: datetime, lease: timedelta, *, only: int | None = None
    ) -> Claimed | None:
        """The message whose turn it is, ours alone until the lease ends; None if none is due.

        The agency with the fewest messages under way comes first, then the message that has been
        due longest: a thousand referrals to one agency do not hold up the one to another.

        Args:
            only: the one message to claim, due already or not.
        """
        asked = self._ask(lambda db: self._claim(db, owner, now, lease, only))
        try:
            return await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda done: self._give_back(done, owner))
            raise

    def _give_back(self, claim: Future[Claimed | None], owner: str) -> None:
        """Release what was claimed for somebody who was cancelled while waiting for it."""
        with suppress(Exception):  # it was never claimed, or its lease will end
            claimed = claim.result()
            if claimed is not None:
                self._ask(lambda db: self._release(db, claimed, owner))

    def _claim(
        self,
        db: sqlite3.Connection,
        owner: str,
        now: datetime,
        lease: timedelta,
        only: int | None,
    ) -> Claimed | None:
        statement = _NEXT if only is None else _ONE
        row = db.execute(statement, {"now": _micros(now), "id": only}).fetchone()
        if row is None:
            return None
        # Counted from the first attempt: that a machine was off for days is no relay's doing.
        since = _moment(row["trying_since"]) if row["failures"] else now
        cursor = db.execute(
            "INSERT INTO attempt (message, started_at) VALUES (?, ?)", (row["id"], _micros(now))
        )
        db.execute(
            "UPDATE message SET status = ?, due_at = NULL, lease_until = ?, lease_owner = ?,"
            " attempts = attempts + 1, trying_since = ? WHERE id = ?",
            (DeliveryStatus.SENDING, _micros(now + lease), owner, _micros(since), row["id"]),
        )
        envelope = Envelope(row["sender"], row["recipient"])
        return Claimed(
            id=row["id"],
            attempt=int(cursor.lastrowid or 0),
            agency=row["agency"],
            outgoing=Outgoing(row["reference"], envelope, row["octets"]),
            sha256=row["sha256"],
            status=DeliveryStatus(row["status"]),
            due_at=_moment(row["due_at"]),
            failures=row["failures"],
            queued_at=_moment(row["queued_at"]),
            trying_since=since,
            maybe_doubled=bool(row["maybe_doubled"]),
        )

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
        """What an attempt came to, and the status that follows from it.

        That the relay holds it stays true whoever has the message by now: a late "relayed" counts.

        Raises:
            LeaseLost: another process has taken the message over, or a person has decided.
        """
        return await self._await(
            lambda db: self._record(
                db, claimed, owner, outcome, now, policy, jitter, hold_uncertain
            )
        )

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
        reply = outcome.reply
        row = db.execute(
            "SELECT status, lease_owner, case_reference, attempt.id IS NOT NULL AS under_way"
            " FROM message LEFT JOIN attempt ON attempt.id = ? AND ended_at IS NULL"
            " WHERE message.id = ?",
            (claimed.attempt, claimed.id),
        ).fetchone()
        # The attempt as well: another worker in this process may have the same owner's name.
        ours = row["status"] == DeliveryStatus.SENDING and row["lease_owner"] == owner
        ours = ours and row["under_way"]
        if not ours and outcome.status is not DeliveryStatus.RELAYED:
            raise LeaseLost(f"{claimed.outgoing.reference} was taken over by another process.")
        db.execute(
            "UPDATE attempt SET ended_at = ?, outcome = ?, stage = ?, code = ?, enhanced = ?,"
            " words = ?, relay = ? WHERE id = ?",
            (
                _micros(now),
                outcome.status,
                outcome.stage,
                reply.code if reply else None,
                reply.enhanced if reply else None,
                reply.text if reply else outcome.words,
                outcome.relay,
                claimed.attempt,
            ),
        )
        status, due, failures, doubled = self._decided(
            outcome.status, claimed, now, policy, jitter, hold_uncertain
        )
        db.execute(
            "UPDATE message SET status = ?, due_at = ?, lease_until = NULL, lease_owner = NULL,"
            " failures = ?, maybe_doubled = maybe_doubled OR ?,"
            " relayed_at = coalesce(relayed_at, ?) WHERE id = ?",
            (
                status,
                _micros(due) if due else None,
                failures,
                doubled,
                _micros(now) if status is DeliveryStatus.RELAYED else None,
                claimed.id,
            ),
        )
        if status is not DeliveryStatus.DELAYED:
            self._log(
                db,
                now,
                str(status),
                claimed.outgoing.reference,
                row["case_reference"],
                {"relay": outcome.relay, "reply": reply.code if reply else None},
            )
        return status

    @staticmethod
    def _decided(
        outcome: DeliveryStatus,
        claimed: Claimed,
        now: datetime,
        policy: RetryPolicy,
        jitter: float,
        hold_uncertain: bool,
    ) -> tuple[DeliveryStatus, datetime | None, int, bool]:
        """Status, when it is due again, failures so far, and whether it may arrive twice."""
        if outcome in (DeliveryStatus.RELAYED, DeliveryStatus.FAILED):
            return outcome, None, claimed.failures, False
        uncertain = outcome is DeliveryStatus.UNCERTAIN
        if uncertain and hold_uncertain:
            return outcome, None, claimed.failures, True
        failures = claimed.failures + 1
        due = next_attempt(failures, claimed.trying_since, now, policy, jitter)
        if due is None:
            # Given up: uncertain stays so, since a person must know that it may have arrived.
            return (outcome if uncertain else DeliveryStatus.FAILED), None, failures, uncertain
        return outcome, due, failures, uncertain

    async def release(self, claimed: Claimed, owner: str) -> None:
        """Give a claimed message back untried, as it was: no attempt was begun."""
        await self._await(lambda db: self._release(db, claimed, owner))

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
                (claimed.status, _micros(claimed.due_at), claimed.id),
            )

    async def recover(
        self,
        now: datetime,
        policy: RetryPolicy,
        *,
        is_gone: Callable[[str], bool] = lambda _: False,
        hold_uncertain: bool = False,
    ) -> int:
        """Take back messages whose lease has ended or whose owner is gone.

        Whoever had them died while submitting: the relay may or may not hold them, so they are
        uncertain, and due at once. One that this befalls again waits longer each time, as after a
        failure: it may be what kills its process. Returns how many there were.
        """
        return await self._await(lambda db: self._recover(db, now, policy, is_gone, hold_uncertain))

    def _recover(
        self,
        db: sqlite3.Connection,
        now: datetime,
        policy: RetryPolicy,
        is_gone: Callable[[str], bool],
        hold_uncertain: bool,
    ) -> int:
        self._mend_due(db, now, policy)
        leased = db.execute(
            "SELECT id, reference, case_reference, lease_owner, lease_until, failures,"
            " trying_since FROM message WHERE lease_until IS NOT NULL"
        ).fetchall()
        rows = [
            row
            for row in leased
            if row["lease_until"] < _micros(now) or is_gone(row["lease_owner"])
        ]
        for row in rows:
            failures, since = row["failures"], _moment(row["trying_since"])
            due = next_attempt(failures, since, now, policy) if failures else now
            db.execute(
                "UPDATE message SET status = 'uncertain', due_at = ?, lease_until = NULL,"
                " lease_owner = NULL, failures = failures + 1, maybe_doubled = 1 WHERE id = ?",
                (None if hold_uncertain or due is None else _micros(due), row["id"]),
            )
            db.execute(
                "UPDATE attempt SET ended_at = ?, outcome = 'uncertain', words = ?"
                " WHERE message = ? AND ended_at IS NULL",
                (_micros(now), "the process that was submitting it ended", row["id"]),
            )
            self._log(
                db, now, "uncertain", row["reference"], row["case_reference"], {"lease": "ended"}
            )
        return len(rows)

    @staticmethod
    def _mend_due(db: sqlite3.Connection, now: datetime, policy: RetryPolicy) -> None:
        """Make due now what a clock that was ahead has put off further than anything can be."""
        longest = now + policy.longest_wait * (1 + JITTER)
        db.execute(
            "UPDATE message SET due_at = :now"
            " WHERE due_at > :now AND (status = 'queued' OR due_at > :longest)",
            {"now": _micros(now), "longest": _micros(longest)},
        )

    async def next_due(self) -> datetime | None:
        """When something will be there to do: a message due, or a lease to end."""
        return await self._await(self._next_due)

    @staticmethod
    def _next_due(db: sqlite3.Connection) -> datetime | None:
        row = db.execute(
            "SELECT min(at) FROM (SELECT min(due_at) AS at FROM message WHERE due_at IS NOT NULL"
            " UNION ALL SELECT min(lease_until) FROM message WHERE lease_until IS NOT NULL)"
        ).fetchone()
        return _moment(row[0]) if row[0] is not None else None

    # What a person asks and decides

    def counts(self) -> dict[str, int]:
        """How many there are of each status."""
        return dict(self._read("SELECT status, count(*) FROM message GROUP BY status"))

    def held(
        self,
        *,
        message_id: int | None = None,
        status: DeliveryStatus | None = None,
        reference: str | None = None,
        case_reference: str | None = None,
        limit: int = 1_000,
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
        rows = self._read(
            f"SELECT * FROM message WHERE {where} ORDER BY id DESC LIMIT :limit",  # noqa: S608 - our own column names
            {**given, "limit": limit},
        )
        return [_held(row) for row in rows]

    def attempts(self, message_id: int) -> list[Attempt]:
        rows = self._read("SELECT * FROM attempt WHERE message = ? ORDER BY id", (message_id,))
        return [
            Attempt(
                started_at=_moment(row["started_at"]),
                ended_at=_moment_if(row["ended_at"]),
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
        allowed = (DeliveryStatus.DELAYED, DeliveryStatus.FAILED, DeliveryStatus.UNCERTAIN)

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            if row["purged_at"] is not None:
                raise NotPossibleNow(f"{reference}: its content was purged. Make it anew.")
            db.execute(
                "UPDATE message SET status = 'queued', due_at = ?, failures = 0 WHERE id = ?",
                (_micros(now), row["id"]),
            )

        return self._decide(reference, "retried", allowed, now, change, newest=True)

    def cancel(self, reference: str, now: datetime) -> Held:
        """Keep a message that is not yet relayed from being tried (again).

        Raises:
            NotInOutbox, NotPossibleNow.
        """
        allowed = (
            DeliveryStatus.QUEUED,
            DeliveryStatus.DELAYED,
            DeliveryStatus.FAILED,
            DeliveryStatus.UNCERTAIN,
        )

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            # Its key is free again: the same referral may be queued once more.
            db.execute(
                "UPDATE message SET status = 'cancelled', due_at = NULL,"
                " content_key = content_key || ':cancelled:' || id WHERE id = ?",
                (row["id"],),
            )

        return self._decide(reference, "cancelled", allowed, now, change)

    def acknowledge(self, reference: str, on: date, now: datetime) -> Held:
        """Record that the agency has answered: so it has arrived.

        Raises:
            NotInOutbox, NotPossibleNow: it is not relayed, and can't have arrived either.
        """
        allowed = (DeliveryStatus.RELAYED, DeliveryStatus.UNCERTAIN)

        def change(db: sqlite3.Connection, row: sqlite3.Row) -> None:
            db.execute(
                "UPDATE message SET acknowledged_on = ?, status = 'relayed', due_at = NULL,"
                " lease_until = NULL, lease_owner = NULL, relayed_at = coalesce(relayed_at, ?)"
                " WHERE id = ?",
                (on.isoformat(), _micros(now), row["id"]),
            )

        return self._decide(reference, "acknowledged", allowed, now, change, or_maybe_arrived=True)

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

        def possible(row: sqlite3.Row) -> bool:
            return row["status"] in allowed or bool(or_maybe_arrived and row["maybe_doubled"])

        def run(db: sqlite3.Connection) -> Held:
            rows = db.execute(
                "SELECT * FROM message WHERE reference = ?"
                " ORDER BY acknowledged_on IS NOT NULL, id DESC",
                (reference,),
            ).fetchall()
            if not rows:
                raise NotInOutbox(f"{reference} is not in the outbox.")
            latest = max(rows, key=lambda row: int(row["id"]))
            row = latest if newest else next(filter(possible, rows), latest)
            if not possible(row):
                raise NotPossibleNow(
                    f"{reference} is {row['status']}, so it can't be {action}: that is for "
                    f"{', '.join(allowed)}."
                )
            change(db, row)
            self._log(db, now, action, reference, row["case_reference"], {})
            after = db.execute("SELECT * FROM message WHERE id = ?", (row["id"],)).fetchone()
            return _held(after)

        return self._do(run)

    def unacknowledged(self, today: date) -> list[Held]:
        """Relayed or uncertain, past their acknowledge-by date, and not acknowledged."""
        rows = self._read(
            "SELECT * FROM message WHERE status IN ('relayed', 'uncertain')"
            " AND acknowledged_on IS NULL AND acknowledge_by < ? ORDER BY acknowledge_by, id",
            (today.isoformat(),),
        )
        return [_held(row) for row in rows]

    def purge(self, relayed_before: datetime, now: datetime) -> int:
        """Forget the content of what was relayed or cancelled before a time. Returns how many."""
        before = _micros(relayed_before)
        gone = self._do(
            lambda db: self._forget(
                db,
                "(status = 'relayed' AND relayed_at < ?)"
                " OR (status = 'cancelled' AND queued_at < ?)",
                (before, before),
                "purged",
                now,
            )
        )
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
                raise NotPossibleNow(
                    f"{case_reference}: {waiting} of its messages still wait for the relay. "
                    "Cancel them first, or deliver them."
                )
            return self._forget(db, "case_reference = ?", (case_reference,), "erased", now)

        gone = self._do(run)
        self._forget_log()
        return gone

    def _forget(
        self,
        db: sqlite3.Connection,
        where: str,
        values: tuple[Any, ...],
        action: str,
        now: datetime,
    ) -> int:
        rows = db.execute(
            f"SELECT id, reference, case_reference FROM message WHERE purged_at IS NULL AND ({where})",  # noqa: E501, S608 - ours
            values,
        ).fetchall()
        for row in rows:
            db.execute("DELETE FROM content WHERE message = ?", (row["id"],))
            db.execute(
                "UPDATE message SET sender = '', purged_at = ? WHERE id = ?",
                (_micros(now), row["id"]),
            )
            self._log(db, now, action, row["reference"], row["case_reference"], {})
        return len(rows)

    def _forget_log(self) -> None:
        """Empty SQLite's log, which still holds what was overwritten in the file.

        Where another process is in the way, the log is overwritten by what is written next.
        """
        with suppress(OutboxUnusable):
            self._read("PRAGMA wal_checkpoint(TRUNCATE)")

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
        last = db.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        number, before = (last["number"] + 1, last["hash"]) if last else (1, FIRST)
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
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(entry))

    def audit(self, case_reference: str | None = None) -> Iterator[Entry]:
        """Every entry in order, or those of one case."""
        where, values = (
            ("WHERE case_reference = ?", (case_reference,)) if case_reference else ("", ())
        )
        with self._reader() as reader:
            for row in reader.execute(f"SELECT * FROM audit {where} ORDER BY number", values):  # noqa: S608 - ours
                yield Entry(*row)

    # Reading: on connections of their own, which WAL keeps out of the writer's way

    def _read(self, statement: str, values: Any = ()) -> list[Any]:
        with self._reader() as reader:
            return reader.execute(statement, values).fetchall()

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = _connect(self.path, self._patience_s)
            try:
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise _unusable(self.path, error) from None


_ONE = """
SELECT message.*, octets FROM message JOIN content ON message = id
WHERE id = :id AND due_at IS NOT NULL
"""

_NEXT = """
WITH RECURSIVE agencies (agency) AS (
    SELECT min(agency) FROM message WHERE due_at IS NOT NULL
    UNION ALL
    SELECT (SELECT min(agency) FROM message
            WHERE due_at IS NOT NULL AND agency > agencies.agency)
    FROM agencies WHERE agencies.agency IS NOT NULL
), heads AS (
    SELECT (SELECT id FROM message AS m
            WHERE m.agency = agencies.agency AND m.due_at <= :now
            ORDER BY m.due_at, m.id LIMIT 1) AS id
    FROM agencies WHERE agency IS NOT NULL
), next AS (
    SELECT id FROM heads JOIN message USING (id)
    ORDER BY (SELECT count(*) FROM message AS busy
              WHERE busy.lease_until IS NOT NULL AND busy.agency = message.agency),
             due_at, id
    LIMIT 1
)
SELECT message.*, octets FROM next JOIN message USING (id) JOIN content ON message = id
"""


def _make_private(path: Path) -> None:
    """Make the file and the folders that are not there, for us alone whatever the umask."""
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # the umask may have taken away our own permission
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        about = os.fstat(handle)
        if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) != 0o600:
            os.fchmod(handle, 0o600)  # SQLite gives its other files the same mode
    finally:
        os.close(handle)
    if about.st_size == 0:
        for folder in {path.parent, *(folder.parent for folder in missing)}:
            _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _identity(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_dev, about.st_ino


def _connect(path: Path, patience_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",  # never makes the file: that is `open`'s task
        uri=True,
        timeout=patience_s,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.row_factory = sqlite3.Row
    return connection


def _use_wal(connection: sqlite3.Connection, path: Path, patience_s: float) -> None:
    """SQLite does not wait for its turn in this one thing, so we do."""
    until = time.monotonic() + patience_s
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise OutboxUnusable(
            f"The outbox {path} lies on a file system that several processes can't share (SQLite's "
            f"journal stays '{mode}'). Set REFERRALS_OUTBOX to a folder on a local disk."
        )


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _version(connection, path) == VERSION:
        return  # as a rule, and it does not wait for whoever is writing
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection, path) == 0:
        script = files("referrals.outboxes").joinpath("schema.sql").read_text(encoding="utf-8")
        for statement in _statements(script):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    # In one statement, so that another process that makes the tables just now does not mislead us.
    version, tables = connection.execute(
        "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version"
    ).fetchone()
    if version > VERSION:
        raise OutboxUnusable(f"{path} was made by a newer version of referrals. Use that version.")
    if version == 0 and tables:
        raise OutboxUnusable(
            f"{path} is another program's database. Move it away, or set REFERRALS_OUTBOX."
        )
    return int(version)


def _statements(script: str) -> Iterator[str]:
    """The script's statements one by one: `executescript` would commit between them."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


_REMEDIES = {
    sqlite3.SQLITE_BUSY: "Another process keeps it locked: try again, or see which one it is.",
    sqlite3.SQLITE_FULL: "Free some room.",
    sqlite3.SQLITE_NOTADB: "It is not an outbox: move it away, or set REFERRALS_OUTBOX.",
    sqlite3.SQLITE_CORRUPT: "Keep a copy of it, then see SQLite's `.recover`.",
}
_REMEDY = "Free some room, check its permissions, or set REFERRALS_OUTBOX."


def _unusable(path: Path, error: BaseException) -> OutboxUnusable:
    if isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno)
        remedy = "Free some room." if error.errno in (errno.ENOSPC, errno.EDQUOT) else _REMEDY
    else:
        reason = str(error)
        remedy = _REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, _REMEDY)
    return OutboxUnusable(
        f"The outbox {path} can't be used: {reason}. Nothing of this step was kept; what was "
        f"queued before is safe. {remedy}"
    )


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _moment(micros: int) -> datetime:
    return _EPOCH + micros * _MICROSECOND


def _moment_if(micros: int | None) -> datetime | None:
    return None if micros is None else _moment(micros)


def _held(row: sqlite3.Row) -> Held:
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
        queued_at=_moment(row["queued_at"]),
        due_at=_moment_if(row["due_at"]),
        attempts=row["attempts"],
        maybe_doubled=bool(row["maybe_doubled"]),
        relayed_at=_moment_if(row["relayed_at"]),
        acknowledge_by=date.fromisoformat(row["acknowledge_by"]),
        acknowledged_on=(
            date.fromisoformat(row["acknowledged_on"]) if row["acknowledged_on"] else None
        ),
        purged_at=_moment_if(row["purged_at"]),
    )
