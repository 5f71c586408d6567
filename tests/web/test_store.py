"""What the page keeps: sessions, documents, tokens, and who may have them."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from pydantic import SecretStr

from referrals.errors import OutboxUnusable
from referrals.outboxes.postgres import connections as postgres_connections
from referrals.settings import Settings
from referrals.web.accounts import AccountError, Accounts
from referrals.web.site import Role
from referrals.web.store import LAPSED_FOR, Store, open_store
from referrals.web.store_file import VERSION, StoreFile
from referrals.web.throttle import ACCOUNT, Throttle
from referrals.web.visitors import new_visitor, visitor
from tests.conftest import NOW
from tests.postgres import server
from tests.web.stores import KINDS, octets, once_tidied, settings_of

IDLE, LONGEST = timedelta(minutes=30), timedelta(hours=10)
HOUR = timedelta(hours=1)
T = TypeVar("T")


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return settings_of(request.param, tmp_path)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = open_store(settings)
    yield opened
    opened.close()
    postgres_connections.close_idle()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[StoreFile]:
    opened = StoreFile(tmp_path / "outbox" / "web.sqlite3")
    yield opened
    opened.close()


@pytest.fixture
def in_file(file: StoreFile) -> Store:
    return Store(file)


def test_a_session_is_found_by_its_token_alone_and_the_store_does_not_have_it(store: Store) -> None:
    session = store.begin(NOW, "jo", "sender")

    found = store.session(session.token, NOW, IDLE, LONGEST)
    assert found == session
    assert store.session(session.token + "x", NOW, IDLE, LONGEST) is None
    assert session.token.encode() not in octets(store)


def _open(settings: Settings) -> None:
    open_store(settings).close()


def test_another_process_that_comes_and_goes_takes_nothing_with_it(
    store: Store, settings: Settings
) -> None:
    """As `referrals accounts` does beside the page; the page opens connections as it needs them."""
    with store.reading(), store.reading():  # two at once: the second is opened now
        kept = store.begin(NOW, "jo", "sender")
    process = multiprocessing.get_context("spawn").Process(target=_open, args=(settings,))
    process.start()
    process.join(60)
    assert process.exitcode == 0

    later = store.begin(NOW, "jo", "sender")
    other = open_store(settings)
    for session in (kept, later):
        assert other.session(session.token, NOW, IDLE, LONGEST) == session
    other.close()


@pytest.mark.parametrize(
    ("clicks", "asked", "alive"),
    [
        ([], IDLE - timedelta(seconds=1), True),
        ([], IDLE, False),
        ([20, 40], timedelta(minutes=69), True),
        ([20, 40], timedelta(minutes=70), False),
        (range(20, 600, 20), LONGEST - timedelta(seconds=1), True),
        (range(20, 600, 20), LONGEST, False),
        ([], timedelta(minutes=-5), False),  # somebody set the clock back
    ],
)
def test_a_session_ends_when_idle_and_after_its_longest_life(
    store: Store, clicks: list[int], asked: timedelta, alive: bool
) -> None:
    token = store.begin(NOW, "jo").token
    for minute in clicks:
        assert store.session(token, NOW + timedelta(minutes=minute), IDLE, LONGEST)

    assert (store.session(token, NOW + asked, IDLE, LONGEST) is not None) is alive
    if not alive:
        assert store.session(token, NOW, IDLE, LONGEST) is None, "it never comes back"


def test_all_sessions_of_one_user_end_and_no_others(store: Store) -> None:
    his, hers = store.begin(NOW, "jo"), store.begin(NOW, "al")

    store.end_all("jo")

    assert store.session(his.token, NOW, IDLE, LONGEST) is None
    assert store.session(hers.token, NOW, IDLE, LONGEST) is not None
    assert store.signed_in(NOW, IDLE) == 1


@pytest.mark.parametrize("tidied", [True, False])
@pytest.mark.parametrize(
    ("clicks", "lapse"),
    [([], IDLE), (range(20, 600, 20), LONGEST)],
    ids=["idle", "longest"],
)
def test_a_session_that_lapsed_is_remembered_for_a_day_and_opens_nothing(
    store: Store, tidied: bool, clicks: list[int], lapse: timedelta
) -> None:
    """Whoever noticed it, and whenever: the day is counted from when it lapsed."""
    session = store.begin(NOW, "jo", "sender", "CANARY")
    for minute in clicks:
        assert store.session(session.token, NOW + timedelta(minutes=minute), IDLE, LONGEST)
    assert store.lapsed(session.token, NOW + lapse) is None, "not before it has"
    assert not store.has_lapsed("jo", session.csrf, NOW + lapse)
    late = NOW + lapse + LAPSED_FOR - timedelta(seconds=1)

    if tidied:
        store.expire(late, IDLE, LONGEST)
    assert store.session(session.token, late, IDLE, LONGEST) is None
    assert store.session(session.token, late, 9 * IDLE, 9 * LONGEST) is None, "it is for good"
    assert store.signed_in(NOW, IDLE) == 0
    found = store.lapsed(session.token, late)
    assert found is not None
    assert (found.user, found.roles, found.csrf) == ("jo", "sender", session.csrf)
    assert b"CANARY" not in once_tidied(store)
    assert store.has_lapsed("jo", session.csrf, late)
    assert not store.has_lapsed("al", session.csrf, late)
    assert not store.has_lapsed("jo", "", late)

    assert store.lapsed(session.token, late + timedelta(seconds=1)) is None
    assert not store.has_lapsed("jo", session.csrf, late + timedelta(seconds=1))
    store.expire(late + timedelta(seconds=1), IDLE, LONGEST)
    assert sessions(store) == 0


def test_what_is_ended_has_not_lapsed(store: Store) -> None:
    made = [store.begin(NOW, name) for name in ("jo", "jo", "al", "bo")]
    store.begin(NOW)
    open_one = store.begin(NOW + IDLE, "cy")
    store.end(made[0].token)
    store.expire(NOW + IDLE, IDLE, LONGEST)

    def lapsed() -> list[bool]:
        return [store.lapsed(one.token, NOW + IDLE) is not None for one in made]

    assert lapsed() == [False, True, True, True]
    assert sessions(store) == 4, "of somebody who has not signed in, nothing is remembered"
    store.end_all("jo")
    store.end(made[2].token)
    assert lapsed() == [False, False, False, True]
    assert store.end_everybodys() == 1, "as many as were open"
    assert lapsed() == [False] * 4
    assert store.session(open_one.token, NOW + IDLE, IDLE, LONGEST) is None


def sessions(store: Store) -> int:
    with store.reading() as connection:
        row = connection.execute("SELECT count(*) AS count FROM session").fetchone()
    return int(row["count"])


def test_a_document_is_its_owners_alone(store: Store) -> None:
    kept = store.save("referral", "jo", {"a": 1}, NOW, HOUR)

    assert store.load("referral", "jo", kept.id, NOW) == kept
    assert store.load("referral", "al", kept.id, NOW) is None
    assert store.load("you", "jo", kept.id, NOW) is None
    with pytest.raises(LookupError):
        store.save("referral", "al", {"a": 2}, NOW, HOUR, kept.id)
    store.forget("referral", "al", kept.id)
    assert store.load("referral", "jo", kept.id, NOW) == kept
    assert store.listed("referral", "al", NOW) == []


def test_what_has_expired_is_not_found_and_then_not_kept(store: Store) -> None:
    kept = store.save("referral", "jo", {"name": "CANARY-1"}, NOW, HOUR)
    token = store.begin(NOW, "CANARY-2").token
    assert b"CANARY-1" in octets(store)

    assert store.load("referral", "jo", kept.id, NOW + HOUR) is None
    store.expire(NOW + HOUR, IDLE, LONGEST)
    assert store.session(token, NOW, IDLE, LONGEST) is None
    assert b"CANARY-1" not in once_tidied(store)
    store.expire(NOW + IDLE + LAPSED_FOR, IDLE, LONGEST)
    assert b"CANARY" not in once_tidied(store)


def test_one_can_only_keep_so_much(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.web.store._MOST_DOCUMENTS", 3)
    store.save("referral", "al", {}, NOW, HOUR)
    ids = [store.save("referral", "jo", {}, NOW + timedelta(seconds=n), HOUR).id for n in range(5)]

    assert [one.id for one in store.listed("referral", "jo", NOW)] == ids[:1:-1]
    assert len(store.listed("referral", "al", NOW)) == 1


def test_a_kind_that_strangers_make_is_bounded_as_a_whole(store: Store) -> None:
    for n in range(6):
        store.save("sign-in", f"browser {n}", {}, NOW + timedelta(seconds=n), HOUR, most=4)

    kept = [bool(store.listed("sign-in", f"browser {n}", NOW)) for n in range(6)]
    assert kept == [False, False, True, True, True, True]


def test_what_is_taken_is_taken_once(store: Store) -> None:
    store.save("sign-in", "b", {"state": "x"}, NOW, HOUR, "b")

    assert store.take("sign-in", "other", "b", NOW) is None
    assert store.take("sign-in", "b", "b", NOW) == {"state": "x"}
    assert store.take("sign-in", "b", "b", NOW) is None
    store.save("sign-in", "b", {"state": "x"}, NOW, HOUR, "b")
    assert store.take("sign-in", "b", "b", NOW + HOUR) is None


def test_a_token_stands_for_a_role_until_it_expires_or_is_revoked(store: Store) -> None:
    token = store.add_token("case-system", Role.SENDER, "root", NOW, HOUR)
    assert token is not None
    assert token.encode() not in octets(store)

    user = store.token_user(token, NOW)
    assert user is not None
    assert user.name == "token:case-system"
    assert user.roles == {Role.REFERRER, Role.SENDER}
    [told] = store.tokens()
    assert (told.made_by, told.last_used_at) == ("root", NOW)
    assert store.token_user(token, NOW + HOUR) is None
    assert store.token_user(token[:-1], NOW) is None
    assert store.token_user("", NOW) is None

    assert store.add_token("case-system", Role.ADMINISTRATOR, "root", NOW, HOUR) is None
    assert store.revoke_token("case-system", NOW)
    assert store.token_user(token, NOW) is None
    assert not store.revoke_token("case-system", NOW)
    assert store.add_token("case-system", Role.ADMINISTRATOR, "root", NOW, HOUR) is not None


def test_a_visitor_is_known_by_a_cookie_that_only_we_can_make(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    made = new_visitor(store, NOW)

    assert visitor(store, made.token, NOW, LONGEST) == made
    assert visitor(store, made.token, NOW + LONGEST, LONGEST) is None
    for forged in ("", ".", "v.0.x", made.token[:-1], f"{made.token}0", "v.ffffff.x." + "0" * 64):
        assert visitor(store, forged, NOW, LONGEST) is None
    elsewhere = Store(StoreFile(tmp_path / "elsewhere" / "web.sqlite3"))
    assert visitor(elsewhere, made.token, NOW, LONGEST) is None
    assert elsewhere.signed("form", made.token) != made.csrf
    elsewhere.close()
    again = open_store(settings)
    assert visitor(again, made.token, NOW, LONGEST) == made, "as any machine does"
    again.close()


def test_visitors_take_no_room(store: Store) -> None:
    before = octets(store)
    for _ in range(100):
        new_visitor(store, NOW)
    assert octets(store) == before


def test_many_threads_at_once_lose_nothing(store: Store) -> None:
    def use(number: int) -> None:
        for n in range(10):
            store.save("referral", f"user {number}", {"n": n}, NOW, HOUR)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store.listed("referral", f"user {n}", NOW)) for n in range(12)] == [10] * 12


def test_what_fails_half_way_leaves_nothing_and_the_store_goes_on(store: Store) -> None:
    def fail() -> None:
        with store.writing() as connection:
            connection.execute("DELETE FROM session")
            raise RuntimeError("half way")

    session = store.begin(NOW, "jo")
    with pytest.raises(RuntimeError):
        fail()
    assert store.session(session.token, NOW, IDLE, LONGEST) is not None


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """What each of so many threads came to, that all began together."""
    ready = threading.Barrier(count)

    def begin(number: int) -> T:
        ready.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def test_of_many_guesses_at_once_no_more_are_free_than_of_one_after_another(
    store: Store, settings: Settings
) -> None:
    """From two machines, too."""
    other = open_store(settings)
    machines = [Throttle(store), Throttle(other)]

    def guess(number: int) -> bool:
        return not machines[number % 2].begin("jo", f"10.0.0.{number}", None, NOW).wait

    assert sum(at_once(16, guess)) == ACCOUNT.free
    other.close()


def test_two_administrators_at_once_do_not_take_the_role_from_each_other(store: Store) -> None:
    accounts = Accounts(store)
    for name in ("jo", "al"):
        accounts.add(name, "purple otter lamp", Role.ADMINISTRATOR, NOW, must_change=False)

    def demote(number: int) -> bool:
        try:
            accounts.set_role(("jo", "al")[number % 2], Role.SENDER)
        except AccountError:
            return False
        return True

    at_once(8, demote)
    assert Role.ADMINISTRATOR in {one.role for one in accounts.all()}


def test_a_change_of_an_account_ends_its_sessions_and_no_others(store: Store) -> None:
    accounts = Accounts(store)
    for name in ("boss", "jo", "al"):
        accounts.add(name, "purple otter lamp", Role.ADMINISTRATOR, NOW, must_change=False)
    made = {name: store.begin(NOW, name).token for name in ("boss", "jo", "al")}
    document = store.save("referral", "al", {}, NOW, HOUR)

    accounts.set_disabled("jo", True)
    accounts.remove("al")
    alive = [name for name, one in made.items() if store.session(one, NOW, IDLE, LONGEST)]
    assert alive == ["boss"]
    assert store.load("referral", "al", document.id, NOW) is None
    assert [(one.name, one.disabled) for one in accounts.all()] == [("boss", False), ("jo", True)]
    assert accounts.check("jo", "purple otter lamp", NOW) is None
    assert accounts.check("boss", "purple otter lamp", NOW) is not None


def test_what_is_taken_by_many_at_once_is_taken_once(store: Store) -> None:
    store.save("sign-in", "b", {"state": "x"}, NOW, HOUR, "b")
    taken = at_once(8, lambda _: store.take("sign-in", "b", "b", NOW))
    assert sum(one is not None for one in taken) == 1


@pytest.mark.parametrize("odd", ["a\0b", "%s", "?", "' OR 1=1 --"])
def test_what_is_no_text_is_nobody_s(store: Store, odd: str) -> None:
    """A browser may send anything."""
    store.begin(NOW, "jo")
    assert store.session(odd, NOW, IDLE, LONGEST) is None
    assert not store.has_lapsed("jo", odd, NOW)
    assert store.load("referral", odd, odd, NOW) is None
    assert store.token_user(odd, NOW) is None
    assert Accounts(store).check(odd, odd, NOW) is None
    kept = store.save("referral", "jo", {"typed": odd}, NOW, HOUR)
    found = store.load("referral", "jo", kept.id, NOW)
    assert found is not None
    assert found.body == {"typed": odd}


def test_of_several_machines_one_tidies_for_all(store: Store, settings: Settings) -> None:
    other = open_store(settings)
    kept = store.save("referral", "jo", {}, NOW, HOUR)

    assert store.tidy(NOW, IDLE, LONGEST)
    assert not other.tidy(NOW, IDLE, LONGEST)
    late = NOW + HOUR
    assert sorted(at_once(6, lambda n: (store, other)[n % 2].tidy(late, IDLE, LONGEST))) == [
        *[False] * 5,
        True,
    ]
    assert store.load("referral", "jo", kept.id, NOW) is None
    assert not store.tidy(late + timedelta(minutes=9), IDLE, LONGEST)
    assert other.tidy(late + timedelta(minutes=10), IDLE, LONGEST), "should the other one be gone"
    assert store.tidy(NOW, IDLE, LONGEST), "nor does a clock that was set back stop it for good"
    other.close()


def test_clocks_of_machines_may_differ_by_a_minute(store: Store) -> None:
    token = store.begin(NOW, "jo").token
    minute = timedelta(minutes=1)

    assert store.session(token, NOW - minute, IDLE, LONGEST)
    assert store.session(token, NOW + minute, IDLE, LONGEST)
    assert store.session(token, NOW, IDLE, LONGEST)
    found = store.session(token, NOW, IDLE, LONGEST)
    assert found is not None
    assert found.seen_at == NOW + minute, "it is not idle for longer by that"


# PostgreSQL alone


@pytest.fixture
def in_postgres(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(settings_of("postgres", tmp_path))
    yield opened
    postgres_connections.close_idle()


def _cut(name: str) -> None:
    with server().connected(name) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = %s AND pid <> pg_backend_pid()",
            (name,),
        )


def test_a_link_that_was_cut_is_made_anew(in_postgres: Store) -> None:
    token = in_postgres.begin(NOW, "jo").token
    _cut(server()._shared())

    assert in_postgres.session(token, NOW, IDLE, LONGEST) is not None
    _cut(server()._shared())
    in_postgres.end(token)
    assert in_postgres.session(token, NOW, IDLE, LONGEST) is None


def test_a_link_that_is_cut_half_way_keeps_nothing(in_postgres: Store) -> None:
    token = in_postgres.begin(NOW, "jo").token

    def cut_half_way() -> None:
        with in_postgres.writing() as statements:
            statements.execute("DELETE FROM session")
            _cut(server()._shared())
            statements.execute("DELETE FROM session")

    with pytest.raises(OutboxUnusable, match="Nothing of this step"):
        cut_half_way()
    assert in_postgres.session(token, NOW, IDLE, LONGEST) is not None


def test_whoever_comes_in_numbers_shares_some_connections(in_postgres: Store) -> None:
    """Or the page would take all that the server has."""

    def count(_: int) -> int:
        with in_postgres.reading() as statements:
            row = statements.execute(
                "SELECT count(*) AS count, pg_sleep(0.05) FROM pg_stat_activity"
                " WHERE datname = current_database()"
            ).fetchone()
        return int(row["count"])

    assert 2 <= max(at_once(40, count)) <= 16


def test_a_database_without_tables_says_what_to_run(tmp_path: Path) -> None:
    url = SecretStr(server().url(server().empty_database()))
    with pytest.raises(OutboxUnusable, match="referrals migrate"):
        open_store(Settings(outbox=tmp_path / "outbox", database=url))
    postgres_connections.close_idle()


# The file alone


def test_threads_that_come_and_go_leave_no_open_file_behind(
    in_file: Store, file: StoreFile
) -> None:
    def use() -> None:
        in_file.end("nothing")

    for _ in range(30):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert open_files(file) == 1


def test_what_many_needed_at_once_is_not_opened_ever_again(file: StoreFile) -> None:
    """SQLite keeps the files of a closed connection for the next one, while others are open."""
    for _ in range(5):
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(file.reading())
        assert len(file._idle) == 8
    assert open_files(file) <= 20


def open_files(file: StoreFile) -> int:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return links.count(file.path)


def test_the_file_is_private_and_a_newer_one_is_refused(file: StoreFile) -> None:
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(OutboxUnusable, match="newer version"):
        StoreFile(file.path)


def test_a_file_from_before_sessions_were_remembered_is_taken_on(
    in_file: Store, file: StoreFile
) -> None:
    store = in_file
    kept = store.save("referral", "jo", {"a": 1}, NOW, HOUR)
    store.begin(NOW, "jo")
    with store.writing() as connection:
        connection.execute("ALTER TABLE session DROP COLUMN lapsed_at")
        connection.execute("PRAGMA user_version = 2")

    again = Store(StoreFile(file.path))
    assert again.load("referral", "jo", kept.id, NOW) == kept
    assert sessions(again) == 0, "one signs in once more"
    assert again.session(again.begin(NOW, "jo").token, NOW, IDLE, LONGEST) is not None
    again.close()


def test_a_folder_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("")
    with pytest.raises(OutboxUnusable):
        StoreFile(tmp_path / "outbox" / "web.sqlite3")
