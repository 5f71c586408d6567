"""Which relay is left alone, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from referrals.delivery import Reply
from referrals.errors import RelayRefused, TransientDeliveryError
from referrals.relay_health import (
    LONGEST_REST,
    TRIAL,
    RelayFault,
    RelayState,
    after_fault,
    on_trial,
    well_again,
)
from tests.conftest import NOW

AWAY = RelayFault("connect")
LOGIN = RelayFault("login", 535, refused_login=True)
WELL = RelayState("relay:587")
SECOND = timedelta(seconds=1)


def rests(fault: RelayFault, times: int) -> list[float]:
    """Seconds for which it is left alone, tried again whenever its time has come."""
    state, now, found = WELL, NOW, []
    for _ in range(times):
        state = after_fault(state, fault, now, on_trial=True)
        assert state.until is not None
        found.append((state.until - now).total_seconds())
        now = state.until
    return found


def test_one_that_can_not_be_reached_is_left_alone_for_longer_each_time() -> None:
    assert rests(AWAY, 9) == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_one_that_refused_the_login_is_left_alone_for_much_longer() -> None:
    """Each try may lock the account."""
    assert rests(LOGIN, 5) == [1800, 3600, 7200, 14400, 14400]


@pytest.mark.parametrize(
    ("error", "login"),
    [
        (RelayRefused("no", stage="login", reply=Reply.parse(535, "5.7.8 no")), True),
        (RelayRefused("no", stage="sender", reply=Reply.parse(530, "5.7.0 log in")), True),
        (RelayRefused("expired", stage="tls"), False),
        (RelayRefused("no", stage="greeting", reply=Reply.parse(554, "5.7.1 no")), False),
        (TransientDeliveryError("later", stage="login", reply=Reply.parse(454, "4.7.0")), False),
    ],
)
def test_a_refused_login_is_told_from_other_faults(
    error: RelayRefused | TransientDeliveryError, login: bool
) -> None:
    assert RelayFault.of(error).refused_login is login


def test_many_lanes_that_meet_one_fault_are_one_failure() -> None:
    first = after_fault(WELL, AWAY, NOW, on_trial=False)

    assert after_fault(first, AWAY, NOW + SECOND, on_trial=False) is first
    assert (first.failures, first.faults, first.since) == (1, 1, NOW)


def test_a_refused_login_counts_at_once_though_it_was_left_alone_for_less() -> None:
    away = after_fault(WELL, AWAY, NOW, on_trial=False)
    refused = after_fault(away, LOGIN, NOW + SECOND, on_trial=False)

    assert refused.fault == LOGIN
    assert refused.until == NOW + SECOND + timedelta(minutes=30)
    assert after_fault(refused, AWAY, NOW + 2 * SECOND, on_trial=False) is refused


def test_it_may_be_tried_again_once_its_time_has_come() -> None:
    state = after_fault(WELL, AWAY, NOW, on_trial=False)

    assert state.is_left_alone(NOW + 4.9 * SECOND)
    assert not state.is_left_alone(NOW + 5 * SECOND)
    assert not WELL.is_left_alone(NOW)


def test_while_one_lane_tries_it_the_others_keep_away() -> None:
    state = after_fault(WELL, AWAY, NOW, on_trial=False)
    tried = on_trial(state, NOW + 5 * SECOND)

    assert tried.is_left_alone(NOW + 6 * SECOND)
    assert tried.turn != state.turn
    assert not tried.is_left_alone(NOW + 5 * SECOND + TRIAL), "should that lane have died"
    again = after_fault(tried, AWAY, NOW + 6 * SECOND, on_trial=True)
    assert (again.failures, again.faults, again.since) == (2, 1, NOW)
    assert again.until == NOW + 16 * SECOND


def test_once_it_is_well_it_starts_anew() -> None:
    state = well_again(after_fault(WELL, LOGIN, NOW, on_trial=False))

    assert (state.fault, state.failures, state.until) == (None, 0, None)
    assert (state.faults, state.returns) == (1, 1)
    assert after_fault(state, AWAY, NOW, on_trial=False).until == NOW + 5 * SECOND


def test_a_clock_that_was_ahead_keeps_nobody_away_for_longer() -> None:
    state = after_fault(WELL, AWAY, NOW + timedelta(days=1), on_trial=False)

    assert not state.is_left_alone(NOW)
    put_back = replace(state, until=NOW + LONGEST_REST)
    assert put_back.is_left_alone(NOW)


def test_what_is_told_of_a_fault_is_in_our_words() -> None:
    words = "5.7.8 no jo@example.org"
    error = RelayRefused("jo's", stage="login", reply=Reply.parse(535, words))

    assert RelayFault.of(error).words == "refused the login (535)"
    assert AWAY.words == "could not be reached"
    assert RelayFault("content").words == "broke the link"
