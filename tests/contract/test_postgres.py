"""What the PostgreSQL outbox alone has to do: its tables, its jobs, its roles, its neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import psycopg
import pytest

from referrals.audit import verify
from referrals.delivery import DeliveryStatus, RetryPolicy
from referrals.errors import LeaseLost, NotInOutbox, NotPossibleNow, OutboxUnusable
from referrals.holding import Reason, Rerouting
from referrals.outboxes.postgres import connections
from referrals.outboxes.postgres import steps as postgres_steps
from referrals.outboxes.postgres.connections import Database
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.outboxes.postgres.steps import Step, migrate
from referrals.outboxes.postgres.verified import PostgresVerified
from referrals.queueing import Claimed
from referrals.relay_health import RelayFault
from referrals.verification import Verification
from referrals.web.accounts import Accounts
from referrals.web.batch_shared import SharedBatch, sweep_shared
from referrals.web.site import Role
from referrals.web.store import Store
from referrals.web.store_postgres import StoreDatabase
from referrals.web.throttle import Throttle
from tests.conftest import NOW, TODAY
from tests.contract.test_holds import letters
from tests.contract.test_outbox import DELAYED, LEASE, RELAYED, claimed, record, recover
from tests.peers import run
from tests.postgres import ClockedOutbox, Server, server
from tests.queued import submission, submissions
from tests.roles import sql_of_roles


@pytest.fixture
def name() -> str:
    return server().emptied()


@pytest.fixture
def outbox(name: str) -> Iterator[ClockedOutbox]:
    with ClockedOutbox.of(server(), name, "tester") as outbox:
        yield outbox


def jobs_of(name: str) -> list[tuple[Any, ...]]:
    with server().connected(name) as db:
        return db.execute(
            "SELECT id, status::text, priority, args FROM procrastinate.procrastinate_jobs"
            " ORDER BY id"
        ).fetchall()


# Its jobs


def test_a_job_says_nothing_but_a_number(outbox: ClockedOutbox, name: str) -> None:
    outbox.queue(submissions(2), NOW)
    found = [one[1:] for one in jobs_of(name)]
    assert found == [("todo", -1, {"message": 1}), ("todo", -2, {"message": 2})]


def test_there_is_a_job_for_what_waits_or_is_under_way_and_for_nothing_else(
    outbox: ClockedOutbox, name: str
) -> None:
    outbox.queue(submissions(6), NOW)
    mine = claimed(outbox)
    record(outbox, claimed(outbox), RELAYED)
    record(outbox, claimed(outbox), DELAYED)
    record(outbox, claimed(outbox), replace(RELAYED, status=DeliveryStatus.FAILED))
    outbox.cancel("R-5", NOW)
    assert [(one[3]["message"], one[1]) for one in jobs_of(name)] == [
        (1, "doing"), (3, "todo"), (6, "todo"),
    ]  # fmt: skip
    run(outbox.release(mine, "me"))
    outbox.retry("R-4", NOW)
    outbox.retry("R-3", NOW)
    assert Counter(one[1] for one in jobs_of(name)) == {"todo": 4}
    while isinstance(one := run(outbox.claim("me", NOW, LEASE)), Claimed):
        record(outbox, one, RELAYED)
    assert jobs_of(name) == []
    with server().connected(name) as db:
        left = db.execute("SELECT count(*) FROM procrastinate.procrastinate_events").fetchone()
    assert left == (0,)


def test_an_agency_that_was_idle_gains_nothing_and_loses_nothing(outbox: ClockedOutbox) -> None:
    """Its first comes after what is under way, not before all that waits, nor behind it."""
    outbox.queue(submissions(6, agency="a"), NOW)
    for _ in range(3):
        record(outbox, claimed(outbox), RELAYED)
    under_way = claimed(outbox)
    outbox.queue(submissions(3, first=11, agency="b"), NOW)
    order = [claimed(outbox).outgoing.reference for _ in range(5)]
    assert under_way.outgoing.reference == "R-4"
    assert order == ["R-11", "R-5", "R-12", "R-6", "R-13"]


def test_an_agencys_next_comes_after_its_last_though_queued_apart(outbox: ClockedOutbox) -> None:
    for number, agency in ((1, "a"), (2, "a"), (3, "a"), (11, "b"), (12, "b")):
        outbox.queue([submission(number, agency=agency)], NOW)
    order = [claimed(outbox).outgoing.reference for _ in range(5)]
    assert order == ["R-1", "R-11", "R-2", "R-12", "R-3"]


def test_what_is_put_off_has_its_turn_after_its_agencys_last(outbox: ClockedOutbox) -> None:
    outbox.queue(submissions(2, agency="a"), NOW)
    outbox.queue([submission(11, agency="b")], NOW)
    record(outbox, claimed(outbox), DELAYED)
    later = NOW + RetryPolicy().first_wait
    order = [claimed(outbox, now=later).outgoing.reference for _ in range(3)]
    assert order == ["R-11", "R-2", "R-1"]


@pytest.mark.parametrize("harm", ["deleted", "failed", "doing", "cancelled"])
def test_what_lost_its_job_gets_another(outbox: ClockedOutbox, name: str, harm: str) -> None:
    """Somebody let procrastinate's own worker loose on it, or tidied up."""
    outbox.queue(submissions(3), NOW)
    mine = claimed(outbox)
    with outbox.database.connect() as db:
        if harm == "deleted":
            db.execute("DELETE FROM procrastinate_jobs")
        else:
            db.execute("UPDATE procrastinate_jobs SET status = %s", (harm,))
    with ClockedOutbox.of(server(), name, "next") as following:
        recover(following)
        taken = {claimed(following).outgoing.reference for _ in range(2 if harm == "doing" else 3)}
    assert taken == {"R-2", "R-3"} | (set() if harm == "doing" else {"R-1"})
    if harm == "doing":  # that one was as it should be
        assert record(outbox, mine, RELAYED) is DeliveryStatus.RELAYED


def test_a_fetch_does_not_sort_all_that_waits(name: str) -> None:
    """However old the statistics are by which the planner goes."""
    with server().connected(name) as db:
        [(settings,)] = db.execute(
            "SELECT proconfig FROM pg_proc WHERE proname = 'procrastinate_fetch_job_v2'"
        ).fetchall()
    assert settings == ["enable_sort=off", "enable_bitmapscan=off"]


# Several at once


def test_one_audit_is_written_by_many_at_once(name: str) -> None:
    """Processes and threads: one chain, each number once, nobody waits for ever."""

    def work(number: int) -> None:
        with PostgresOutbox.open(server().database(name), f"actor {number}") as mine:
            for step in range(12):
                mine.queue([submission(1_000 * number + step, agency=f"a{step % 3}")], NOW)
                mine.note("seen", {"step": step}, NOW)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    with PostgresOutbox.open(server().database(name), "reader") as reader:
        entries = list(reader.audit())
        assert len(entries) == 6 * 12 * 2
        assert list(verify(entries)) == []
        assert len({one.actor for one in entries}) == 6


def test_people_decide_while_workers_deliver(name: str) -> None:
    """In any order: whatever waits has its job, nothing else has, and the account is whole."""
    statuses = (DeliveryStatus.RELAYED, DeliveryStatus.DELAYED, DeliveryStatus.FAILED,
                DeliveryStatus.UNCERTAIN)  # fmt: skip
    done = threading.Event()

    def deliver(number: int) -> int:
        chance, owner = random.Random(number), f"worker {number}"
        with PostgresOutbox.open(server().database(name), owner) as mine:

            async def some() -> int:
                count = 0
                while not done.is_set():
                    one = await mine.claim(owner, NOW, LEASE)
                    if not isinstance(one, Claimed):
                        await asyncio.sleep(0.002)
                        continue
                    count += 1
                    outcome = replace(RELAYED, status=chance.choice(statuses))
                    with contextlib.suppress(LeaseLost):
                        await mine.record(one, owner, outcome, NOW - LEASE, RetryPolicy())
                    if count % 7 == 0:
                        await mine.recover(NOW, RetryPolicy())
                return count

            return asyncio.run(some())

    def decide(number: int) -> int:
        chance, count = random.Random(number), 0
        with PostgresOutbox.open(server().database(name), "person") as mine:
            for _ in range(250):
                reference = f"R-{chance.randrange(20)}"
                with contextlib.suppress(NotPossibleNow):
                    match chance.randrange(5):
                        case 0:
                            mine.cancel(reference, NOW)
                        case 1 | 2:
                            mine.retry(reference, NOW)
                        case 3:
                            mine.acknowledge(reference, TODAY, NOW)
                        case 4:
                            number = int(reference[2:])
                            mine.queue([submission(number)], NOW)
                    count += 1
        return count

    with ThreadPoolExecutor(5) as pool, PostgresOutbox.open(server().database(name), "t") as outbox:
        outbox.queue(submissions(20, first=0), NOW)
        working = [pool.submit(deliver, number) for number in range(3)]
        try:
            decided = [one.result(60) for one in [pool.submit(decide, n) for n in (7, 8)]]
        finally:
            done.set()
        assert sum(one.result(60) for one in working) > 20
        assert min(decided) > 20
        assert list(verify(outbox.audit())) == []
        with outbox.database.connect() as db:
            unlike = db.execute(
                "SELECT message.id, message.status, job.status FROM message"
                " FULL JOIN procrastinate_jobs AS job ON job.id = message.job"
                " WHERE (message.job IS NOT NULL OR job.id IS NOT NULL) AND job.status IS DISTINCT"
                " FROM CASE WHEN lease_until IS NOT NULL THEN 'doing' WHEN due_at IS NOT NULL"
                " THEN 'todo' END::procrastinate_job_status"
            ).fetchall()
        assert unlike == []


def test_two_who_queue_the_same_in_another_order_do_not_block_each_other(name: str) -> None:
    some = submissions(200)

    def work(number: int) -> int:
        with PostgresOutbox.open(server().database(name), "me") as mine:
            return sum(one.new for one in mine.queue(some[:: 1 if number % 2 else -1], NOW))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 200
    with PostgresOutbox.open(server().database(name), "me") as reader:
        assert reader.counts() == {"queued": 200}
    assert len(jobs_of(name)) == 200


def test_who_listens_is_told_of_what_others_queue(name: str) -> None:
    heard = threading.Event()
    with (
        PostgresOutbox.open(server().database(name), "worker") as worker,
        PostgresOutbox.open(server().database(name), "page") as page,
        worker.listening(heard.set),
    ):
        for number in range(100):
            page.queue([submission(number)], NOW)
            if heard.wait(0.1):
                break
        assert heard.is_set()


def test_a_loop_goes_on_while_its_outbox_waits_for_another(name: str) -> None:
    async def scenario() -> None:
        with (
            PostgresOutbox.open(server().database(name), "me") as outbox,
            server().connected(name) as other,
        ):
            with other.transaction():
                other.execute("SELECT 1 FROM referrals.chain FOR UPDATE")
                queueing = outbox.queue_soon(submissions(1), NOW)
                for _ in range(20):
                    await asyncio.sleep(0.005)
                    assert not queueing.done()
            assert (await asyncio.wrap_future(queueing))[0].new

    run(scenario())


# Its tables


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE content SET octets = ''",
        "DELETE FROM content",
        "DELETE FROM message",
        "UPDATE message SET recipient = 'else@where.test'",
        "UPDATE message SET sender = 'else@where.test'",
        "UPDATE message SET message_id = '<else>'",
        "UPDATE message SET sha256 = ''",
        "UPDATE message SET facts_key = ''",
        "UPDATE message SET replaces = NULL",
        "UPDATE message SET due_at = NULL",
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "TRUNCATE audit",
    ],
)
def test_the_tables_refuse_what_must_not_happen(
    outbox: ClockedOutbox, name: str, statement: str
) -> None:
    outbox.queue([submission()], NOW)
    with outbox.database.connect() as db, pytest.raises(psycopg.IntegrityError):
        db.execute(statement.encode())
    assert outbox.content(1) == submission().outgoing.content
    assert list(verify(outbox.audit())) == []


def test_the_tables_are_made_once_however_many_try() -> None:
    name = server().empty_database()
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: migrate(server().database(name)).done, range(4)))
    assert sorted(map(bool, done)) == [False, False, False, True]
    assert [step.name for step in postgres_steps.steps()] == max(done, key=len)
    with PostgresOutbox.open(server().database(name), "me") as outbox:
        assert outbox.queue([submission()], NOW)[0].new
        assert outbox.counts() == {"queued": 1}


def test_procrastinate_as_a_whole_is_what_its_steps_come_to() -> None:
    """So that what is added by steps later goes with what was made at once."""
    whole, by_steps = server().empty_database(), server().empty_database()
    for made, scripts in (
        (whole, [files("procrastinate.sql").joinpath("schema.sql")]),
        (by_steps, [one.file for one in postgres_steps.steps() if one.schema == "procrastinate"]),
    ):
        with server().connected(made) as db:
            for script in scripts:
                db.execute(script.read_text(encoding="utf-8").encode())
    found = []
    for made in (whole, by_steps):
        with server().connected(made) as db:
            functions = db.execute(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1"
            ).fetchall()
            columns = db.execute(
                "SELECT table_name, column_name, data_type FROM information_schema.columns"
                " WHERE table_schema = 'public' ORDER BY 1, 2"
            ).fetchall()
        found.append((functions, columns))
    assert found[0] == found[1]


def _with_steps(monkeypatch: pytest.MonkeyPatch, *more: Step) -> None:
    known = [*postgres_steps.steps(), *more]
    monkeypatch.setattr(postgres_steps, "steps", lambda: known)
    monkeypatch.setattr(postgres_steps, "steps_known", lambda: known)


def _step(folder: Path, name: str, script: str) -> Step:
    file = folder / f"{name}.sql"
    file.write_text(script)
    return Step(f"referrals/{name}", "referrals", file)


def test_a_step_that_old_workers_are_in_the_way_of_waits_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = server().new_database()
    database = server().database(name)
    before = _step(tmp_path, "0099_pre_more", "ALTER TABLE message ADD COLUMN more text")
    after = _step(tmp_path, "0099_post_less", "ALTER TABLE message DROP COLUMN more")
    with PostgresOutbox.open(database, "old") as old:
        old.queue(submissions(3), NOW)
        assert isinstance(run(old.claim("me", NOW, LEASE)), Claimed)
        with monkeypatch.context() as newer:
            _with_steps(newer, before, after)
            done = migrate(database)
            assert (done.done, done.waiting) == ([before.name], [after.name])
            with PostgresOutbox.open(database, "new") as new:
                assert isinstance(run(new.claim("me", NOW, LEASE)), Claimed)
                new.close()
            old.queue([submission(4)], NOW)
            assert isinstance(run(old.claim("me", NOW, LEASE)), Claimed), "two versions at once"
            old.close()
            done = migrate(database)
            assert (done.done, done.waiting) == ([after.name], [])
            assert migrate(database).done == []
    with pytest.raises(OutboxUnusable, match="newer version"):
        PostgresOutbox.open(database, "old")
    with pytest.raises(OutboxUnusable, match="newer version"):
        migrate(database)


def test_an_old_version_goes_on_beside_a_newer_one_also_on_new_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As pages do, which open the outbox at each request, and workers whose link broke."""
    name = server().new_database()
    database = server().database(name)
    more = _step(tmp_path, "0099_more", "ALTER TABLE message ADD COLUMN more text")
    with PostgresOutbox.open(database, "old worker") as worker:
        worker.queue(submissions(2), NOW)
        with monkeypatch.context() as newer:
            _with_steps(newer, more)
            assert migrate(database).done == [more.name]
            with PostgresOutbox.open(database, "new page") as page:
                page.queue([submission(3)], NOW)
        with server().connected(name) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'referrals'"
            )
        with PostgresOutbox.open(database, "old page") as page:
            page.queue([submission(4)], NOW)
        for _ in range(4):
            record(worker, claimed(worker), RELAYED)
        assert worker.counts() == {"relayed": 4}
        with pytest.raises(OutboxUnusable, match="newer version"):
            migrate(database)


def test_an_older_version_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    _with_steps(monkeypatch, _step(tmp_path, "0099_more", "SELECT 1"))
    with pytest.raises(OutboxUnusable, match=r"older version.*referrals migrate"):
        PostgresOutbox.open(server().database(name), "me")


def test_a_step_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = server().new_database()
    wrong = _step(tmp_path, "0099_wrong", "CREATE TABLE half (x int); SELECT 1 / 0")
    with monkeypatch.context() as newer:
        _with_steps(newer, wrong)
        with pytest.raises(psycopg.DataError):
            migrate(server().database(name))
    with PostgresOutbox.open(server().database(name), "me") as outbox:
        assert outbox.counts() == {}
    with server().connected(name) as db:
        assert db.execute("SELECT to_regclass('referrals.half')").fetchone() == (None,)


# What goes wrong


def test_a_database_without_tables_is_said_so() -> None:
    name = server().empty_database()
    with pytest.raises(OutboxUnusable, match=r"no outbox yet. Run `referrals migrate`"):
        PostgresOutbox.open(server().database(name), "me")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:s3cret@127.0.0.1:1/x", "refused.*See that the server runs"),
        ("postgresql://me:s3cret@/nowhere?host={host}", "role.*does not exist|does not exist"),
        ("postgresql://postgres:s3cret@/nowhere?host={host}", "does not exist.*Make the database"),
        ("postgresql://me:s3cret@no.such.host.invalid/x", "See that the server runs"),
    ],
)
def test_a_server_that_can_not_be_used_is_said_so_without_the_password(url: str, says: str) -> None:
    database = Database.of(url.replace("{host}", str(server().folder)))
    with pytest.raises(OutboxUnusable, match=says) as error:
        PostgresOutbox.open(database, "me")
    assert "s3cret" not in str(error.value) + repr(database)


@pytest.mark.parametrize("url", ["postgresql://me:s3%cret@/x", "postgresql://me@[::1:s3cret/x"])
def test_what_is_no_url_is_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL URL") as error:
        Database.of(url)
    assert "cret" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_server_that_does_not_keep_its_word_by_default_has_to() -> None:
    """A database set to be quick rather than safe."""
    name = server().new_database()
    with server().connected(name) as db:
        db.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        db.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    with server().database(name).connect() as db:
        shown = db.execute(
            "SELECT current_setting('synchronous_commit'), current_setting('TimeZone')"
        ).fetchone()
    assert shown == ("on", "UTC")


# Its neighbours


def test_addresses_are_read_by_every_process_and_nothing_is_known_where_none_can_be(
    outbox: ClockedOutbox, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Verification("victim-care", "a@example.org", TODAY, "Sam Smith")
    verified = PostgresVerified(server().database(name))
    assert verified.read() == ()
    outbox.verify(one, NOW)
    assert verified.read() == (one,)
    outbox.withdraw(one.agency, one.address, NOW)
    assert verified.read() == ()
    asked: list[Database] = []

    def connect(database: Database) -> connections.Connection:
        asked.append(database)
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(Database, "connect", connect)
    away = PostgresVerified(Database.of("postgresql://me@127.0.0.1:1/x"))
    assert [away.read() for _ in range(100)] == [()] * 100
    assert len(asked) == 1, "who reads a page can't wait at each one"


def test_an_idle_connection_that_has_died_is_replaced(outbox: ClockedOutbox, name: str) -> None:
    outbox.queue(submissions(1), NOW)
    outbox.counts()
    with server().connected(name) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'referrals'"
        )
    assert outbox.counts() == {"queued": 1}
    outbox.queue(submissions(1, first=2), NOW)
    assert outbox.counts() == {"queued": 2}


# Roles


@pytest.fixture(scope="module")
def with_roles() -> Iterator[tuple[Server, str]]:
    """A database whose roles docs/postgres.md has made, word for word."""
    name = server().empty_database()
    before, after = sql_of_roles(name)
    with server().connected(name) as db:
        db.execute(before)
    migrate(server().database(name, "referrals_owner"))
    with server().connected(name) as db:
        db.execute(after)
    yield server(), name
    connections.close_idle()


def as_role(with_roles: tuple[Server, str], role: str) -> PostgresOutbox:
    at, name = with_roles
    return PostgresOutbox.open(at.database(name, f"referrals_{role}"), role)


def test_each_role_can_do_its_work(with_roles: tuple[Server, str]) -> None:
    policy = RetryPolicy()
    with as_role(with_roles, "page") as page, as_role(with_roles, "worker") as worker:
        page.queue(submissions(6), NOW)
        mine = run(worker.claim("me", NOW, LEASE))
        assert isinstance(mine, Claimed)
        status, following = run(worker.record_and_claim(mine, "me", RELAYED, NOW, policy, LEASE))
        assert (status, following is not None) == (DeliveryStatus.RELAYED, True)
        assert following is not None
        run(worker.release(following, "me"))
        found = run(worker.claim("me", NOW, LEASE, only=3, every=policy.first_wait))
        assert isinstance(found, Claimed)
        run(worker.record(found, "me", DELAYED, NOW, policy))
        nobody = {"is_gone": lambda _: False}
        assert run(worker.take_link("relay:587", "me", "desk", 1, NOW, **nobody))
        assert run(worker.keep_link("relay:587", "me", NOW))
        away = run(worker.note_fault("relay:587", RelayFault("connect"), NOW, on_trial=False))
        assert run(worker.take_trial(away, NOW))
        run(worker.note_well("relay:587", NOW))
        paced = run(worker.claim("me", NOW, LEASE, pace=("relay:587", LEASE)))
        assert isinstance(paced, Claimed)
        run(worker.release(paced, "me"))
        assert len(page.links(NOW, **nobody)) == len(page.relay_states(NOW)) == 1
        run(worker.recover(NOW, policy, is_gone=lambda _: True))
        page.retry("R-3", NOW)
        page.cancel("R-4", NOW)
        page.acknowledge("R-1", TODAY, NOW)
        page.verify(Verification("a", "a@example.org", TODAY, "Sam"), NOW)
        page.withdraw("a", "a@example.org", NOW)
        page.unacknowledged(date(2027, 1, 1))
        assert page.erase("CASE-4", NOW) == 1
        assert worker.purge(NOW + LEASE, NOW) == 1
        assert worker.purge_unfinished(NOW, NOW) == 0
        worker.note("retention", {}, NOW)
    with as_role(with_roles, "reader") as reader:
        assert sum(reader.counts().values()) == 6
        assert list(verify(reader.audit())) == []
        assert reader.copied() is None
        assert reader.held(limit=1)[0].reference == "R-6"
        assert reader.attempts(1)
        assert reader.links(NOW, **nobody) == [], "its worker has ended"
        assert list(reader.relay_states(NOW)) == ["relay:587"]


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("page", "UPDATE audit SET actor = ''"),
        ("page", "DELETE FROM audit"),
        ("page", "DELETE FROM message"),
        ("page", "ALTER TABLE audit DISABLE TRIGGER ALL"),
        ("page", "DROP TABLE pace"),
        ("page", "CREATE TABLE referrals.more (x int)"),
        ("page", "INSERT INTO step VALUES ('x')"),
        ("page", "DELETE FROM relay_link"),
        ("reader", "UPDATE relay_state SET until = NULL"),
        ("worker", "DELETE FROM audit"),
        ("worker", "INSERT INTO verification VALUES ('a', 'b', now(), 'c')"),
        ("worker", "INSERT INTO message (id) VALUES (1)"),
        ("reader", "SELECT octets FROM content"),
        ("reader", "INSERT INTO audit SELECT * FROM audit"),
        ("reader", "UPDATE message SET status = 'relayed'"),
        ("reader", "DELETE FROM procrastinate_jobs"),
        ("page", "UPDATE page.key SET octets = ''"),
        ("page", "DROP TABLE page.session"),
        ("page", "CREATE TABLE page.more (x int)"),
        ("worker", "SELECT body FROM page.document"),
        ("worker", "INSERT INTO page.chore VALUES ('x', 0)"),
        ("reader", "SELECT csrf FROM page.session"),
        ("reader", "SELECT octets FROM page.key"),
    ],
)
def test_no_role_can_do_what_is_not_its_work(
    with_roles: tuple[Server, str], role: str, statement: str
) -> None:
    at, name = with_roles
    with (
        at.database(name, f"referrals_{role}").connect() as db,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        db.execute(statement.encode())


def test_the_page_alone_can_look_into_what_it_keeps(
    with_roles: tuple[Server, str], tmp_path: Path
) -> None:
    at, name = with_roles
    store = Store(StoreDatabase(at.database(name, "referrals_page")))
    accounts = Accounts(store)
    accounts.add("jo", "purple otter lamp", Role.ADMINISTRATOR, NOW, must_change=False)
    accounts.add("al", "purple otter lamp", Role.SENDER, NOW, must_change=False)
    assert accounts.check("jo", "purple otter lamp", NOW)
    accounts.remove("al")
    throttle = Throttle(store)
    throttle.succeeded(throttle.begin("jo", "10.0.0.1", None, NOW))
    session = store.begin(NOW, "jo")
    store.session(session.token, NOW + LEASE, 9 * LEASE, 9 * LEASE)
    kept = store.save("referral", "jo", {}, NOW, LEASE)
    assert store.take("referral", "jo", kept.id, NOW) == {}
    token = store.add_token("program", Role.SENDER, "jo", NOW, LEASE)
    assert token is not None
    assert store.token_user(token, NOW)
    assert store.revoke_token("program", NOW)
    assert store.tidy(NOW, LEASE, LEASE)
    store.end_everybodys()
    sheet = SharedBatch(store.tables, tmp_path, "x")
    sheet.receive(BytesIO(b"a,b"))
    with store.writing() as db:
        db.execute("UPDATE batch SET worker = 'me'")
    mine = SharedBatch(store.tables, tmp_path, "x", "me")
    mine.path.mkdir(parents=True)
    mine.begin()
    mine.tell({"step": "checked"})
    assert not mine.is_to_stop
    mine.tidy("upload")
    mine.end()
    assert sheet.opened("upload") is None
    sheet.stop()
    sweep_shared(store.tables)
    assert sheet.remove()

    for role in ("worker", "reader"):
        with at.database(name, f"referrals_{role}").reader() as db:
            open_to_it = db.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'page'::regnamespace"
                " AND has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES')"
            ).fetchall()
            assert open_to_it == []
        with pytest.raises(OutboxUnusable, match=r"permission denied.*docs/postgres\.md"):
            Store(StoreDatabase(at.database(name, f"referrals_{role}")))


def test_the_page_holds_and_releases_and_workers_keep_to_it(
    with_roles: tuple[Server, str],
) -> None:
    policy, rerouting = RetryPolicy(), Rerouting("held", "new@agency.test", True, True, True)
    with as_role(with_roles, "page") as page, as_role(with_roles, "worker") as worker:
        page.queue(letters(4, first=101, agency="held"), NOW)
        mine = run(worker.claim("me", NOW, LEASE, only=page.held(reference="R-101")[0].id))
        assert isinstance(mine, Claimed)
        page.hold("held", Reason.OTHER, NOW)
        run(worker.record(mine, "me", DELAYED, NOW, policy))
        held = page.held(reference="R-102")[0]
        assert run(worker.claim("me", NOW, LEASE, only=held.id)) is None
        done = [one for group in page.reroute(rerouting, NOW) for one in group]
        assert [one.reference for one in done] == ["R-102", "R-103", "R-104", "R-101"]
        assert not page.queue(letters(1, first=101, agency="held"), NOW)[0].new
        page.resume("held", "new@agency.test", NOW)
        again = run(worker.claim("me", NOW, LEASE, only=done[0].new))
        assert isinstance(again, Claimed)
        page.hold("held", Reason.OTHER, NOW)
        with page.database.connect() as db:
            db.execute("DELETE FROM hold")
        run(worker.recover(NOW, policy))
        assert page.addressed("held")
    with as_role(with_roles, "reader") as reader:
        assert reader.holds() == []
        assert len(reader.disclosed("held", "new@agency.test")) == 0
        with pytest.raises(OutboxUnusable, match="permission denied"):
            reader.hold("held", Reason.OTHER, NOW)
    with as_role(with_roles, "worker") as worker, pytest.raises(OutboxUnusable):
        worker.hold("held", Reason.OTHER, NOW)


def test_what_a_role_may_not_do_is_said_so(with_roles: tuple[Server, str]) -> None:
    with (
        as_role(with_roles, "reader") as reader,
        pytest.raises(OutboxUnusable, match=r"permission denied.*docs/postgres\.md"),
    ):
        reader.queue([submission(99)], NOW)


def test_what_is_no_text_is_not_there(outbox: ClockedOutbox) -> None:
    outbox.queue([submission()], NOW)
    assert outbox.held(reference="R\udcff") == []
    with pytest.raises(NotInOutbox):
        outbox.retry("R\udcff", NOW)
