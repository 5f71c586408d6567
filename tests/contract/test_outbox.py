"""What every outbox promises, and what the SQLite one does when the disk or a person interferes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from referrals.audit import FIRST, new_entry, verify
from referrals.delivery import DeliveryStatus, Reply, RetryPolicy, Submission
from referrals.directory import Directory
from referrals.errors import LeaseLost, NotInOutbox, NotPossibleNow, OutboxUnusable
from referrals.outboxes.sqlite import account
from referrals.outboxes.sqlite import file as sqlite_file
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.queueing import Claimed, Held, NotYet, Outcome, Queued
from referrals.samples import sample_case
from referrals.service import Service
from tests.conftest import NOW, TODAY
from tests.disks import mount_small, unmount
from tests.outboxes import Durable, Harness, Outbox, disk_full, durable
from tests.peers import run
from tests.queued import SENDER, submission, submissions

LEASE = timedelta(minutes=20)
POLICY = RetryPolicy()
MINUTE = timedelta(minutes=1)
RELAYED = Outcome(DeliveryStatus.RELAYED, "relay:587", "content", Reply.parse(250, "2.0.0 Ok"))
FAILED = Outcome(DeliveryStatus.FAILED, "relay:587", "recipient", Reply.parse(550, "5.1.1 who?"))
DELAYED = Outcome(DeliveryStatus.DELAYED, "relay:587", "sender", Reply.parse(451, "4.3.0 later"))
UNCERTAIN = Outcome(DeliveryStatus.UNCERTAIN, "relay:587", "content", None, "the link was lost")


def claim(
    outbox: Outbox, owner: str = "me", now: Any = NOW, only: int | None = None
) -> Claimed | None:
    found = run(outbox.claim(owner, now, LEASE, only=only))
    assert not isinstance(found, NotYet)
    return found


def claimed(outbox: Outbox, owner: str = "me", now: Any = NOW) -> Claimed:
    found = claim(outbox, owner, now)
    assert found is not None
    return found


def record(
    outbox: Outbox,
    mine: Claimed,
    outcome: Outcome,
    owner: str = "me",
    now: Any = NOW,
    **more: Any,
) -> DeliveryStatus:
    return run(outbox.record(mine, owner, outcome, now, POLICY, **more))


def recover(outbox: Outbox, now: Any = NOW, **more: Any) -> int:
    return run(outbox.recover(now, POLICY, **more))


def only(outbox: Outbox) -> Held:
    (held,) = outbox.held()
    return held


def actions(outbox: Outbox) -> list[str]:
    return [entry.action for entry in outbox.audit()]


def in_processes(count: int, target: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function gives in so many processes at once."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(count) as pool:
        results = [pool.apply_async(target, (*arguments, number)) for number in range(count)]
        found = [result.get(60) for result in results]
        pool.close()
        pool.join()
    return found


# Queueing


def test_the_same_referral_queued_twice_is_one(outbox: Outbox) -> None:
    first = outbox.queue([submission(1)], NOW)
    again = outbox.queue(
        [submission(2), submission(1, content=b"composed on another day\r\n")], NOW + MINUTE
    )

    assert [one.new for one in first + again] == [True, True, False]
    assert again[1].id == first[0].id
    assert again[1].status is DeliveryStatus.QUEUED
    assert outbox.counts() == {"queued": 2}
    assert outbox.content(first[0].id) == submission(1).outgoing.content
    assert actions(outbox) == ["queued", "queued"]


def test_a_referral_twice_in_one_batch_is_one(outbox: Outbox) -> None:
    queued = outbox.queue([submission(1), submission(1)], NOW)

    assert [one.new for one in queued] == [True, False]
    assert outbox.counts() == {"queued": 1}


def test_it_says_since_when_something_has_been_due(outbox: Outbox) -> None:
    assert outbox.oldest_due(NOW) is None

    outbox.queue([submission(1)], NOW + MINUTE)
    outbox.queue([submission(2)], NOW)

    assert outbox.oldest_due(NOW - MINUTE) is None
    assert outbox.oldest_due(NOW + 2 * MINUTE) == NOW


def test_one_queued_again_says_what_became_of_it(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), RELAYED)

    assert outbox.queue([submission()], NOW)[0].status is DeliveryStatus.RELAYED
    assert claim(outbox) is None


def test_what_is_known_already_can_be_asked_for_many_at_once(outbox: Outbox) -> None:
    outbox.queue(submissions(3), NOW)
    record(outbox, claimed(outbox), RELAYED)
    outbox.cancel("R-3", NOW)

    known = outbox.known(f"key {number}" for number in range(40_000))
    assert known == {
        "key 1": Queued(1, new=False, status=DeliveryStatus.RELAYED),
        "key 2": Queued(2, new=False, status=DeliveryStatus.QUEUED),
    }, "a cancelled one may be queued anew"
    assert outbox.known([]) == {}


@pytest.mark.parametrize(
    "wrong", [{"outgoing": None}, {"detail": {"no": object()}}, {"detail": {"no": "JSON", 1: 2}}]
)
def test_a_batch_is_queued_whole_or_not_at_all(outbox: Outbox, wrong: dict[str, Any]) -> None:
    with pytest.raises((AttributeError, TypeError)):
        outbox.queue([*submissions(5), replace(submission(6), **wrong)], NOW)

    assert outbox.counts() == {}
    assert actions(outbox) == []
    outbox.queue(submissions(6), NOW)
    assert outbox.counts() == {"queued": 6}


@durable
@pytest.mark.parametrize("wrong", [{"acknowledge_by": None}, {"agency": None}])
def test_a_batch_that_the_database_refuses_is_refused_whole(
    outbox: Outbox, wrong: dict[str, None]
) -> None:
    with pytest.raises((AttributeError, sqlite3.IntegrityError, psycopg.IntegrityError)):
        outbox.queue([*submissions(5), submission(6, **wrong)], NOW)

    assert outbox.counts() == {}
    assert actions(outbox) == []
    outbox.queue(submissions(6), NOW)
    assert outbox.counts() == {"queued": 6}


def _queue_and_die(harness: Harness) -> None:
    harness.open("child").queue(submissions(3), NOW)
    os.kill(os.getpid(), signal.SIGKILL)


@durable
def test_what_was_queued_is_there_whatever_happens_next(harness: Harness) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_queue_and_die, args=(harness,))
    process.start()
    process.join(60)

    assert process.exitcode == -signal.SIGKILL
    with harness.open() as outbox:
        assert outbox.counts() == {"queued": 3}
        assert list(verify(outbox.audit())) == []


def test_the_bytes_are_kept_and_their_hash_is_true(outbox: Outbox) -> None:
    content = bytes(range(1, 256)) * 400 + b"\r\n"
    outbox.queue([submission(content=content)], NOW)

    held = only(outbox)
    assert (held.sha256, held.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert outbox.content(held.id) == content
    mine = claimed(outbox)
    assert mine.outgoing == replace(submission().outgoing, content=content)
    assert mine.is_intact
    assert not replace(mine, outgoing=replace(mine.outgoing, content=content[1:])).is_intact


def test_held_filters_and_limits_newest_first(outbox: Outbox) -> None:
    outbox.queue([submission(n, case_reference=f"CASE-{n % 2}") for n in range(6)], NOW)
    taken = claimed(outbox)

    assert [one.reference for one in outbox.held(limit=2)] == ["R-5", "R-4"]
    assert [one.reference for one in outbox.held(case_reference="CASE-1")] == ["R-5", "R-3", "R-1"]
    assert [one.id for one in outbox.held(status=DeliveryStatus.SENDING)] == [taken.id]
    assert [one.reference for one in outbox.held(message_id=taken.id)] == ["R-0"]
    assert outbox.held(reference="R-9") == []
    assert outbox.counts() == {"queued": 5, "sending": 1}


# Claiming


def _counts(harness: Harness, _: int) -> dict[str, int]:
    with harness.open("another") as outbox:
        return outbox.counts()


@durable
def test_another_process_that_comes_and_goes_takes_nothing_with_it(harness: Harness) -> None:
    """Opened twice in one process, as the page does, and by `referrals outbox list` meanwhile.

    Closing a file drops the locks of its whole process; SQLite's log would then be removed by
    whoever believes to be the last. Source: https://www.sqlite.org/howtocorrupt.html §2.2
    """
    with harness.open("courier") as courier:
        with harness.open("page") as page:
            page.queue([submission(1)], NOW)
        assert in_processes(1, _counts, harness) == [{"queued": 1}]
        courier.queue([submission(2)], NOW)
        assert in_processes(1, _counts, harness) == [{"queued": 2}]
    assert in_processes(1, _counts, harness) == [{"queued": 2}]


def test_each_message_is_claimed_once_by_many_threads(harness: Harness) -> None:
    """Each thread with a loop of its own, over one outbox and over several."""
    with harness.open() as one, harness.open() as other:
        one.queue(submissions(120), NOW)

        def take(number: int) -> list[str]:
            async def all_there_are() -> list[str]:
                outbox, found = (one, other)[number % 2], []
                while isinstance(mine := await outbox.claim("me", NOW, LEASE), Claimed):
                    found.append(mine.outgoing.reference)
                return found

            return asyncio.run(all_there_are())

        with ThreadPoolExecutor(6) as pool:
            taken = Counter(ref for found in pool.map(take, range(6)) for ref in found)

    assert taken == Counter(f"R-{n}" for n in range(1, 121))


def _take_all(harness: Harness, number: int) -> list[str]:
    async def all_there_are(outbox: Outbox) -> list[str]:
        found = []
        while isinstance(mine := await outbox.claim(f"process {number}", NOW, LEASE), Claimed):
            await outbox.record(mine, f"process {number}", RELAYED, NOW, POLICY)
            found.append(mine.outgoing.reference)
        return found

    with harness.open(f"process {number}") as outbox:
        outbox.queue(submissions(20, first=1_000 * number), NOW)
        return asyncio.run(all_there_are(outbox))


@durable
def test_processes_share_an_outbox_and_its_audit_stays_whole(harness: Harness) -> None:
    """Each queues and relays: no message twice, and one chain of entries."""
    with harness.open() as outbox:
        outbox.queue(submissions(60, first=100_000), NOW)
        taken = Counter(ref for found in in_processes(3, _take_all, harness) for ref in found)
        entries = list(outbox.audit())

        assert len(taken) == 120
        assert set(taken.values()) == {1}
        assert outbox.counts() == {"relayed": 120}
        assert len(entries) == 240
        assert list(verify(entries)) == []
        assert {entry.actor for entry in entries} == {"tester", *(f"process {n}" for n in range(3))}


def test_no_agency_waits_behind_another(outbox: Outbox) -> None:
    """The agency with the fewest under way, then the one due longest."""
    outbox.queue(submissions(4, agency="a"), NOW)
    outbox.queue(submissions(2, first=11, agency="b"), NOW + MINUTE)
    outbox.queue([submission(21, agency="c")], NOW + 2 * MINUTE)

    order = [claimed(outbox, now=NOW + 3 * MINUTE).outgoing.reference for _ in range(7)]

    assert order == ["R-1", "R-11", "R-21", "R-2", "R-12", "R-3", "R-4"]


@durable
def test_agencies_take_turns_also_among_claims_that_are_kept_together(
    harness: Harness, outbox: Durable
) -> None:
    """One commit for them all; one of them asks as soon as its message is relayed."""
    outbox.queue(submissions(5, agency="a"), NOW)
    outbox.queue(submissions(3, first=11, agency="b"), NOW + MINUTE)
    now = NOW + 2 * MINUTE
    mine = claimed(outbox, now=now)
    assert mine.agency == "a"
    taken: list[Claimed | NotYet | None] = []

    async def claim_one() -> None:
        taken.append(await outbox.claim("me", now, LEASE))

    async def record_and_claim_one() -> None:
        _, following = await outbox.record_and_claim(mine, "me", RELAYED, now, POLICY, LEASE)
        taken.append(following)

    async def scenario() -> None:
        release = blocked(outbox)
        tasks = []
        for one in (claim_one, claim_one, record_and_claim_one, claim_one, claim_one):
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(0)
        release.set()
        await asyncio.gather(*tasks)

    run(scenario())
    order = [one.outgoing.reference for one in taken if isinstance(one, Claimed)]
    # SQLite asks who has the fewest under way, and R-1 was relayed meanwhile; in PostgreSQL each
    # has its turn from the start: every agency's first, every one's second, every one's third.
    fewest, turns = ["R-11", "R-2", "R-3", "R-12", "R-4"], ["R-11", "R-2", "R-12", "R-3", "R-13"]
    assert order == (turns if harness.takes_turns else fewest)


def test_of_one_agency_the_one_due_longest_comes_first(harness: Harness, outbox: Outbox) -> None:
    outbox.queue([submission(1)], NOW + 2 * MINUTE)
    outbox.queue([submission(2)], NOW)
    outbox.queue([submission(3)], NOW + MINUTE)

    order = [claimed(outbox, now=NOW + 3 * MINUTE).outgoing.reference for _ in range(3)]

    # In PostgreSQL the one queued first: which clock of several machines was right nobody knows.
    due, queued = ["R-2", "R-3", "R-1"], ["R-1", "R-2", "R-3"]
    assert order == (queued if harness.takes_turns else due)


def test_one_message_can_be_asked_for_by_name(outbox: Outbox) -> None:
    queued = outbox.queue(submissions(3), NOW)
    mine = claim(outbox, only=queued[1].id)
    assert mine is not None
    assert mine.id == queued[1].id
    assert claim(outbox, only=queued[1].id) is None
    record(outbox, mine, DELAYED)
    assert claim(outbox, only=queued[1].id) is not None, "also before it is due"


def test_nothing_is_claimed_before_it_is_due(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), DELAYED)

    assert claim(outbox, now=NOW + MINUTE * 0.99) is None
    again = claimed(outbox, now=NOW + MINUTE)
    assert again.failures == 1
    assert not again.maybe_doubled


@durable
def test_a_cancelled_claim_gives_back_what_it_got(harness: Harness, outbox: Durable) -> None:
    """Whoever stops waiting for a claim does not take a message with him."""
    outbox.queue([submission()], NOW)
    release, started = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        started.set()
        release.wait(10)

    async def scenario() -> None:
        blocked = outbox._ask(hold)
        started.wait(10)
        task = asyncio.ensure_future(outbox.claim("me", NOW, LEASE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        await asyncio.wrap_future(blocked)
        await asyncio.wrap_future(outbox._ask(lambda _: None))

    run(scenario())
    outbox.close()
    with harness.open("next") as again:
        assert only(again).status is DeliveryStatus.QUEUED
        assert only(again).attempts == 0


@durable
def test_a_claim_cancelled_once_it_is_kept_is_given_back(harness: Harness, outbox: Durable) -> None:
    """Between the commit and the news of it."""
    outbox.queue([submission()], NOW)

    async def scenario() -> None:
        task = asyncio.ensure_future(outbox.claim("me", NOW, LEASE))
        await asyncio.sleep(0)  # it asks
        await asyncio.sleep(0)  # it has its turn
        while only(outbox).status is not DeliveryStatus.SENDING:
            pass  # the loop does not run, so it can't be told
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        outbox.close()

    run(scenario())
    with harness.open("next") as again:
        assert (only(again).status, only(again).attempts) == (DeliveryStatus.QUEUED, 0)


def test_recording_and_claiming_in_one_step(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)
    first = claimed(outbox)

    status, second = run(outbox.record_and_claim(first, "me", RELAYED, NOW + MINUTE, POLICY, LEASE))
    assert status is DeliveryStatus.RELAYED
    assert second is not None
    assert second.outgoing == submission(2).outgoing
    assert outbox.counts() == {"relayed": 1, "sending": 1}
    assert run(outbox.record_and_claim(second, "me", DELAYED, NOW, POLICY, LEASE)) == (
        DeliveryStatus.DELAYED,
        None,
    )


def test_a_lost_lease_is_no_reason_not_to_claim_the_next(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)
    first = claimed(outbox)
    recover(outbox, is_gone=lambda _: True, hold_uncertain=True)

    status, second = run(outbox.record_and_claim(first, "me", FAILED, NOW, POLICY, LEASE))
    assert status is None
    assert second is not None
    assert second.outgoing.reference == "R-2"
    assert outbox.held(reference="R-1")[0].status is DeliveryStatus.UNCERTAIN


@durable
def test_a_step_that_is_cancelled_is_recorded_and_claims_nothing(
    harness: Harness, outbox: Durable
) -> None:
    outbox.queue(submissions(2), NOW)
    first = claimed(outbox)

    async def scenario() -> None:
        release = blocked(outbox)
        step = outbox.record_and_claim(first, "me", RELAYED, NOW, POLICY, LEASE)
        task = asyncio.ensure_future(step)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        outbox.close()

    run(scenario())
    with harness.open("next") as again:
        assert again.counts() == {"relayed": 1, "queued": 1}
        assert sum(one.attempts for one in again.held()) == 1


# Pace


def paced(outbox: Outbox, now: Any, every: timedelta = MINUTE) -> Claimed | NotYet | None:
    return run(outbox.claim("me", now, LEASE, every=every))


def test_all_who_use_an_outbox_keep_one_pace(harness: Harness) -> None:
    with harness.open() as one, harness.open() as other:
        one.queue(submissions(3), NOW)

        assert isinstance(paced(one, NOW), Claimed)
        assert paced(other, NOW + MINUTE * 0.99) == NotYet(NOW + MINUTE)
        assert one.counts() == {"sending": 1, "queued": 2}, "nobody holds what has to wait"
        assert isinstance(paced(other, NOW + MINUTE), Claimed)
        assert paced(one, NOW + MINUTE * 1.5) == NotYet(NOW + 2 * MINUTE)
        assert isinstance(claim(one, now=NOW + MINUTE), Claimed), "who keeps none need not wait"
        assert paced(one, NOW + MINUTE) is None, "and nothing is left to wait for"


def test_a_place_in_the_pace_is_taken_only_with_a_message(outbox: Outbox) -> None:
    assert paced(outbox, NOW) is None
    outbox.queue([submission()], NOW)
    assert isinstance(paced(outbox, NOW), Claimed)


def test_a_clock_that_is_put_back_makes_nobody_wait_for_long(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW - timedelta(days=2))
    assert isinstance(paced(outbox, NOW), Claimed)
    back = NOW - timedelta(days=1)

    assert paced(outbox, back) == NotYet(back + MINUTE)
    assert paced(outbox, back + MINUTE * 0.5) == NotYet(back + MINUTE)
    assert isinstance(paced(outbox, back + MINUTE), Claimed)


# Leases


def test_a_lease_that_ends_leaves_the_message_uncertain(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)

    assert recover(outbox, NOW + LEASE) == 0
    assert recover(outbox, NOW + LEASE + MINUTE) == 1
    held = only(outbox)
    assert held.status is DeliveryStatus.UNCERTAIN
    assert held.maybe_doubled
    assert held.due_at == NOW + LEASE + MINUTE
    (attempt,) = outbox.attempts(held.id)
    assert attempt.outcome == "uncertain"
    assert attempt.ended_at == NOW + LEASE + MINUTE
    assert actions(outbox) == ["queued", "uncertain"]
    again = claimed(outbox, now=NOW + LEASE + MINUTE)
    assert again.outgoing == mine.outgoing
    assert again.maybe_doubled


def test_a_dead_owners_message_is_taken_back_at_once(outbox: Outbox) -> None:
    outbox.queue(submissions(2), NOW)
    claimed(outbox, "dead")
    claimed(outbox, "alive")

    assert recover(outbox, is_gone=lambda owner: owner == "dead") == 1
    assert outbox.counts() == {"sending": 1, "uncertain": 1}


def test_they_are_taken_back_in_the_order_in_which_they_were_queued(outbox: Outbox) -> None:
    """So that the audit says the same, wherever it is kept."""
    outbox.queue([submission(1, agency="b"), submission(2, agency="a")], NOW)
    for _ in range(2):
        claimed(outbox)

    assert recover(outbox, is_gone=lambda _: True) == 2
    assert [entry.reference for entry in outbox.audit()][-2:] == ["R-1", "R-2"]


def test_an_uncertain_message_can_be_kept_for_a_person(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    claimed(outbox)
    recover(outbox, is_gone=lambda _: True, hold_uncertain=True)

    assert only(outbox).due_at is None
    assert claim(outbox, now=NOW + timedelta(days=1)) is None


def test_a_message_that_kills_its_process_again_and_again_waits_longer(
    outbox: Outbox,
) -> None:
    """So that the others get their turn, and an end is in sight."""
    outbox.queue([submission()], NOW)
    now, waits = NOW, []
    while True:
        claimed(outbox, now=now)
        recover(outbox, now, is_gone=lambda _: True)
        due = only(outbox).due_at
        if due is None:
            break
        waits.append(due - now)
        assert len(waits) < 100
        now = due

    assert waits[:4] == [timedelta(0), MINUTE, 2 * MINUTE, 4 * MINUTE]
    assert POLICY.give_up_after - POLICY.longest_wait <= now - NOW <= POLICY.give_up_after
    assert only(outbox).status is DeliveryStatus.UNCERTAIN


# Outcomes


def test_relayed(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    status = record(outbox, claimed(outbox), RELAYED, now=NOW + MINUTE)

    held = only(outbox)
    assert status is held.status is DeliveryStatus.RELAYED
    assert (held.relayed_at, held.due_at, held.attempts) == (NOW + MINUTE, None, 1)
    assert not held.maybe_doubled
    (attempt,) = outbox.attempts(held.id)
    assert (attempt.started_at, attempt.ended_at) == (NOW, NOW + MINUTE)
    assert (attempt.outcome, attempt.stage, attempt.relay) == ("relayed", "content", "relay:587")
    assert (attempt.code, attempt.enhanced, attempt.words) == (250, "2.0.0", "Ok")
    entry = list(outbox.audit())[-1]
    assert (entry.action, entry.detail) == ("relayed", {"relay": "relay:587", "reply": 250})


def test_failed(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)

    assert record(outbox, claimed(outbox), FAILED) is DeliveryStatus.FAILED
    assert only(outbox).due_at is None
    assert claim(outbox, now=NOW + timedelta(days=9)) is None
    assert actions(outbox) == ["queued", "failed"]


@pytest.mark.parametrize("outcome", [RELAYED, FAILED, DELAYED, UNCERTAIN])
def test_an_outcome_that_is_recorded_again_is_recorded_once(
    outbox: Outbox, outcome: Outcome
) -> None:
    """By a worker that could not hear that it was kept."""
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    status = record(outbox, mine, outcome)
    kept = only(outbox), outbox.attempts(1), actions(outbox)

    assert record(outbox, mine, outcome, now=NOW + MINUTE) is status
    assert (only(outbox), outbox.attempts(1), actions(outbox)) == kept


def test_a_claim_that_was_given_back_says_nothing_of_the_next(outbox: Outbox) -> None:
    """Not even of the same worker's."""
    outbox.queue(submissions(2), NOW)
    first = claimed(outbox)
    second = claimed(outbox)
    run(outbox.release(first, "me"))
    claimed(outbox)
    assert first.id != second.id

    with pytest.raises(LeaseLost):
        record(outbox, replace(first, attempt=0), FAILED)
    assert outbox.counts() == {"sending": 2}


def test_a_relay_may_say_what_is_no_text(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    odd = Outcome(DeliveryStatus.FAILED, "relay:25", "sender", None, "a\0b \udcff é")

    assert record(outbox, claimed(outbox), odd) is DeliveryStatus.FAILED
    assert [one.words for one in outbox.attempts(1)] == ["a\\0b \\udcff é"]


def test_delayed_with_backoff_until_given_up(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    now, waits = NOW, []
    while True:
        status = record(outbox, claimed(outbox, now=now), DELAYED, now=now)
        if status is not DeliveryStatus.DELAYED:
            break
        due = only(outbox).due_at
        assert due is not None
        waits.append(due - now)
        assert len(waits) < 100
        now = due

    assert waits[:4] == [MINUTE, 2 * MINUTE, 4 * MINUTE, 8 * MINUTE]
    assert waits[-1] == POLICY.longest_wait
    assert status is only(outbox).status is DeliveryStatus.FAILED
    assert now - NOW <= POLICY.give_up_after
    assert outbox.attempts(1)[-1].outcome == "delayed"


def test_jitter_moves_the_next_attempt(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), DELAYED, jitter=1.0)

    assert only(outbox).due_at == NOW + MINUTE * 1.2


def test_uncertain_is_tried_again_and_marked(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    first = claimed(outbox)

    assert record(outbox, first, UNCERTAIN) is DeliveryStatus.UNCERTAIN
    assert only(outbox).due_at == NOW + MINUTE
    again = claimed(outbox, now=NOW + MINUTE)
    assert again.outgoing == first.outgoing
    assert record(outbox, again, RELAYED) is DeliveryStatus.RELAYED
    assert only(outbox).maybe_doubled, "it stays so: both may have arrived"


def test_uncertain_is_kept_for_a_person_if_so_set(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)

    status = record(outbox, claimed(outbox), UNCERTAIN, hold_uncertain=True)
    assert status is DeliveryStatus.UNCERTAIN
    assert only(outbox).due_at is None


def test_uncertain_and_given_up_stays_uncertain(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    late = NOW + POLICY.give_up_after

    assert record(outbox, claimed(outbox), UNCERTAIN, now=late) is DeliveryStatus.UNCERTAIN
    assert only(outbox).due_at is None


def _taken_over(outbox: Outbox) -> None:
    recover(outbox, is_gone=lambda _: True)


def _claimed_by_another(outbox: Outbox) -> None:
    _taken_over(outbox)
    claimed(outbox, "another")


def _claimed_under_the_same_name(outbox: Outbox) -> None:
    """Two workers in one process."""
    _taken_over(outbox)
    claimed(outbox, "me")


def _retried(outbox: Outbox) -> None:
    _taken_over(outbox)
    outbox.retry("R-1", NOW)


def _cancelled(outbox: Outbox) -> None:
    _taken_over(outbox)
    outbox.cancel("R-1", NOW)


def _acknowledged(outbox: Outbox) -> None:
    _taken_over(outbox)
    outbox.acknowledge("R-1", TODAY, NOW)


def _failed_elsewhere(outbox: Outbox) -> None:
    _taken_over(outbox)
    record(outbox, claimed(outbox, "another"), FAILED, "another")


LOST = [
    _taken_over, _claimed_by_another, _claimed_under_the_same_name, _retried, _cancelled,
    _acknowledged, _failed_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("outcome", [FAILED, DELAYED, UNCERTAIN])
def test_an_outcome_after_the_lease_was_lost_changes_nothing(
    outbox: Outbox, lost: Callable[[Outbox], None], outcome: Outcome
) -> None:
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    lost(outbox)
    before = only(outbox), outbox.attempts(1), actions(outbox)

    with pytest.raises(LeaseLost):
        record(outbox, mine, outcome)
    run(outbox.release(mine, "me"))

    assert (only(outbox), outbox.attempts(1), actions(outbox)) == before


@pytest.mark.parametrize("lost", LOST)
def test_relayed_is_true_however_late_it_comes(
    outbox: Outbox, lost: Callable[[Outbox], None]
) -> None:
    """The relay holds it, whatever else was thought meanwhile; and nobody tries it again."""
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    lost(outbox)

    assert record(outbox, mine, RELAYED) is DeliveryStatus.RELAYED
    held = only(outbox)
    assert held.status is DeliveryStatus.RELAYED
    assert held.maybe_doubled
    assert held.due_at is None
    assert claim(outbox, now=NOW + timedelta(days=1)) is None
    assert recover(outbox, NOW + timedelta(days=1), is_gone=lambda _: True) == 0
    assert outbox.attempts(1)[0].outcome == "relayed"


def test_what_the_other_then_says_does_not_undo_it(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    _taken_over(outbox)
    theirs = claimed(outbox, "another")
    record(outbox, mine, RELAYED)

    with pytest.raises(LeaseLost):
        record(outbox, theirs, FAILED, "another")
    assert record(outbox, theirs, RELAYED, "another") is DeliveryStatus.RELAYED
    assert only(outbox).status is DeliveryStatus.RELAYED


@pytest.mark.parametrize("before", [None, DELAYED, UNCERTAIN])
def test_a_released_message_is_as_it_was(outbox: Outbox, before: Outcome | None) -> None:
    outbox.queue([submission()], NOW)
    if before:
        record(outbox, claimed(outbox), before)
    was = only(outbox), outbox.attempts(1)
    later = NOW + 5 * MINUTE

    run(outbox.release(claimed(outbox, now=later), "me"))

    assert (only(outbox), outbox.attempts(1)) == was
    assert claim(outbox, now=later) is not None


def broken_disk(outbox: Durable, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> Any:
        raise disk_full(outbox)

    monkeypatch.setattr(outbox, "_begin", full)


@durable
@pytest.mark.parametrize("then", ["something is written", "closed"])
def test_a_release_that_could_not_be_written_is_made_up_for(
    harness: Harness, outbox: Durable, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """It was never attempted, so it must not be taken for one that may have arrived."""
    outbox.queue(submissions(2), NOW)
    was = outbox.held(reference="R-1")
    mine = claimed(outbox)
    with monkeypatch.context() as broken:
        broken_disk(outbox, broken)
        with pytest.raises(OutboxUnusable):
            run(outbox.release(mine, "me"))
        assert outbox.counts() == {"sending": 1, "queued": 1}

    if then == "closed":
        outbox.close()
    else:
        assert recover(outbox, NOW + timedelta(days=1), is_gone=lambda _: True) == 0
    with harness.open("next") as again:
        assert again.held(reference="R-1") == was
        assert again.attempts(1) == []


@durable
def test_a_release_made_up_for_takes_nothing_from_who_has_it_by_then(
    harness: Harness, outbox: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    with monkeypatch.context() as broken:
        broken_disk(outbox, broken)
        with pytest.raises(OutboxUnusable):
            run(outbox.release(mine, "me"))
    with harness.open("another") as another:
        recover(another, is_gone=lambda _: True)
        theirs = claimed(another, "me")
        outbox.queue([submission(2)], NOW)
        assert record(another, theirs, RELAYED) is DeliveryStatus.RELAYED
        assert another.counts() == {"relayed": 1, "queued": 1}


# Decisions


def in_status(outbox: Outbox, status: DeliveryStatus, number: int = 1) -> str:
    outbox.queue([submission(number)], NOW)
    reference = f"R-{number}"
    if status is DeliveryStatus.CANCELLED:
        outbox.cancel(reference, NOW)
    elif status is not DeliveryStatus.QUEUED:
        mine = claimed(outbox)
        if status is not DeliveryStatus.SENDING:
            record(outbox, mine, replace(RELAYED, status=status))
    assert only(outbox).status is status
    return reference


STATUSES = [status for status in DeliveryStatus if status is not DeliveryStatus.DRAFTED]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        ("retry", {"delayed", "failed", "uncertain"}),
        ("cancel", {"queued", "delayed", "failed", "uncertain"}),
        ("acknowledge", {"relayed", "uncertain"}),
    ],
)
def test_what_a_person_may_decide(
    outbox: Outbox, status: DeliveryStatus, action: str, allowed: set[str]
) -> None:
    reference = in_status(outbox, status)
    before = only(outbox), actions(outbox)

    def decide() -> Held:
        if action == "acknowledge":
            return outbox.acknowledge(reference, TODAY, NOW)
        held: Held = getattr(outbox, action)(reference, NOW)
        return held

    if status in allowed:
        assert decide() == only(outbox)
        assert len(actions(outbox)) == len(before[1]) + 1
    else:
        with pytest.raises(NotPossibleNow, match=f"{reference} is {status}"):
            decide()
        assert (only(outbox), actions(outbox)) == before


def test_what_is_not_there_is_said_so(outbox: Outbox) -> None:
    for decide in (
        lambda: outbox.retry("R-1", NOW),
        lambda: outbox.cancel("R-1", NOW),
        lambda: outbox.acknowledge("R-1", TODAY, NOW),
        lambda: outbox.content(1),
    ):
        with pytest.raises(NotInOutbox):
            decide()
    assert outbox.erase("CASE-1", NOW) == 0


@pytest.mark.parametrize("odd", ["R\0", "R'"])
def test_whatever_is_looked_for_may_not_be_there(outbox: Outbox, odd: str) -> None:
    outbox.queue([submission()], NOW)
    assert outbox.held(reference=odd) == outbox.held(case_reference=odd) == []
    assert list(outbox.audit(odd)) == outbox.newest_entries(odd, limit=1) == []
    assert outbox.count_entries(odd) == 0
    assert outbox.known([odd]) == {}
    assert outbox.erase(odd, NOW) == 0
    with pytest.raises(NotInOutbox):
        outbox.cancel(odd, NOW)


def test_a_retried_message_starts_anew(outbox: Outbox) -> None:
    """Also with the time until it is given up."""
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), FAILED)
    late = NOW + 10 * POLICY.give_up_after

    held = outbox.retry("R-1", late)
    assert (held.status, held.due_at) == (DeliveryStatus.QUEUED, late)
    mine = claimed(outbox, now=late)
    assert mine.failures == 0
    assert record(outbox, mine, DELAYED, now=late) is DeliveryStatus.DELAYED
    assert only(outbox).due_at == late + MINUTE


def test_a_cancelled_referral_may_be_queued_anew(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    outbox.cancel("R-1", NOW)
    assert claim(outbox) is None

    assert outbox.queue([submission()], NOW)[0].new
    assert outbox.counts() == {"cancelled": 1, "queued": 1}
    outbox.cancel("R-1", NOW)
    assert outbox.counts() == {"cancelled": 2}


def test_of_several_with_one_reference(outbox: Outbox) -> None:
    """Changed facts make another message: the older is not sent again, but can be cancelled."""
    outbox.queue([submission(1, reference="R")], NOW)
    record(outbox, claimed(outbox), DELAYED)
    outbox.queue([submission(2, reference="R")], NOW)
    record(outbox, claimed(outbox), RELAYED)

    with pytest.raises(NotPossibleNow, match="is relayed"):
        outbox.retry("R", NOW)
    assert outbox.cancel("R", NOW).id == 1
    with pytest.raises(NotPossibleNow, match="is relayed"):
        outbox.cancel("R", NOW)


def test_acknowledgements_are_awaited_until_each_is_there(outbox: Outbox) -> None:
    outbox.queue([submission(1, reference="R"), submission(2, reference="R")], NOW)
    outbox.queue(submissions(4, first=3), NOW)
    for outcome in (RELAYED, RELAYED, RELAYED, UNCERTAIN, FAILED):
        record(outbox, claimed(outbox), outcome)
    by = date(2026, 12, 1)

    assert outbox.unacknowledged(by) == []
    overdue = outbox.unacknowledged(by + timedelta(days=1))
    assert [one.id for one in overdue] == [1, 2, 3, 4]
    for reference in ("R", "R", "R-3", "R-4"):
        outbox.acknowledge(reference, TODAY, NOW)
    assert outbox.unacknowledged(by + timedelta(days=1)) == []
    assert outbox.held(reference="R-4")[0].status is DeliveryStatus.RELAYED


def test_an_answer_proves_that_a_doubtful_one_arrived(outbox: Outbox) -> None:
    """A lost reply, then a refusal: it had arrived with the first attempt."""
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), UNCERTAIN)
    later = NOW + MINUTE
    mine = claimed(outbox, now=later)
    held = outbox.acknowledge("R-1", TODAY, later)
    assert (held.status, held.acknowledged_on) == (DeliveryStatus.RELAYED, TODAY)
    with pytest.raises(LeaseLost):
        record(outbox, mine, FAILED)
    assert recover(outbox, is_gone=lambda _: True) == 0


# Forgetting


def test_purge_forgets_content_by_age_and_keeps_the_account(outbox: Outbox) -> None:
    outbox.queue(submissions(5), NOW)
    for outcome in (RELAYED, FAILED, UNCERTAIN):
        record(outbox, claimed(outbox), outcome)
    outbox.cancel("R-4", NOW)
    record(outbox, claimed(outbox), RELAYED, now=NOW + MINUTE)

    assert outbox.purge(NOW, NOW) == 0
    assert outbox.purge(NOW + MINUTE * 0.5, NOW + 2 * MINUTE) == 2
    assert outbox.purge(NOW + MINUTE * 0.5, NOW + 2 * MINUTE) == 0
    kept = {one.reference: one.purged_at is None for one in outbox.held()}
    assert kept == {"R-1": False, "R-2": True, "R-3": True, "R-4": False, "R-5": True}
    assert {one.id for one in outbox.held() if outbox.content(one.id) is None} == {1, 4}
    assert actions(outbox)[-2:] == ["purged", "purged"]
    assert list(verify(outbox.audit())) == []
    assert not outbox.queue([submission(1)], NOW)[0].new, "it is still known"


def test_erase_forgets_one_case(outbox: Outbox) -> None:
    outbox.queue([submission(n, case_reference=f"CASE-{n % 2}") for n in range(4)], NOW)
    for _ in range(4):
        record(outbox, claimed(outbox), FAILED)

    assert outbox.erase("CASE-1", NOW) == 2
    assert outbox.erase("CASE-1", NOW) == 0
    assert {one.reference for one in outbox.held() if one.purged_at} == {"R-1", "R-3"}
    assert {entry.action for entry in outbox.audit("CASE-1")} == {"queued", "failed", "erased"}
    with pytest.raises(NotPossibleNow, match="purged"):
        outbox.retry("R-1", NOW)


@pytest.mark.parametrize(
    "status", [DeliveryStatus.QUEUED, DeliveryStatus.SENDING, DeliveryStatus.DELAYED]
)
def test_what_waits_is_not_erased(outbox: Outbox, status: DeliveryStatus) -> None:
    in_status(outbox, status)
    with pytest.raises(NotPossibleNow, match="1 of its messages still wait"):
        outbox.erase("CASE-1", NOW)
    assert outbox.content(1) is not None


# The clock


def test_time_to_give_up_counts_from_the_first_attempt(outbox: Outbox) -> None:
    """A machine that was off over the holidays still tries more than once."""
    outbox.queue([submission()], NOW)
    late = NOW + 10 * POLICY.give_up_after

    assert record(outbox, claimed(outbox, now=late), DELAYED, now=late) is DeliveryStatus.DELAYED


def test_a_clock_that_was_ahead_delays_nothing_queued(outbox: Outbox) -> None:
    ahead = NOW + timedelta(days=365)
    outbox.queue([submission(1)], NOW + timedelta(hours=1))
    outbox.queue([submission(2)], ahead)
    outbox.queue([submission(3)], ahead)
    record(outbox, claimed(outbox, now=ahead), DELAYED, now=ahead)

    recover(outbox, NOW)
    taken = {claimed(outbox).outgoing.reference for _ in range(3)}
    assert taken == {"R-1", "R-2", "R-3"}


def test_mending_the_clock_hurries_no_delayed_message(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), DELAYED)

    recover(outbox, NOW)
    assert only(outbox).due_at == NOW + MINUTE


def test_a_clock_that_jumps_ahead_fails_nothing_by_itself(outbox: Outbox) -> None:
    outbox.queue([submission()], NOW)
    record(outbox, claimed(outbox), DELAYED)
    ahead = NOW + timedelta(days=3650)

    recover(outbox, ahead)
    assert only(outbox).status is DeliveryStatus.DELAYED
    assert record(outbox, claimed(outbox, now=ahead), RELAYED) is DeliveryStatus.RELAYED


def test_times_are_kept_to_the_microsecond(outbox: Outbox) -> None:
    now = NOW + timedelta(microseconds=123_457)
    outbox.queue([submission()], now)
    assert only(outbox).queued_at == now


# The audit


def test_the_audit_tells_the_route_and_no_value(
    outbox: Outbox, service: Service, directory: Directory
) -> None:
    for name in sorted(directory.interventions):
        raw = sample_case(directory, [name], TODAY)
        words: list[str] = []

        def marked(value: Any, path: str, words: list[str] = words) -> Any:
            match value:
                case dict():
                    return {key: marked(inner, f"{path}.{key}") for key, inner in value.items()}
                case list():
                    return [marked(inner, path) for inner in value]
                case str() if path.rpartition(".")[2] in {"name", "address", "phone", "summary"}:
                    words.append(f"Canary{len(words)}x")
                    return words[-1]
                case _:
                    return value

        case, place = service.read(marked(raw, ""))
        referral = service.prepare(service.assess(case, place, name))
        if referral.agency.email is None:
            continue
        one = service.submission(referral, token="t", accept_unverified=True)
        assert any(word.encode() in one.outgoing.content for word in words), name
        outbox.queue([one], NOW)
        entry = list(outbox.audit(case.reference))[-1]
        shown = repr(entry)
        assert [word for word in words if word in shown] == []
        assert case.referrer.email not in shown
        assert entry.detail["address"] == referral.agency.email
        assert entry.detail["intervention"] == name
        assert entry.detail["sha256"] == hashlib.sha256(one.outgoing.content).hexdigest()
        outbox.cancel(referral.reference, NOW)
        outbox.erase(case.reference, NOW)
        again = service.submission(referral, token="u", accept_unverified=True)
        assert again.content_key == one.content_key


def test_any_actor_can_be_written_down(harness: Harness) -> None:
    with harness.open("k\udcffnig") as outbox:
        outbox.queue([submission()], NOW)
        assert list(verify(outbox.audit())) == []


# SQLite: several at once


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "outbox.sqlite3"


def test_a_new_file_can_be_opened_by_many_at_once(file: Path) -> None:
    def opened(number: int) -> int:
        with SqliteOutbox.open(file, "me") as outbox:
            return outbox.queue([submission(number)], NOW)[0].id

    with ThreadPoolExecutor(12) as pool:
        ids = list(pool.map(opened, range(24)))
    assert sorted(ids) == list(range(1, 25))


def blocked(outbox: Durable) -> threading.Event:
    """Keep the writer busy until the event is set, so that what is asked gathers behind."""
    release, started = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        started.set()
        release.wait(10)

    outbox._ask(hold)
    started.wait(10)
    return release


def asked_to_queue(outbox: SqliteOutbox, *some: Submission) -> Future[list[Queued]]:
    return outbox._ask(lambda db: outbox._queue(db, some, NOW))


def test_what_gathers_is_committed_at_once_and_a_mistake_costs_only_itself(file: Path) -> None:
    commits: list[str] = []
    with SqliteOutbox.open(file, "me") as outbox:
        outbox._connection.set_trace_callback(
            lambda text: commits.append(text) if text == "COMMIT" else None
        )
        release = blocked(outbox)
        wanted = [
            [submission(n)] if n % 5 else [submission(n), submission(n + 100, agency=None)]
            for n in range(1, 31)
        ]
        asked = [asked_to_queue(outbox, *some) for some in wanted]
        release.set()
        faults = [number for number, one in enumerate(asked, 1) if one.exception(10)]
        outbox._connection.set_trace_callback(None)

        assert faults == [5, 10, 15, 20, 25, 30]
        assert outbox.counts() == {"queued": 24}
        assert len(commits) == 2, "the one that blocked, and all that gathered behind it"
        assert list(verify(outbox.audit())) == []


def test_a_fault_of_the_disk_takes_back_all_and_tells_each(file: Path) -> None:
    def broken(_: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with SqliteOutbox.open(file, "me") as outbox:
        release = blocked(outbox)
        asked: list[Future[Any]] = [asked_to_queue(outbox, submission(n)) for n in range(3)]
        asked.append(outbox._ask(broken))
        release.set()
        faults = [one.exception(10) for one in asked]

        assert all(isinstance(fault, OutboxUnusable) for fault in faults)
        assert len({id(fault) for fault in faults}) == 4
        assert outbox.counts() == {}
        outbox.queue(submissions(3), NOW)
        assert outbox.counts() == {"queued": 3}


@pytest.mark.parametrize("fault", [SystemExit, KeyboardInterrupt, MemoryError])
def test_whatever_a_job_raises_reaches_who_asked(file: Path, fault: type[BaseException]) -> None:
    def broken(_: sqlite3.Connection) -> None:
        raise fault

    with SqliteOutbox.open(file, "me") as outbox:
        with pytest.raises(fault):
            outbox._do(broken)
        outbox.queue([submission()], NOW)
        assert outbox.counts() == {"queued": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_writer_that_is_dead(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_outbox: SqliteOutbox, _group: Any) -> None:
        raise RuntimeError("a bug")

    outbox = SqliteOutbox.open(file, "me")
    release = blocked(outbox)
    monkeypatch.setattr(SqliteOutbox, "_finish", broken)
    waiting = [asked_to_queue(outbox, submission(number)) for number in range(3)]
    release.set()
    faults = [one.exception(10) for one in waiting]

    assert {type(fault) for fault in faults} == {OutboxUnusable}
    outbox._writer.join(10)
    with pytest.raises(OutboxUnusable, match="closed"):
        outbox.queue([submission()], NOW)
    outbox.close()


def test_closing_finishes_what_was_asked_and_refuses_the_rest(file: Path) -> None:
    outbox = SqliteOutbox.open(file, "me")
    release = blocked(outbox)
    asked = [asked_to_queue(outbox, submission(n)) for n in range(20)]
    closing = threading.Thread(target=outbox.close)
    closing.start()
    while not outbox._closed:
        pass
    with pytest.raises(OutboxUnusable, match="is closed"):
        outbox.queue([submission(99)], NOW)
    release.set()
    closing.join(10)
    outbox.close()

    assert all(one.result(0)[0].new for one in asked)
    with SqliteOutbox.open(file, "me") as again:
        assert again.counts() == {"queued": 20}


def test_a_coroutine_that_waits_for_another_process_does_not_hold_up_its_loop(file: Path) -> None:
    async def scenario(outbox: SqliteOutbox) -> Claimed | NotYet | None:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.ensure_future(outbox.claim("me", NOW, LEASE))
            for _ in range(20):
                await asyncio.sleep(0.001)
                assert not task.done()
            other.execute("ROLLBACK")
        return await task

    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue([submission()], NOW)
        assert isinstance(run(scenario(outbox)), Claimed)


def test_a_coroutine_is_told_of_a_lock_that_does_not_end(file: Path) -> None:
    with (
        SqliteOutbox.open(file, "me", patience_s=0.05) as outbox,
        contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnusable, match="keeps it locked"):
            claim(outbox)
        other.execute("ROLLBACK")
        assert claim(outbox) is None


def test_what_a_coroutine_asked_for_is_done_though_its_loop_has_ended(file: Path) -> None:
    outbox = SqliteOutbox.open(file, "me")
    outbox.queue([submission()], NOW)
    mine = claimed(outbox)
    release = blocked(outbox)

    async def scenario() -> None:
        task = asyncio.ensure_future(outbox.record(mine, "me", RELAYED, NOW, POLICY))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario())
    release.set()
    until = time.monotonic() + 10
    while only(outbox).status is not DeliveryStatus.RELAYED:  # and nobody asks for anything more
        assert time.monotonic() < until
    outbox.close()


# SQLite: the file


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277, 0o777])
def test_nobody_else_can_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "some" / "where" / "outbox.sqlite3"
    before = os.umask(umask)
    try:
        with SqliteOutbox.open(file, "me") as outbox:
            outbox.queue([submission()], NOW)
            modes = {
                path.name: stat.S_IMODE(path.stat().st_mode)
                for path in (file.parent.parent, file.parent, *file.parent.iterdir())
            }
    finally:
        os.umask(before)

    assert modes == {
        "some": 0o700,
        "where": 0o700,
        "outbox.sqlite3": 0o600,
        "outbox.sqlite3-wal": 0o600,
        "outbox.sqlite3-shm": 0o600,
    }


def test_a_file_that_others_could_read_is_closed_to_them(file: Path) -> None:
    SqliteOutbox.open(file, "me").close()
    file.chmod(0o644)
    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue([submission()], NOW)
        assert {stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()} == {0o600}


def test_a_commit_waits_for_the_disk(file: Path) -> None:
    """No kill shows this, only a power cut."""
    with SqliteOutbox.open(file, "me") as outbox:
        full = 2
        assert outbox._do(lambda db: db.execute("PRAGMA synchronous").fetchone()[0]) == full
        assert outbox._do(lambda db: db.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"


def test_a_newer_file_is_refused_and_left_alone(file: Path) -> None:
    SqliteOutbox.open(file, "me").close()
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {sqlite_file.VERSION + 1}")
    before = file.read_bytes()

    with pytest.raises(OutboxUnusable, match="newer version of referrals"):
        SqliteOutbox.open(file, "me")
    assert file.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(file: Path) -> None:
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = file.read_bytes()

    with pytest.raises(OutboxUnusable, match="another program's"):
        SqliteOutbox.open(file, "me")
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(OutboxUnusable, match="not a database"):
        SqliteOutbox.open(file, "me")
    assert file.read_bytes() == content


def test_a_folder_in_its_place_is_refused(file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(OutboxUnusable, match="directory"):
        SqliteOutbox.open(file, "me")


def test_a_lock_that_does_not_end_is_said_so_and_then_all_works(file: Path) -> None:
    with SqliteOutbox.open(file, "me", patience_s=0.05) as outbox:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OutboxUnusable, match=r"locked.*keeps it locked"):
                outbox.queue([submission()], NOW)
            assert outbox.counts() == {}, "reading does not wait"
            with SqliteOutbox.open(file, "me", patience_s=0.05) as second:
                assert second.counts() == {}, "nor does opening"
            other.execute("ROLLBACK")
        outbox.queue([submission()], NOW)
        assert outbox.counts() == {"queued": 1}


def test_a_new_file_that_is_locked_is_said_so(file: Path) -> None:
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OutboxUnusable, match="locked"):
            SqliteOutbox.open(file, "me", patience_s=0.05)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_taken_away_is_noticed(file: Path, how: str) -> None:
    """Or what is queued would go into a file that nobody sees."""
    with SqliteOutbox.open(file, "me") as outbox:
        file.rename(file.with_name("elsewhere"))
        if how == "replaced":
            SqliteOutbox.open(file, "me").close()
        with pytest.raises(OutboxUnusable):
            outbox.queue([submission()], NOW)
        with pytest.raises(OutboxUnusable):
            run(outbox.claim("me", NOW, LEASE))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE content SET octets = x'00'",
        "DELETE FROM content",
        "DELETE FROM message",
        "UPDATE message SET recipient = 'else@where.test'",
        "UPDATE message SET sender = 'else@where.test'",
        "UPDATE message SET message_id = '<else>'",
        "UPDATE message SET sha256 = ''",
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
    ],
)
def test_the_file_refuses_what_must_not_happen(file: Path, statement: str) -> None:
    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue([submission()], NOW)
        with (
            contextlib.closing(sqlite3.connect(file)) as db,
            pytest.raises(sqlite3.IntegrityError),
        ):
            db.execute(statement)
        assert outbox.content(1) == submission().outgoing.content
        assert list(verify(outbox.audit())) == []


def test_tampering_with_the_file_is_noticed(file: Path) -> None:
    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue(submissions(3), NOW)
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("DROP TRIGGER audit_is_not_altered")
            db.execute("UPDATE audit SET detail = 'x' WHERE number = 2")
            db.commit()
        assert [one.number for one in verify(outbox.audit())] == [2]


@pytest.mark.parametrize("way", ["erased", "purged"])
def test_what_is_forgotten_is_in_none_of_the_files(file: Path, way: str) -> None:
    words = b"a canary sings in the letter"
    content = b"Subject: x\r\n\r\n" + (words + b"\r\n") * 200
    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue([submission(1, content=content), *submissions(50, first=2)], NOW)
        record(outbox, claimed(outbox), RELAYED)
        files = list(file.parent.iterdir())
        assert any(words in one.read_bytes() for one in files)
        if way == "erased":
            assert outbox.erase("CASE-1", NOW) == 1
        else:
            assert outbox.purge(NOW + MINUTE, NOW) == 1

        assert [one.name for one in files if words in one.read_bytes()] == []
        assert outbox.counts() == {"queued": 50, "relayed": 1}


def test_100_000_waiting_slow_down_neither_claim_nor_list(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every statement goes by an index, so none gets slower with the number of messages."""
    seen: list[str] = []
    connect = sqlite_file._connect

    def watched(*arguments: Any) -> sqlite3.Connection:
        connection = connect(*arguments)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite_file, "_connect", watched)
    with SqliteOutbox.open(file, "me") as outbox:
        seen.clear()
        outbox.queue(submissions(3), NOW)
        outbox.known(["key 1", "key 9"])
        recover(outbox)
        record(outbox, claimed(outbox), DELAYED)
        _, mine = run(outbox.record_and_claim(claimed(outbox), "me", RELAYED, NOW, POLICY, LEASE))
        assert mine is not None
        run(outbox.release(mine, "me"))
        paced(outbox, NOW)
        paced(outbox, NOW)
        recover(outbox, is_gone=lambda _: True)
        mine = claim(outbox, only=1)
        assert mine is not None
        run(outbox.release(mine, "me"))
        outbox.counts()
        outbox.held(limit=1)
        outbox.held(status=DeliveryStatus.QUEUED)
        outbox.held(reference="R-1")
        outbox.held(case_reference="CASE-1")
        outbox.attempts(1)
        outbox.content(1)
        outbox.retry("R-1", NOW)
        outbox.cancel("R-1", NOW)
        outbox.acknowledge("R-2", TODAY, NOW)
        outbox.erase("CASE-1", NOW)
        list(outbox.audit("CASE-1"))
        statements = {
            one for one in seen if one.split()[0] in {"SELECT", "UPDATE", "DELETE", "WITH"}
        }
        assert len(statements) > 35
        plans = {
            one: [str(row[3]) for row in outbox._read(f"EXPLAIN QUERY PLAN {one}")]
            for one in statements
        }

    tables = {"message", "m", "content", "attempt", "audit"}
    for statement, plan in plans.items():
        scans = [step for step in plan if step.startswith("SCAN ") and step.split()[1] in tables]
        first = "LIMIT 1" in statement or "max(id)" in statement
        # Those under way are no more than the lanes; to count all, only an index is read.
        few = all("message_leased" in step for step in scans)
        counting = scans == ["SCAN message USING COVERING INDEX message_status"]
        assert not scans or first or few or counting, (statement, plan)
        # Only the messages of one reference are sorted.
        if "acknowledged_on IS NOT NULL" not in statement:
            assert not any("TEMP B-TREE" in step for step in plan), (statement, plan)


# SQLite: older files


def filled_version_1(file: Path) -> None:
    """As version 1 left it: messages in every status, one of them under way."""
    file.parent.mkdir(exist_ok=True)
    script = Path(__file__).parents[1] / "outbox-version-1.sql"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(script.read_text(encoding="utf-8"))
        at, later = account.micros(NOW), account.micros(NOW + MINUTE)
        leased = account.micros(NOW + LEASE)
        statuses: list[tuple[str, int | None, int | None, str | None]] = [
            ("queued", at, None, None), ("sending", None, leased, "dead"),
            ("delayed", later, None, None), ("relayed", None, None, None),
            ("failed", None, None, None), ("uncertain", later, None, None),
        ]  # fmt: skip
        before = FIRST
        for number, (status, due, lease, owner) in enumerate(statuses, 1):
            one = submission(number)
            content = one.outgoing.content
            db.execute(
                "INSERT INTO message (id, reference, case_reference, intervention, agency,"
                " content_key, sender, recipient, message_id, sha256, size, queued_at,"
                " trying_since, status, due_at, lease_until, lease_owner, attempts, failures,"
                " acknowledge_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
                " '2026-12-01')",
                (number, f"R-{number}", f"CASE-{number}", "mediation", f"agency-{number % 2}",
                 one.content_key, SENDER, "agency@council.test", one.message_id,
                 hashlib.sha256(content).hexdigest(), len(content), at, at, status, due, lease,
                 owner, int(status != "queued"), int(status in {"delayed", "uncertain"})),
            )  # fmt: skip
            db.execute("INSERT INTO content VALUES (?, ?)", (number, content))
            if status != "queued":
                ended = None if status == "sending" else at
                db.execute(
                    "INSERT INTO attempt (message, started_at, ended_at) VALUES (?, ?, ?)",
                    (number, at, ended),
                )
            entry = new_entry(
                number=number, before=before, at=NOW, actor="me", action="queued",
                reference=f"R-{number}", case_reference=f"CASE-{number}", detail={},
            )  # fmt: skip
            before = entry.hash
            db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", astuple(entry))
        db.execute("PRAGMA user_version = 1")


def layout(file: Path) -> set[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as db:
        return {
            (kind, name, "".join(statement.split()))  # what is added is spaced otherwise
            for kind, name, statement in db.execute(
                "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
            )
        }


def test_a_file_of_version_1_is_brought_up_to_date(tmp_path: Path, file: Path) -> None:
    filled_version_1(file)

    with SqliteOutbox.open(file, "me") as outbox:
        assert outbox.counts() == dict.fromkeys(
            ("queued", "sending", "delayed", "relayed", "failed", "uncertain"), 1
        )
        assert [outbox.content(number) for number in range(1, 7)] == [
            one.outgoing.content for one in submissions(6)
        ]
        assert [len(outbox.attempts(number)) for number in range(1, 7)] == [0, 1, 1, 1, 1, 1]
        assert not any(one.new for one in outbox.queue(submissions(6), NOW))
        assert recover(outbox, is_gone=lambda owner: owner == "dead") == 1
        assert isinstance(paced(outbox, NOW), Claimed)
        record(outbox, claimed(outbox), RELAYED)
        assert list(verify(outbox.audit())) == []
    new = tmp_path / "new" / "outbox.sqlite3"
    SqliteOutbox.open(new, "me").close()
    assert layout(file) == layout(new)


def test_many_at_once_may_find_a_file_of_version_1(file: Path) -> None:
    filled_version_1(file)

    def opened(number: int) -> bool:
        with SqliteOutbox.open(file, "me") as outbox:
            return outbox.queue([submission(100 + number)], NOW)[0].new

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(opened, range(8)))


def _migrate_and_die(file: Path, step: int) -> None:
    connect = sqlite3.connect
    left = step + 1

    class Watched(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            nonlocal left
            if statement.lstrip().startswith(("BEGIN", "DROP", "CREATE", "--", "INSERT", "COMMIT")):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(statement, *values)

    sqlite3.connect = lambda *given, **more: connect(*given, **more, factory=Watched)  # type: ignore[assignment]
    SqliteOutbox.open(file, "child").close()


def test_a_kill_in_the_middle_of_it_leaves_one_version_or_the_other(file: Path) -> None:
    forks = multiprocessing.get_context("forkserver")
    ended, step = -signal.SIGKILL, 0
    while ended == -signal.SIGKILL:
        shutil.rmtree(file.parent, ignore_errors=True)
        filled_version_1(file)
        process = forks.Process(target=_migrate_and_die, args=(file, step))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        ended, step = process.exitcode, step + 1
        with SqliteOutbox.open(file, "next") as outbox:
            assert sum(outbox.counts().values()) == 6
            assert outbox.queue([submission(7)], NOW)[0].new
    assert ended == 0
    assert step > 6


# SQLite: the disk


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own; what is yielded mounts it again with other options."""
    mount = mount_small(folder, options)

    def again(options: str) -> None:
        subprocess.run(
            [mount, "-o", f"remount,{options}", str(folder)], check=True, capture_output=True
        )

    try:
        yield again
    finally:
        unmount(folder)


def fill(outbox: SqliteOutbox, first: int) -> int:
    """Queue until the disk is full; the first number that was refused."""
    for number in range(first, first + 5_000):
        try:
            outbox.queue([submission(number, content=os.urandom(8_000) + b"\r\n")], NOW)
        except OutboxUnusable:
            return number
    raise AssertionError("it never filled up")


def relay_all(outbox: SqliteOutbox) -> None:
    while mine := claim(outbox):
        record(outbox, mine, RELAYED)


def test_a_full_disk_loses_nothing_and_is_forgotten_once_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder, "size=1m") as again:
        with SqliteOutbox.open(folder / "outbox.sqlite3", "me") as outbox:
            refused = fill(outbox, 1)
            assert refused > 5
            assert outbox.counts() == {"queued": refused - 1}
            with pytest.raises(OutboxUnusable, match=r"full|No space|disk I/O"):
                relay_all(outbox)
            again("size=8m")
            relay_all(outbox)
            recover(outbox, is_gone=lambda _: True)
            counts = Counter(outbox.counts())
            assert counts["relayed"] + counts["uncertain"] == refused - 1
            assert counts["uncertain"] <= 1, "at most the one that could not be recorded"
            outbox.queue([submission(refused)], NOW)
            assert list(verify(outbox.audit())) == []
        with SqliteOutbox.open(folder / "outbox.sqlite3", "me") as outbox:
            assert sum(outbox.counts().values()) == refused
            assert all(
                hashlib.sha256(outbox.content(one.id) or b"").hexdigest() == one.sha256
                for one in outbox.held()
            )


def test_a_disk_that_is_full_at_first_is_said_so(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder, "size=64k") as again:
        filler = folder / "filler"
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * 100_000)
        with pytest.raises(OutboxUnusable, match="Free some room"):
            SqliteOutbox.open(folder / "outbox.sqlite3", "me").queue([submission()], NOW)
        again("size=1m")
        with SqliteOutbox.open(folder / "outbox.sqlite3", "me") as outbox:
            outbox.queue([submission()], NOW)


def test_a_read_only_disk_is_said_so(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with small_disk(folder, "size=1m") as again:
        SqliteOutbox.open(folder / "outbox.sqlite3", "me").close()
        again("ro")
        for place in (folder / "outbox.sqlite3", folder / "new" / "outbox.sqlite3"):
            with pytest.raises(OutboxUnusable, match="Read-only file system"):
                SqliteOutbox.open(place, "me")


def test_the_sender_is_forgotten_with_the_content(file: Path) -> None:
    with SqliteOutbox.open(file, "me") as outbox:
        outbox.queue([submission()], NOW)
        record(outbox, claimed(outbox), RELAYED)
        outbox.erase("CASE-1", NOW)
        assert not any(SENDER.encode() in one.read_bytes() for one in file.parent.iterdir())
