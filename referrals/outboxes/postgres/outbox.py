"""The outbox for several machines: PostgreSQL, where procrastinate's jobs say whose turn it is.

A job is deferred in the transaction that queues its message, fetched in the one that claims it, and
finished or put off in the one that records the outcome; so neither is ever without the other, and
an outcome and the next claim cost one commit. That is why the lanes of `worker` fetch jobs, not
procrastinate's own worker: that commits each of these steps apart, and can't give a job back as
untried when the relay takes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, LiteralString

import psycopg

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
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.connections import Connection, is_text, one
from referrals.outboxes.postgres.database import nothing
from referrals.outboxes.postgres.links import PostgresLinks, is_of_this_run
from referrals.queueing import Claimed, NotYet, Outcome, Queued, decided, storable

_LISTEN_S = 0.5
_LISTEN_AGAIN_S = 2.0
_CLOSED_S = 2.0
"""How long to wait for a thread that may ask a server that says nothing."""


@dataclass(frozen=True)
class _Pace:
    """No sooner than `every` after `last`; `write` keeps a later time, of `which`."""

    every: timedelta
    last: datetime | None
    write: LiteralString
    which: tuple[str, ...] = ()


class PostgresOutbox(PostgresLinks):
    """`ports.Outbox` in a database that several machines share.

    All of it raises OutboxUnusable when the server says no or can't be reached; then nothing of
    the call is kept, and the same call may be made again.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        self._owed: Owed[int, tuple[Claimed, str]] = Owed()  # to be released, by attempt
        self._worker: int | None = None
        self._asked_worker = False
        self._at: datetime | None = None  # the server's time, as this transaction knows it
        self._mended = False
        self._silence = threading.Event()
        self._heart: threading.Thread | None = None
        super().__init__(*args, **more)

    def close(self) -> None:
        super().close()
        self._silence.set()
        if self._heart is not None:
            self._heart.join(_CLOSED_S)

    # Queueing

    def queue(self, submissions: Sequence[Submission], now: datetime) -> list[Queued]:
        """Put finished messages into the queue, all or none; committed when this returns."""
        return self._do(lambda db: self._queue(db, submissions, now))

    def queue_soon(self, submissions: Sequence[Submission], now: datetime) -> Future[list[Queued]]:
        """As `queue`, but committed when the answer is there."""
        return self._ask(lambda db: self._queue(db, submissions, now))

    def known(self, content_keys: Iterable[str]) -> dict[str, Queued]:
        """Which of these were queued before, and what became of them."""
        with self.database.reader() as reader:
            return self._known(reader, list(content_keys))

    @staticmethod
    def _known(db: Connection, content_keys: list[str]) -> dict[str, Queued]:
        rows = db.execute(
            "SELECT content_key, id, status FROM message WHERE content_key = ANY(%s)",
            (list(filter(is_text, content_keys)),),
        ).fetchall()
        return {
            key: Queued(number, new=False, status=DeliveryStatus(status))
            for key, number, status in rows
        }

    def _queue(
        self, db: Connection, submissions: Sequence[Submission], now: datetime
    ) -> list[Queued]:
        keys = [each.content_key for each in submissions]
        known = self._known(db, keys)
        known |= self._known_elsewhere(db, [s for s in submissions if s.content_key not in known])
        fresh: dict[str, Submission] = {}
        for each in submissions:
            if each.content_key not in known:
                fresh.setdefault(each.content_key, each)
        made = self._insert(db, list(fresh.values()), now) if fresh else {}
        if len(made) < len(fresh):
            known |= self._known(db, keys)  # another process was faster
        told: set[str] = set()
        answers = []
        for key in keys:
            if key in made:
                new = key not in told
                told.add(key)
                answers.append(Queued(made[key], new=new, status=DeliveryStatus.QUEUED))
            else:
                answers.append(known[key])
        return answers

    def _insert(self, db: Connection, some: Sequence[Submission], now: datetime) -> dict[str, int]:
        """Put them in, each with its job; by key, those that nobody else has put in meanwhile."""
        numbers = [
            number
            for (number,) in db.execute(
                "SELECT nextval(pg_get_serial_sequence('message', 'id'))"
                " FROM generate_series(1, %s)",
                (len(some),),
            ).fetchall()
        ]
        turns = jobs.turns(db, [each.agency for each in some])
        deferred = jobs.defer_due(db, numbers, turns)
        rows = [
            (
                number,
                each.outgoing.reference,
                each.case_reference,
                each.intervention,
                each.agency,
                each.content_key,
                each.outgoing.envelope.sender,
                each.outgoing.envelope.recipient,
                each.message_id,
                each.sha256,
                len(each.outgoing.content),
                each.acknowledge_by,
                job,
                turn or 0,
                each.facts_key,
            )
            for each, number, job, turn in zip(some, numbers, deferred, turns, strict=True)
        ]
        inserted = {
            number
            for (number,) in db.execute(
                _INSERT, [now, now, now, *(list(column) for column in zip(*rows, strict=True))]
            ).fetchall()
        }
        contents, made = [], {}
        for each, number, job in zip(some, numbers, deferred, strict=True):
            if number not in inserted:
                if job is not None:
                    jobs.cancel(db, job)
                continue
            made[each.content_key] = number
            contents.append((number, each.outgoing.content))
            self._log(now, "queued", each.outgoing.reference, each.case_reference, each.disclosure)
        db.cursor().executemany("INSERT INTO content VALUES (%s, %b)", contents)
        return made

    # Delivering

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
            idle=True,
        )

    def _claim(
        self,
        db: Connection,
        owner: str,
        now: datetime,
        lease: timedelta,
        only: int | None,
        every: timedelta | None,
        pace: tuple[str, timedelta] | None = None,
    ) -> Claimed | NotYet | None:
        self._refuse_a_copy(db)
        worker = self._registered(db)
        paces = self._paces(db, every, pace)
        if paces:
            self._at = None  # we may have waited for others
        at = self._server_time(db, now)
        # What a clock put back has left in the future counts as now.
        until = max((min(kept.last, at) + kept.every for kept in paces if kept.last), default=at)
        if until > at:
            if not self._is_any_due(db, only, now):
                return None  # there is nothing to wait for
            for kept in paces:
                if kept.last is not None and kept.last > at:
                    db.execute(kept.write, (at, *kept.which))
            return NotYet(now + (until - at))
        while (taken := self._fetch(db, worker, only, now)) is not None:
            claimed = self._take(db, owner, now, at + lease, *taken)
            if claimed is not None:
                for kept in paces:
                    db.execute(kept.write, (at, *kept.which))
                return claimed
            # Its message wants it no more; or its agency is held since it got it.
            db.execute("UPDATE message SET job = NULL WHERE job = %s", (taken[0],))
            jobs.finish(db, taken[0])
        return None

    def _fetch(
        self, db: Connection, worker: int, only: int | None, now: datetime
    ) -> tuple[int, int] | None:
        if only is None:
            return jobs.fetch(db, worker)
        row = db.execute(
            "SELECT job FROM message WHERE id = %s AND due_at IS NOT NULL", (only,)
        ).fetchone()
        return (row[0], only) if row and jobs.fetch_one(db, row[0], worker) else None

    @staticmethod
    def _paces(
        db: Connection, every: timedelta | None, pace: tuple[str, timedelta] | None
    ) -> list[_Pace]:
        """Those to be kept, which others wait for from here on."""
        paces = []
        if every is not None:
            (last,) = one(db.execute("SELECT claimed_at FROM pace FOR UPDATE"))
            paces.append(_Pace(every, last, "UPDATE pace SET claimed_at = %s"))
        if pace is not None:
            relay, wait = pace
            db.execute("INSERT INTO relay_pace VALUES (%s) ON CONFLICT DO NOTHING", (relay,))
            (last,) = one(
                db.execute(
                    "SELECT claimed_at FROM relay_pace WHERE relay = %s FOR UPDATE", (relay,)
                )
            )
            write: LiteralString = "UPDATE relay_pace SET claimed_at = %s WHERE relay = %s"
            paces.append(_Pace(wait, last, write, (relay,)))
        return paces

    def _server_time(self, db: Connection, now: datetime) -> datetime:
        """One clock for leases and the pace of all machines: their own may differ by more."""
        if self._at is None:
            (self._at,) = one(db.execute("SELECT clock_timestamp()"))
        return self._at

    def _is_any_due(self, db: Connection, only: int | None, now: datetime) -> bool:
        found = db.execute(
            "SELECT 1 FROM message WHERE due_at IS NOT NULL AND job IS NOT NULL"
            " AND CASE WHEN %(only)s::bigint IS NULL"
            " THEN due_at <= %(now)s ELSE id = %(only)s END LIMIT 1",
            {"only": only, "now": now},
        ).fetchone()
        return found is not None

    def _take(
        self, db: Connection, owner: str, now: datetime, until: datetime, job: int, message: int
    ) -> Claimed | None:
        row = db.execute(
            _TAKE, {"owner": owner, "now": now, "until": until, "job": job, "message": message}
        ).fetchone()
        if row is None:
            return None
        (attempt, reference, case_reference, sender, recipient, agency, sha256, status, due,
         failures, queued, since, doubled, octets) = row  # fmt: skip
        self._proof = _BEGUN, (attempt, message, now)
        return Claimed(
            id=message,
            attempt=attempt,
            case_reference=case_reference,
            agency=agency,
            outgoing=Outgoing(reference, Envelope(sender, recipient), octets),
            sha256=sha256,
            status=DeliveryStatus(status),
            due_at=due,
            failures=failures,
            queued_at=queued,
            trying_since=since,
            maybe_doubled=doubled,
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

        def run(db: Connection) -> tuple[DeliveryStatus | None, Claimed | None]:
            status: DeliveryStatus | None
            try:
                status = self._record(
                    db, claimed, owner, outcome, now, policy, jitter, hold_uncertain
                )
            except LeaseLost:
                status = None
            following = self._claim(db, owner, now, lease, None, None)
            return status, following if isinstance(following, Claimed) else None

        return await self._await(run, lambda result: self._owe(result[1], owner))

    def _record(
        self,
        db: Connection,
        claimed: Claimed,
        owner: str,
        outcome: Outcome,
        now: datetime,
        policy: RetryPolicy,
        jitter: float,
        hold_uncertain: bool,
    ) -> DeliveryStatus:
        status, due, failures, doubled = decided(
            outcome.status, claimed, now, policy, jitter, hold_uncertain
        )
        if outcome.status is DeliveryStatus.RELAYED and self._record_relayed(
            db, claimed, owner, outcome, now
        ):
            return status
        job, status_now, lease_owner, is_open, ended_as, ended_by = one(
            db.execute(_LOOK, (claimed.attempt, claimed.id))
        )
        if (ended_as, ended_by) == (outcome.status, outcome.relay):
            return status  # kept before, and the answer did not reach whoever asks again
        ours = status_now == "sending" and lease_owner == owner and is_open
        relayed = outcome.status is DeliveryStatus.RELAYED
        if not ours and not relayed:
            raise LeaseLost(f"{claimed.outgoing.reference} was taken over by another process.")
        turn = None
        if due is not None:
            (turn,) = one(db.execute("SELECT next_turn(%s)", (claimed.agency,)))
            jobs.put_off(db, job, due, turn)
        elif status_now == "sending":
            jobs.finish(db, job)
        elif job is not None:
            jobs.cancel(db, job)
        reply = outcome.reply
        db.execute(
            _RECORD,
            {
                "status": status,
                "due": due,
                "turn": turn,
                "failures": failures,
                "doubled": doubled,
                "relayed": now if relayed else None,
                "message": claimed.id,
                "attempt": claimed.attempt,
                "now": now,
                "outcome": outcome.status,
                "stage": outcome.stage,
                "code": reply.code if reply else None,
                "enhanced": reply.enhanced if reply else None,
                "words": storable(reply.text if reply else outcome.words),
                "relay": outcome.relay,
            },
        )
        self._proof = _ENDED, (claimed.attempt, now, outcome.status)
        if status is not DeliveryStatus.DELAYED:
            reference = claimed.outgoing.reference
            self._log(now, str(status), reference, claimed.case_reference, outcome.detail)
        return status

    def _record_relayed(
        self, db: Connection, claimed: Claimed, owner: str, outcome: Outcome, now: datetime
    ) -> bool:
        """Record in one step what most attempts come to; false if the message is no longer ours."""
        reply = outcome.reply
        done = db.execute(
            _RECORD_RELAYED,
            {
                "message": claimed.id,
                "attempt": claimed.attempt,
                "owner": owner,
                "now": now,
                "stage": outcome.stage,
                "code": reply.code if reply else None,
                "enhanced": reply.enhanced if reply else None,
                "words": storable(reply.text if reply else outcome.words),
                "relay": outcome.relay,
            },
        )
        if not done.rowcount:
            return False
        self._proof = _ENDED, (claimed.attempt, now, outcome.status)
        reference = claimed.outgoing.reference
        self._log(now, "relayed", reference, claimed.case_reference, outcome.detail)
        return True

    async def release(self, claimed: Claimed, owner: str) -> None:
        """See `ports.Deliveries`."""
        self._owe(claimed, owner)
        await self._await(nothing, idle=True)

    def _owe(self, claimed: Claimed | NotYet | None, owner: str) -> None:
        """Release a message with whatever is written next."""
        if isinstance(claimed, Claimed):
            self._owed.add(claimed.attempt, (claimed, owner))

    def _begun(self, connection: Connection) -> None:
        super()._begun(connection)
        self._asked_worker, self._at = False, None
        for claimed, owner in self._owed.pay():
            self._release(connection, claimed, owner)

    def _kept(self) -> None:
        super()._kept()
        self._owed.paid()
        if self._worker is not None and self._heart is None:
            self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
            self._heart.start()

    def _undone(self) -> None:
        super()._undone()
        self._asked_worker = False

    def _is_owing(self) -> bool:
        return bool(self._owed) or super()._is_owing()

    def _release(self, db: Connection, claimed: Claimed, owner: str) -> None:
        row = db.execute(
            "SELECT job FROM message WHERE id = %s AND status = 'sending' AND lease_owner = %s"
            " AND EXISTS (SELECT 1 FROM attempt WHERE id = %s AND ended_at IS NULL) FOR UPDATE",
            (claimed.id, owner, claimed.attempt),
        ).fetchone()
        if row is None:
            return
        db.execute("DELETE FROM attempt WHERE id = %s", (claimed.attempt,))
        first = claimed.status is DeliveryStatus.QUEUED
        jobs.put_off(db, row[0], None if first else claimed.due_at)
        db.execute(
            "UPDATE message SET status = %s, due_at = %s, lease_until = NULL,"
            " lease_owner = NULL, attempts = attempts - 1 WHERE id = %s",
            (claimed.status, claimed.due_at, claimed.id),
        )

    # Others that died

    async def recover(
        self,
        now: datetime,
        policy: RetryPolicy,
        *,
        is_gone: Callable[[str], bool] = lambda _: False,
        hold_uncertain: bool = False,
    ) -> int:
        """See `ports.Deliveries`. Gone, too, is whose heartbeat has stopped."""
        count = await self._await(
            lambda db: self._recover(db, now, policy, is_gone, hold_uncertain), idle=True
        )
        self._mended = True
        return count

    def _recover(
        self,
        db: Connection,
        now: datetime,
        policy: RetryPolicy,
        is_gone: Callable[[str], bool],
        hold_uncertain: bool,
    ) -> int:
        self._refuse_a_copy(db, look=True)
        if not self._mended:
            self._mend_jobs(db)
        self._mend_due(db, now, policy)
        self._make_due_what_is_held_no_more(db, now)
        stalled, at = set(jobs.stalled(db)), self._server_time(db, now)

        def is_lost(job: int, owner: str, until: datetime) -> bool:
            return job in stalled or until < at or (is_of_this_run(owner) and is_gone(owner))

        lost = [
            (number, job)
            for number, job, owner, until in db.execute(
                "SELECT id, job, lease_owner, lease_until FROM message"
                " WHERE lease_until IS NOT NULL"
            ).fetchall()
            if is_lost(job, owner, until)
        ]
        if not lost:
            return 0
        rows = db.execute(
            "SELECT id, job, reference, case_reference, agency, failures, trying_since"
            " FROM message WHERE lease_until IS NOT NULL AND id = ANY(%s) AND job = ANY(%s)"
            " ORDER BY id FOR UPDATE SKIP LOCKED",
            ([number for number, _ in lost], [job for _, job in lost]),
        ).fetchall()
        for number, job, reference, case_reference, agency, failures, since in rows:
            due = next_attempt(failures, since, now, policy) if failures else now
            turn = None
            if due is None or hold_uncertain:
                due = None
                jobs.finish(db, job)
            else:
                (turn,) = one(db.execute("SELECT next_turn(%s)", (agency,)))
                jobs.put_off(db, job, due if failures else None, turn)
            db.execute(_LOST, {"now": now, "due": due, "turn": turn, "message": number})
            self._log(now, "uncertain", reference, case_reference, {"lease": "ended"})
        jobs.forget_silent(db)
        return len(rows)

    @staticmethod
    def _mend_jobs(db: Connection) -> None:
        """Give a new job to what lost its own to somebody with procrastinate's own tools.

        Such as its worker, which does not know our task and ends the job as failed.
        """
        for number, *_ in db.execute(_ASTRAY).fetchall():
            row = db.execute(
                "SELECT agency, job, due_at FROM message WHERE id = %s AND job IS NOT NULL"
                " FOR UPDATE SKIP LOCKED",
                (number,),
            ).fetchone()
            if row is None:
                continue
            agency, job, due = row
            # Looked at anew: whoever claims or records changes both while he has the message.
            found = jobs.status(db, job)
            if found == ("doing" if due is None else "todo"):
                continue
            if found == "doing":
                jobs.finish(db, job)
            turn = one(db.execute("SELECT next_turn(%s)", (agency,)))[0]
            (new,) = jobs.defer(db, [(number, turn)])
            jobs.fetch_one(db, new, None)
            if due is not None:
                jobs.put_off(db, new, due)
            db.execute("UPDATE message SET job = %s, turn = %s WHERE id = %s", (new, turn, number))

    @staticmethod
    def _mend_due(db: Connection, now: datetime, policy: RetryPolicy) -> None:
        """Make due now what a clock that was ahead has put off further than anything can be."""
        longest = now + policy.longest_wait * (1 + JITTER)
        for status, latest in (("queued", now), ("delayed", longest), ("uncertain", longest)):
            mended = db.execute(
                "UPDATE message SET due_at = %s WHERE status = %s AND due_at > %s RETURNING job",
                (now, status, latest),
            ).fetchall()
            if mended:
                jobs.hasten(db, [job for (job,) in mended])

    def _registered(self, db: Connection) -> int:
        """Our number among procrastinate's workers; a new one, if we were taken for dead."""
        if self._worker is None or not (self._asked_worker or jobs.is_registered(db, self._worker)):
            self._worker = jobs.register(db)
        self._asked_worker = True
        return self._worker

    def _beat(self) -> None:
        """Show that we live, until we are closed; then let go of what we still have."""
        connection: Connection | None = None
        is_last = False
        while not is_last:
            is_last = self._silence.wait(jobs.BEAT_S)
            try:
                if connection is None:
                    connection = self.database.connect()
                tell = jobs.unregister if is_last else jobs.beat
                worker = self._worker
                if worker is not None:
                    tell(connection, worker)
            except psycopg.Error:
                if connection is not None:
                    connection.close()
                connection = None
        if connection is not None:
            connection.close()

    # Being told

    @contextmanager
    def listening(self, heard: Callable[[], None]) -> Iterator[None]:
        """Have `heard` called, in a thread of its own, whenever something was queued by anybody."""
        stop = threading.Event()

        def listen() -> None:
            while not stop.is_set():
                with suppress(psycopg.Error):
                    connection = self.database.connect()
                    try:
                        connection.execute(f'LISTEN "{jobs.CHANNEL}"')
                        while not stop.is_set():
                            for _ in connection.notifies(timeout=_LISTEN_S, stop_after=1):
                                heard()
                    finally:
                        connection.close()
                stop.wait(_LISTEN_AGAIN_S)

        thread = threading.Thread(target=listen, name="listener", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(_CLOSED_S)


_INSERT = """
INSERT INTO message (queued_at, trying_since, status, due_at, id, reference, case_reference,
    intervention, agency, content_key, sender, recipient, message_id, sha256, size, acknowledge_by,
    job, turn, facts_key)
SELECT %s, %s, 'queued', %s, * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::text[],
    %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[],
    %s::date[], %s::bigint[], %s::integer[], %s::text[])
ON CONFLICT (content_key) DO NOTHING
RETURNING id
"""

# Time to give up counts from the first attempt: that a machine was off is no relay's doing.
_TAKE = """
WITH before AS (
    SELECT * FROM message WHERE id = %(message)s AND job = %(job)s AND due_at IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM hold WHERE hold.agency = message.agency)
    FOR UPDATE OF message
), taken AS (
    UPDATE message SET status = 'sending', due_at = NULL, lease_until = %(until)s,
        lease_owner = %(owner)s, attempts = message.attempts + 1,
        trying_since = CASE WHEN before.failures > 0 THEN before.trying_since ELSE %(now)s END
    FROM before WHERE message.id = before.id
    RETURNING message.id, message.trying_since
), begun AS (
    INSERT INTO attempt (message, started_at) SELECT id, %(now)s FROM taken RETURNING id
)
SELECT begun.id, reference, case_reference, sender, recipient, agency, sha256, status, due_at,
    failures, queued_at, taken.trying_since, maybe_doubled, octets
FROM before JOIN taken ON taken.id = before.id CROSS JOIN begun
JOIN content ON content.message = before.id
"""

_ASTRAY = """
SELECT message.id FROM message LEFT JOIN procrastinate_jobs AS job ON job.id = message.job
WHERE message.job IS NOT NULL AND job.status IS DISTINCT FROM
    (CASE WHEN due_at IS NULL THEN 'doing' ELSE 'todo' END)::procrastinate_job_status
ORDER BY message.id
"""

_BEGUN = "SELECT 1 FROM attempt WHERE id = %s AND message = %s AND started_at = %s"
_ENDED = "SELECT 1 FROM attempt WHERE id = %s AND ended_at = %s AND outcome = %s"

_LOOK = """
SELECT job, status, lease_owner, attempt.id IS NOT NULL AND ended_at IS NULL, attempt.outcome,
    attempt.relay
FROM message LEFT JOIN attempt ON attempt.message = message.id AND attempt.id = %s
WHERE message.id = %s FOR UPDATE OF message
"""

_RECORD = """
WITH ended AS (
    UPDATE attempt SET ended_at = %(now)s, outcome = %(outcome)s, stage = %(stage)s,
        code = %(code)s, enhanced = %(enhanced)s, words = %(words)s, relay = %(relay)s
    WHERE id = %(attempt)s
)
UPDATE message SET status = %(status)s, due_at = %(due)s, lease_until = NULL, lease_owner = NULL,
    job = CASE WHEN %(due)s::timestamptz IS NULL THEN NULL ELSE job END,
    turn = coalesce(%(turn)s, turn), failures = %(failures)s,
    maybe_doubled = maybe_doubled OR %(doubled)s, relayed_at = coalesce(relayed_at, %(relayed)s)
WHERE id = %(message)s
"""

# The job is finished as `jobs.finish` does it.
_RECORD_RELAYED = """
WITH mine AS MATERIALIZED (
    SELECT message.id, message.job FROM message JOIN attempt ON attempt.message = message.id
    WHERE message.id = %(message)s AND status = 'sending' AND lease_owner = %(owner)s
        AND attempt.id = %(attempt)s AND ended_at IS NULL
    FOR UPDATE OF message
), finished AS MATERIALIZED (
    SELECT procrastinate_finish_job_v1(job, 'succeeded', true) FROM mine
), ended AS (
    UPDATE attempt SET ended_at = %(now)s, outcome = 'relayed', stage = %(stage)s,
        code = %(code)s, enhanced = %(enhanced)s, words = %(words)s, relay = %(relay)s
    FROM mine WHERE attempt.id = %(attempt)s
)
UPDATE message SET status = 'relayed', lease_until = NULL, lease_owner = NULL, job = NULL,
    relayed_at = coalesce(relayed_at, %(now)s)
FROM mine, finished WHERE message.id = mine.id
"""

_LOST = """
WITH ended AS (
    UPDATE attempt SET ended_at = %(now)s, outcome = 'uncertain',
        words = 'the process that was submitting it ended'
    WHERE message = %(message)s AND ended_at IS NULL
)
UPDATE message SET status = 'uncertain', due_at = %(due)s, lease_until = NULL, lease_owner = NULL,
    job = CASE WHEN %(due)s::timestamptz IS NULL THEN NULL ELSE job END,
    turn = coalesce(%(turn)s, turn), failures = failures + 1, maybe_doubled = true
WHERE id = %(message)s
"""
