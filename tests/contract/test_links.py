"""Places for links to a relay, and its health: what every outbox keeps for all processes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import jobs
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.queueing import Claimed, NotYet
from referrals.relay_health import RelayFault
from referrals.worker import LEASE, is_gone, owner_name
from tests.conftest import NOW
from tests.outboxes import Durable, Harness, Outbox, disk_full, durable
from tests.peers import run
from tests.queued import submissions

RELAY = "relay.example.org:587"
AWAY = RelayFault("connect")
SECOND = timedelta(seconds=1)


def nobody(_: str) -> bool:
    return False


def take(outbox: Outbox, owner: str, most: int = 2, now: Any = NOW, **more: Any) -> bool:
    given = {"is_gone": nobody, **more}
    return run(outbox.take_link(given.pop("relay", RELAY), owner, "desk", most, now, **given))


def owners(outbox: Outbox, now: Any = NOW) -> list[str]:
    return sorted(one.owner for one in outbox.links(now, is_gone=nobody))


def fault(
    outbox: Outbox, what: RelayFault = AWAY, now: Any = NOW, *, on_trial: bool = False
) -> Any:
    return run(outbox.note_fault(RELAY, what, now, on_trial=on_trial))


# Places


def test_there_are_so_many_places_and_no_more(harness: Harness) -> None:
    with harness.open("one") as one, harness.open("other") as other:
        assert take(one, "a")
        assert take(other, "b")
        assert not take(one, "c")
        assert not take(other, "c")
        assert take(other, "c", relay="another.example.org:587"), "each relay has its own"

        run(one.give_link_back(RELAY, "a"))
        assert take(other, "c")
        assert owners(one) == ["b", "c", "c"]
        assert run(one.count_links(RELAY, NOW, is_gone=nobody)) == 2


def test_a_place_tells_who_has_it_and_since_when(outbox: Outbox) -> None:
    take(outbox, "a")
    (link,) = outbox.links(NOW, is_gone=nobody)
    assert (link.relay, link.owner, link.machine, link.since) == (RELAY, "a", "desk", NOW)


def test_the_place_of_one_that_is_gone_is_free_at_once(outbox: Outbox) -> None:
    take(outbox, "dead", most=1)
    assert not take(outbox, "b", most=1)

    assert outbox.links(NOW, is_gone=lambda owner: owner == "dead") == []
    assert take(outbox, "b", most=1, is_gone=lambda owner: owner == "dead")
    assert owners(outbox) == ["b"]
    assert not run(outbox.keep_link(RELAY, "dead", NOW)), "and it is told when it comes back"
    assert run(outbox.keep_link(RELAY, "b", NOW))


@pytest.mark.parametrize("harness", ["sqlite"], indirect=True)
def test_where_it_can_not_be_told_a_place_is_free_after_a_while(outbox: Outbox) -> None:
    """Of the file's processes in other containers only the lease tells."""
    take(outbox, "a", most=1)
    assert not take(outbox, "b", most=1, now=NOW + LEASE)
    run(outbox.keep_link(RELAY, "a", NOW + LEASE))
    assert not take(outbox, "b", most=1, now=NOW + LEASE + SECOND)
    assert take(outbox, "b", most=1, now=NOW + 2 * LEASE + SECOND)


@pytest.mark.parametrize("harness", ["postgres"], indirect=True)
def test_the_place_of_a_process_whose_heart_has_stopped_is_free(harness: Harness) -> None:
    assert harness.server is not None
    elsewhere = "another-boot.1.2.3/x"
    with harness.open("one") as one, harness.open("other") as other:
        assert isinstance(one, PostgresOutbox)
        assert take(one, elsewhere, most=1)
        assert not take(other, "b", most=1, is_gone=is_gone), "its boot is not ours, so who knows"
        with harness.server.connected(harness.database) as db:
            db.execute(
                "UPDATE procrastinate.procrastinate_workers SET last_heartbeat ="
                " now() - make_interval(secs => %s) WHERE id = %s",
                (jobs.SILENT_S + 1, one._worker),
            )
        assert take(other, "b", most=1, is_gone=is_gone)
        assert not run(one.keep_link(RELAY, elsewhere, NOW))


@durable
def test_a_place_that_could_not_be_given_back_is_as_soon_as_it_can_be(
    outbox: Durable, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(outbox, "a", most=1)
    whole = outbox._begin

    def full(_: float) -> Any:
        raise disk_full(outbox)

    with monkeypatch.context() as broken:
        broken.setattr(outbox, "_begin", full)
        with pytest.raises(OutboxUnusable):
            run(outbox.give_link_back(RELAY, "a"))
    assert outbox._begin == whole
    assert owners(outbox) == ["a"]
    outbox.queue(submissions(1), NOW)
    assert owners(outbox) == []


@durable
def test_a_place_that_could_not_be_given_back_is_when_the_outbox_is_closed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    with harness.open_durable() as outbox:
        take(outbox, "a", most=1)
        with monkeypatch.context() as broken:

            def full(_: float) -> Any:
                raise disk_full(outbox)

            broken.setattr(outbox, "_begin", full)
            with pytest.raises(OutboxUnusable):
                run(outbox.give_link_back(RELAY, "a"))
    with harness.open() as again:
        assert owners(again) == []


def test_a_cancelled_call_takes_no_place(outbox: Outbox) -> None:
    async def scenario() -> None:
        for number in range(20):
            task = asyncio.ensure_future(
                outbox.take_link(RELAY, f"{number}", "desk", 99, NOW, is_gone=nobody)
            )
            for _ in range(number % 4):
                await asyncio.sleep(0)
            if number % 2:
                await asyncio.sleep(0.001)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if await task:
                    await outbox.give_link_back(RELAY, f"{number}")

    run(scenario())
    until = time.monotonic() + 10
    while owners(outbox) and time.monotonic() < until:
        time.sleep(0.01)
    assert owners(outbox) == []


def _hammer(harness: Harness, most: int, number: int) -> int:
    """Take and give back, as fast as it goes; the most that were taken at once."""

    async def lane(outbox: Outbox, name: str) -> int:
        times = seen = 0
        while times < 15:
            if await outbox.take_link(RELAY, name, "desk", most, NOW, is_gone=is_gone):
                times += 1
                seen = max(seen, await outbox.count_links(RELAY, NOW, is_gone=is_gone))
                await outbox.give_link_back(RELAY, name)
        return seen

    async def work() -> int:
        with harness.open(f"child {number}") as outbox:
            return max(
                await asyncio.gather(
                    *(lane(outbox, f"{owner_name()}/{number}.{one}") for one in range(3))
                )
            )

    return asyncio.run(work())


@durable
def test_processes_that_hammer_at_it_never_have_more_places_than_there_are(
    harness: Harness, outbox: Outbox
) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        asked = [pool.apply_async(_hammer, (harness, 2, number)) for number in range(2)]
        found = [one.get(60) for one in asked]
        pool.close()
        pool.join()
    assert max(found) == 2
    assert owners(outbox) == []


def test_threads_that_hammer_at_it_never_have_more_places_than_there_are(
    harness: Harness, outbox: Outbox
) -> None:
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda number: _hammer(harness, 2, number), range(3)))
    assert max(found) == 2
    assert owners(outbox) == []


def _take_and_wait(harness: Harness, taken: Any) -> None:
    with harness.open("child") as outbox:
        owner = f"{owner_name()}/0"
        assert asyncio.run(outbox.take_link(RELAY, owner, "desk", 1, NOW, is_gone=is_gone))
        taken.set()
        threading.Event().wait()


@durable
def test_the_place_of_a_killed_process_is_free_at_once(harness: Harness, outbox: Outbox) -> None:
    context = multiprocessing.get_context("spawn")
    taken = context.Event()
    child = context.Process(target=_take_and_wait, args=(harness, taken))
    child.start()
    assert taken.wait(30)
    assert not take(outbox, f"{owner_name()}/1", most=1, is_gone=is_gone)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(10)

    assert take(outbox, f"{owner_name()}/1", most=1, is_gone=is_gone)
    assert owners(outbox) == [f"{owner_name()}/1"]


# Health


def test_all_processes_know_of_a_fault_and_of_its_end(harness: Harness) -> None:
    with harness.open("one") as one, harness.open("other") as other:
        assert one.relay_states(NOW) == {}
        said = fault(one, RelayFault("login", 535, refused_login=True))
        for found in (other.relay_states(NOW), run(other.recall_relays(NOW))):
            assert found == {RELAY: said}
        assert (said.since, said.until) == (NOW, NOW + timedelta(minutes=30))

        run(other.note_well(RELAY, NOW))
        state = one.relay_states(NOW)[RELAY]
        assert (state.fault, state.faults, state.returns) == (None, 1, 1)
        run(other.note_well(RELAY, NOW))
        assert one.relay_states(NOW)[RELAY] == state


def test_one_alone_may_try_a_relay_again(harness: Harness) -> None:
    with harness.open("one") as one, harness.open("other") as other:
        state = fault(one)
        later = NOW + 6 * SECOND
        assert not state.is_left_alone(later)

        assert [run(box.take_trial(state, later)) for box in (one, other)] == [True, False]
        tried = other.relay_states(later)[RELAY]
        assert tried.is_left_alone(later)
        assert not run(other.take_trial(state, later + SECOND)), "what it knew has changed since"

        again = fault(one, now=later, on_trial=True)
        assert (again.failures, again.until) == (2, later + 10 * SECOND)


def test_of_many_at_once_one_alone_tries_a_relay_again(harness: Harness, outbox: Outbox) -> None:
    ready = threading.Barrier(6)

    def attempt(number: int) -> list[bool]:
        found = []
        with harness.open(f"thread {number}") as mine:
            for state in states:
                ready.wait(30)
                found.append(asyncio.run(mine.take_trial(state, NOW + 6 * SECOND)))
        return found

    states = [
        run(outbox.note_fault(f"relay-{number}:587", AWAY, NOW, on_trial=False))
        for number in range(10)
    ]
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(attempt, range(6)))
    assert [sum(of_one) for of_one in zip(*found, strict=True)] == [1] * 10


# The pace of one relay


def paced(outbox: Outbox, now: Any, every: Any = None, relay: str = RELAY) -> Any:
    pace = (relay, timedelta(minutes=1))
    return run(outbox.claim("me", now, LEASE, every=every, pace=pace))


def test_each_relay_has_a_pace_of_its_own(harness: Harness) -> None:
    minute = timedelta(minutes=1)
    with harness.open("one") as one, harness.open("other") as other:
        one.queue(submissions(9), NOW)
        assert isinstance(paced(one, NOW), Claimed)
        assert paced(other, NOW + minute * 0.99) == NotYet(NOW + minute)
        assert isinstance(paced(other, NOW + minute * 0.5, relay="another:587"), Claimed)
        assert isinstance(paced(other, NOW + minute), Claimed)
        assert isinstance(run(one.claim("me", NOW + minute, LEASE)), Claimed), "and others none"


def test_the_pace_of_one_is_kept_besides_that_of_all(outbox: Outbox) -> None:
    outbox.queue(submissions(9), NOW)
    half = timedelta(seconds=30)
    assert isinstance(paced(outbox, NOW, half), Claimed)
    assert paced(outbox, NOW, half, "another:587") == NotYet(NOW + half)
    assert paced(outbox, NOW + half, half) == NotYet(NOW + 2 * half)
    # What was refused by one pace has taken no place in the other.
    assert isinstance(paced(outbox, NOW + half, half, "another:587"), Claimed)
    assert isinstance(paced(outbox, NOW + 2 * half, half), Claimed)
