"""When a worker counts as alive, and what it tells of itself."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from referrals.delivery import DeliveryStatus
from referrals.errors import RelayRefused
from referrals.supervisor import Supervisor
from referrals.vitals import State, Vitals
from referrals.worker import LEASE, Report


@dataclass(frozen=True)
class Heard(Supervisor):
    said: list[str] = field(default_factory=list)

    def _say(self, *lines: str) -> None:
        self.said.extend(lines)


@dataclass
class Clock:
    shows: float = 0.0

    def __call__(self) -> float:
        return self.shows


def refused() -> Report:
    return Report(relay_fault=RelayRefused("535 jo@council.test: no", stage="login"))


def test_it_is_ready_once_and_says_what_it_waits_for() -> None:
    heard = Heard()
    vitals = Vitals(heard, 4)
    vitals.opened()
    vitals.seen(Report())
    vitals.seen(refused())
    vitals.seen(refused())
    vitals.waiting()
    vitals.opened()
    vitals.seen(Report())
    vitals.stopping()
    vitals.seen(Report())
    assert heard.said == [
        "READY=1",
        "STATUS=Delivering; 0 relayed since the start.",
        "STATUS=Delivering; 0 relayed since the start.",
        "STATUS=Waiting for the relay (relay-refused): the log says why.",
        "STATUS=Waiting for the database.",
        "STATUS=Waiting for the relay (relay-refused): the log says why.",
        "STATUS=Delivering; 0 relayed since the start.",
        "STOPPING=1",
        "STATUS=Finishing what is under way, then stopping.",
    ]


def test_outcomes_are_counted() -> None:
    vitals = Vitals(Supervisor(), 4)
    assert vitals.last_outcome_at is None
    for status in (DeliveryStatus.RELAYED, DeliveryStatus.RELAYED, DeliveryStatus.FAILED):
        vitals.recorded(status)
    vitals.seen(Report(recovered=2))
    vitals.seen(Report(recovered=1))
    assert vitals.outcomes == {DeliveryStatus.RELAYED: 2, DeliveryStatus.FAILED: 1}
    assert vitals.recovered == 3
    assert vitals.last_outcome_at == pytest.approx(time.time(), abs=60)


def test_what_hangs_for_longer_than_an_attempt_can_take_is_stuck() -> None:
    """The relay's last word may take ten minutes, and a place in the pace as long again."""
    clock = Clock()
    vitals = Vitals(Supervisor(), 4, clock)
    stuck = []
    for clock.shows in (2 * LEASE.total_seconds(), 2 * LEASE.total_seconds() + 1):
        stuck.append(vitals.is_stuck)
    assert stuck == [False, True]
    assert not vitals.is_alive


@pytest.mark.parametrize("moves", ["opened", "waiting", "recorded", "seen"])
def test_whatever_comes_of_its_work_counts(moves: str) -> None:
    clock = Clock()
    vitals = Vitals(Supervisor(), 4, clock)
    clock.shows = 2 * LEASE.total_seconds() + 1
    arguments: dict[str, list[object]] = {
        "recorded": [DeliveryStatus.DELAYED],
        "seen": [Report()],
    }
    getattr(vitals, moves)(*arguments.get(moves, []))
    assert not vitals.is_stuck


def test_a_loop_that_does_not_turn_is_noticed_from_elsewhere() -> None:
    clock = Clock()
    vitals = Vitals(Supervisor(), 4, clock)

    async def run() -> None:
        async with vitals.watched():
            clock.shows = 119
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            clock.shows += 119
            alive = [vitals.is_alive]
            clock.shows += 2
            alive.append(vitals.is_alive)
            assert alive == [True, False]

    asyncio.run(run())


def test_who_stops_stays_so() -> None:
    vitals = Vitals(Supervisor(), 4)
    vitals.stopping()
    vitals.waiting()
    vitals.opened()
    assert vitals.state is State.STOPPING
