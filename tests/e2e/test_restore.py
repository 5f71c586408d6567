"""Backups, taken while workers deliver, and restored: nothing is lost, nothing submitted twice."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from referrals.audit import verify
from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.postgres.steps import migrate
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.sink import Arrived, Sink
from tests.conftest import ROOT
from tests.e2e.conftest import Beside, Command, Done, RelayEnv, process
from tests.e2e.test_postgres_faults import Workers
from tests.postgres import Server
from tests.restoring import ids_of, reference
from tests.restoring import referrals as made

BEFORE = timedelta(minutes=1)


def now() -> datetime:
    return datetime.now(UTC)


def until(true: Callable[[], object], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def slow_relay(pause_s: float = 0.01) -> Iterator[Sink]:
    """Slow enough that something waits while a backup is taken."""

    def wait(_: Arrived) -> None:
        time.sleep(pause_s)

    with Beside(Sink(on_message=wait)) as sink:
        yield sink


def arrived(relay: Sink) -> Counter[str]:
    return Counter(ids_of(one.content for one in relay.arrived))


def all_arrived(relay: Sink, quiet_s: float = 1.0) -> Counter[str]:
    """Once it has worked off what it was given: whoever gave it that may be dead by now."""
    count, until_s = -1, 0.0
    while len(relay.arrived) != count or time.monotonic() < until_s:
        if len(relay.arrived) != count:
            count, until_s = len(relay.arrived), time.monotonic() + quiet_s
        time.sleep(0.05)
    return arrived(relay)


def make_roles(server: Server) -> None:
    """In an empty database, as docs/postgres.md says."""
    with server.connected("referrals") as db:
        db.execute(_roles()[0].encode())


def make_outbox(server: Server) -> None:
    with server.connected() as db:
        db.execute("CREATE DATABASE referrals")
    make_roles(server)
    migrate(server.database("referrals", "referrals_owner"))
    grant(server)


def grant(server: Server) -> None:
    with server.connected("referrals") as db:
        db.execute(_roles()[1].encode())


def _roles() -> list[str]:
    text = (ROOT / "docs" / "postgres.md").read_text(encoding="utf-8")
    return re.findall(r"```sql\n(.*?)```", text, re.DOTALL)[:2]


def as_told(server: Server, section: str, number: int, **variables: str) -> str:
    """Run a block of commands of docs/backup.md, word for word; what they say."""
    running = begin_as_told(server, section, number, **variables)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 0, said.decode()
    return said.decode()


def begin_as_told(
    server: Server, section: str, number: int, **variables: str
) -> subprocess.Popen[bytes]:
    return server.shell(_section(section, "sh")[number], **variables)


def _section(title: str, language: str) -> list[str]:
    """The blocks in it."""
    text = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
    [told] = [part for part in text.split("\n## ") if part.startswith(f"{title}\n")]
    return re.findall(rf"```{language}\n(.*?)```", told, re.DOTALL)


@dataclass
class Place:
    """Where servers and backups are, and are removed from after a test."""

    servers: list[Server] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def server(self) -> Server:
        """A new one, running."""
        self.servers.append(Server.make())
        return self.servers[-1]

    def nowhere(self) -> Server:
        """One that has no data yet."""
        self.servers.append(Server.nowhere())
        return self.servers[-1]

    def backups(self) -> str:
        """A folder of the user that the servers run as."""
        folder = Path(tempfile.mkdtemp(prefix="backups-", dir="/tmp"))
        shutil.chown(folder, *_owner(self.servers[0].folder))
        self.folders.append(folder)
        return str(folder)

    def remove(self) -> None:
        connections.close_idle()
        for running in self.running:
            running.kill()
            running.communicate(timeout=20)
        for server in self.servers:
            with suppress(AssertionError, OSError):  # it is gone, as the test wanted
                server.stop("immediate")
            shutil.rmtree(server.folder, ignore_errors=True)
        for folder in self.folders:
            shutil.rmtree(folder)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.remove()


def _owner(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_uid, about.st_gid


def as_role(server: Server, role: str) -> PostgresOutbox:
    return PostgresOutbox.open(server.database("referrals", f"referrals_{role}"), role)


def asked(server: Server, *words: str, port: int = 1) -> Done:
    """A command, as the worker's role."""
    return process(
        *words,
        env={
            "REFERRALS_DATABASE": server.url("referrals", "referrals_worker"),
            "REFERRALS_RELAY_HOST": "127.0.0.1",
            "REFERRALS_RELAY_PORT": str(port),
            "REFERRALS_RELAY_SECURITY": "none",
        },
    )


class RoleWorkers(Workers):
    """As the worker's role, or anywhere."""

    def __init__(self, url: str, relay: Sink, folder: Path) -> None:
        self.url = lambda *_: url
        super().__init__(self, "", relay.port, folder)  # type: ignore[arg-type]


def test_a_dump_restored_into_an_empty_server(tmp_path: Path, home: Path, place: Place) -> None:
    """Killed workers, a dump from their midst, and the relay's list of what it took."""
    old, since = place.server(), now() - BEFORE
    make_outbox(old)
    with slow_relay() as relay:
        with (
            as_role(old, "page") as page,
            RoleWorkers(old.url("referrals", "referrals_worker"), relay, tmp_path) as workers,
        ):
            page.queue(made(100), now())
            workers.start(2)
            until(lambda: len(relay.arrived) > 20)
            kept = place.backups()
            as_told(old, "A dump", 0, BACKUPS=kept)
            page.queue(made(1, first=101, agency="after"), now())
            until(lambda: reference(101) in str(arrived(relay)))
            until(lambda: len(relay.arrived) > 60)
        before = all_arrived(relay)  # the block killed the workers
        assert 60 < len(before) < 101
        connections.close_idle()

        old.stop("immediate")
        shutil.rmtree(old.folder)
        new = place.server()
        as_told(new, "A dump", 1)
        make_roles(new)
        as_told(new, "A dump", 2, BACKUPS=kept)

        for command in ("deliver", "worker"):
            refused = asked(new, command, port=relay.port)
            assert (refused.code, "is a restored copy" in refused.err) == (6, True), refused.said
        assert arrived(relay) == before

        with as_role(new, "page") as page:  # the page goes on
            assert page.queue(made(1, first=102), now())[0].new

        log = tmp_path / "taken"
        log.write_text("\n".join(before), encoding="utf-8")
        given = ("outbox", "restored", "--taken", str(log), "--log-is-complete-since",
                 since.isoformat(), "--json")  # fmt: skip
        told, done = asked(new, *given), asked(new, *given, "--yes")
        assert (told.code, done.code) == (0, 0), done.said
        assert {**told.json, "done": True} == done.json
        assert done.json["not_in_this_copy"] == [reference(101)]
        assert done.json["held"] == 0
        assert done.json["due"] == 100 - len(before - Counter(_ids(101, 101)))

        delivered = asked(new, "deliver", port=relay.port)
        assert delivered.code == 0, delivered.said
        assert arrived(relay) == Counter(_ids(1, 102)), "each exactly once"
        with as_role(new, "reader") as outbox:
            assert outbox.counts() == {"relayed": 101}
            assert list(verify(outbox.audit())) == []


def _ids(first: int, last: int) -> list[str]:
    return ids_of(one.outgoing.content for one in made(last - first + 1, first=first))


def test_continuous_archiving_loses_nothing_that_was_queued(
    tmp_path: Path, home: Path, place: Place
) -> None:
    """A base backup and the log as it was received until the server and its disk were gone."""
    old = place.server()
    make_outbox(old)
    kept = place.backups()
    as_told(old, "Continuous archiving", 0, BACKUPS=kept)
    archive = begin_as_told(old, "Continuous archiving", 1, BACKUPS=kept)
    place.running.append(archive)
    with old.connected() as db:
        until(lambda: db.execute("SELECT 1 FROM pg_stat_replication").fetchone())
        for statement in _section("Continuous archiving", "sql")[0].split(";")[:-1]:
            db.execute(statement.encode())
        until(lambda: db.execute(
            "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone())  # fmt: skip
    as_told(old, "Continuous archiving", 2, BACKUPS=kept)

    queued: list[int] = []
    going = threading.Event()

    def queue_on() -> None:
        with (
            suppress(OutboxUnusable),
            PostgresOutbox.open(
                old.database("referrals", "referrals_page"), "page", patience_s=0.2
            ) as page,
        ):
            for number in range(1, 2_000):
                page.queue(made(1, first=number), now())
                queued.append(number)
                going.set()

    with slow_relay() as relay:
        with RoleWorkers(old.url("referrals", "referrals_worker"), relay, tmp_path) as workers:
            workers.start(2)
            queueing = threading.Thread(target=queue_on)
            queueing.start()
            until(lambda: len(relay.arrived) > 40)
            old.stop("immediate")
            shutil.rmtree(old.folder / "data")
            queueing.join(30)
        before = all_arrived(relay)
        archive.terminate()
        archive.wait(20)
        connections.close_idle()
        shutil.rmtree(old.folder)

        new = place.nowhere()
        data = str(new.folder / "data")
        as_told(new, "Continuous archiving", 3, BACKUPS=kept, DATA=data)
        with (new.folder / "data" / "postgresql.auto.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{new.folder}'\n")
        as_told(new, "Continuous archiving", 4, DATA=data)
        with new.connected() as db:
            until(lambda: db.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,))

        refused = asked(new, "deliver", port=relay.port)
        assert (refused.code, "recovered from a backup" in refused.err) == (6, True), refused.said
        with as_role(new, "reader") as outbox:
            held = {one.reference: one for one in outbox.held(limit=10_000)}
        assert {reference(number) for number in queued} <= set(held), "nothing queued is lost"
        in_doubt = {one.message_id for one in held.values() if one.status == "sending"}
        known = {one.message_id for one in held.values() if one.status == "relayed"}
        assert known <= set(before), "what it knows as relayed was taken"
        assert set(before) - known <= in_doubt, "and what was taken is known, or in doubt"

        # Nothing is missing, so it goes on as after any crash of its server.
        moved = asked(new, "outbox", "restored", "--nothing-lost", "--yes")
        assert moved.code == 0, moved.said
        with (
            RoleWorkers(new.url("referrals", "referrals_worker"), relay, tmp_path) as workers,
            as_role(new, "reader") as outbox,
        ):
            workers.start()
            until(lambda: outbox.counts() == {"relayed": len(held)})
            workers.stop()
            assert {one for one, times in arrived(relay).items() if times > 1} <= in_doubt
            doubled = {one.message_id for one in outbox.held(limit=10_000) if one.maybe_doubled}
            assert doubled == in_doubt
            assert {one.message_id for one in held.values()} == set(arrived(relay))
            assert list(verify(outbox.audit())) == []


def test_a_standby_that_is_promoted_goes_on_once_somebody_says_it_lacks_nothing(
    tmp_path: Path, home: Path, place: Place
) -> None:
    old = place.server()
    make_outbox(old)
    new = place.nowhere()
    new.run("pg_basebackup", "-D", "data", "-d", f"host={old.folder} user=postgres", "-R",
            "--checkpoint=fast", "--no-sync")  # fmt: skip
    with (new.folder / "data" / "postgresql.auto.conf").open("a") as file:
        file.write(f"unix_socket_directories = '{new.folder}'\n")
    new.start()
    with old.connected() as db:
        db.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        db.execute("SELECT pg_reload_conf()")
        until(lambda: db.execute(
            "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'").fetchone())  # fmt: skip
    both = (f"postgresql://referrals_worker@/referrals?host={old.folder},{new.folder}"
            "&target_session_attrs=read-write")  # fmt: skip
    with slow_relay() as relay, RoleWorkers(both, relay, tmp_path) as workers:
        with as_role(old, "page") as page:
            page.queue(made(80), now())
        workers.start()
        until(lambda: len(relay.arrived) > 20)
        old.stop("immediate")
        new.run("pg_ctl", "-D", "data", "-w", "-s", "promote")
        with new.connected() as db:
            db.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
            db.execute("SELECT pg_reload_conf()")
        until(lambda: b"standby that was promoted" in (tmp_path / "said").read_bytes())
        before = len(relay.arrived)
        assert before < 80
        assert workers.running[0].poll() is None, "it waits"
        assert asked(new, "outbox", "restored", "--nothing-lost", "--yes").code == 0
        with as_role(new, "reader") as outbox:
            until(lambda: outbox.counts() == {"relayed": 80})
            workers.stop()
            assert arrived(relay) == Counter(_ids(1, 80)), "its outcomes were kept until then"
            assert list(verify(outbox.audit())) == []


def test_a_copy_of_a_file_put_back(
    referrals: Command, home: Path, relay_env: RelayEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.bootstrap.now", now)
    file = home / "outbox" / "outbox.sqlite3"
    with slow_relay(0.0) as relay:
        relay_env(relay.port)
        since = now() - BEFORE
        with SqliteOutbox.open(file, "page") as outbox:
            outbox.queue(made(3), now())
        assert referrals("deliver").code == 0
        with SqliteOutbox.open(file, "page") as outbox:
            outbox.queue(made(5, first=4), now())
            backed = referrals("backup", "copy.sqlite3", "--json")  # while it is in use
        assert (backed.code, backed.json["messages"]) == (0, 8), backed.said
        assert referrals("backup", "copy.sqlite3").code == 6
        assert referrals("deliver").code == 0
        with SqliteOutbox.open(file, "page") as outbox:
            outbox.queue(made(1, first=9), now())
        assert referrals("deliver").code == 0
        before = arrived(relay)
        assert len(before) == 9

        for path in file.parent.glob("outbox.sqlite3*"):
            path.unlink()
        shutil.copyfile(home / "copy.sqlite3", file)
        for words in (("deliver",), ("deliver", "--watch")):
            refused = referrals(*words)
            assert (refused.code, "is a restored copy" in refused.err) == (6, True), refused.said
        assert arrived(relay) == before
        told = referrals("outbox", "restored")
        assert "Would be held for you, as uncertain: 5" in told.out
        assert "Nothing was changed" in told.out

        taken = "\n".join(before).encode()
        given = ("outbox", "restored", "--taken", "-", "--yes")
        done = referrals(*given, "--log-is-complete-since", since.isoformat(), stdin=taken)
        assert done.code == 0, done.said
        assert "Relayed, by the relay's log: 5" in done.out
        assert f"  {reference(9)}\n" in done.out
        assert referrals("deliver").code == 0
        assert arrived(relay) == before
    assert referrals("outbox", "list", "--json").json["counts"] == {"relayed": 8}
    assert referrals("audit", "verify").code == 0
    assert "Nothing shows that the outbox" in referrals("outbox", "restored").out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--nothing-lost", "--as-copy"), 2, "use it alone"),
        (("--log-is-complete-since", "2026-11-24T00:00Z"), 2, "needs --taken"),
        (("--taken", "x", "--log-is-complete-since", "Monday"), 2, "date, time and zone"),
        (("--taken", "x", "--log-is-complete-since", "2026-11-24"), 2, "date, time and zone"),
        (("--taken", "nowhere"), 6, "nowhere can't be read: No such file"),
        (("--taken", "cut.gz"), 6, "cut.gz can't be read: its compressed content is damaged"),
    ],
)
def test_what_it_can_not_do_it_says(
    referrals: Command, home: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    (home / "cut.gz").write_bytes(b"\x1f\x8b\x08\x00\x00")
    done = referrals("outbox", "restored", *words)
    assert (done.code, says in done.err.replace("\n", " ")) == (code, True), done.said


def test_a_copy_that_does_not_show_is_taken_for_one_if_somebody_says_so(
    referrals: Command, home: Path
) -> None:
    with SqliteOutbox.open(home / "outbox" / "outbox.sqlite3", "page") as outbox:
        outbox.queue(made(2), now())
    assert "Held for you, as uncertain: 0" in referrals("outbox", "restored", "--yes").out
    told = referrals("outbox", "restored", "--as-copy")
    assert "Would be held for you, as uncertain: 2" in told.out
    assert referrals("outbox", "list", "--json").json["counts"] == {"queued": 2}
    assert "Held for you, as uncertain: 2" in referrals(
        "outbox", "restored", "--as-copy", "--yes"
    ).out  # fmt: skip
    assert referrals("outbox", "list", "--json").json["counts"] == {"uncertain": 2}


@pytest.mark.parametrize(
    "words",
    [
        ("send", "mediation", "case.json", "--yes"),
        ("batch", str(ROOT / "samples" / "batch.csv"), "--send"),
    ],
)
def test_what_is_sent_from_a_copy_is_queued_and_waits(
    referrals: Command, home: Path, case_file: Path, relay_env: RelayEnv, words: tuple[str, ...]
) -> None:
    with SqliteOutbox.open(home / "outbox" / "outbox.sqlite3", "page") as outbox:
        outbox.take_for_copy(now())
    with slow_relay(0.0) as relay:
        relay_env(relay.port)
        refused = referrals(*words, "--accept-unverified")
        assert (refused.code, "What is queued is kept" in refused.err) == (6, True), refused.said
        assert "is a restored copy" in referrals("doctor").out
        assert referrals("outbox", "restored", "--nothing-lost").code == 0
        assert referrals("deliver").code == 6, "it only said what would be done"
        assert not relay.arrived
        assert referrals("outbox", "restored", "--nothing-lost", "--yes").code == 0
        assert referrals("deliver").code == 0
        assert relay.arrived


def test_backup_says_where_an_outbox_in_postgresql_is_backed_up(
    referrals: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no outbox" in referrals("backup", "copy").err
    monkeypatch.setenv("REFERRALS_DATABASE", "postgresql://me@host/x")
    done = referrals("backup", "copy")
    assert (done.code, "docs/backup.md" in done.err) == (2, True)
