"""When a delayed message is tried again, whatever the policy and whatever the clock does.

What a reply says, and the usual waits, are in test_service.py.
"""

from __future__ import annotations

import hashlib
import pickle
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from referrals.delivery import JITTER, Reply, RetryPolicy, next_attempt
from tests.conftest import NOW
from tests.queued import submission

waits = st.timedeltas(timedelta(seconds=1), timedelta(days=30))
policies = st.builds(RetryPolicy, waits, waits, waits)
failures = st.integers(1, 10**9)
jitters = st.floats(-1.0, 1.0)


@given(failures, policies, jitters, st.timedeltas(timedelta(0), timedelta(days=30)))
def test_a_next_attempt_is_later_and_within_the_policy(
    failures: int, policy: RetryPolicy, jitter: float, waited: timedelta
) -> None:
    due = next_attempt(failures, NOW - waited, NOW, policy, jitter)

    if due is None:
        assert waited + policy.longest_wait * (1 + JITTER) > policy.give_up_after
    else:
        assert NOW < due <= NOW + policy.longest_wait * (1 + JITTER)
        assert due - (NOW - waited) <= policy.give_up_after


@given(failures, policies)
def test_one_more_failure_never_shortens_the_wait(failures: int, policy: RetryPolicy) -> None:
    patient = RetryPolicy(policy.first_wait, policy.longest_wait, timedelta(days=365))
    sooner = next_attempt(failures, NOW, NOW, patient)
    later = next_attempt(failures + 1, NOW, NOW, patient)

    assert sooner is not None
    assert later is not None
    assert sooner <= later


def test_every_message_is_given_up_some_day() -> None:
    policy = RetryPolicy()
    now, tries = NOW, 0
    while (due := next_attempt(tries + 1, NOW, now, policy)) is not None:
        now, tries = due, tries + 1

    assert now <= NOW + policy.give_up_after
    assert 20 < tries < 40


def test_a_clock_set_back_gives_nothing_up() -> None:
    queued_at = NOW + timedelta(days=365)

    assert next_attempt(1, queued_at, NOW, RetryPolicy()) == NOW + timedelta(minutes=1)


@given(st.integers(100, 599), st.text(max_size=60))
def test_any_reply_is_shown_on_one_line(code: int, text: str) -> None:
    shown = str(Reply.parse(code, text))

    assert shown.startswith(str(code))
    assert len(shown.splitlines()) == 1


def test_a_digest_that_was_worked_out_goes_along_into_another_process() -> None:
    """What took another processor's time is not done again."""
    made = submission(1)
    digest = hashlib.sha256(made.outgoing.content).hexdigest()
    assert made.sha256 == digest

    there = pickle.loads(pickle.dumps(made))

    assert there == made
    assert vars(there)["sha256"] == digest
    assert made.outgoing.content not in repr(made).encode()
