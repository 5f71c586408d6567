"""PostgreSQL and its workers, killed, stopped and starved: nothing is lost or doubled unawares."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from referrals.audit import verify
from referrals.delivery import DeliveryStatus, RetryPolicy, Submission
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections, jobs
from referrals.outboxes.postgres import database as postgres_database
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.queueing import Claimed, Outcome
from tests.account import check, wanted
from tests.chaos import ChaosRelay
from tests.e2e.conftest import REFERRALS
from tests.peers import run
from tests.postgres import Server, server
from tests.queued import submissions

LEASE = timedelta(minutes=20)
RELAYED = Outcome(DeliveryStatus.RELAYED, "relay:587", "content")


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture(scope="module")
def frail() -> Iterator[Server]:
    """A server that is harmed."""
    made = Server.make(max_connections="24")
    yield made
    connections.close_idle()
    made.remove()


@dataclass
class Workers:
    """`referrals worker`, as many as are started, each a process."""

    server: Server
    database: str
    port: int
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said = (self.folder / "said").open("w+b")

    def start(self, count: int = 1) -> None:
        environment = {
            **os.environ,
            "REFERRALS_DATABASE": self.server.url(self.database),
            "REFERRALS_OUTBOX": str(self.folder / "outbox"),
            "REFERRALS_RELAY_HOST": "127.0.0.1",
            "REFERRALS_RELAY_PORT": str(self.port),
            "REFERRALS_RELAY_SECURITY": "none",
            # Else a message that two workers had as they were killed waits for a minute.
            "REFERRALS_DELIVERY_FIRST_WAIT_S": "0.2",
        }
        for _ in range(count):
            self.running.append(
                subprocess.Popen(
                    [*REFERRALS, "worker", "--concurrency", "4"],
                    env=environment,
                    cwd=self.folder,
                    stdout=subprocess.DEVNULL,
                    stderr=self.said,
                )
            )

    def kill(self, chance: random.Random) -> None:
        one = self.running.pop(chance.randrange(len(self.running)))
        one.kill()
        one.wait(30)

    def stop(self) -> None:
        """As a supervisor does: what is under way is finished."""
        for one in self.running:
            one.terminate()
        codes = {one.wait(30) for one in self.running}
        early = -signal.SIGTERM  # it had hardly started
        assert codes <= {0, early}, (codes, (self.folder / "said").read_text())

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.running:
            one.kill()
            one.wait(30)
        self.said.close()


async def until(true: Callable[[], bool], limit_s: float = 60) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            with contextlib.suppress(OutboxUnusable):
                if await asyncio.to_thread(true):
                    return
            await asyncio.sleep(0.02)


async def until_all_are_relayed(outbox: PostgresOutbox, count: int) -> None:
    await until(lambda: outbox.counts() == {"relayed": count})


def registered(server: Server, database: str) -> int:
    """How many workers have shown that they live."""
    with server.connected(database) as db:
        [(count,)] = db.execute(
            "SELECT count(*) FROM procrastinate.procrastinate_workers"
        ).fetchall()
        return int(count)


def _queue(server: Server, database: str, some: Sequence[Submission]) -> None:
    """In portions, as the page does, each again until it is kept."""
    with PostgresOutbox.open(server.database(database), "page") as outbox:
        for first in range(0, len(some), 5):
            outbox.queue(some[first : first + 5], now())


def test_workers_and_pages_that_are_killed_at_random(tmp_path: Path) -> None:
    """Two that queue the same and three that deliver; one of each is always being killed."""
    name, chance = server().new_database(), random.Random(7)
    some = [one for agency in "abc" for one in submissions(60, first=ord(agency) * 1_000,
                                                           agency=agency)]  # fmt: skip
    forks = multiprocessing.get_context("spawn")

    async def scenario() -> None:
        async with ChaosRelay(pause_s=0.03) as relay:
            with (
                Workers(server(), name, relay.port, tmp_path) as workers,
                PostgresOutbox.open(server().database(name), "test") as outbox,
            ):
                workers.start(3)
                pages = [
                    forks.Process(target=_queue, args=(server(), name, some)) for _ in range(2)
                ]
                for page in pages:
                    page.start()
                await until(lambda: outbox.counts() != {})
                pages[0].kill()
                for _ in range(6):
                    await asyncio.sleep(chance.uniform(0.1, 0.5))
                    await asyncio.to_thread(workers.kill, chance)
                    workers.start()
                await asyncio.to_thread(pages[1].join, 30)
                pages[0].join()
                await until_all_are_relayed(outbox, len(some))
                await asyncio.to_thread(workers.stop)
                counts = check(outbox, wanted(some), (), relay.taken)
                assert counts == {"relayed": len(some)}
                assert len(relay.taken) < len(some) + 6 * 4 + 1, "at most one a lane a kill"

    run(scenario(), limit_s=120)


def test_a_server_that_crashes_again_and_again(tmp_path: Path, frail: Server) -> None:
    """Who queues asks again; workers wait for it by themselves."""
    name = frail.new_database()
    some = submissions(150)
    queued: list[int] = []

    def queue_all(outbox: PostgresOutbox) -> None:
        for one in some:
            while True:
                with contextlib.suppress(OutboxUnusable):
                    queued.append(outbox.queue([one], now())[0].id)
                    break

    async def scenario() -> None:
        async with ChaosRelay(pause_s=0.02) as relay:
            with (
                Workers(frail, name, relay.port, tmp_path) as workers,
                PostgresOutbox.open(frail.database(name), "test") as outbox,
            ):
                workers.start(2)
                await until(lambda: registered(frail, name) == 2)
                queueing = asyncio.create_task(asyncio.to_thread(queue_all, outbox))
                for _ in range(3):
                    await asyncio.sleep(0.6)
                    await asyncio.to_thread(frail.stop, "immediate")
                    await asyncio.to_thread(frail.start)
                await queueing
                await until_all_are_relayed(outbox, len(some))
                await asyncio.to_thread(workers.stop)
                check(outbox, wanted(some), (), relay.taken)
                assert len(set(queued)) == len(some)
                # Nobody died who had one, so nobody is in doubt about any.
                assert Counter(relay.taken) == Counter(one.outgoing.content for one in some)

    run(scenario(), limit_s=120)


@contextlib.contextmanager
def opened(database: str, on: Server | None = None) -> Iterator[PostgresOutbox]:
    with PostgresOutbox.open((on or server()).database(database), "test") as outbox:
        yield outbox


def claimed(outbox: PostgresOutbox, owner: str = "me") -> Claimed:
    found = run(outbox.claim(owner, now(), LEASE))
    assert isinstance(found, Claimed)
    return found


# The commit whose answer is lost


@pytest.mark.parametrize("kept", [True, False])
def test_a_commit_whose_answer_is_lost_is_asked_after(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Kept or not, each thing is done once, and nobody hears of it."""
    name = server().emptied()
    lost = 0

    execute = psycopg.Connection.execute

    def broken(self: Any, query: Any, *more: Any, **named: Any) -> Any:
        nonlocal lost
        if query == "COMMIT" and (kept or lost % 2 == 0):
            lost += 1
            if kept:
                execute(self, "COMMIT")
            self.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        lost += query == "COMMIT"
        return execute(self, query, *more, **named)

    monkeypatch.setattr(psycopg.Connection, "execute", broken)
    connections.close_idle()
    with opened(name) as outbox:
        assert [one.new for one in outbox.queue(submissions(3), now())] == [True, True, True]
        mine = claimed(outbox)
        run(outbox.record(mine, "me", RELAYED, now(), RetryPolicy()))
        outbox.cancel("R-3", now())
        delayed = Outcome(DeliveryStatus.DELAYED, "relay:587", "sender")
        status = run(outbox.record(claimed(outbox), "me", delayed, now(), RetryPolicy()))
        assert status is DeliveryStatus.DELAYED
        assert outbox.counts() == {"relayed": 1, "cancelled": 1, "delayed": 1}
        actions = [entry.action for entry in outbox.audit()]
        assert actions == ["queued", "queued", "queued", "relayed", "cancelled"]
        assert [one.attempts for one in outbox.held()] == [0, 1, 1]
        assert list(verify(outbox.audit())) == []
        assert lost >= 6
    connections.close_idle()


def test_a_commit_that_nobody_can_ask_after_is_said_to_be_open(
    monkeypatch: pytest.MonkeyPatch, frail: Server
) -> None:
    name = frail.new_database()
    with opened(name, frail) as outbox:
        outbox.queue(submissions(1), now())
        outbox._patience_s = 0.2
        commit = postgres_database.PostgresDatabase._commit

        def crash(self: PostgresOutbox, until: float) -> None:
            frail.stop("immediate")
            commit(self, until)

        with monkeypatch.context() as patched:
            patched.setattr(PostgresOutbox, "_commit", crash)
            with pytest.raises(OutboxUnusable, match="can't be used"):
                outbox.queue(submissions(1, first=2), now())
        frail.start()
        outbox._patience_s = 20.0
        assert outbox.queue(submissions(2), now())[0].new is False
        assert outbox.counts() == {"queued": 2}


# Stopped


def test_a_process_stopped_in_mid_transaction_keeps_nobody_out_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "_STOPPED_S", 0.5)
    connections.close_idle()
    name = server().emptied()
    started, goes_on = threading.Event(), threading.Event()
    tries = 0

    with opened(name) as stopped, opened(name) as other:

        def hold(db: connections.Connection) -> int:
            nonlocal tries
            tries += 1
            db.execute("SELECT 1 FROM chain FOR UPDATE")
            started.set()
            goes_on.wait(60)
            stopped._log(now(), "held", "", "", {})
            return tries

        asked = stopped._ask(hold)
        started.wait(10)
        other.queue(submissions(1), now())  # else it gives up sooner than `hold` does
        goes_on.set()
        assert asked.result(10) == 2, "it was run anew, and kept"
        assert [entry.action for entry in other.audit()] == ["queued", "held"]
        assert list(verify(other.audit())) == []
    connections.close_idle()


def test_a_worker_that_is_silent_is_taken_for_dead_and_told_so_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that was paused, or on a machine that is cut off: its late word still counts."""
    name = server().emptied()
    policy = RetryPolicy()
    elsewhere = "boot-of-another-machine.1.2.3/0"
    with opened(name) as paused, opened(name) as other:
        paused.queue(submissions(3), now())
        first, second = claimed(paused, elsewhere), claimed(paused, elsewhere)
        asked = run(other.recover(now(), policy, is_gone=lambda _: True))
        assert asked == 0, "of another machine only the heart tells"

        with other.database.connect() as db:
            db.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '31 s'")
        assert run(other.recover(now(), policy, is_gone=lambda _: False)) == 2
        assert other.counts() == {"uncertain": 2, "queued": 1}
        again = claimed(other)
        assert again.maybe_doubled or again.id == 3
        run(paused.record(first, elsewhere, RELAYED, now(), policy))
        third = claimed(paused, elsewhere)
        assert third.id != second.id or third.attempt != second.attempt
        assert paused.held(message_id=first.id)[0].maybe_doubled
        with other.database.connect() as db:
            alive = db.execute("SELECT count(*) FROM procrastinate_workers").fetchone()
        assert alive == (2,), "the silent one was struck off, and has registered anew"


def test_a_clock_that_is_ahead_takes_nothing_from_the_living() -> None:
    """Leases go by the server's clock, which all machines share."""
    name = server().emptied()
    with opened(name) as outbox, opened(name) as ahead:
        outbox.queue(submissions(1), now())
        mine = claimed(outbox, "another-machine.1.2.3/0")
        later = now() + timedelta(days=1)
        assert run(ahead.recover(later, RetryPolicy(), is_gone=lambda _: False)) == 0
        done = run(outbox.record(mine, "another-machine.1.2.3/0", RELAYED, now(), RetryPolicy()))
        assert done is DeliveryStatus.RELAYED


def test_a_heart_beats_while_its_outbox_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "BEAT_S", 0.02)
    monkeypatch.setattr(jobs, "SILENT_S", 1.5)
    name = server().emptied()
    with opened(name) as other:
        with opened(name) as outbox:
            outbox.queue(submissions(1), now())
            claimed(outbox, "another-machine.1.2.3/0")
            for _ in range(20):
                time.sleep(0.1)
                assert run(other.recover(now(), RetryPolicy())) == 0
        assert run(other.recover(now(), RetryPolicy())) == 1, "closed without a word of it"


def test_a_stopped_worker_is_replaced_and_what_it_says_later_is_heard(tmp_path: Path) -> None:
    """SIGSTOP while the relay thinks, then SIGCONT."""
    name = server().new_database()
    some = submissions(4)

    async def scenario() -> None:
        async with ChaosRelay(pause_s=1.5, seed=3) as relay:
            with (
                Workers(server(), name, relay.port, tmp_path) as workers,
                opened(name) as outbox,
            ):
                outbox.queue(some, now())
                workers.start()
                await until(lambda: outbox.counts().get("sending") == 4)
                workers.running[0].send_signal(signal.SIGSTOP)
                with outbox.database.connect() as db:
                    db.execute(
                        "UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 h'"
                    )
                workers.start()
                await until_all_are_relayed(outbox, 4)
                workers.running[0].send_signal(signal.SIGCONT)
                await asyncio.to_thread(workers.stop)
                check(outbox, wanted(some), (), relay.taken)

    run(scenario(), limit_s=60)


# Starved


def test_a_server_without_a_free_connection_is_said_so_and_waited_for(frail: Server) -> None:
    name = frail.new_database()
    connections.close_idle()
    with opened(name, frail) as working:
        working.queue(submissions(1), now())
        # As the page's role, which may not have those kept for superusers.
        with frail.connected() as db:
            db.execute("DROP ROLE IF EXISTS guest")
            db.execute("CREATE ROLE guest LOGIN")
        taken = []
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(psycopg.connect(frail.url("postgres", "guest")))
        with pytest.raises(OutboxUnusable, match=r"connection.*max_connections"):
            PostgresOutbox.open(frail.database(name, "guest"), "guest")
        working.queue(submissions(1, first=2), now())
        for one in taken:
            one.close()
        assert working.counts() == {"queued": 2}
        working.close()
    with opened(name, frail) as again:
        assert again.counts() == {"queued": 2}
