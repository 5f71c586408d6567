"""The simulated day has whose turn it is from the outbox in PostgreSQL."""

from __future__ import annotations

import random

from benchmarks.day import Turns
from referrals.queueing import Claimed
from tests.conftest import NOW
from tests.contract.test_outbox import RELAYED, claimed, record
from tests.postgres import ClockedOutbox, server
from tests.queued import submission


def test_turns_are_those_of_the_outbox() -> None:
    """The same messages queued and claimed in PostgreSQL come in the same order."""
    chance = random.Random(5)
    with ClockedOutbox.of(server(), server().emptied(), "day") as outbox:
        turns, whose = Turns(), dict[int, int]()
        mine: list[Claimed] = []
        for _ in range(250):
            if chance.random() < 0.55:
                number, agency = len(whose) + 1, chance.choice([0, 0, 0, 0, 1, 2])
                whose[number] = agency
                outbox.queue([submission(number, agency=f"agency-{agency}")], NOW)
                turns.queue(number, agency)
            elif len(mine) < 3 and len(turns):
                mine.append(claimed(outbox))
                assert mine[-1].id == turns.take()
            elif mine:
                done = mine.pop(chance.randrange(len(mine)))
                record(outbox, done, RELAYED)
                turns.finish(done.id, whose[done.id])
