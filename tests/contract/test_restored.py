"""A restored copy: it submits nothing, and is brought in order; in each outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from referrals.audit import verify
from referrals.delivery import DeliveryStatus, Reply, RetryPolicy
from referrals.errors import NotPossibleNow, OutboxRestored, OutboxUnusable
from referrals.holding import Reason
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.queueing import Claimed, Outcome
from referrals.relay_log import RelayLog
from referrals.restored import Settled, Verdict, evidence_of, settle
from tests.conftest import NOW
from tests.outboxes import Harness, Outbox
from tests.restoring import message_id, reference, referrals

LEASE = timedelta(minutes=20)
TAKEN = Outcome(DeliveryStatus.RELAYED, "relay:587", "content", Reply(250, "2.0.0", "taken"))
LATER = NOW + timedelta(hours=1)


def log_of(*message_ids: str, named: Sequence[str] = ()) -> RelayLog:
    return RelayLog(taken=set(message_ids), named={*message_ids, *named}, lines=1)


def take(outbox: Outbox, now: datetime = NOW) -> Claimed:
    claimed = asyncio.run(outbox.claim("lane", now, LEASE))
    assert isinstance(claimed, Claimed)
    return claimed


def end(
    outbox: Outbox, claimed: Claimed, outcome: Outcome, now: datetime = NOW, **more: Any
) -> None:
    asyncio.run(outbox.record(claimed, "lane", outcome, now, RetryPolicy(), **more))


def restore(
    outbox: Outbox,
    log: RelayLog | None = None,
    since: datetime | None = None,
    now: datetime = LATER,
    *,
    only_say: bool = False,
) -> Settled:
    evidence = evidence_of(outbox, log, since) if log else None
    return settle(outbox, outbox.copied(), evidence, now, only_say=only_say)


def statuses(outbox: Outbox) -> dict[str, str]:
    """By reference; a star stands for "tried again when it is due"."""
    return {one.reference: f"{one.status}{'*' if one.due_at else ''}" for one in outbox.held()}


def actions(outbox: Outbox, number: int) -> list[str]:
    return [entry.action for entry in outbox.audit() if entry.reference == reference(number)]


def waiting_in_every_way(outbox: Outbox) -> None:
    """1 is relayed, 2 under way, 3 delayed, 4 uncertain, 5 failed, 6 cancelled, 7 queued."""
    outbox.queue(referrals(7), NOW)
    end(outbox, take(outbox), TAKEN)
    take(outbox)
    end(outbox, take(outbox), Outcome(DeliveryStatus.DELAYED, "relay:587"))
    end(outbox, take(outbox), Outcome(DeliveryStatus.UNCERTAIN, "relay:587"))
    end(outbox, take(outbox), Outcome(DeliveryStatus.FAILED, "relay:587"))
    outbox.cancel(reference(6), NOW)
    wanted = ["relayed", "sending", "delayed*", "uncertain*", "failed", "cancelled", "queued*"]
    assert statuses(outbox) == {reference(n): status for n, status in enumerate(wanted, 1)}


def test_it_is_no_copy_as_a_rule(outbox: Outbox) -> None:
    assert outbox.copied() is None
    outbox.queue(referrals(1), NOW)
    assert not outbox.settled(NOW, {})
    assert not outbox.lost_nothing(NOW)
    take(outbox)


def test_a_copy_submits_nothing_and_keeps_what_is_queued(harness: Harness) -> None:
    with harness.open() as outbox, harness.open("other") as other:
        outbox.queue(referrals(2), NOW)
        take(other)
        outbox.take_for_copy(LATER)
        assert outbox.take_for_copy(LATER) == outbox.copied()

        for each in (outbox, other):
            with pytest.raises(OutboxRestored, match="referrals outbox restored"):
                asyncio.run(each.recover(LATER, RetryPolicy(), is_gone=lambda _: False))
        for only in (None, 2):
            with pytest.raises(OutboxRestored):
                asyncio.run(outbox.claim("lane", LATER, LEASE, only=only))
        assert outbox.queue(referrals(1, first=3), LATER)[0].new
        assert outbox.counts() == {"queued": 2, "sending": 1}
        assert outbox.held(reference=reference(1))
        assert list(verify(outbox.audit())) == []
        copied = outbox.copied()
        assert copied is not None
        assert (copied.as_of, copied.last_message) == (NOW, 2)


def test_what_waits_is_held_for_a_person(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    outbox.take_for_copy(LATER)
    told = restore(outbox, only_say=True)
    assert "sending" in statuses(outbox).values(), "it only said so"
    done = restore(outbox)
    assert told.counts == done.counts == {Verdict.HELD: 4}
    held = ["relayed", *["uncertain"] * 3, "failed", "cancelled", "uncertain"]
    assert statuses(outbox) == {reference(n): status for n, status in enumerate(held, 1)}
    assert {one.reference for one in outbox.held() if one.maybe_doubled} == {
        reference(n) for n in (2, 3, 4, 7)
    }
    assert all(attempt.ended_at for one in outbox.held() for attempt in outbox.attempts(one.id))
    assert actions(outbox, 7) == ["queued", "restored"]
    assert list(verify(outbox.audit())) == []

    assert outbox.copied() is None
    assert asyncio.run(outbox.claim("lane", LATER, LEASE)) is None
    again = restore(outbox)
    assert (again.was_copy, again.counts) == (False, {Verdict.HELD: 4})
    assert actions(outbox, 7) == ["queued", "restored"], "and that was not done again"


def test_what_waits_for_a_held_agency_is_held_for_a_person_as_well(outbox: Outbox) -> None:
    """Released later, it would go to the relay, which may have had it from the outbox itself."""
    outbox.queue(referrals(3), NOW)
    end(outbox, take(outbox), Outcome(DeliveryStatus.UNCERTAIN, "relay:587"))
    agency = outbox.held()[0].agency
    outbox.hold(agency, Reason.NOT_ANSWERING, NOW)
    outbox.take_for_copy(LATER)
    assert [one.id for one in outbox.unsettled(waiting=True, limit=9)] == [1, 2, 3]
    assert outbox.unsettled(waiting=False, limit=9) == []
    with pytest.raises(NotPossibleNow, match="waits again"):
        outbox.settled(LATER, {})
    done = restore(outbox, log_of(message_id(2)))
    assert done.counts == {Verdict.RELAYED: 1, Verdict.HELD: 2}
    outbox.resume(agency, outbox.held()[0].recipient, LATER)
    assert asyncio.run(outbox.claim("lane", LATER, LEASE)) is None
    assert sorted(statuses(outbox).values()) == ["relayed", "uncertain", "uncertain"]


def test_what_the_log_shows_was_taken_is_relayed(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    outbox.take_for_copy(LATER)
    log = log_of(*map(message_id, (1, 2, 4, 5, 7)), named=[message_id(3)])
    told, done = restore(outbox, log, only_say=True), restore(outbox, log)
    assert told.counts == done.counts == {Verdict.RELAYED: 4, Verdict.HELD: 1}
    relayed = {one.reference for one in outbox.held() if one.status == "relayed"}
    assert relayed == {reference(n) for n in (1, 2, 4, 5, 7)}
    assert actions(outbox, 7) == ["queued", "relayed"]
    [entry] = [one for one in outbox.audit(case_reference="CASE-7") if one.action == "relayed"]
    assert entry.detail == {"by": "the relay's log", "was": "queued"}
    [again] = outbox.held(reference=reference(7))
    assert again.relayed_at == LATER
    assert not again.maybe_doubled
    assert list(verify(outbox.audit())) == []


def test_a_log_that_comes_later_settles_what_was_held(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    outbox.take_for_copy(LATER)
    restore(outbox)
    done = restore(outbox, log_of(message_id(1), message_id(2)), NOW - LEASE)
    assert done.counts == {Verdict.RELAYED: 1, Verdict.DUE: 3}
    assert actions(outbox, 7) == ["queued", "restored", "retried"]


def test_what_a_complete_log_lacks_is_tried_again(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    outbox.take_for_copy(LATER)
    outbox.queue(referrals(1, first=8), LATER)  # in the copy: nobody can have had it
    log = log_of(message_id(1), message_id(2), named=[message_id(3)])
    told, done = restore(outbox, log, NOW, only_say=True), restore(outbox, log, NOW)
    assert told.counts == done.counts == {Verdict.RELAYED: 1, Verdict.DUE: 2, Verdict.HELD: 1}
    found = statuses(outbox)
    assert {reference(n): found[reference(n)] for n in (2, 3, 4, 7, 8)} == {
        reference(2): "relayed",
        reference(3): "uncertain",  # named, perhaps as refused
        reference(4): "queued*",
        reference(7): "queued*",
        reference(8): "queued*",
    }
    assert actions(outbox, 8) == ["queued"]
    tried = {take(outbox, LATER).outgoing.reference for _ in range(3)}
    assert tried == {reference(n) for n in (4, 7, 8)}
    assert list(verify(outbox.audit())) == []


def test_a_log_that_is_not_complete_is_not_believed(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    outbox.take_for_copy(LATER)
    with pytest.raises(NotPossibleNow, match=f"lacks {reference(1)}"):
        restore(outbox, log_of(message_id(7)), NOW)
    with pytest.raises(NotPossibleNow, match="Nothing shows that the log is complete"):
        restore(outbox, log_of(message_id(7)), LATER)
    assert outbox.copied() is not None


def test_a_log_that_began_too_late_tells_nothing_of_what_it_lacks(outbox: Outbox) -> None:
    """An attempt in doubt from before the log began, and a copy older than its beginning."""
    outbox.queue(referrals(4), NOW)
    end(outbox, take(outbox), Outcome(DeliveryStatus.UNCERTAIN, "relay:587"))
    later = NOW + timedelta(minutes=1)
    end(outbox, take(outbox, later), TAKEN, later)
    outbox.take_for_copy(LATER)
    outbox.queue(referrals(1, first=5), LATER)
    restore(outbox, log_of(message_id(2)), later)
    assert statuses(outbox) == {
        reference(1): "uncertain",
        reference(2): "relayed",
        reference(3): "queued*",
        reference(4): "queued*",
        reference(5): "queued*",
    }


def test_what_was_relayed_since_it_was_restored_need_not_be_in_the_log(outbox: Outbox) -> None:
    outbox.queue(referrals(2), NOW)
    end(outbox, take(outbox), TAKEN)
    outbox.take_for_copy(LATER)
    restore(outbox)
    outbox.queue(referrals(1, first=3), LATER + LEASE)
    end(outbox, take(outbox, LATER + LEASE), TAKEN, LATER + LEASE)
    assert restore(outbox, log_of(message_id(1)), NOW).counts == {Verdict.DUE: 1}


def test_one_that_a_newer_message_replaced_is_not_tried_again(outbox: Outbox) -> None:
    """Cancelled after the copy was made, and referred anew with other facts."""
    outbox.queue(referrals(3), NOW)
    end(outbox, take(outbox), TAKEN)
    outbox.take_for_copy(LATER)
    outbox.queue(referrals(1, first=3, message_id=f"<{reference(3)}.f@police.test>",
                           content_key="corrected"), LATER)  # fmt: skip
    replaced = f"<{reference(2)}.{99:016x}@police.test>"
    done = restore(outbox, log_of(message_id(1), replaced), NOW)
    assert done.unknown == [reference(2)]
    assert done.counts == {Verdict.HELD: 2}


def test_referrals_that_the_copy_lacks_are_listed(outbox: Outbox) -> None:
    outbox.queue(referrals(2), NOW)
    outbox.take_for_copy(LATER)
    done = restore(outbox, log_of(*map(message_id, (1, 2, 3, 4))))
    assert done.unknown == sorted([reference(3), reference(4)])


def test_what_was_purged_is_not_tried_again(outbox: Outbox) -> None:
    outbox.queue(referrals(2), NOW)
    end(outbox, take(outbox), TAKEN)
    outbox.take_for_copy(LATER)
    restore(outbox)
    outbox.purge_unfinished(LATER + LEASE, LATER + LEASE)
    done = restore(outbox, log_of(message_id(1)), NOW)
    assert done.counts == {Verdict.HELD: 1}


def test_it_goes_on_where_it_was_stopped(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.restored.PORTION", 2)
    outbox.queue(referrals(7), NOW)
    outbox.take_for_copy(LATER)
    settled, portions = outbox.settle, iter(range(2))

    def stopped(*given: Any) -> Any:
        next(portions)
        return settled(*given)

    monkeypatch.setattr(outbox, "settle", stopped)
    with pytest.raises(StopIteration):
        restore(outbox)
    assert sorted(statuses(outbox).values()) == ["queued*"] * 3 + ["uncertain"] * 4
    assert outbox.copied() is not None, "so nothing is submitted"

    monkeypatch.setattr(outbox, "settle", settled)
    restore(outbox, log_of(message_id(1)))
    assert sorted(statuses(outbox).values()) == ["relayed"] + ["uncertain"] * 6
    assert [one.action for one in outbox.audit()].count("outbox restored") == 1


def test_two_at_once_do_it_once(harness: Harness) -> None:
    async def both(first: Outbox, second: Outbox) -> None:
        await asyncio.gather(asyncio.to_thread(restore, first), asyncio.to_thread(restore, second))

    with harness.open() as first, harness.open() as second:
        first.queue(referrals(60), NOW)
        first.take_for_copy(LATER)
        asyncio.run(both(first, second))
        told = [entry.action for entry in first.audit()]
        assert (told.count("restored"), told.count("outbox restored")) == (60, 1)
        assert list(verify(first.audit())) == []


def test_one_that_lost_nothing_goes_on_as_it_is(outbox: Outbox) -> None:
    waiting_in_every_way(outbox)
    before = statuses(outbox)
    outbox.take_for_copy(LATER)
    assert outbox.lost_nothing(LATER)
    assert (statuses(outbox), outbox.copied()) == (before, None)
    assert [entry.action for entry in outbox.audit()][-1] == "outbox moved"
    take(outbox, LATER)


def test_what_somebody_decided_meanwhile_stays_so(outbox: Outbox) -> None:
    outbox.queue(referrals(2), NOW)
    outbox.take_for_copy(LATER)
    outbox.cancel(reference(1), LATER)
    assert not outbox.settle(dict.fromkeys((1,), Verdict.RELAYED), LATER)
    assert not outbox.settle({1: Verdict.HELD, 2: Verdict.DUE}, LATER)
    with pytest.raises(NotPossibleNow, match="waits again"):
        outbox.settled(LATER, {})


# How a copy shows


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("system_identifier", "another server"),
        ("database", "another database"),
        ("tables", "from a dump"),
        ("timeline", "standby that was promoted"),
    ],
)
def test_postgresql_tells_that_it_lies_elsewhere(tmp_path: Path, column: str, says: str) -> None:
    harness = Harness.of("postgres", tmp_path)
    assert harness.server is not None
    with harness.open() as outbox:
        outbox.queue(referrals(2), NOW)
    with harness.server.connected(harness.database) as db:
        db.execute(f"UPDATE referrals.origin SET {column} = {column} + 1".encode())
    with harness.open() as outbox:
        assert isinstance(outbox, PostgresOutbox)
        copied = outbox.copied()
        assert copied is not None
        assert says in copied.why
        outbox.queue(referrals(1, first=3), LATER)
        assert outbox.copied() == copied, "what is queued in the copy is not in it"
        assert copied.last_message == 2
        with pytest.raises(OutboxRestored, match=says):
            take(outbox)
        restore(outbox)
        assert statuses(outbox) == {
            reference(1): "uncertain", reference(2): "uncertain", reference(3): "queued*",
        }  # fmt: skip
        assert take(outbox, LATER).outgoing.reference == reference(3)


def test_a_copy_of_a_file_knows_that_it_is_one(tmp_path: Path) -> None:
    file, copy = tmp_path / "outbox" / "outbox.sqlite3", tmp_path / "copy.sqlite3"
    with SqliteOutbox.open(file, "tester") as outbox:
        outbox.queue(referrals(2), NOW)
        outbox.copy_to(copy)
        end(outbox, take(outbox), TAKEN)
        with pytest.raises(OutboxUnusable, match="there already"):
            outbox.copy_to(copy)
        with pytest.raises(OutboxUnusable, match="No such file or directory"):
            outbox.copy_to(tmp_path / "nowhere" / "copy.sqlite3")
        assert outbox.copied() is None
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.sqlite3", "outbox"]
    with SqliteOutbox.open(copy, "tester") as restored:
        with pytest.raises(OutboxRestored, match="referrals backup"):
            take(restored)
        restored.copy_to(tmp_path / "of a copy.sqlite3")
        restore(restored, log_of(message_id(1)))
        assert statuses(restored) == {reference(1): "relayed", reference(2): "uncertain"}
        assert list(verify(restored.audit())) == []
    with SqliteOutbox.open(tmp_path / "of a copy.sqlite3", "tester") as again:
        assert again.copied() is not None
