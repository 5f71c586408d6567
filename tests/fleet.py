"""Two workers and two pages on one PostgreSQL, all harmed again and again; a relay that counts.

Each is the command itself, as its own role, with a folder of its own as on another machine. Two
programs ask the pages over HTTP to submit cases, and ask anew, perhaps the other page, until they
have an answer. Meanwhile workers and pages are killed or stopped, workers and the server's
processes are paused, all connections taken, and the server crashes. In the end everything is left
in peace, and the account must hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from referrals.audit import verify
from referrals.directory import Directory
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections as postgres_connections
from referrals.outboxes.postgres import steps
from referrals.outboxes.postgres.connections import Database
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.samples import sample_case
from referrals.web.site import Role
from referrals.web.store import Store
from referrals.web.store_postgres import StoreDatabase
from tests.chaos import ChaosRelay
from tests.postgres import Server
from tests.roles import sql_of_roles

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "referrals.cli.serve",
        "referrals.cli.worker",
        "referrals.outboxes.postgres.outbox",
        "referrals.transports.smtp",
        "referrals.web.server",
        "referrals.worker",
        "tests.fleet",
    ]
)

LANES = 3
_WAYS = {
    "kills": 10.0,
    "stops": 2.0,
    "pauses of a worker": 2.0,
    "pauses of the server": 1.0,
    "crashes of the server": 0.7,
    "times without a free connection": 1.0,
}
"""What is done to them, and how often beside the others."""
CONNECTIONS = 40
"""Of the server; three of them are for superusers, as which a watcher looks on."""
_PATIENCE_S = 3.0
STOPPED = (0, -signal.SIGTERM)
"""What SIGTERM ends with; the latter before there was time to take notice, or by uvicorn's way."""
_NO_DATABASE = 6


@dataclass
class Tally:
    """What a run came to."""

    seed: int
    harm: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    unanswered: int = 0
    refused: int = 0
    found_kept: int = 0
    """Asked again after an answer was lost, and it had been kept."""
    given_up: int = 0
    """Cases whose answer nobody waited for in the end: kept or not."""
    kept_unheard: int = 0
    promised: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    arrived: int = 0
    doubled: int = 0
    marked: int = 0
    relay_doubts: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        harm = ", ".join(f"{count:,} {what}" for what, count in sorted(self.harm.items()))
        ended = ", ".join(f"{count:,} {how}" for how, count in sorted(self.ended.items()))
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        return (
            f"In {self.seconds:.0f} s (seed {self.seed}) {harm}; processes: {ended}; "
            f"{self.asked:,} requests, {self.unanswered:,} without an answer and {self.refused:,} "
            f"refused for now; {self.promised:,} referrals promised, {self.found_kept:,} of them "
            f"found kept when asked for again; {self.given_up:,} given up, {self.kept_unheard:,} "
            f"of them kept: {counts}; {self.arrived:,} arrived, {self.doubled:,} of them twice or "
            f"more, {self.marked:,} marked; the relay left {self.relay_doubts:,} in doubt."
        )


def command(folder: Path, argv: tuple[str, ...], env: Mapping[str, str]) -> None:
    """The command in a process of its own; what it says goes into a file."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ.update(env)
    said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    from referrals.cli import main

    sys.exit(main(list(argv)))


@dataclass
class Member:
    """One worker or page, started anew whenever it has ended, as a supervisor does."""

    name: str
    folder: Path
    argv: tuple[str, ...]
    env: dict[str, str]
    process: Any = None
    told_at: float | None = None
    dead_until: float = 0.0
    is_done: bool = False
    """Not to be started again."""

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.exitcode is None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.runs else None

    def start(self) -> None:
        self.process = _FORKS.Process(target=command, args=(self.folder, self.argv, self.env))
        self.process.start()
        self.told_at = None

    def tell(self, number: signal.Signals) -> None:
        if self.pid is not None:
            _signal(self.pid, number)
            self.told_at = self.told_at or time.monotonic()

    @property
    def may_start(self) -> bool:
        return self.process is None and not self.is_done and time.monotonic() >= self.dead_until

    def look(self, ended: Counter[str]) -> None:
        """Notice that it has ended, and see that it was for a good reason."""
        now = time.monotonic()
        if self.process is None:
            return
        if self.runs:
            assert self.told_at is None or now < self.told_at + 45, f"{self.name} does not end"
            return
        code = self.process.exitcode
        self.process.close()
        self.process = None
        if code == -signal.SIGKILL:
            ended["killed"] += 1
            return
        told = STOPPED if self.told_at is not None else ()
        assert code in (*told, _NO_DATABASE), f"{self.name} ended with {code}"
        ended["without a database" if code == _NO_DATABASE else "stopped"] += 1
        self.dead_until = now + 0.3


class Fleet:
    """On a server of its own, which `server_for_it` makes."""

    def __init__(
        self, server: Server, folder: Path, directory: Directory, seed: int, odds: float
    ) -> None:
        self._server = server
        self._folder = folder
        self._case = sample_case(directory, ["mediation"], datetime.now(UTC).date())
        self._chance = random.Random(seed)
        self._relay = ChaosRelay(seed=seed, odds=odds, pause_s=0.02)
        self._database = ""
        self._members: list[Member] = []
        self._pages: list[str] = []
        self._token = ""
        self._is_asking = True
        self._not_yet = list(_WAYS)
        self._last_case = 0
        self._promised: dict[str, str] = {}
        self._given_up: set[str] = set()
        self.tally = Tally(seed)

    @staticmethod
    def server_for_it() -> Server:
        return Server.make(max_connections=str(CONNECTIONS))

    async def run(self, seconds: float) -> Tally:
        """Longer, where the machine is so slow that hardly anything has happened."""
        begun = time.monotonic()
        await asyncio.to_thread(self._make)
        async with self._relay:
            self._muster()
            tasks = [asyncio.create_task(self._supervise())]
            tasks += [asyncio.create_task(self._program(number)) for number in range(2)]
            try:
                await self._until(lambda: len(self._promised) > 3, tasks)
                until, slower = time.monotonic() + seconds, 1.0
                while time.monotonic() < until or self._is_too_little():
                    await self._harm()
                    await self._until(lambda: True, tasks)
                    await asyncio.sleep(self._chance.uniform(0.05, 0.4) * slower)
                    if time.monotonic() > until:
                        slower += 1.0
                await self._settle(tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for one in self._members:
                    one.tell(signal.SIGKILL)
            await self._relay.all_closed()
            self.tally.seconds = time.monotonic() - begun
        postgres_connections.close_idle()
        with PostgresOutbox.open(self._server.database(self._database), "watcher") as outbox:
            self._account(outbox)
        postgres_connections.close_idle()
        return self.tally

    # Who takes part

    def _make(self) -> None:
        self._database = self._server.empty_database()
        before, after = sql_of_roles(self._database)
        with self._server.connected(self._database) as db:
            db.execute(before)
            db.execute("CREATE ROLE referrals_guest LOGIN")
        steps.migrate(self._server.database(self._database, "referrals_owner"))
        with self._server.connected(self._database) as db:
            db.execute(after)
        self._token = _token_in(self._server.database(self._database, "referrals_page"))

    def _muster(self) -> None:
        common = {
            "REFERRALS_RELAY_HOST": self._relay.host,
            "REFERRALS_RELAY_PORT": str(self._relay.port),
            "REFERRALS_RELAY_SECURITY": "none",
            "REFERRALS_RELAY_TIMEOUT_S": "0.5",
            "REFERRALS_DELIVERY_LANES": str(LANES),
            "REFERRALS_DELIVERY_FIRST_WAIT_S": "0.2",
            "REFERRALS_DELIVERY_LONGEST_WAIT_S": "1",
            "REFERRALS_WEB_DELIVER": "false",
        }
        for number in range(2):
            argv: tuple[str, ...]
            for kind, argv in (("worker", ("worker",)), ("page", ("serve",))):
                folder = self._folder / f"{kind}-{number}"
                env = common | {
                    "REFERRALS_DATABASE": self._server.url(self._database, f"referrals_{kind}"),
                    "REFERRALS_OUTBOX": str(folder / "outbox"),
                }
                if kind == "page":
                    port = _free_port()
                    argv = (*argv, "--port", str(port))
                    self._pages.append(f"http://127.0.0.1:{port}")
                self._members.append(Member(f"{kind} {number}", folder, argv, env))

    # Those who ask

    async def _program(self, number: int) -> None:
        """Submit one case after another; whoever has no answer asks again."""
        chance = random.Random(self.tally.seed * 2 + number)
        async with httpx2.AsyncClient(timeout=_PATIENCE_S) as client:
            while self._is_asking:
                self._last_case += 1
                await self._submit(client, chance, f"CASE-{self._last_case}")

    async def _submit(
        self, client: httpx2.AsyncClient, chance: random.Random, reference: str
    ) -> None:
        case = {**self._case, "reference": reference}
        lost = False
        while True:
            address = chance.choice(self._pages)
            self.tally.asked += 1
            try:
                answer = await client.post(
                    f"{address}/api/v1/referrals?intervention=mediation&accept_unverified=true",
                    json=case,
                    headers={"Authorization": f"Bearer {self._token}"},
                )
            except httpx2.HTTPError:
                self.tally.unanswered += 1
                lost = True
                if chance.random() < 0.02:
                    self._given_up.add(reference)
                    return
                await asyncio.sleep(0.05)
                continue
            if answer.status_code in (200, 202):
                [told] = answer.json()["referrals"]
                assert lost or answer.status_code == 202, f"{reference} was there before"
                self._promised[reference] = told["reference"]
                self.tally.found_kept += answer.status_code == 200
                return
            assert answer.status_code in (429, 500, 503), answer.text
            assert answer.status_code != 500, f"a fault of ours: {answer.text}"
            self.tally.refused += 1
            lost = True  # "whether it was kept is not known yet"
            await asyncio.sleep(1.0 if answer.status_code == 429 else 0.1)

    # Harm

    async def _supervise(self) -> None:
        while True:
            for one in self._members:
                one.look(self.tally.ended)
                if one.may_start:
                    one.start()
            await asyncio.sleep(0.02)

    def _is_too_little(self) -> bool:
        doubts = len(self._relay.doubtful) + self._relay.cut_short
        return bool(self._not_yet) or len(self._promised) < 50 or not doubts

    async def _harm(self) -> None:
        """Each way once, in any order, then now one and now another."""
        if self._not_yet:
            what = self._not_yet.pop(self._chance.randrange(len(self._not_yet)))
        else:
            what = self._chance.choices(list(_WAYS), list(_WAYS.values()))[0]
        self.tally.harm[what] += 1
        await {
            "kills": self._kill,
            "stops": self._stop,
            "pauses of a worker": self._pause_a_worker,
            "pauses of the server": self._pause_the_server,
            "crashes of the server": self._crash_the_server,
            "times without a free connection": self._starve,
        }[what]()

    async def _kill(self) -> None:
        self._chance.choice(self._members).tell(signal.SIGKILL)

    async def _stop(self) -> None:
        self._chance.choice(self._members).tell(signal.SIGTERM)

    async def _pause_a_worker(self) -> None:
        """Now and then for as long as others need to take it for dead."""
        worker = self._chance.choice([one for one in self._members if one.name[0] == "w"])
        pid, pause_s = worker.pid, self._chance.uniform(0.2, 1.0)
        if pid is None:
            return
        _signal(pid, signal.SIGSTOP)
        if self._chance.random() < 0.5:
            with suppress(psycopg.Error), self._server.connected(self._database) as db:
                db.execute(
                    "UPDATE procrastinate.procrastinate_workers"
                    " SET last_heartbeat = now() - interval '1 h'"
                )
        await asyncio.sleep(pause_s)
        if worker.pid == pid:
            _signal(pid, signal.SIGCONT)

    async def _pause_the_server(self) -> None:
        processes = self._server.processes()
        for one in processes:
            _signal(one, signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        for one in processes:
            _signal(one, signal.SIGCONT)

    async def _crash_the_server(self) -> None:
        await asyncio.to_thread(self._server.stop, "immediate")
        await asyncio.sleep(self._chance.uniform(0.0, 0.5))
        await asyncio.to_thread(self._server.start)

    async def _starve(self) -> None:
        taken = []
        try:
            with suppress(psycopg.OperationalError):
                while True:
                    taken.append(psycopg.connect(self._server.url("postgres", "referrals_guest")))
            await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        finally:
            for one in taken:
                one.close()

    # In peace

    async def _settle(self, tasks: list[asyncio.Task[None]]) -> None:
        """Let everybody be well, everything be finished, and all be stopped: the pages first."""
        self._relay.odds = 0.0
        self._is_asking = False
        await self._until(lambda: all(task.done() for task in tasks[1:]), tasks)
        with PostgresOutbox.open(self._server.database(self._database), "watcher") as outbox:
            for kind in ("page", "worker"):
                if kind == "worker":
                    await self._until(lambda: set(outbox.counts()) <= {"relayed", "failed"}, tasks)
                await self._dismiss(kind, tasks)

    async def _dismiss(self, kind: str, tasks: list[asyncio.Task[None]]) -> None:
        leaving = [one for one in self._members if one.name.startswith(kind)]
        for one in leaving:
            one.is_done = True
            one.tell(signal.SIGTERM)
        await self._until(lambda: all(one.process is None for one in leaving), tasks)

    async def _until(
        self, true: Callable[[], bool], tasks: list[asyncio.Task[None]], limit_s: float = 90
    ) -> None:
        async with asyncio.timeout(limit_s):
            while True:
                for task in tasks:
                    if task.done():
                        task.result()
                with suppress(OutboxUnusable):
                    if await asyncio.to_thread(true):
                        return
                await asyncio.sleep(0.02)

    # The account

    def _account(self, outbox: PostgresOutbox) -> None:
        tally, relay = self.tally, self._relay
        held = outbox.held(limit=1_000_000)
        cases = Counter(one.case_reference for one in held)
        assert set(cases.values()) <= {1}, "queued twice"
        by_reference = {one.case_reference: one.reference for one in held}
        assert self._promised.items() <= by_reference.items(), "promised, and not there"
        assert set(cases) <= set(self._promised) | self._given_up, "made up"
        tally.promised, tally.given_up = len(self._promised), len(self._given_up)
        tally.kept_unheard = len(set(cases) - set(self._promised))
        tally.counts = outbox.counts()
        assert set(tally.counts) <= {"relayed", "failed"}

        content_of = {one.reference: outbox.content(one.id) or b"" for one in held}
        taken, doubtful = Counter(relay.taken), Counter(relay.doubtful)
        arrived = taken + doubtful
        assert set(arrived) <= set(content_of.values()), "what arrived is not what was queued"
        for one in held:
            content = content_of[one.reference]
            assert hashlib.sha256(content).hexdigest() == one.sha256
            times = arrived[content]
            if one.status == "relayed":
                assert taken[content], f"{one.reference}: never arrived"
            else:
                assert not taken[content] or one.maybe_doubled, f"{one.reference}: arrived, unsaid"
            assert times <= 1 or one.maybe_doubled, f"{one.reference}: doubled unawares"
            tally.doubled += times > 1
        ids = [re.search(rb"^Message-ID: (\S+)", one, re.MULTILINE) for one in arrived]
        assert len({found[1] for found in ids if found}) == len(arrived)
        tally.arrived = arrived.total()
        tally.marked = sum(one.maybe_doubled for one in held)
        tally.relay_doubts = doubtful.total() + relay.cut_short

        entries = list(outbox.audit())
        assert list(verify(entries)) == []
        actions = Counter(entry.action for entry in entries)
        assert actions["queued"] == len(held)
        assert actions["relayed"] >= tally.counts.get("relayed", 0)
        with self._server.connected(self._database) as db:
            [(jobs,)] = db.execute("SELECT count(*) FROM procrastinate.procrastinate_jobs")
        assert jobs == 0, "a job is left, and no message for it"


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _token_in(database: Database) -> str:
    """One for all pages: they share their store."""
    store = Store(StoreDatabase(database))
    try:
        token = store.add_token("case-system", Role.SENDER, "jo", datetime.now(UTC),
                                timedelta(days=1))  # fmt: skip
        assert token is not None
        return token
    finally:
        store.close()
