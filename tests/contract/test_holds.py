"""An agency that is held: nothing goes to it, nothing is lost, and a corrected address gets it."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from referrals.audit import verify
from referrals.delivery import DeliveryStatus, Outgoing, Reply, RetryPolicy, Submission
from referrals.directory import Directory
from referrals.errors import NotPossibleNow
from referrals.holding import Hold, Reason, Rerouted, Rerouting
from referrals.outboxes.postgres import jobs as postgres_jobs
from referrals.outboxes.postgres import outbox as postgres_outbox
from referrals.outboxes.postgres import steps as postgres_steps
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.postgres.steps import migrate
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.queueing import Claimed, Held, NotYet, Outcome
from referrals.samples import sample_case
from referrals.service import Service
from tests.conftest import NOW, TODAY
from tests.older_files import make_older
from tests.outboxes import Durable, Harness, Outbox, durable
from tests.peers import run
from tests.postgres import server
from tests.queued import submission

LEASE = timedelta(minutes=20)
MINUTE = timedelta(minutes=1)
POLICY = RetryPolicy()
RELAYED = Outcome(DeliveryStatus.RELAYED, "relay:587", "content", Reply.parse(250, "2.0.0 Ok"))
DELAYED = Outcome(DeliveryStatus.DELAYED, "relay:587", "sender", Reply.parse(451, "4.3.0 later"))
FAILED = Outcome(DeliveryStatus.FAILED, "relay:587", "recipient", Reply.parse(550, "5.1.1 who?"))
UNCERTAIN = Outcome(DeliveryStatus.UNCERTAIN, "relay:587", "content", None, "the link was lost")

OLD, NEW, NEWER = "old@agency.test", "New.Desk@agency.test", "newer@agency.test"
WHY = Reason.WRONG_ADDRESS


def letter(number: int = 1, to: str = OLD, agency: str = "a", **changes: Any) -> Submission:
    """A referral to one address; its facts are its number's, whatever the address."""
    content = (
        f"From: officer@police.test\r\nTo: {to}\r\nSubject: R-{number}\r\n"
        f"Date: Tue, 24 Nov 2026 12:00:00 +0000\r\nMessage-ID: <R-{number}.t@police.test>\r\n\r\n"
        f"To: whom it may concern\r\nletter {number}\r\n"
    ).encode()
    given = {"content_key": f"key {number} {to}", "facts_key": f"facts {number}"}
    return submission(
        number, agency=agency, recipient=to, content=content, **given | {"detail": {}} | changes
    )


def letters(count: int, first: int = 1, **changes: Any) -> list[Submission]:
    return [letter(number, **changes) for number in range(first, first + count)]


def claim(outbox: Outbox, now: datetime = NOW, **more: Any) -> Claimed | None:
    found = run(outbox.claim("me", now, LEASE, **more))
    assert not isinstance(found, NotYet)
    return found


def claimed(outbox: Outbox, now: datetime = NOW) -> Claimed:
    found = claim(outbox, now)
    assert found is not None
    return found


def record(outbox: Outbox, mine: Claimed, outcome: Outcome, now: datetime = NOW) -> DeliveryStatus:
    return run(outbox.record(mine, "me", outcome, now, POLICY))


def queued_and(outbox: Outbox, one: Submission, outcome: Outcome) -> Held:
    outbox.queue([one], NOW)
    record(outbox, claimed(outbox), outcome)
    return outbox.held(reference=one.outgoing.reference)[0]


def reroute(outbox: Outbox, to: str = NEW, agency: str = "a", **more: Any) -> list[Rerouted]:
    rerouting = Rerouting(agency, to, accepted_unverified=False, **more)
    return [one for group in outbox.reroute(rerouting, NOW) for one in group]


def release(outbox: Outbox, to: str = NEW, now: datetime = NOW, **more: Any) -> list[Rerouted]:
    done = reroute(outbox, to, **more)
    outbox.resume("a", to, now)
    return done


def taken(outbox: Outbox, now: datetime = NOW) -> list[tuple[str, str]]:
    """Reference and recipient of all that can be claimed, in order, each relayed."""
    found = []
    while (mine := claim(outbox, now)) is not None:
        record(outbox, mine, RELAYED, now)
        found.append((mine.outgoing.reference, mine.outgoing.envelope.recipient))
    return found


def actions(outbox: Outbox) -> list[str]:
    return [entry.action for entry in outbox.audit()]


# While an agency is held


def test_nothing_of_a_held_agency_is_claimed_and_the_others_are(outbox: Outbox) -> None:
    queued = outbox.queue([*letters(3), *letters(2, first=11, agency="b")], NOW)

    hold, new = outbox.hold("a", WHY, NOW)

    assert (hold, new) == (Hold("a", NOW, "tester", WHY), True)
    assert outbox.holds() == [hold]
    assert [reference for reference, _ in taken(outbox)] == ["R-11", "R-12"]
    assert claim(outbox, only=queued[0].id) is None, "not by name either"
    assert outbox.counts() == {"queued": 3, "relayed": 2}
    assert outbox.oldest_due(NOW) is None, "nobody need be alarmed"


def test_a_held_message_takes_no_place_in_the_pace(outbox: Outbox) -> None:
    outbox.queue(letters(1), NOW)
    outbox.hold("a", WHY, NOW)
    assert claim(outbox, every=MINUTE) is None
    outbox.queue(letters(1, first=11, agency="b"), NOW)
    assert claim(outbox, every=MINUTE) is not None
    assert claim(outbox, every=MINUTE) is None


def test_what_is_queued_meanwhile_is_kept_once_and_goes_when_it_is_released(
    harness: Harness, outbox: Outbox
) -> None:
    outbox.queue(letters(2), NOW)
    outbox.hold("a", WHY, NOW)
    with harness.open("page") as page:
        assert [one.new for one in page.queue(letters(4), NOW + MINUTE)] == [False] * 2 + [True] * 2
        assert [one.new for one in page.queue(letters(4), NOW + MINUTE)] == [False] * 4
    with harness.open("another") as other:
        assert claim(other, NOW + 2 * MINUTE) is None
        assert other.counts() == {"queued": 4}
    outbox.resume("a", OLD, NOW + 2 * MINUTE)
    order = [f"R-{number}" for number in range(1, 5)]
    assert [reference for reference, _ in taken(outbox, NOW + 2 * MINUTE)] == order
    assert outbox.holds() == []


@pytest.mark.parametrize("outcome", [RELAYED, DELAYED, UNCERTAIN, FAILED])
def test_what_is_under_way_is_finished(outbox: Outbox, outcome: Outcome) -> None:
    outbox.queue(letters(2), NOW)
    mine = claimed(outbox)
    outbox.hold("a", WHY, NOW)
    status, following = run(outbox.record_and_claim(mine, "me", outcome, NOW, POLICY, LEASE))
    assert (status, following) == (outcome.status, None)
    assert claim(outbox, NOW + timedelta(days=1)) is None, "nor is it tried again"


def test_what_is_given_back_or_lost_meanwhile_is_kept(outbox: Outbox) -> None:
    outbox.queue(letters(2), NOW)
    given_back, lost = claimed(outbox), claimed(outbox)
    outbox.hold("a", WHY, NOW)
    run(outbox.release(given_back, "me"))
    assert run(outbox.recover(NOW + 2 * LEASE, POLICY, is_gone=lambda _: False)) == 1
    later = NOW + 2 * LEASE
    assert claim(outbox, later) is None
    assert outbox.counts() == {"queued": 1, "uncertain": 1}
    outbox.resume("a", OLD, later)
    assert len(taken(outbox, later)) == 2
    assert lost.id != given_back.id


@pytest.mark.parametrize("outcome", [DELAYED, FAILED, UNCERTAIN])
def test_what_is_retried_meanwhile_is_kept(outbox: Outbox, outcome: Outcome) -> None:
    queued_and(outbox, letter(), outcome)
    outbox.hold("a", WHY, NOW)
    assert outbox.retry("R-1", NOW).status is DeliveryStatus.QUEUED
    assert claim(outbox) is None
    outbox.resume("a", OLD, NOW)
    assert taken(outbox) == [("R-1", OLD)]


def test_time_under_hold_does_not_count_against_a_message(outbox: Outbox) -> None:
    """Neither towards giving up, nor for it against others."""
    queued_and(outbox, letter(), DELAYED)
    outbox.hold("a", WHY, NOW + MINUTE)
    later = NOW + 10 * POLICY.give_up_after
    outbox.resume("a", OLD, later)
    assert outbox.oldest_due(later) == later
    mine = claimed(outbox, later)
    assert mine.trying_since == later - MINUTE
    assert record(outbox, mine, DELAYED, later) is DeliveryStatus.DELAYED


def test_a_released_agency_does_not_go_before_those_that_waited(outbox: Outbox) -> None:
    outbox.queue(letters(3), NOW)
    outbox.hold("a", WHY, NOW)
    outbox.queue(letters(1, first=11, agency="b"), NOW + MINUTE)
    outbox.resume("a", OLD, NOW + 2 * MINUTE)
    order = [reference for reference, _ in taken(outbox, NOW + 3 * MINUTE)]
    assert isinstance(outbox, PostgresOutbox) or order == ["R-11", "R-1", "R-2", "R-3"]
    assert order.index("R-11") < 2


def test_a_hold_that_is_there_already_is_left_as_it_is(harness: Harness, outbox: Outbox) -> None:
    first, _ = outbox.hold("a", WHY, NOW)
    with harness.open("jo") as other:
        assert other.hold("a", Reason.OTHER, NOW + MINUTE) == (first, False)
    assert actions(outbox) == ["agency held"]
    outbox.hold("b", Reason.AGENCY_ASKED, NOW)
    assert [(one.agency, one.why) for one in outbox.holds()] == [
        ("a", WHY), ("b", Reason.AGENCY_ASKED),
    ]  # fmt: skip


def test_what_is_not_held_can_be_neither_released_nor_rerouted(outbox: Outbox) -> None:
    queued_and(outbox, letter(), DELAYED)
    due = outbox.held()[0].due_at
    with pytest.raises(NotPossibleNow, match="a is not held"):
        outbox.resume("a", OLD, NOW)
    with pytest.raises(NotPossibleNow, match="a is not held"):
        reroute(outbox)
    assert outbox.held()[0].due_at == due
    assert actions(outbox) == ["queued"]


def test_from_the_hold_on_nobody_takes_another_whoever_is_at_it(harness: Harness) -> None:
    """Each of four threads with an outbox of its own; whatever is under way is seen to be."""
    with harness.open() as outbox:
        outbox.queue([*letters(300), *letters(60, first=1_001, agency="b")], NOW)
        begun = threading.Event()
        late: list[str] = []

        def work(number: int) -> None:
            async def all_there_are() -> None:
                with harness.open() as mine:
                    for count in itertools.count():
                        if count == 30:  # on a busy machine the hold may not come before the last
                            begun.wait()
                        over = begun.is_set()
                        found = await mine.claim(f"me {number}", NOW, LEASE)
                        if not isinstance(found, Claimed):
                            return
                        if over and found.agency == "a":
                            late.append(found.outgoing.reference)

            asyncio.run(all_there_are())

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while outbox.counts().get("sending", 0) < 20:
            pass
        try:
            outbox.hold("a", WHY, NOW)
            under_way = {
                one.reference
                for one in outbox.held(status=DeliveryStatus.SENDING) if one.agency == "a"
            }  # fmt: skip
        finally:
            begun.set()
        for thread in threads:
            thread.join()
        after = Counter(one.agency for one in outbox.held(status=DeliveryStatus.SENDING))
        assert late == []
        assert 0 < len(under_way) < 300, "else this has shown nothing"
        assert after == {"a": len(under_way), "b": 60}
        assert sum(one.number for one in outbox.addressed("a") if one.waits) == 300 - len(under_way)


@durable
def test_a_hold_counts_also_among_steps_that_are_kept_together(harness: Harness) -> None:
    """One commit for two claims, and for the hold between them."""
    with harness.open_durable() as outbox:
        outbox.queue(letters(3), NOW)
        holding = threading.Thread(target=outbox.hold, args=("a", WHY, NOW))
        found: list[Claimed | NotYet | None] = []

        async def claim_one() -> None:
            found.append(await outbox.claim("me", NOW, LEASE))

        async def scenario() -> None:
            let_go = blocked(outbox)
            first = asyncio.ensure_future(claim_one())
            await asyncio.sleep(0)
            holding.start()
            while len(outbox._jobs) < 2:
                pass
            second = asyncio.ensure_future(claim_one())
            await asyncio.sleep(0)
            let_go.set()
            await asyncio.gather(first, second)

        run(scenario())
        holding.join()
        assert [one is None for one in found] == [False, True]


def blocked(outbox: Durable) -> threading.Event:
    """Keeps its writer busy until the event that it gives is set."""
    started, let_go = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        started.set()
        let_go.wait(10)

    outbox._ask(wait)
    assert started.wait(10)
    return let_go


# Another address


def test_what_waits_gets_the_new_address(outbox: Outbox) -> None:
    outbox.queue([*letters(3), letter(4, to=NEW), *letters(1, first=11, agency="b")], NOW)
    before = {one.reference: one for one in outbox.held()}
    outbox.hold("a", WHY, NOW)
    done = release(outbox)

    assert [one.reference for one in done] == ["R-1", "R-2", "R-3"]
    after = {one.reference: one for one in outbox.held() if one.status != "cancelled"}
    for one in done:
        old, new = before[one.reference], after[one.reference]
        assert (one.old, one.new, new.replaces) == (old.id, new.id, old.id)
        assert outbox.held(message_id=old.id)[0].status is DeliveryStatus.CANCELLED
        assert (new.recipient, new.acknowledge_by) == (NEW, old.acknowledge_by)
        assert new.message_id != old.message_id
        assert re.fullmatch(rf"<{one.reference}\.[0-9a-f]{{16}}@police\.test>", new.message_id)
    assert after["R-4"] == before["R-4"]
    order = taken(outbox)
    assert sorted(order) == [("R-1", NEW), ("R-11", OLD), ("R-2", NEW), ("R-3", NEW), ("R-4", NEW)]
    assert outbox.counts() == {"relayed": 5, "cancelled": 3}
    assert list(verify(outbox.audit())) == []


def _parts(message: Message) -> list[tuple[str, bytes]]:
    return [
        (part.get_content_type(), part.get_payload(decode=True))  # type: ignore[misc]
        for part in message.walk()
        if not part.is_multipart()
    ]


def test_nothing_but_to_date_and_message_id_changes(
    outbox: Outbox, directory: Directory, service: Service
) -> None:
    """Of every intervention's letter, octet for octet."""
    made = {}
    for name in sorted(directory.interventions):
        case, place = service.read(sample_case(directory, [name], TODAY))
        referral = service.prepare(service.assess(case, place, name))
        if referral.agency.email is not None:
            one = service.submission(referral, token="t", accept_unverified=True)
            made[one.agency, one.outgoing.reference] = one
    outbox.queue(list(made.values()), NOW)
    at = NOW + timedelta(days=3)
    assert len(made) >= 6
    for agency, reference in made:
        outbox.hold(agency, WHY, NOW)
        rerouting = Rerouting(agency, NEW, accepted_unverified=True)
        [[done]] = list(outbox.reroute(rerouting, at))
        assert done.new is not None
        old, new = outbox.content(done.old), outbox.content(done.new)
        assert old is not None
        assert new is not None
        assert old == made[agency, reference].outgoing.content, "what was queued stays as it was"
        before, after = old.split(b"\r\n"), new.split(b"\r\n")
        head = before.index(b"")
        changed = [(a, b) for a, b in zip(before[:head], after[:head], strict=True) if a != b]
        assert [line.partition(b":")[0] for line, _ in changed] == [b"To", b"Date", b"Message-ID"]
        assert before[head:] == after[head:]
        read_old, read_new = message_from_bytes(old), message_from_bytes(new)
        assert read_new["To"] == NEW
        assert read_new["Date"] == "Fri, 27 Nov 2026 12:00:00 +0000"
        assert read_new["Message-ID"] == outbox.held(message_id=done.new)[0].message_id
        assert _parts(read_old) == _parts(read_new) != []
        [held] = outbox.held(message_id=done.new)
        assert (held.size, held.recipient) == (len(new), NEW)
        outbox.resume(agency, NEW, at)
        mine = claim(outbox, at, only=done.new)
        assert mine is not None
        assert mine.is_intact
        sender = made[agency, reference].outgoing.envelope.sender
        assert mine.outgoing == Outgoing(
            reference, replace(mine.outgoing.envelope, sender=sender, recipient=NEW), new
        )
    text = json.dumps([dict(entry.detail) for entry in outbox.audit()])
    name = sample_case(directory, ["mediation"], TODAY)["people"]["victim"]["name"]
    assert name
    assert str(name) not in text


def test_the_audit_links_both(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    list(outbox.reroute(Rerouting("a", NEW, accepted_unverified=True), NOW))
    outbox.resume("a", NEW, NOW + MINUTE)
    entries = list(outbox.audit())
    new, old = outbox.held()
    assert [(one.action, one.reference, one.case_reference) for one in entries] == [
        ("queued", "R-1", "CASE-1"), ("agency held", "", ""), ("rerouted", "R-1", "CASE-1"),
        ("agency released", "", ""),
    ]  # fmt: skip
    assert entries[1].detail == {"agency": "a", "why": "wrong-address"}
    assert entries[2].detail == {
        "agency": "a", "intervention": "mediation", "accepted_unverified": True,
        "replaced_address": OLD, "replaced_sha256": old.sha256,
        "address": NEW, "sha256": new.sha256,
    }  # fmt: skip
    assert entries[3].detail == {
        "agency": "a", "why": "wrong-address", "address": NEW, "uncertain_left": 0,
    }  # fmt: skip
    assert list(verify(entries)) == []


def test_the_same_referral_is_one_whichever_directory_it_is_queued_with(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    reroute(outbox)
    for to in (OLD, NEW):
        assert not outbox.queue([letter(to=to)], NOW)[0].new, to
    reroute(outbox, NEWER)
    for to in (OLD, NEW, NEWER):
        assert not outbox.queue([letter(to=to)], NOW)[0].new, to
    release(outbox, OLD)
    now_there = outbox.held()[0]
    for to in (OLD, NEW, NEWER):
        [again] = outbox.queue([letter(to=to)], NOW)
        assert (again.new, again.id) == (False, now_there.id), to
    assert taken(outbox) == [("R-1", OLD)]
    assert outbox.queue([letter(to=NEW)], NOW)[0].status is DeliveryStatus.RELAYED
    assert outbox.counts() == {"cancelled": 3, "relayed": 1}


def test_an_address_that_it_never_had_makes_it_another(outbox: Outbox) -> None:
    """As where it turns out later that what was relayed went wrong."""
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    release(outbox)
    taken(outbox)
    assert outbox.queue([letter(to=NEWER)], NOW)[0].new
    assert outbox.queue([letter(2, to=NEW)], NOW)[0].new, "other facts are another referral"


def test_what_is_at_the_new_address_already_is_not_doubled(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    [there] = outbox.queue([letter(to=NEW)], NOW)
    assert there.new, "the hold is not over, and the directory is right by now"
    [done] = release(outbox)
    assert (done.new, done.joined) == (there.id, True)
    assert not outbox.queue([letter()], NOW)[0].new
    assert taken(outbox) == [("R-1", NEW)]
    assert outbox.counts() == {"relayed": 1, "cancelled": 1}
    assert [one.detail["sha256"] for one in outbox.audit() if one.action == "rerouted"] == [
        outbox.held(message_id=there.id)[0].sha256
    ]


@pytest.mark.parametrize("facts", [True, False])
def test_a_rerouted_one_says_where_to(facts: bool, outbox: Outbox) -> None:
    """The next address that it was made anew for; without facts it is of an older version."""
    outbox.queue([letter() if facts else letter(facts_key=None)], NOW)
    outbox.queue([letter(2)], NOW)
    outbox.cancel("R-2", NOW)
    for to in (NEW, NEWER):
        outbox.hold("a", WHY, NOW)
        release(outbox, to=to)
    assert [(one.recipient, one.rerouted_to) for one in outbox.held(reference="R-1")] == [
        (NEWER, None), (NEW, NEWER), (OLD, NEW),
    ]  # fmt: skip
    assert [one.rerouted_to for one in outbox.held(reference="R-2")] == [None]


def test_one_that_joins_another_says_where_to(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    outbox.queue([letter(to=NEW)], NOW)
    release(outbox)
    assert [(one.recipient, one.rerouted_to) for one in outbox.held()] == [(NEW, None), (OLD, NEW)]


def test_one_that_is_at_two_old_addresses_goes_once(outbox: Outbox) -> None:
    outbox.queue([letter(), letter(to=NEWER)], NOW)
    outbox.hold("a", WHY, NOW)
    first, second = release(outbox)
    assert (first.new, first.joined, second.joined) == (second.new, False, True)
    for to in (OLD, NEW, NEWER):
        assert not outbox.queue([letter(to=to)], NOW)[0].new
    assert taken(outbox) == [("R-1", NEW)]


@pytest.mark.parametrize("to", [OLD, NEW])
def test_a_rerouted_one_that_is_cancelled_may_be_queued_anew(outbox: Outbox, to: str) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    reroute(outbox)
    assert outbox.cancel("R-1", NOW).recipient == NEW
    assert outbox.queue([letter(to=to)], NOW)[0].new
    assert not outbox.queue([letter(to=to)], NOW)[0].new
    assert outbox.counts() == {"cancelled": 2, "queued": 1}


def test_one_without_its_facts_key_is_known_by_the_old_address(outbox: Outbox) -> None:
    """As messages are that an older version queued."""
    outbox.queue([letter(facts_key=None)], NOW)
    outbox.hold("a", WHY, NOW)
    release(outbox)
    assert not outbox.queue([letter(facts_key=None)], NOW)[0].new
    assert not outbox.queue([letter()], NOW)[0].new
    assert taken(outbox) == [("R-1", NEW)]


@pytest.mark.parametrize(
    ("outcome", "more"),
    [(UNCERTAIN, {"with_uncertain": True}), (FAILED, {"with_failed": True})],
)
def test_what_may_be_there_or_was_refused_is_taken_along_only_if_one_says_so(
    outbox: Outbox, outcome: Outcome, more: dict[str, Any]
) -> None:
    old = queued_and(outbox, letter(), outcome)
    outbox.queue([letter(2)], NOW)
    outbox.hold("a", WHY, NOW)
    assert [one.reference for one in release(outbox)] == ["R-2"]
    held = outbox.held(message_id=old.id)[0]
    assert (held.status, held.due_at) == (outcome.status, None), "it is for a person to decide"
    assert taken(outbox, NOW + timedelta(days=1)) == [("R-2", NEW)]

    outbox.hold("a", WHY, NOW)
    assert [one.reference for one in release(outbox, **more)] == ["R-1"]
    assert taken(outbox, NOW + timedelta(days=1)) == [("R-1", NEW)]


def test_a_failed_one_that_is_forgotten_is_left(outbox: Outbox) -> None:
    queued_and(outbox, letter(), FAILED)
    outbox.purge_unfinished(NOW + MINUTE, NOW)
    outbox.hold("a", WHY, NOW)
    assert release(outbox, with_failed=True) == []
    assert outbox.counts() == {"failed": 1}


def test_one_that_is_not_what_was_queued_fails_and_holds_up_no_other(
    harness: Harness, outbox: Outbox
) -> None:
    outbox.queue(letters(3), NOW)
    harness.falsify(2, letter(2).outgoing.content + b"x")
    outbox.hold("a", WHY, NOW)
    assert [one.new is None for one in release(outbox)] == [False, True, False]
    assert outbox.counts() == {"cancelled": 2, "failed": 1, "queued": 2}
    assert len(taken(outbox)) == 2


def test_what_another_address_has_is_told(outbox: Outbox) -> None:
    relayed = queued_and(outbox, letter(1), RELAYED)
    queued_and(outbox, letter(2), RELAYED)
    outbox.acknowledge("R-2", TODAY, NOW)
    perhaps = queued_and(outbox, letter(3), UNCERTAIN)
    queued_and(outbox, letter(4), FAILED)
    queued_and(outbox, letter(5, to=NEW), RELAYED)
    queued_and(outbox, letter(6, agency="b"), RELAYED)
    assert [one.id for one in outbox.disclosed("a", NEW)] == [perhaps.id, relayed.id]
    outbox.hold("a", WHY, NOW)
    release(outbox, with_uncertain=True)
    assert [one.id for one in outbox.disclosed("a", NEW)] == [perhaps.id, relayed.id]
    assert [one.id for one in outbox.disclosed("a", NEW, limit=1)] == [perhaps.id]
    assert outbox.acknowledge("R-3", TODAY, NOW).id == perhaps.id, "it was at the old one"


def test_no_hold_ends_while_something_may_still_go_to_another_address(outbox: Outbox) -> None:
    outbox.queue(letters(2), NOW)
    mine = claimed(outbox)
    outbox.hold("a", WHY, NOW)
    before = outbox.held()
    with pytest.raises(NotPossibleNow, match="2 messages wait or are being submitted to another"):
        outbox.resume("a", NEW, NOW + MINUTE)
    assert outbox.held() == before, "and nothing was changed"
    reroute(outbox)
    with pytest.raises(NotPossibleNow, match="1 message waits or is being submitted to another"):
        outbox.resume("a", NEW, NOW)
    with pytest.raises(NotPossibleNow):
        outbox.resume("a", None, NOW)
    assert claim(outbox) is None
    record(outbox, mine, DELAYED)
    assert [one.reference for one in release(outbox)] == ["R-1"]
    assert sorted(taken(outbox)) == [("R-1", NEW), ("R-2", NEW)]


def test_an_agency_without_an_address_is_released_once_nothing_waits(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    with pytest.raises(NotPossibleNow):
        outbox.resume("a", None, NOW)
    outbox.cancel("R-1", NOW)
    outbox.resume("a", None, NOW)
    assert outbox.holds() == []


def test_how_messages_are_addressed(outbox: Outbox) -> None:
    queued_and(outbox, letter(1), FAILED)
    queued_and(outbox, letter(2), RELAYED)
    queued_and(outbox, letter(3), DELAYED)
    outbox.queue(letters(2, first=4), NOW)
    claimed(outbox)
    outbox.queue([letter(6, to=NEW)], NOW)
    outbox.hold("a", WHY, NOW)
    told = {
        (one.recipient, str(one.status), one.waits, one.whole): one.number
        for one in outbox.addressed("a")
    }
    assert told == {
        (OLD, "failed", False, True): 1, (OLD, "delayed", True, True): 1,
        (OLD, "sending", False, True): 1, (OLD, "queued", True, True): 1,
        (NEW, "queued", True, True): 1,
    }  # fmt: skip
    assert outbox.addressed("b") == []


def test_what_a_hold_keeps_is_listed_by_itself(outbox: Outbox) -> None:
    queued_and(outbox, letter(1), FAILED)
    queued_and(outbox, letter(2), DELAYED)
    outbox.queue([letter(3), letter(4, agency="b"), *letters(2, first=5)], NOW)
    assert outbox.held(kept=True) == []
    outbox.hold("a", WHY, NOW)
    assert [one.reference for one in outbox.held(kept=True)] == ["R-6", "R-5", "R-3", "R-2"]
    assert [one.reference for one in outbox.held(kept=True, limit=2, offset=1)] == ["R-5", "R-3"]
    delayed = outbox.held(kept=True, status=DeliveryStatus.DELAYED)
    assert [one.reference for one in delayed] == ["R-2"]
    assert outbox.held(kept=True, reference="R-1") == []


# What else a person does


def test_what_is_kept_is_neither_erased_nor_purged(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    with pytest.raises(NotPossibleNow, match="still wait"):
        outbox.erase("CASE-1", NOW)
    far = NOW + timedelta(days=400)
    assert outbox.purge(far, far) == 0
    assert outbox.purge_unfinished(far, far) == 0
    assert [one.reference for one, _ in outbox.unfinished(far)] == ["R-1"]
    outbox.cancel("R-1", NOW)
    assert outbox.erase("CASE-1", NOW) == 1


def test_what_is_uncertain_and_kept_is_not_forgotten_as_unfinished(outbox: Outbox) -> None:
    queued_and(outbox, letter(), UNCERTAIN)
    outbox.hold("a", WHY, NOW)
    far = NOW + timedelta(days=400)
    assert outbox.purge_unfinished(far, far) == 0
    outbox.resume("a", OLD, far)
    assert taken(outbox, far) == [("R-1", OLD)]


def test_old_and_new_are_forgotten_and_the_account_stays(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    [done] = release(outbox)
    taken(outbox)
    assert outbox.purge(NOW + MINUTE, NOW + MINUTE) == 2
    assert done.new is not None
    assert (outbox.content(done.old), outbox.content(done.new)) == (None, None)
    assert not outbox.queue([letter(to=NEW)], NOW)[0].new, "the account stays"
    assert outbox.erase("CASE-1", NOW) == 0
    assert list(verify(outbox.audit())) == []


def test_decisions_are_on_the_new_one(outbox: Outbox) -> None:
    outbox.queue([letter()], NOW)
    outbox.hold("a", WHY, NOW)
    [done] = release(outbox)
    record(outbox, claimed(outbox), FAILED)
    assert outbox.retry("R-1", NOW).id == done.new
    record(outbox, claimed(outbox), RELAYED)
    assert outbox.acknowledge("R-1", TODAY, NOW).id == done.new


# Broken off, and several at once


def _reroute_and_die(harness: Harness) -> None:
    with harness.open("child") as outbox:
        for _ in outbox.reroute(Rerouting("a", NEW, accepted_unverified=False), NOW):
            os.kill(os.getpid(), signal.SIGKILL)


@durable
def test_one_that_was_killed_in_the_middle_is_gone_on_with(harness: Harness) -> None:
    with harness.open() as outbox:
        outbox.queue(letters(450), NOW)
        outbox.hold("a", WHY, NOW)
        process = multiprocessing.get_context("spawn").Process(
            target=_reroute_and_die, args=(harness,)
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert outbox.counts() == {"queued": 450, "cancelled": 200}
        assert [one.agency for one in outbox.holds()] == ["a"]
        assert claim(outbox) is None
        assert len(release(outbox)) == 250
        assert Counter(taken(outbox)) == Counter((f"R-{n}", NEW) for n in range(1, 451))
        assert list(verify(outbox.audit())) == []


def test_two_who_do_it_at_once_double_nothing(harness: Harness) -> None:
    with harness.open() as outbox:
        outbox.queue(letters(500), NOW)
        outbox.hold("a", WHY, NOW)
        done: list[Rerouted] = []

        def work() -> None:
            with harness.open("other") as mine:
                done.extend(reroute(mine))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(one.old for one in done) == list(range(1, 501))
        outbox.resume("a", NEW, NOW)
        with pytest.raises(NotPossibleNow):
            outbox.resume("a", NEW, NOW)
        assert outbox.counts() == {"queued": 500, "cancelled": 500}
        assert list(verify(outbox.audit())) == []


# SQLite: older files


def test_a_file_of_version_3_can_hold(tmp_path: Path) -> None:
    file, new = tmp_path / "old" / "outbox.sqlite3", tmp_path / "new" / "outbox.sqlite3"
    make_older(file, 3)
    with SqliteOutbox.open(file, "me") as outbox, SqliteOutbox.open(new, "me") as made:
        for one in (outbox, made):
            one.queue(letters(2), NOW)
            one.hold("a", WHY, NOW)
            assert len(release(one)) == 2
            assert taken(one) == [("R-1", NEW), ("R-2", NEW)]


# PostgreSQL: jobs, older steps, other versions


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[tuple[Harness, PostgresOutbox]]:
    harness = Harness.of("postgres", tmp_path)
    with harness.open() as outbox:
        assert isinstance(outbox, PostgresOutbox)
        yield harness, outbox


def jobs_of(outbox: PostgresOutbox) -> int:
    with outbox.database.reader() as db:
        row = db.execute("SELECT count(*) FROM procrastinate_jobs").fetchone()
    assert row is not None
    return int(row[0])


def changed(outbox: PostgresOutbox, *statements: str) -> None:
    with outbox.database.connect() as db:
        for statement in statements:
            db.execute(statement.encode())


def test_what_is_kept_has_no_job(postgres: tuple[Harness, PostgresOutbox]) -> None:
    """So that none who fetches need step over it."""
    _, outbox = postgres
    outbox.queue(letters(1_200), NOW)
    outbox.hold("a", WHY, NOW)
    outbox.queue(letters(10, first=2_001), NOW)
    assert jobs_of(outbox) == 0
    outbox.resume("a", OLD, NOW)
    assert jobs_of(outbox) == 1_210


def test_a_hold_waits_for_a_claim_that_is_being_kept_just_now(
    postgres: tuple[Harness, PostgresOutbox],
) -> None:
    """So that whoever holds is told of all that is under way."""
    harness, outbox = postgres
    outbox.queue(letters(2), NOW)
    with harness.open_durable("worker") as worker:
        let_go, claimed_one = blocked(worker), threading.Event()
        finish = threading.Event()

        def pause(_: Any) -> None:
            claimed_one.set()
            finish.wait(10)

        def work() -> None:
            async def scenario() -> None:
                task = asyncio.ensure_future(worker.claim("me", NOW, LEASE))
                await asyncio.sleep(0)
                worker._ask(pause)
                let_go.set()
                await task

            asyncio.run(scenario())

        working = threading.Thread(target=work)
        working.start()
        assert claimed_one.wait(10)
        holding = threading.Thread(target=outbox.hold, args=("a", WHY, NOW))
        holding.start()
        holding.join(0.5)
        assert holding.is_alive()
        finish.set()
        holding.join(10)
        assert not holding.is_alive()
        assert [one.reference for one in outbox.held(status=DeliveryStatus.SENDING)] == ["R-1"]
        working.join(10)
        assert claim(outbox) is None


def test_one_queued_in_the_moment_of_a_hold_is_not_claimed(
    postgres: tuple[Harness, PostgresOutbox],
) -> None:
    _, outbox = postgres
    outbox.queue(letters(1), NOW)
    changed(outbox, "INSERT INTO hold VALUES ('a', now(), 'me', 'other')")
    assert jobs_of(outbox) == 1, "whoever queued it did not see the hold yet"
    assert claim(outbox) is None
    assert jobs_of(outbox) == 0
    outbox.resume("a", OLD, NOW)
    assert taken(outbox) == [("R-1", OLD)]
    outbox.queue(letters(1, first=2), NOW)
    changed(outbox, "INSERT INTO hold VALUES ('a', now(), 'me', 'other')")
    assert [one.new is not None for one in release(outbox)] == [True]
    assert taken(outbox) == [("R-2", NEW)]


def test_one_without_a_job_gets_one_once_its_agency_is_not_held(
    postgres: tuple[Harness, PostgresOutbox],
) -> None:
    """As after a release that was broken off."""
    _, outbox = postgres
    outbox.queue([*letters(3), *letters(2, first=11, agency="b")], NOW)
    outbox.hold("a", WHY, NOW)
    outbox.hold("b", WHY, NOW)
    changed(outbox, "DELETE FROM hold WHERE agency = 'a'")
    assert claim(outbox) is None
    run(outbox.recover(NOW, POLICY))
    assert len(taken(outbox)) == 3
    assert outbox.counts() == {"relayed": 3, "queued": 2}


def test_a_version_that_knows_of_no_hold_keeps_it_all_the_same(
    postgres: tuple[Harness, PostgresOutbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outbox = postgres
    outbox.queue(letters(2), NOW)
    mine = claimed(outbox)
    outbox.hold("a", WHY, NOW)
    checking = re.compile(r"AND NOT EXISTS \(SELECT 1 FROM hold[^)]*\)")
    without, count = checking.subn("", postgres_outbox._TAKE)
    assert count == 1
    monkeypatch.setattr(postgres_outbox, "_TAKE", without)
    monkeypatch.setattr(postgres_jobs, "turns", lambda _db, some: [1] * len(some))
    outbox.queue([letter(3)], NOW)
    record(outbox, mine, DELAYED)
    assert jobs_of(outbox) == 2, "as it would leave them"
    assert claim(outbox, NOW + timedelta(days=1)) is None
    assert jobs_of(outbox) == 0
    outbox.resume("a", OLD, NOW)
    assert len(taken(outbox)) == 3


def test_a_database_of_the_first_step_is_brought_up_to_date(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a worker of that version at work, which goes on."""
    name = server().empty_database()
    database = server().database(name)
    all_steps = postgres_steps.steps()
    first: Sequence[Any] = [one for one in all_steps if one.name < "referrals/0002"]
    assert all_steps[-1].name != first[-1].name
    with monkeypatch.context() as older:
        older.setattr(postgres_steps, "steps", lambda: first)
        migrate(database)
    with database.connect() as db:
        job = (
            "INSERT INTO procrastinate_jobs (queue_name, task_name, priority, args, status) VALUES"
            " ('referrals', 'referrals.deliver', -1, '{\"message\": 1}', 'todo') RETURNING id"
        )
        row = db.execute(job.encode()).fetchone()
        assert row is not None
        content = letter().outgoing.content
        db.execute(
            "INSERT INTO message (reference, case_reference, intervention, agency,"
            " content_key, sender, recipient, message_id, sha256, size, queued_at, trying_since,"
            " status, due_at, job, turn, acknowledge_by) VALUES ('R-1', 'CASE-1', 'mediation',"
            " 'a', 'k', 'officer@police.test', %s, '<R-1.t@police.test>', %s, 1, now(), now(),"
            " 'queued', now(), %s, 1, now())",
            (OLD, letter().sha256, row[0]),
        )
        db.execute("INSERT INTO content VALUES (1, %b)", (content,))
    assert [one for one in migrate(database).done if one.startswith("referrals/0002")]
    with PostgresOutbox.open(database, "me") as outbox:
        outbox.hold("a", WHY, NOW)
        assert claim(outbox) is None
        assert len(release(outbox)) == 1
        assert taken(outbox) == [("R-1", NEW)]
