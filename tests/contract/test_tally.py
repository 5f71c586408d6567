"""How many were relayed is counted as it happens, and comes to what there is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from referrals.outboxes.postgres import steps as postgres_steps
from tests.conftest import NOW, TODAY
from tests.contract.test_outbox import DELAYED, RELAYED, UNCERTAIN, claimed, record
from tests.postgres import ClockedOutbox, server
from tests.queued import submissions


def counted(name: str) -> dict[str, int]:
    """One by one, without the tally."""
    with server().connected(name) as db:
        return dict(
            db.execute("SELECT status, count(*) FROM referrals.message GROUP BY 1").fetchall()
        )


def test_counts_are_right_whichever_way_it_came_about() -> None:
    name = server().emptied()
    with ClockedOutbox.of(server(), name, "tester") as outbox:
        outbox.queue(submissions(9), NOW)
        one, two, three, *_ = [claimed(outbox) for _ in range(5)]
        record(outbox, one, RELAYED)
        record(outbox, one, RELAYED)  # told twice
        record(outbox, two, UNCERTAIN, hold_uncertain=True)
        outbox.acknowledge(two.outgoing.reference, TODAY, NOW)
        record(outbox, three, DELAYED)
        outbox.cancel("R-9", NOW)
        outbox.purge(NOW.replace(year=2027), NOW)
        assert outbox.counts() == counted(name)
        assert outbox.counts() == {
            "relayed": 2, "delayed": 1, "sending": 2, "queued": 3, "cancelled": 1,
        }  # fmt: skip


def test_counts_are_right_with_several_who_write_and_one_that_takes_it_back() -> None:
    name = server().emptied()
    with ClockedOutbox.of(server(), name, "tester") as outbox:
        outbox.queue(submissions(60), NOW)

    def work(_: int) -> None:
        with ClockedOutbox.of(server(), name, "tester") as mine:
            for _ in range(15):
                record(mine, claimed(mine), RELAYED)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with server().connected(name) as db:
        db.execute("BEGIN")
        db.execute("UPDATE referrals.message SET status = 'failed' WHERE id = 1")
        db.execute("UPDATE referrals.message SET status = 'relayed' WHERE id = 1")
        db.execute("ROLLBACK")
    with ClockedOutbox.of(server(), name, "tester") as outbox:
        assert outbox.counts() == {"relayed": 60} == counted(name)


def test_what_was_relayed_before_the_tally_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox of an older version is counted once, as its step is made."""
    whole = postgres_steps.steps()
    older = [step for step in whole if step.name != "referrals/0006_counted"]
    assert len(older) == len(whole) - 1
    name = server().empty_database()
    monkeypatch.setattr(postgres_steps, "steps", lambda: older)
    postgres_steps.migrate(server().database(name))
    with server().connected(name) as db:
        db.execute(
            "INSERT INTO referrals.message (reference, case_reference, intervention, agency,"
            " content_key, sender, recipient, message_id, sha256, size, queued_at, trying_since,"
            " status, acknowledge_by) SELECT i, i, '', '', i, '', '', '', '', 1, now(), now(),"
            " CASE WHEN i < 6 THEN 'relayed' ELSE 'failed' END, now()"
            " FROM generate_series(1, 8) AS i"
        )
    monkeypatch.setattr(postgres_steps, "steps", lambda: whole)
    postgres_steps.migrate(server().database(name))
    with ClockedOutbox.open(server().database(name), "tester") as outbox:
        assert outbox.counts() == {"relayed": 5, "failed": 3}
