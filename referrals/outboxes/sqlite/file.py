"""One private SQLite file, safe for several processes on one machine.

WAL and `synchronous=FULL`: a change is on the disk before its call returns. There is one connection
that writes, and whatever was asked for while it committed goes into the next transaction together;
so eight lanes that each record one outcome and claim one message cost one fsync, and each still
waits for its own.

A thread commits, and waits for other processes and for the disk. The statements of a coroutine run
in its loop's own thread, if that need not wait for anybody: two threads that hand Python's lock to
and fro at each statement take half as long again.

`secure_delete`: what is purged or erased is overwritten, in the file and in its log.
"""

from __future__ import annotations

import asyncio
import errno
import os
import queue
import sqlite3
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar

from referrals.errors import OutboxUnusable

VERSION = 4
_PATIENCE_S = 20.0
_MOST_IN_ONE_TRANSACTION = 1_000

# What is the caller's mistake and says nothing of the file: it costs only its own job.
_OF_THE_JOB = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
)

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Job:
    """A step that somebody waits for; `loop` is theirs, if they have one.

    `undo` is what to do with the result once they have stopped waiting.
    """

    run: Callable[[sqlite3.Connection], Any]
    done: Future[Any] | asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    kept: bool = False
    result: Any = None
    undo: Callable[[Any], None] | None = None


_Answer = tuple[Any, BaseException | None]


@dataclass(eq=False, slots=True)
class _Group:
    """Jobs of one transaction; `answers` once they have run and only the commit is to be done."""

    jobs: list[_Job]
    answers: list[_Answer] | None = None


class SqliteFile:
    """Opened with `open`, closed with `close` or as a context manager.

    What a subclass asks of it, from any thread or loop, is on the disk when it has the answer. All
    of it raises OutboxUnusable when the disk, SQLite or another process says no; then nothing of
    what was asked is kept, and the same may be asked again.
    """

    def __init__(
        self, path: Path, actor: str, connection: sqlite3.Connection, patience_s: float
    ) -> None:
        self.path = path
        # A name that is not UTF-8 is no reason to refuse a referral.
        self.actor: str = actor.encode(errors="backslashreplace").decode()
        self._connection = connection
        self._patience_s = patience_s
        self._file = _identity(path)
        self._gate = threading.Lock()  # for the next four
        self._jobs: deque[_Job] = deque()
        self._is_busy = False  # the connection has a transaction, or is about to
        self._closed = False
        self._going_on: set[asyncio.AbstractEventLoop] = set()  # will call `_turn` by and by
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
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
            connection.execute("PRAGMA busy_timeout = 0")  # from here on `_begin` waits
            return cls(path, actor, connection, patience_s)
        except (OSError, sqlite3.Error) as error:
            connection.close()
            raise _unusable(path, error) from None
        except BaseException:
            connection.close()
            raise

    @property
    def name(self) -> str:
        return str(self.path)

    def close(self) -> None:
        """Finish what was asked for, then close; whatever is asked for later is refused."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._groups.put(None)
        self._writer.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def _put(self, job: _Job) -> None:
        """Have a job done with the next transaction."""
        with self._gate:
            if self._closed:
                raise self._is_closed()
            self._jobs.append(job)
            if self._is_busy or job.loop in self._going_on:
                return  # this one is seen to next
            if job.loop is None:
                self._hand_over()
                return
        job.loop.call_soon(self._turn, job.loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run what waits, here in a loop's thread, up to the commit.

        If it has to wait, or fails, the writer runs it anew.
        """
        with self._gate:
            self._going_on.discard(loop)
            if self._is_busy or not self._jobs:
                return
            group = self._gathered()
        try:
            if all(job.loop is not None for job in group.jobs):
                with suppress(Exception):
                    group.answers = self._run(group.jobs, patience_s=0.0)
        finally:
            self._groups.put(group)

    def _gathered(self) -> _Group:
        """What waits, for whoever keeps the connection busy from here on; call it at the gate."""
        self._is_busy = True
        count = min(len(self._jobs), _MOST_IN_ONE_TRANSACTION)
        return _Group([self._jobs.popleft() for _ in range(count)])

    def _hand_over(self) -> None:
        self._groups.put(self._gathered())

    def _write(self) -> None:
        group: _Group | None = None
        try:
            closing = False
            while not closing or self._is_busy:
                group = self._groups.get()
                if group is not None:
                    self._finish(group)
                closing = closing or group is None
                self._go_on(closing)
            if self._is_owing():
                self._finish(_Group([_Job(nothing, Future())]))
        finally:
            # Should this thread ever die, nobody is to wait for it.
            with self._gate:
                self._closed = True
                left = [group, _Group(list(self._jobs))]
                while not self._groups.empty():
                    left.append(self._groups.get())
            jobs = [job for one in left if one is not None for job in one.jobs]
            self._answer(jobs, [(None, self._is_closed()) for _ in jobs])

    def _finish(self, group: _Group) -> None:
        """Commit a group, and tell each job what came of it once that is kept."""
        jobs, answers = group.jobs, group.answers
        try:
            if answers is None:
                answers = self._run(jobs, self._patience_s)
            self._commit()
        except BaseException as error:
            is_ours = isinstance(error, (OSError, sqlite3.Error))
            # To each its own: an exception that threads share grows in each.
            answers = [(None, _unusable(self.path, error) if is_ours else error) for _ in jobs]
        with self._gate:
            for job, (result, wrong) in zip(jobs, answers, strict=True):
                job.kept, job.result = wrong is None, result
                if wrong is None and job.undo is not None:
                    job.undo(result)
                    self._jobs.append(_Job(nothing, Future()))
            self._is_busy = False
            waiting = {job.loop for job in jobs if job.loop is not None} | self._going_on
            self._going_on = {loop for loop in waiting if not loop.is_closed()}
        self._answer(jobs, answers)

    def _go_on(self, closing: bool) -> None:
        """See to what has gathered meanwhile: here, or in the loops that asked for it."""
        with self._gate:
            if self._is_busy or not self._jobs:
                return
            loops = {job.loop for job in self._jobs if job.loop is not None} - self._going_on
            if closing or any(job.loop is None for job in self._jobs):
                self._hand_over()
                return
        for loop in loops:
            try:
                loop.call_soon_threadsafe(self._turn, loop)
            except RuntimeError:  # it is closed, so these are for us
                self._go_on(True)

    def _answer(self, jobs: Sequence[_Job], answers: Sequence[_Answer]) -> None:
        """Tell everybody, each loop once: waking one up costs more than all it is told."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, _Answer]]] = {}
        for job, answer in zip(jobs, answers, strict=True):
            if job.loop is None:
                _tell([(job, answer)])
            else:
                by_loop.setdefault(job.loop, []).append((job, answer))
        for loop, told in by_loop.items():
            try:
                loop.call_soon_threadsafe(self._tell_and_go_on, loop, told)
            except RuntimeError:  # it is closed, so nobody waits
                with self._gate:
                    self._going_on.discard(loop)

    def _tell_and_go_on(
        self, loop: asyncio.AbstractEventLoop, told: Sequence[tuple[_Job, _Answer]]
    ) -> None:
        _tell(told)
        # After those who were told have given the relay its next bytes.
        loop.call_soon(self._turn, loop)

    def _run(self, jobs: Sequence[_Job], patience_s: float) -> list[_Answer]:
        """Begin a transaction and run the jobs in it.

        A job that fails takes back its own changes only; a fault of the disk, those of all. As few
        fail, all are run anew, each in a savepoint, once one has.
        """
        try:
            for apart in (False, True):
                self._begin(patience_s)
                self._begun(self._connection)
                answers = []
                for job in jobs:
                    answers.append(self._run_one(job, apart))
                    if not apart and answers[-1][1] is not None:
                        self._connection.rollback()
                        break
                else:
                    break
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        return answers

    def _run_one(self, job: _Job, apart: bool) -> _Answer:
        connection = self._connection
        if apart:
            connection.execute("SAVEPOINT job")
        answer: _Answer
        try:
            answer = job.run(connection), None
        except Exception as error:
            if isinstance(error, sqlite3.Error) and not isinstance(error, _OF_THE_JOB):
                raise
            answer = None, error
            if apart:
                connection.execute("ROLLBACK TO job")
                self._forget_reads()
        if apart:
            connection.execute("RELEASE job")
        return answer

    def _begin(self, patience_s: float) -> None:
        if _identity(self.path) != self._file:
            raise OutboxUnusable(
                f"The outbox {self.path} was moved or replaced while it was in use. Nothing of "
                "this step was kept. Put it back, or start again."
            )
        until, pause_s = time.monotonic() + patience_s, 0.001
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= until:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)

    def _commit(self) -> None:
        try:
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.rollback()
            raise
        self._kept()

    def _begun(self, connection: sqlite3.Connection) -> None:
        """Called at the start of each transaction, for what goes with whatever is written."""
        self._forget_reads()

    def _forget_reads(self) -> None:
        """Called when what a job has read may not be so for the next."""

    def _kept(self) -> None:
        """Called when a transaction is on the disk."""

    def _is_owing(self) -> bool:
        """Whether `_begun` still has something to write."""
        return False

    def _is_closed(self) -> OutboxUnusable:
        return OutboxUnusable(f"The outbox {self.path} is closed. Nothing of this step was kept.")

    def _ask(self, run: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Whoever stops waiting for it does not undo what was asked for."""
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()
        self._put(_Job(run, done))
        return done

    def _do(self, run: Callable[[sqlite3.Connection], T]) -> T:
        return self._ask(run).result()

    async def _await(
        self,
        run: Callable[[sqlite3.Connection], T],
        undo: Callable[[T], None] | None = None,
    ) -> T:
        """As `_do`.

        Should the caller be cancelled, `undo` is given the result, and something is written after.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        job = _Job(run, done, loop)
        self._put(job)
        try:
            return await done
        except asyncio.CancelledError:
            if undo is not None:
                self._undo(job, undo)
            raise

    def _undo(self, job: _Job, undo: Callable[[Any], None]) -> None:
        with self._gate:
            job.undo = undo
            if not job.kept:
                return  # the writer sees to it once it is, unless it never will be
        undo(job.result)
        with suppress(OutboxUnusable):
            self._put(_Job(nothing, Future()))

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


def nothing(_: sqlite3.Connection) -> None:
    """For the sake of `_begun`."""


def _tell(told: Sequence[tuple[_Job, _Answer]]) -> None:
    for job, (result, wrong) in told:
        if job.done.done():
            continue  # cancelled
        if wrong is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(wrong)


def make_file(path: Path) -> None:
    """An empty file, 0600, unless there is one, which is not opened.

    To close a file takes away every lock that this process has on it, SQLite's too; another process
    would then take itself for the last one and remove the log that is being written to.

    Raises:
        OSError: it can't be made, or what is there can't be written, as if it had been opened.

    Source: https://www.sqlite.org/howtocorrupt.html §2.2
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None
        if os.statvfs(path).f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS)) from None
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _make_private(path: Path) -> None:
    """Make the file and the folders that are not there, for us alone whatever the umask."""
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)  # the umask may have taken away our own permission
    make_file(path)
    about = path.stat()
    if about.st_uid == os.geteuid() and stat.S_IMODE(about.st_mode) != 0o600:
        path.chmod(0o600)  # SQLite gives its other files the same mode
    if about.st_size == 0:
        for folder in {path.parent, *(folder.parent for folder in missing)}:
            sync_folder(folder)


def sync_folder(folder: Path) -> None:
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
            if not _is_busy(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise OutboxUnusable(
            f"The outbox {path} lies on a file system that several processes can't share (SQLite's "
            f"journal stays '{mode}'). Set REFERRALS_OUTBOX to a folder on a local disk."
        )


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction."""
    if _version(connection, path) == VERSION:
        return  # as a rule, and it does not wait for whoever is writing
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection, path)
    scripts = [f"migrate_{to}.sql" for to in range(version + 1, VERSION + 1)]
    for script in scripts if version else ["schema.sql"]:
        text = files("referrals.outboxes.sqlite").joinpath(script).read_text(encoding="utf-8")
        for statement in _statements(text):
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
