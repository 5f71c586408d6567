"""A clock that jumps by minutes, hours and days, back and forth, while two workers deliver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from referrals.delivery import RetryPolicy
from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Worker
from tests.chaos import ChaosRelay
from tests.conftest import NOW
from tests.office import Office
from tests.outboxes import Harness, Outbox
from tests.peers import Say, ScriptedRelay, run
from tests.queued import submissions

COUNT = 60
DAY = timedelta(days=1)
PATIENT = RetryPolicy(give_up_after=timedelta(days=100_000))
JUMPS = (timedelta(seconds=1), timedelta(minutes=10), timedelta(hours=3), DAY, 40 * DAY, 800 * DAY)


@pytest.fixture
def office(outbox: Outbox) -> Office:
    office = Office(outbox)
    office.queue(submissions(COUNT))
    return office


def jumping(seed: int) -> Callable[[], datetime]:
    """Goes on by a millisecond each time it is asked, and now and then somewhere else."""
    chance, now = random.Random(seed), NOW

    def clock() -> datetime:
        nonlocal now
        now += timedelta(milliseconds=1)
        if chance.random() < 0.05:
            now += chance.choice((1, -1)) * chance.choice(JUMPS)
        return now

    return clock


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_clock_does_nothing_is_lost_or_doubled_unawares(
    seed: int, office: Office, harness: Harness
) -> None:
    """A lease may seem to end while its owner is at work: then the message may arrive twice."""
    clock = jumping(seed)

    async def scenario() -> None:
        with harness.open("second") as second:
            async with ChaosRelay(seed=seed, odds=0.03, pause_s=0.002) as relay:
                settings = RelaySettings(
                    host=relay.host, port=relay.port, security=Security.NONE, timeout_s=5.0
                )
                workers = [
                    Worker(
                        outbox,
                        SmtpTransport(settings, final_wait_s=0.1),
                        DeliveryOptions(lanes=2, policy=PATIENT),
                        now=clock,
                        jitter=lambda: 0.0,
                    )
                    for outbox in (office.outbox, second)
                ]
                runs = 0
                while set(office.outbox.counts()) - {"relayed", "failed"}:
                    runs += 1
                    assert runs < 300, office.outbox.counts()
                    await asyncio.gather(*(worker.deliver_due() for worker in workers))
                await relay.all_closed()
                office.check_in_part(relay.taken + relay.doubtful, COUNT, copies=COUNT)

    run(scenario(), limit_s=60)


@pytest.mark.parametrize("jump", [-800 * DAY, -DAY, timedelta(hours=-3), DAY, 3 * DAY])
def test_what_waits_is_tried_in_time_wherever_the_clock_was_put(
    jump: timedelta, office: Office
) -> None:
    """No message waits for longer than the longest wait, whatever the clock said before."""

    async def scenario() -> None:
        async with ScriptedRelay({"rcpt": Say(b"451 4.7.1 not now\r\n")}) as relay:
            for _ in range(3):
                await office.delivering(relay, policy=PATIENT)
                office.now += timedelta(minutes=10)
        assert office.check([]) == {"delayed": COUNT}
        office.now += jump
        async with ScriptedRelay() as relay:
            for _ in range(2):
                await office.delivering(relay, policy=PATIENT)
                office.now += 1.2 * PATIENT.longest_wait
            await relay.all_closed()
        assert office.check(relay.contents) == {"relayed": COUNT}

    run(scenario(), limit_s=30)
