"""kill -9 at every step from queueing to recording: nothing is lost, and nothing doubled unawares.

A message may arrive twice only if the process died between giving it to the relay and keeping the
relay's word on disk (RFC 1047); then with the same bytes, so the same Message-ID, and marked.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.audit import verify
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.settings import RelaySettings, Security
from referrals.transports.smtp import SmtpTransport
from referrals.worker import DeliveryOptions, Worker
from tests.conftest import NOW
from tests.killed import work
from tests.peers import Say, ScriptedRelay, run
from tests.queued import submissions

REFUSED, PUT_OFF = 2, 3
"""The numbers of the messages that the relay refuses for good, and for now."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["referrals.transports.smtp", "referrals.worker", "tests.killed"])


@dataclass
class Relay(ScriptedRelay):
    """Takes each message but two; `taken` is what it has promised to deliver."""

    taken: list[bytes] = field(default_factory=list)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Say | None = None,  # type: ignore[override]
    ) -> None:
        if name == "content":
            content = self.contents[-1]
            if f"<R-{REFUSED}.".encode() in content:
                usual = Say(b"550 5.7.1 not this one\r\n")
            elif f"<R-{PUT_OFF}.".encode() in content:
                usual = Say(b"451 4.7.1 not now\r\n")
            else:
                self.taken.append(content)
        await super()._answer(name, reader, writer, usual)


@dataclass(frozen=True)
class Killed:
    """Where the process was, and which messages arrived twice because of it."""

    where: str
    doubled: frozenset[str]


async def one_round(
    folder: Path, count: int, lanes: int, step: int, extensions: tuple[bytes, ...]
) -> Killed | None:
    """Kill at one step and let the next run recover; None if the process got through."""
    place, log = folder / "outbox" / "outbox.sqlite3", folder / "step"
    wanted = submissions(count)
    async with Relay(extensions=extensions) as relay:
        child = _FORKS.Process(target=work, args=(place, relay.port, count, lanes, step, log))
        child.start()
        await asyncio.to_thread(child.join, 60)
        await relay.all_closed()
        where = log.read_text(encoding="utf-8") if log.exists() else None
        assert child.exitcode == (0 if where is None else -signal.SIGKILL)

        with SqliteOutbox.open(place, "next") as outbox:
            found = {one.reference: str(one.status) for one in outbox.held()}
            assert len(found) in (0, count), f"{where}: a batch is queued whole or not at all"
            assert found or not log.with_suffix(".queued").exists(), f"{where}: it said queued"
            arrived = Counter(relay.contents)
            assert max(arrived.values(), default=0) <= 1
            in_doubt = {
                one.outgoing.reference
                for one in wanted
                if arrived[one.outgoing.content]
                and found[one.outgoing.reference] in {"sending", "queued"}
            }

            again = outbox.queue(wanted, NOW)
            assert all(one.new is not bool(found) for one in again)
            settings = RelaySettings(
                host="127.0.0.1", port=relay.port, security=Security.NONE, timeout_s=20.0
            )
            worker = Worker(
                outbox,
                SmtpTransport(settings),
                DeliveryOptions(lanes=lanes),
                now=lambda: NOW + timedelta(seconds=1),
                jitter=lambda: 0.0,
            )
            report = await worker.deliver_due()
            await relay.all_closed()

            assert report.relay_fault is None
            expected = {"relayed": count - 2, "failed": 1, "delayed": 1}
            assert outbox.counts() == expected, f"{where}: queued = relayed + failed + waiting"
            assert {one.reference for one in outbox.held(reference=f"R-{PUT_OFF}") if one.due_at}
            arrived = Counter(relay.contents)
            assert set(arrived) == {one.outgoing.content for one in wanted}, where
            doubled = {
                one.outgoing.reference for one in wanted if arrived[one.outgoing.content] > 1
            }
            marked = {one.reference for one in outbox.held() if one.maybe_doubled}
            assert doubled <= in_doubt, where
            assert doubled <= marked, where
            assert len(marked) <= lanes, where
            assert max(arrived.values()) <= 2
            taken = Counter(relay.taken)
            for one in outbox.held():
                times = taken[wanted[one.id - 1].outgoing.content]
                assert (times > 0) == (one.status == "relayed"), f"{where}: {one.reference}"
            assert list(verify(outbox.audit())) == [], where
            return Killed(where, frozenset(doubled)) if where else None


@pytest.mark.parametrize(
    ("count", "lanes", "extensions", "fewest"),
    [(4, 1, (b"SIZE",), 130), (6, 3, (b"SIZE", b"PIPELINING"), 130)],
    ids=["one lane, one command at a time", "three lanes, pipelined"],
)
def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing_unawares(
    tmp_path: Path, count: int, lanes: int, extensions: tuple[bytes, ...], fewest: int
) -> None:
    async def every_step() -> list[Killed]:
        rounds: list[Killed] = []
        folder = tmp_path / "0"
        folder.mkdir()
        while killed := await one_round(folder, count, lanes, len(rounds) + 1, extensions):
            rounds.append(killed)
            folder = tmp_path / str(len(rounds))
            folder.mkdir()
        return rounds

    rounds = run(every_step(), limit_s=120)

    assert len(rounds) >= fewest
    places = {one.where for one in rounds}
    for must in (
        "after BEGIN IMMEDIATE", "before COMMIT", "after COMMIT", "after INSERT INTO message",
        "before writing MAIL", "after writing MAIL", "before writing the dot",
        "after writing the dot", "after UPDATE attempt SET", "after UPDATE message SET",
        "after INSERT INTO audit",
    ):  # fmt: skip
        assert must in places, must
    doubled = [one.where for one in rounds if one.doubled]
    assert "after writing the dot" in doubled, "or this test could not see a duplicate"
    if lanes == 1:
        assert "before writing the dot" not in doubled
