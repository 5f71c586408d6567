"""Kill what delivers and what queues, again and again, while the relay has faults of its own.

Two processes deliver from one outbox and another sends spreadsheets into it, all with the command
itself. Each lives for a random while and is then killed; the relay is in this process, and goes
wrong at any step by chance. In the end everything is left in peace, and the account must hold.
"""

from __future__ import annotations

import asyncio
import csv
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from referrals.audit import verify
from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.samples import sample_case
from tests.chaos import ChaosRelay
from tests.queued import submissions

LANES = 3
_ROWS = 20
_GROUP = 100
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "referrals.bootstrap",
        "referrals.cli.batch",
        "referrals.cli.queue",
        "referrals.transports.smtp",
        "referrals.worker",
        "tests.soak",
    ]
)


@dataclass
class Tally:
    """What a soak came to."""

    seed: int
    kills: int = 0
    stops: int = 0
    ended: int = 0
    """Processes that had done all there was to do before their time came."""
    files: int = 0
    direct: int = 0
    queued: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    arrived: int = 0
    doubled: int = 0
    marked: int = 0
    relay_doubts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{number:,} {name}" for name, number in sorted(self.counts.items()))
        return (
            f"{self.kills:,} kills, {self.stops:,} stops and {self.ended:,} processes that ended "
            f"by themselves in {self.seconds:.0f} s (seed {self.seed}); "
            f"{self.queued:,} queued, {self.direct:,} by one who lives on and the others from "
            f"{self.files:,} files: {counts}; {self.arrived:,} "
            f"arrived, {self.doubled:,} of them twice or more, {self.marked:,} marked; "
            f"the relay left {self.relay_doubts:,} in doubt."
        )


def command(folder: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
    """The command in a process of its own that has its modules already."""
    os.chdir(folder)
    os.environ.update(env)
    quiet = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(quiet, standard)
    from referrals.cli import main

    sys.exit(main(list(argv)))


@dataclass
class _Running:
    process: ForkServerProcess
    argv: tuple[str, ...]
    end_at: float
    number: signal.Signals
    told_at: float | None = None

    def end(self, number: signal.Signals) -> None:
        if self.process.exitcode is None and self.process.pid:
            os.kill(self.process.pid, number)
            self.told_at = time.monotonic()


class Soak:
    def __init__(self, folder: Path, directory: Directory, seed: int, odds: float) -> None:
        self._folder = folder
        self._cells = dict(flatten(sample_case(directory, ["mediation"], datetime.now(UTC).date())))
        self._chance = random.Random(seed)
        self._relay = ChaosRelay(seed=seed, odds=odds, pause_s=0.02)
        self._running: list[_Running] = []
        self._unfinished: list[str] = []
        self._env: dict[str, str] = {}
        self.tally = Tally(seed)

    async def run(self, seconds: float) -> Tally:
        begun = time.monotonic()
        async with self._relay:
            self._env = {
                "REFERRALS_OUTBOX": str(self._folder / "outbox"),
                "REFERRALS_RELAY_HOST": self._relay.host,
                "REFERRALS_RELAY_PORT": str(self._relay.port),
                "REFERRALS_RELAY_SECURITY": "none",
                "REFERRALS_RELAY_TIMEOUT_S": "0.5",
                "REFERRALS_DELIVERY_LANES": str(LANES),
                "REFERRALS_DELIVERY_FIRST_WAIT_S": "0.2",
                "REFERRALS_DELIVERY_LONGEST_WAIT_S": "1",
            }
            await asyncio.to_thread(self._finish, ("outbox", "list"))  # makes the file
            with SqliteOutbox.open(self._place, "soak") as outbox:
                try:
                    while time.monotonic() < begun + seconds:
                        await self._turn(outbox)
                finally:
                    await self._end_all()
                await self._settle(outbox)
                self.tally.seconds = time.monotonic() - begun
                self._account(outbox)
        return self.tally

    @property
    def _place(self) -> Path:
        return self._folder / "outbox" / "outbox.sqlite3"

    # Killing

    async def _turn(self, outbox: SqliteOutbox) -> None:
        now = time.monotonic()
        for one in list(self._running):
            if one.told_at is None and now >= one.end_at:
                one.end(one.number)
            assert one.told_at is None or now < one.told_at + 30, f"{one.argv} does not end"
            if one.process.exitcode is not None:
                self._running.remove(one)
                self._ended(one)
        delivering = [one for one in self._running if one.argv[0] == "deliver"]
        if len(delivering) < 2:
            self._start(("deliver", "--watch") if self._chance.random() < 0.5 else ("deliver",))
        if len(delivering) == len(self._running):
            self._start(self._batch())
        if self._waiting(outbox) < _GROUP:
            outbox.queue(submissions(_GROUP, self.tally.direct + 1), datetime.now(UTC))
            self.tally.direct += _GROUP
        await asyncio.sleep(0.005)

    def _start(self, argv: tuple[str, ...]) -> None:
        process = _FORKS.Process(target=command, args=(self._folder, argv, self._env))
        process.start()
        lives_s = self._chance.uniform(0.02, 0.8) + (0.4 if argv[0] == "batch" else 0.0)
        number = signal.SIGTERM if self._chance.random() < 0.1 else signal.SIGKILL
        self._running.append(_Running(process, argv, time.monotonic() + lives_s, number))

    def _ended(self, one: _Running) -> None:
        code = one.process.exitcode
        if code == -signal.SIGKILL:
            self.tally.kills += 1
        elif one.told_at is not None:
            self.tally.stops += 1
        else:
            self.tally.ended += 1
        if one.argv[0] == "batch" and code != 0:
            self._unfinished.append(one.argv[1])
        one.process.close()

    def _batch(self) -> tuple[str, ...]:
        """Send a new spreadsheet, or one whose sending was cut short."""
        if self._unfinished and self._chance.random() < 0.5:
            name = self._unfinished.pop(self._chance.randrange(len(self._unfinished)))
        else:
            self.tally.files += 1
            name = f"cases-{self.tally.files}.csv"
            with (self._folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(self._cells))
                writer.writeheader()
                for row in range(1, _ROWS + 1):
                    reference = f"CASE-{self.tally.files}-{row}"
                    writer.writerow({**self._cells, "reference": reference})
        return ("batch", name, "--send", "--accept-unverified")

    def _waiting(self, outbox: SqliteOutbox) -> int:
        return sum(
            number for name, number in outbox.counts().items() if name not in {"relayed", "failed"}
        )

    # In peace

    async def _end_all(self) -> None:
        for one in self._running:
            one.end(signal.SIGKILL)
            await asyncio.to_thread(one.process.join)
            self._ended(one)
        self._running.clear()

    async def _settle(self, outbox: SqliteOutbox) -> None:
        """Let the relay be well, and everything be finished."""
        await self._relay.all_closed()
        self._relay.odds = 0.0
        for name in sorted(set(self._unfinished)):
            await asyncio.to_thread(self._finish, ("batch", name, "--send", "--accept-unverified"))
        until = time.monotonic() + 60
        while self._waiting(outbox):
            assert time.monotonic() < until, f"still waiting: {outbox.counts()}"
            await asyncio.to_thread(self._finish, ("deliver",))
            await asyncio.sleep(0.3)
        await self._relay.all_closed()

    def _finish(self, argv: tuple[str, ...]) -> None:
        process = _FORKS.Process(target=command, args=(self._folder, argv, self._env))
        process.start()
        process.join(60)
        assert process.exitcode in {0, 8, 9, 10}, (argv, process.exitcode)

    # The account

    def _account(self, outbox: SqliteOutbox) -> None:
        tally, relay = self.tally, self._relay
        held = outbox.held(limit=1_000_000)
        cases = Counter(one.case_reference for one in held)
        wanted = {f"CASE-{number}" for number in range(1, tally.direct + 1)} | {
            f"CASE-{file}-{row}"
            for file in range(1, tally.files + 1)
            for row in range(1, _ROWS + 1)
        }
        assert set(cases) == wanted, "lost, or made up"
        assert set(cases.values()) <= {1}, "queued twice"
        tally.queued = len(held)
        tally.counts = outbox.counts()
        assert set(tally.counts) <= {"relayed", "failed"}

        content_of = {one.reference: outbox.content(one.id) or b"" for one in held}
        taken, doubtful = Counter(relay.taken), Counter(relay.doubtful)
        arrived = taken + doubtful
        assert set(arrived) <= set(content_of.values()), "what arrived is not what was queued"
        for one in held:
            content = content_of[one.reference]
            times = arrived[content]
            if one.status == "relayed":
                assert taken[content], f"{one.reference}: never arrived"
            else:
                assert not taken[content] or one.maybe_doubled, f"{one.reference}: arrived, unsaid"
            assert times <= 1 or one.maybe_doubled, f"{one.reference}: doubled unawares"
            tally.doubled += times > 1
        tally.arrived = arrived.total()
        tally.marked = sum(one.maybe_doubled for one in held)
        tally.relay_doubts = doubtful.total() + relay.cut_short
        ids = [re.search(rb"^Message-ID: (\S+)", one, re.MULTILINE) for one in arrived]
        assert len({found[1] for found in ids if found}) == len(arrived)
        # Whoever is asked to stop, and whoever ends by himself, leaves nothing in doubt.
        most = tally.kills * LANES + tally.relay_doubts
        assert tally.marked <= most, f"marked for no reason: {tally}"
        assert list(verify(outbox.audit())) == []
