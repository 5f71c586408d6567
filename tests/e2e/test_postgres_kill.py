"""kill -9 at steps all the way from queueing to recording, with the outbox in PostgreSQL."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import Counter
from datetime import timedelta
from pathlib import Path

from referrals.audit import verify
from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Worker
from tests.conftest import NOW
from tests.e2e.test_kill import Killed, Relay
from tests.killed_postgres import work
from tests.peers import run
from tests.postgres import ClockedOutbox, server
from tests.queued import submissions

COUNT = 4
_STRIDE = 3
"""Every step would take a minute; the soak has the time for it."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.killed_postgres", "tests.killed"])


async def one_round(folder: Path, step: int) -> Killed | None:
    """Kill at one step and let the next run recover; None if the process got through."""
    database, log, wanted = server().emptied(), folder / "step", submissions(COUNT)
    async with Relay(extensions=(b"SIZE",)) as relay:
        given = (server(), database, relay.port, COUNT, step, log)
        child = _FORKS.Process(target=work, args=given)
        child.start()
        await asyncio.to_thread(child.join, 60)
        await relay.all_closed()
        await asyncio.to_thread(server().until_alone, database)
        where = log.read_text(encoding="utf-8") if log.exists() else None
        assert child.exitcode == (0 if where is None else -signal.SIGKILL)

        with ClockedOutbox.of(server(), database, "next") as outbox:
            found = {one.reference: str(one.status) for one in outbox.held()}
            assert len(found) in (0, COUNT), f"{where}: a batch is queued whole or not at all"
            assert found or not log.with_suffix(".queued").exists(), f"{where}: it said queued"
            arrived = Counter(relay.contents)
            in_doubt = {
                one.outgoing.reference
                for one in wanted
                if arrived[one.outgoing.content]
                and found[one.outgoing.reference] in {"sending", "queued"}
            }
            again = outbox.queue(wanted, NOW)
            assert all(one.new is not bool(found) for one in again)
            reached = RelaySettings(host="127.0.0.1", port=relay.port, security=Security.NONE)
            worker = Worker(
                outbox,
                SmtpTransport(reached),
                DeliveryOptions(lanes=1),
                now=lambda: NOW + timedelta(seconds=1),
                jitter=lambda: 0.0,
            )
            report = await worker.deliver_due()
            await relay.all_closed()

            assert report.relay_fault is None
            expected = {"relayed": COUNT - 2, "failed": 1, "delayed": 1}
            assert outbox.counts() == expected, f"{where}: queued = relayed + failed + waiting"
            arrived = Counter(relay.contents)
            doubled = {
                one.outgoing.reference for one in wanted if arrived[one.outgoing.content] > 1
            }
            marked = {one.reference for one in outbox.held() if one.maybe_doubled}
            assert doubled <= in_doubt, where
            assert doubled <= marked, where
            assert len(marked) <= 1, where
            assert list(verify(outbox.audit())) == [], where
            return Killed(where, frozenset(doubled)) if where else None


def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing_unawares(tmp_path: Path) -> None:
    async def rounds() -> list[Killed]:
        done: list[Killed] = []
        step = 1
        while True:
            folder = tmp_path / str(step)
            folder.mkdir()
            killed = await one_round(folder, step)
            if killed is None:
                return done
            done.append(killed)
            step += _STRIDE

    killed = run(rounds(), limit_s=120)
    assert len(killed) > 30
    places = {one.where for one in killed}
    assert any("COMMIT" in place for place in places), places
    assert any("writing" in place for place in places), places
