"""The simulated day keeps to what can be worked out by hand, and to the outbox's own order."""

from __future__ import annotations

from bisect import bisect_right
from datetime import timedelta

import pytest

from benchmarks.day import (
    HOUR,
    Day,
    Fleet,
    Kind,
    Simulation,
    Trouble,
    arrivals,
    measured,
)
from referrals import worker
from referrals.delivery import RetryPolicy

FLEET = Fleet(workers=1, lanes=8, per_worker=4.0, together=100.0, round_trip_s=0.25)


def every(seconds: float, count: int) -> list[tuple[float, int]]:
    return [(number * seconds, 0) for number in range(1, count + 1)]


def day(
    coming: list[tuple[float, int]], fleet: Fleet = FLEET, trouble: Trouble | None = None
) -> Day:
    return Simulation(coming, fleet, trouble).run()


def test_without_trouble_each_takes_a_round_trip() -> None:
    done = day(every(1.0, 200))
    assert (done.arrived, done.relayed, done.waiting, done.attempts) == (200, 200, 0, 200)
    assert {round(wait, 6) for wait, _ in done.waits} == {0.25}


def test_at_every_moment_what_came_is_relayed_failed_or_waits() -> None:
    made = arrivals(3_000, seed=7)
    fleet = Fleet(workers=2, per_worker=0.2, together=1.0, round_trip_s=2.0)
    some = Simulation(made, fleet, Trouble(Kind.PUTS_OFF, 10 * HOUR, HOUR))
    for at in some.steps():
        assert some.day.arrived == bisect_right(made, (at, 99_999))
        assert some.day.arrived == some.day.relayed + some.day.failed + some.day.waiting
        assert some.day.waiting >= 0
    assert some.day.relayed == 3_000
    assert some.day.attempts > 3_000


def test_a_backlog_is_gone_after_its_size_over_what_is_left_of_the_capacity() -> None:
    """100 s away at 1 a second leave 100; 4 a second less 1 that comes work off 3 a second."""
    trouble = Trouble(Kind.UNREACHABLE, 50.5, 100.0)
    done = day(every(1.0, 400), trouble=trouble)
    assert done.most_waiting == pytest.approx(100, abs=2)
    assert done.gone_after == pytest.approx(100 / 3, abs=worker._POLL_S + 1)
    assert done.wait(1) == pytest.approx(100, abs=worker._POLL_S + 1)
    assert done.attempts == 400  # a relay that is away is no message's attempt


def test_a_worker_asks_a_relay_that_is_away_as_often_as_the_real_one() -> None:
    """With nothing coming in, after 4, 8, 16, 32, 64 s (contract/test_worker.py)."""
    done = day([(1.0, 0)], trouble=Trouble(Kind.UNREACHABLE, 0.0, 100.0))
    assert done.asked == 5
    assert done.wait(1) == pytest.approx(4 + 8 + 16 + 32 + 64 + 0.25)


@pytest.mark.parametrize(
    ("fleet", "rate"),
    [
        (Fleet(workers=2, per_worker=4.0, together=100.0, round_trip_s=0.01), 8.0),
        (Fleet(workers=9, per_worker=4.0, together=10.0, round_trip_s=0.01), 10.0),
        (Fleet(workers=1, lanes=3, per_worker=99.0, together=99.0, round_trip_s=1.0), 3.0),
        (Fleet(workers=2, per_worker=9.0, together=99.0, rate_per_minute=120), 2.0),
        (Fleet(workers=2, per_worker=9.0, together=99.0, relay=5.0), 5.0),
    ],
    ids=["workers", "database", "lanes", "pace", "relay"],
)
def test_the_narrowest_place_sets_the_rate(fleet: Fleet, rate: float) -> None:
    done = day([(0.0, 0)] * 601, fleet)
    assert 600 / done.wait(1) == pytest.approx(rate, rel=0.03)


def test_what_is_put_off_is_tried_again_as_the_policy_says() -> None:
    """After about 1, 3, 7, 15, 31 and 63 minutes, a fifth more or less."""
    done = day([(0.5, 0)], trouble=Trouble(Kind.PUTS_OFF, 0.0, HOUR * 5 / 6))
    assert done.attempts == 7
    assert done.wait(1) == pytest.approx(63 * 60, rel=0.2)
    short = RetryPolicy(give_up_after=timedelta(minutes=5))
    given_up = Simulation([(0.5, 0)], FLEET, Trouble(Kind.PUTS_OFF, 0.0, HOUR), short).run()
    assert (given_up.failed, given_up.relayed, given_up.waiting) == (1, 0, 0)


def test_a_relay_that_wants_none_puts_off_a_few_at_a_time() -> None:
    coming = [(0.5, 0)] * 100
    done = day(coming, trouble=Trouble(Kind.WANTS_NONE, 0.0, 10.0))
    assert done.attempts - 100 == 2 * worker._PUT_OFF_IN_A_ROW  # at 0.5 s and 4 s later
    assert done.relayed == 100


@pytest.mark.parametrize(
    ("kind", "most"), [(Kind.SLOW, 0.4), (Kind.WORKERS, 2.0)], ids=["slow", "half the workers"]
)
def test_less_capacity_for_a_while(kind: Kind, most: float) -> None:
    """3 a second come for 100 s while less are relayed: that is what waits at the end of it."""
    fleet = Fleet(workers=2, lanes=64, per_worker=2.0, together=4.0, round_trip_s=0.1, relay=4.0)
    done = day(every(1 / 3, 1_500), fleet, Trouble(kind, 0.0, 100.0))
    assert done.most_waiting == pytest.approx((3 - most) * 100, rel=0.03)
    assert done.gone_after == pytest.approx((3 - most) * 100 / (4 - 3), rel=0.05)


def test_what_could_not_be_queued_comes_when_the_database_is_back() -> None:
    done = day(every(1.0, 100), trouble=Trouble(Kind.DATABASE, 20.5, 30.0))
    assert done.relayed == 100
    assert done.most_waiting == pytest.approx(30 + 15, abs=2)


def test_a_quiet_agency_does_not_wait_for_a_busy_one() -> None:
    coming = [(1.0, 0)] * 1_000 + [(2.0, 1)]
    done = day(coming)
    assert done.wait(1, [1]) < 3 * FLEET.round_trip_s
    assert done.wait(1, [0]) > 200


def test_a_day_is_the_same_again_by_its_seed() -> None:
    assert arrivals(2_000, 1) == arrivals(2_000, 1) != arrivals(2_000, 2)
    assert len(arrivals(5_000)) == 5_000


def test_costs_come_from_what_was_measured() -> None:
    fleet = measured({"rate_1": 300.0, "rate_2": 500.0, "rate_4": 450.0, "latency_1": 0.02})
    assert (fleet.per_worker, fleet.together, fleet.round_trip_s) == (300.0, 500.0, 0.02)
