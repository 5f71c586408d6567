"""Workers and pages that are told to stop while their database is away, or says nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from referrals import worker as worker_module
from referrals.cli.faults import exit_code
from referrals.cli.worker import _Working
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.settings import RelaySettings, Security, Settings
from referrals.web.site import Role
from referrals.web.store import Store
from referrals.web.store_postgres import StoreDatabase
from tests.chaos import ChaosRelay
from tests.e2e.conftest import REFERRALS, Beside
from tests.peers import run
from tests.postgres import Server
from tests.queued import submissions

SOON_S = 14.0
"""Well within the twenty that whoever is not stopped waits for the database."""


@pytest.fixture(scope="module")
def frail() -> Iterator[Server]:
    """A server that is harmed."""
    made = Server.make()
    yield made
    connections.close_idle()
    made.remove()


class Program:
    """`referrals worker` or `serve` on a database of its own, unless one is given."""

    def __init__(
        self, server: Server, folder: Path, *argv: str, relay: int = 9, database: str = ""
    ) -> None:
        self.server, self.folder = server, folder
        self.database = database or server.new_database()
        self.said = folder / "said"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [*REFERRALS, *argv],
                env={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    "REFERRALS_DATABASE": server.url(self.database),
                    "REFERRALS_OUTBOX": str(folder / "outbox"),
                    "REFERRALS_RELAY_HOST": "127.0.0.1",
                    "REFERRALS_RELAY_PORT": str(relay),
                    "REFERRALS_RELAY_SECURITY": "none",
                    "REFERRALS_WEB_DELIVER": "false",
                },
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )

    def until(self, true: Callable[[], Any]) -> None:
        end = time.monotonic() + 30
        while not true():
            assert time.monotonic() < end, self.said.read_text()
            assert self.process.poll() is None, self.said.read_text()
            time.sleep(0.02)

    def until_it_works(self) -> None:
        """It has asked whether there is anything to claim."""

        def registered() -> bool:
            with self.server.connected(self.database) as db:
                found = db.execute("SELECT 1 FROM procrastinate.procrastinate_workers")
                return bool(found.fetchall())

        self.until(registered)

    def until_it_says(self, words: str) -> str:
        self.until(lambda: words in self.said.read_text())
        return self.said.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(SOON_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(30)


@contextmanager
def away(server: Server, how: str) -> Iterator[None]:
    """Crashed; or asleep, so that what it is asked is neither answered nor refused."""
    if how == "crashed":
        server.stop("immediate")
        try:
            yield
        finally:
            server.start()
        return
    asleep: Sequence[int] = server.processes()
    _tell(asleep, signal.SIGSTOP)
    try:
        yield
    finally:
        _tell(asleep, signal.SIGCONT)


def _tell(processes: Sequence[int], number: signal.Signals) -> None:
    for one in processes:
        with suppress(ProcessLookupError):
            os.kill(one, number)


@pytest.mark.parametrize("how", ["crashed", "asleep"])
def test_a_worker_that_waits_for_its_database_stops_soon(
    how: str, frail: Server, tmp_path: Path
) -> None:
    with Program(frail, tmp_path, "worker") as worker:
        worker.until_it_works()
        with away(frail, how):
            time.sleep(2.5)  # past its next look
            worker.stop()
            assert worker.ended() == 0


def test_a_second_signal_ends_a_worker_at_once(frail: Server, tmp_path: Path) -> None:
    with Program(frail, tmp_path, "worker") as worker:
        worker.until_it_works()
        with away(frail, "asleep"):
            time.sleep(2.5)
            worker.stop()
            worker.until_it_says("then stopping")
            worker.stop()
            assert worker.process.wait(2) == -signal.SIGTERM


def test_a_worker_whose_database_is_away_from_the_start_says_so(
    frail: Server, tmp_path: Path
) -> None:
    name = frail.new_database()
    assert name
    with away(frail, "crashed"):
        done = subprocess.run(
            [*REFERRALS, "worker"],
            env={**os.environ, "REFERRALS_DATABASE": frail.url(name), "REFERRALS_RELAY_HOST": "x"},
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=SOON_S,
        )
    assert (done.returncode, b"See that the server runs" in done.stderr) == (6, True)


def test_a_worker_that_is_stopped_still_records_what_the_relay_took(
    frail: Server, tmp_path: Path
) -> None:
    """Once the database is back: to forget an outcome is to submit the message twice."""
    with (
        Beside(ChaosRelay(pause_s=2.0, seed=3)) as relay,
        Program(frail, tmp_path, "worker", relay=relay.port) as worker,
    ):
        with PostgresOutbox.open(frail.database(worker.database), "page") as outbox:
            outbox.queue(submissions(2), datetime.now(UTC))
            worker.until(lambda: outbox.counts() == {"sending": 2})
        connections.close_idle()
        with away(frail, "crashed"):
            worker.stop()
            worker.until(lambda: len(relay.taken) == 2)
            time.sleep(1.5)
        assert worker.ended() == 0
        with PostgresOutbox.open(frail.database(worker.database), "page") as outbox:
            assert outbox.counts() == {"relayed": 2}
            assert not any(one.maybe_doubled for one in outbox.held())
        connections.close_idle()


def test_a_purge_that_has_to_wait_keeps_nobody_from_delivering_or_stopping(
    frail: Server, tmp_path: Path
) -> None:
    """Given up at the stop, without a trace: the next one forgets what this one would have."""
    name = frail.new_database()
    long_ago = datetime.now(UTC) - timedelta(days=40)
    with PostgresOutbox.open(frail.database(name), "page") as outbox:
        outbox.queue(submissions(1), long_ago)
        outbox.cancel("R-1", long_ago)
        with (
            frail.connected(name) as other,
            other.transaction(),
            Beside(ChaosRelay(seed=3)) as relay,
        ):
            other.execute("SELECT 1 FROM referrals.message FOR UPDATE")
            with Program(frail, tmp_path, "worker", relay=relay.port, database=name) as worker:
                worker.until(lambda: _waiting_for_a_lock(frail, name))
                outbox.queue(submissions(1, first=2), datetime.now(UTC))
                worker.until(lambda: outbox.counts() == {"cancelled": 1, "relayed": 1})
                begun = time.monotonic()
                worker.stop()
                assert worker.ended() == 0
                assert time.monotonic() - begun < SOON_S / 2
            assert "not purged" not in worker.said.read_text()
        assert outbox.last_noted("retention") is None
        assert [one.purged_at for one in outbox.held(reference="R-1")] == [None]
        assert outbox.purge(datetime.now(UTC) - timedelta(days=1), datetime.now(UTC)) == 1
    connections.close_idle()


def _waiting_for_a_lock(server: Server, database: str) -> bool:
    with server.connected(database) as db:
        found = db.execute(
            "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
            (database,),
        )
        return found.fetchone() is not None


def test_a_stop_after_which_an_outcome_is_unrecorded_is_no_success(
    frail: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the referral: exit code 6."""
    name = frail.new_database()
    database = frail.database(name)
    monkeypatch.setattr(worker_module, "_RECORD_AGAIN_S", (0.01,))
    monkeypatch.setattr(
        "referrals.bootstrap.open_outbox",
        lambda _: PostgresOutbox.open(database, "worker", patience_s=0.2),
    )
    settings = Settings(outbox=tmp_path)

    async def scenario() -> None:
        async with ChaosRelay(pause_s=2.0, seed=3) as relay:
            reached = RelaySettings(host=relay.host, port=relay.port, security=Security.NONE)
            working = _Working(settings, reached, as_json=True)
            with PostgresOutbox.open(database, "page") as page:
                page.queue(submissions(1), datetime.now(UTC))
                task = asyncio.create_task(working.run())
                while page.counts() != {"sending": 1}:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            with away(frail, "crashed"):
                working._stop(signal.SIGTERM)
                with pytest.raises(OutboxUnusable, match=r"R-1, which could not be recorded"):
                    await task
            assert len(relay.taken) == 1

    run(scenario(), limit_s=60)
    assert exit_code(OutboxUnusable("x")) == 6
    connections.close_idle()


@pytest.mark.parametrize(("how", "signals"), [("crashed", 1), ("asleep", 2)])
def test_a_page_stops_though_it_was_asked_for_something_that_it_can_not_tell(
    how: str, signals: int, frail: Server, tmp_path: Path
) -> None:
    """After ten seconds, in which it may still come to know; or at once, if told twice."""
    with Program(frail, tmp_path, "serve", "--port", "0") as page:
        store = Store(StoreDatabase(frail.database(page.database)))
        token = store.add_token("x", Role.REFERRER, "jo", datetime.now(UTC), timedelta(days=1))
        store.close()
        address = page.until_it_says("Ctrl-C").split()[4].rstrip(".")

        async def ask(client: httpx2.AsyncClient) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            answer = await client.get(f"{address}/api/v1/outbox", headers=headers)
            return answer.status_code

        async def scenario() -> None:
            async with httpx2.AsyncClient(timeout=30) as client:
                assert await ask(client) == 200
                with away(frail, how):
                    asked = asyncio.create_task(ask(client))
                    await asyncio.sleep(1.0)
                    for _ in range(signals):
                        page.stop()
                        await asyncio.sleep(0.2)
                    limit_s = SOON_S if signals == 1 else 3
                    assert await asyncio.to_thread(page.process.wait, limit_s) == 0
                    await asyncio.gather(asked, return_exceptions=True)

        asyncio.run(scenario())
