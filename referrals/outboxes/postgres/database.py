"""Transactions in PostgreSQL, several jobs in each.

Whatever was asked for while a transaction committed goes into the next one together, as in
`sqlite.file`: sixteen lanes that each record an outcome and claim a message cost one commit, and
one turn at the end of the audit, and each still waits for its own.

A connection that breaks before the commit costs a moment: what was asked is run anew. One that
breaks while it commits leaves open whether it did; then the database is asked, since what was kept
and is told to have failed would be done twice.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, Self, TypeVar

import psycopg
from psycopg.rows import dict_row

from referrals.audit import new_entry
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import steps
from referrals.outboxes.postgres.connections import (
    Connection,
    Database,
    is_of_the_job,
    is_passing,
    one,
    translated,
    unusable,
)

Row = dict[str, Any]
T = TypeVar("T")

_PATIENCE_S = 20.0
_CLOSING_S = 5.0
"""How long, when closed, to wait for a server so as to write what is owed, if anything."""
_PAUSE_S = 0.05
_MOST_IN_ONE_TRANSACTION = 1_000


@dataclass(eq=False, slots=True)
class _Job:
    """A step that somebody waits for; `undo` is what to do with the result if he has stopped.

    `idle` is one that matters only while he does.
    """

    run: Callable[[Connection], Any]
    done: Future[Any]
    undo: Callable[[Any], None] | None = None
    idle: bool = False
    kept: bool = False
    result: Any = None

    @property
    def matters(self) -> bool:
        return not (self.idle and self.done.cancelled())


@dataclass(frozen=True, slots=True)
class _Line:
    """What the audit is to say; number and hash are known only at the transaction's end."""

    at: datetime
    action: str
    reference: str
    case_reference: str
    detail: Mapping[str, Any]


_Answer = tuple[Any, BaseException | None]


class PostgresDatabase:
    """Opened with `open`, closed with `close` or as a context manager; for any thread or loop.

    What a subclass asks of it is committed when it has the answer.
    """

    def __init__(self, database: Database, actor: str, patience_s: float) -> None:
        self.database = database
        # A name that is not UTF-8 is no reason to refuse a referral, nor is a NUL.
        self.actor = actor.encode(errors="backslashreplace").decode().replace("\0", "\\0")
        self._patience_s = patience_s
        self._connection: Connection | None = None
        self._gate = threading.Lock()  # for the next four
        self._jobs: deque[_Job] = deque()
        self._doing: Sequence[_Job] = ()
        self._closed = False
        self._writer: threading.Thread | None = None
        self._asked = threading.Condition(self._gate)
        self._lines: list[_Line] = []
        self._proof: tuple[str, tuple[Any, ...]] | None = None

    @classmethod
    def open(cls, database: Database, actor: str, *, patience_s: float = _PATIENCE_S) -> Self:
        """Use a database that `referrals migrate` has made.

        Args:
            patience_s: how long to wait for a server that has gone away, or a lock.

        Raises:
            OutboxUnusable: it can't be reached, or its tables are of another version.
        """
        with database.reader() as connection:
            steps.check(connection, database)
        return cls(database, actor, patience_s)

    @property
    def name(self) -> str:
        return self.database.name

    def close(self) -> None:
        """Finish what was asked for, then close; whatever is asked for later is refused.

        A server that says nothing is not waited for where nobody waits for us.
        """
        with self._gate:
            self._closed = True
            self._asked.notify()
            writer = self._writer
            matters = any(job.matters for job in (*self._doing, *self._jobs))
        if writer is None:
            self._pay()
        else:
            writer.join(None if matters else _CLOSING_S)
        if writer is None or not writer.is_alive():
            self._let_go()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def _put(self, job: _Job) -> None:
        with self._gate:
            if self._closed:
                raise self._is_closed()
            self._jobs.append(job)
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
                self._writer.start()
            self._asked.notify()

    def _write(self) -> None:
        try:
            while True:
                with self._gate:
                    while not self._jobs and not self._closed:
                        self._asked.wait()
                    count = min(len(self._jobs), _MOST_IN_ONE_TRANSACTION)
                    jobs = [self._jobs.popleft() for _ in range(count)]
                    self._doing = jobs
                if not jobs:
                    break
                self._finish(jobs)
            self._pay()
        finally:
            # Should this thread ever die, nobody is to wait for it.
            with self._gate:
                self._closed = True
                left = list(self._jobs)
                self._jobs.clear()
            for job in left:
                _tell(job, (None, self._is_closed()))

    def _pay(self) -> None:
        """Write what `_begun` still owes, last of all."""
        if self._is_owing():
            self._patience_s = min(self._patience_s, _CLOSING_S)
            self._doing = [_Job(nothing, Future())]
            self._finish(self._doing)

    def _finish(self, jobs: Sequence[_Job]) -> None:
        """Do them in one transaction, and tell each what came of it once that is kept."""
        answers: Sequence[_Answer]
        try:
            answers = self._kept_answers(jobs)
        except BaseException as error:
            if isinstance(error, psycopg.Error) and not is_of_the_job(error):
                # To each its own: an exception that threads share grows in each.
                answers = [(None, unusable(self.database, error)) for _ in jobs]
            else:
                answers = [(None, error) for _ in jobs]
        with self._gate:
            for job, (result, wrong) in zip(jobs, answers, strict=True):
                job.kept, job.result = wrong is None, result
                if wrong is None and job.undo is not None and job.done.cancelled():
                    job.undo(result)
                    self._jobs.append(_Job(nothing, Future()))
            self._doing = ()
        for job, answer in zip(jobs, answers, strict=True):
            _tell(job, answer)

    def _kept_answers(self, jobs: Sequence[_Job]) -> list[_Answer]:
        """Run them in one transaction and commit it, anew while only the moment is wrong.

        A job that fails takes back its own changes only; a fault of the database, those of all. As
        few fail, all are run anew, each in a savepoint, once one of several has.
        """
        until = time.monotonic() + self._patience_s
        while True:
            try:
                answers = self._run(jobs, until, apart=False)
                if answers[-1][1] is not None:
                    self._rollback()
                    if len(jobs) == 1 and not self._is_owing():
                        return answers
                    answers = self._run(jobs, until, apart=True)
                self._commit(until)
            except psycopg.Error as error:
                self._rollback()
                if not (is_passing(error) and self._may_wait(until)):
                    raise
                time.sleep(_PAUSE_S)
            except BaseException:
                self._rollback()
                raise
            else:
                return answers

    def _run(self, jobs: Sequence[_Job], until: float, *, apart: bool) -> list[_Answer]:
        """Begin a transaction and run the jobs in it; unless apart, one that fails ends it."""
        connection = self._begin(max(0.0, until - time.monotonic()))
        self._lines, self._proof = [], None
        self._begun(connection)
        answers: list[_Answer] = []
        for job in jobs:
            answers.append(self._run_one(connection, job, apart))
            if not apart and answers[-1][1] is not None:
                return answers
        self._write_lines(connection)
        return answers

    def _run_one(self, connection: Connection, job: _Job, apart: bool) -> _Answer:
        if apart:
            connection.execute("SAVEPOINT job")
        lines, proof = len(self._lines), self._proof
        answer: _Answer
        try:
            answer = job.run(connection), None
        except Exception as error:
            if isinstance(error, psycopg.Error) and not is_of_the_job(error):
                raise
            answer = None, error
            del self._lines[lines:]
            self._proof = proof
            if apart:
                connection.execute("ROLLBACK TO SAVEPOINT job")
                self._undone()
        if apart:
            connection.execute("RELEASE SAVEPOINT job")
        return answer

    def _begin(self, patience_s: float) -> Connection:
        """A transaction on our connection, which is made anew if the server has gone away."""
        until = time.monotonic() + patience_s
        while True:
            try:
                connection = self._connection
                if connection is None or connection.closed:
                    first = connection is None
                    connection = self._connection = self.database.take()
                    if not first:
                        steps.check(connection, self.database)
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                return connection
            except psycopg.Error as error:
                self._drop()
                if not (is_passing(error) and self._may_wait(until)):
                    raise
            time.sleep(_PAUSE_S)

    def _may_wait(self, until: float) -> bool:
        """Whether to try again: there is time, and somebody to do it for."""
        in_vain = self._closed and not any(job.matters for job in self._doing)
        return time.monotonic() < until and not in_vain

    def _commit(self, until: float) -> None:
        connection = self._connection
        if connection is None:
            raise psycopg.OperationalError("the link was lost")
        (step,) = one(connection.execute("SELECT pg_current_xact_id_if_assigned()::text"))
        try:
            connection.execute("COMMIT")
        except psycopg.Error as error:
            self._drop()
            if step is None or not is_passing(error) or not self._was_kept(step, until):
                raise
        self._kept()

    def _was_kept(self, step: str, until: float) -> bool:
        """Whether a transaction was committed whose answer we did not get.

        Its number alone does not tell: after a crash, a number that was lost is given out again.
        """
        proof = self._proof
        while proof is not None:
            try:
                with closed_after(self.database.connect()) as connection:
                    with suppress(psycopg.errors.InvalidParameterValue):  # not yet given out anew
                        (status,) = one(
                            connection.execute("SELECT pg_xact_status(%s::text::xid8)", (step,))
                        )
                        if status == "in progress" and time.monotonic() < until:
                            time.sleep(_PAUSE_S)
                            continue
                    return connection.execute(*proof).fetchone() is not None
            except psycopg.Error as error:
                if not is_passing(error) or time.monotonic() >= until:
                    raise OutboxUnusable(
                        f"The outbox in {self.database.name} went away while it kept this step. "
                        "Whether it did is not known yet. Try again once the server is up: what "
                        "was kept is not done twice."
                    ) from None
            time.sleep(_PAUSE_S)
        return False

    def _rollback(self) -> None:
        connection = self._connection
        if connection is not None and not connection.closed:
            try:
                connection.execute("ROLLBACK")
            except psycopg.Error:
                self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self.database.give_back(connection)

    def _begun(self, connection: Connection) -> None:
        """Called at the start of each transaction, for what goes with whatever is written."""

    def _undone(self) -> None:
        """Called when what a job did was taken back, and others of its transaction go on."""

    def _kept(self) -> None:
        """Called when a transaction is committed."""

    def _is_owing(self) -> bool:
        """Whether `_begun` still has something to write."""
        return False

    def _is_closed(self) -> OutboxUnusable:
        return OutboxUnusable(
            f"The outbox in {self.database.name} is closed. Nothing of this step was kept."
        )

    def _ask(self, run: Callable[[Connection], T]) -> Future[T]:
        """Whoever stops waiting for it does not undo what was asked for."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        self._put(_Job(run, done))
        return done

    def _do(self, run: Callable[[Connection], T]) -> T:
        return self._ask(run).result()

    async def _await(
        self,
        run: Callable[[Connection], T],
        undo: Callable[[T], None] | None = None,
        *,
        idle: bool = False,
    ) -> T:
        """As `_do`.

        Should the caller be cancelled, `undo` is given the result, and something is written after.

        Args:
            idle: it matters only while the caller waits for it.
        """
        job = _Job(run, Future(), undo, idle)
        self._put(job)
        try:
            return await asyncio.wrap_future(job.done)
        except asyncio.CancelledError:
            if idle:
                job.done.cancel()
            if undo is not None:
                self._undo(job, undo)
            raise

    def _undo(self, job: _Job, undo: Callable[[Any], None]) -> None:
        with self._gate:
            job.done.cancel()
            if not job.kept:
                return  # the writer sees to it once it is kept, unless it never will be
        undo(job.result)
        with suppress(OutboxUnusable):
            self._put(_Job(nothing, Future()))

    # Reading

    def _read(self, statement: str, values: Any = ()) -> list[Row]:
        with self.database.reader() as reader:
            return reader.cursor(row_factory=dict_row).execute(statement, values).fetchall()

    def _stream(self, statement: str, values: Any = ()) -> Iterator[tuple[Any, ...]]:
        """Row by row, as of one moment, however many there are."""
        with translated(self.database), closed_after(self.database.connect()) as connection:
            connection.execute("BEGIN READ ONLY")
            with connection.cursor("rows") as cursor:
                cursor.itersize = 1_000
                yield from cursor.execute(statement, values)

    # The audit

    def _log(
        self,
        now: datetime,
        action: str,
        reference: str,
        case_reference: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Have the audit say it, if the transaction is kept."""
        self._lines.append(_Line(now, action, reference, case_reference, detail))

    def _write_lines(self, connection: Connection) -> None:
        """Last of all, since until the commit nobody else can write to the audit."""
        if not self._lines:
            return
        number, before = one(
            connection.execute("SELECT number, hash FROM chain WHERE id = 1 FOR UPDATE")
        )
        entries = []
        for line in self._lines:
            number += 1
            entry = new_entry(
                number=number,
                before=before,
                at=line.at,
                actor=self.actor,
                action=line.action,
                reference=line.reference,
                case_reference=line.case_reference,
                detail=line.detail,
            )
            before = entry.hash
            entries.append(astuple(entry))
        connection.execute(
            "INSERT INTO audit SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[],"
            " %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])",
            [list(column) for column in zip(*entries, strict=True)],
        )
        connection.execute("UPDATE chain SET number = %s, hash = %s WHERE id = 1", (number, before))
        self._proof = "SELECT 1 FROM audit WHERE number = %s AND hash = %s", (number, before)


def nothing(_: Connection) -> None:
    """For the sake of `_begun`."""


def _tell(job: _Job, answer: _Answer) -> None:
    result, wrong = answer
    with suppress(Exception):  # InvalidStateError: cancelled
        if wrong is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(wrong)


@contextmanager
def closed_after(connection: Connection) -> Iterator[Connection]:
    try:
        yield connection
    finally:
        connection.close()
