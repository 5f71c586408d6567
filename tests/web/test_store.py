"""What the page keeps: sessions, documents, tokens, and who may have them."""

from __future__ import annotations

import multiprocessing
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.errors import OutboxUnusable
from referrals.web.site import Role
from referrals.web.store import LAPSED_FOR, VERSION, Store
from referrals.web.visitors import new_visitor, visitor
from tests.conftest import NOW

IDLE, LONGEST = timedelta(minutes=30), timedelta(hours=10)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "outbox" / "web.sqlite3")
    yield opened
    opened.close()


def octets(store: Store) -> bytes:
    """Of the file and its log."""
    return b"".join(path.read_bytes() for path in sorted(store.path.parent.iterdir()))


def in_file(store: Store) -> bytes:
    """The same, once the log is written into the file."""
    with store.reading() as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return octets(store)


def test_a_session_is_found_by_its_token_alone_and_the_file_does_not_have_it(store: Store) -> None:
    session = store.begin(NOW, "jo", "sender")

    found = store.session(session.token, NOW, IDLE, LONGEST)
    assert found == session
    assert store.session(session.token + "x", NOW, IDLE, LONGEST) is None
    assert session.token.encode() not in octets(store)


def _add(path: Path) -> None:
    Store(path).close()


def test_another_process_that_comes_and_goes_takes_nothing_with_it(store: Store) -> None:
    """As `referrals accounts` does beside the page; the page opens connections as it needs them."""
    with store.reading(), store.reading():  # two at once: the second is opened now
        kept = store.begin(NOW, "jo", "sender")
    process = multiprocessing.get_context("spawn").Process(target=_add, args=(store.path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0

    later = store.begin(NOW, "jo", "sender")
    other = Store(store.path)
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
    assert b"CANARY" not in in_file(store)
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
        [count] = connection.execute("SELECT count(*) FROM session").fetchone()
    return int(count)


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


def test_what_has_expired_is_not_found_and_then_not_in_the_file(store: Store) -> None:
    kept = store.save("referral", "jo", {"name": "CANARY-1"}, NOW, HOUR)
    token = store.begin(NOW, "CANARY-2").token
    assert b"CANARY-1" in octets(store)

    assert store.load("referral", "jo", kept.id, NOW + HOUR) is None
    store.expire(NOW + HOUR, IDLE, LONGEST)
    assert store.session(token, NOW, IDLE, LONGEST) is None
    assert b"CANARY-1" not in in_file(store)
    store.expire(NOW + IDLE + LAPSED_FOR, IDLE, LONGEST)
    assert b"CANARY" not in in_file(store)


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


def test_a_visitor_is_known_by_a_cookie_that_only_we_can_make(store: Store, tmp_path: Path) -> None:
    made = new_visitor(store, NOW)

    assert visitor(store, made.token, NOW, LONGEST) == made
    assert visitor(store, made.token, NOW + LONGEST, LONGEST) is None
    for forged in ("", ".", "v.0.x", made.token[:-1], f"{made.token}0", "v.ffffff.x." + "0" * 64):
        assert visitor(store, forged, NOW, LONGEST) is None
    elsewhere = Store(tmp_path / "elsewhere" / "web.sqlite3")
    assert visitor(elsewhere, made.token, NOW, LONGEST) is None
    assert elsewhere.signed("form", made.token) != made.csrf
    elsewhere.close()
    again = Store(store.path)
    assert visitor(again, made.token, NOW, LONGEST) == made, "its form outlives a new start"
    again.close()


def test_visitors_take_no_room(store: Store) -> None:
    with store.reading() as connection:
        before = connection.total_changes
    for _ in range(100):
        new_visitor(store, NOW)
    with store.reading() as connection:
        assert connection.total_changes == before
        assert connection.execute("SELECT count(*) FROM session").fetchone()[0] == 0


def test_threads_that_come_and_go_leave_no_open_file_behind(store: Store) -> None:
    def use() -> None:
        store.end("nothing")

    for _ in range(30):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert open_files(store) == 1


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


def test_what_many_needed_at_once_is_not_opened_ever_again(store: Store) -> None:
    """SQLite keeps the files of a closed connection for the next one, while others are open."""
    for _ in range(5):
        with ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(store.reading())
        assert len(store._idle) == 8
    assert open_files(store) <= 20


def open_files(store: Store) -> int:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return links.count(store.path)


def test_what_fails_half_way_leaves_nothing_and_the_store_goes_on(store: Store) -> None:
    def fail() -> None:
        with store.writing() as connection:
            connection.execute("DELETE FROM session")
            raise RuntimeError("half way")

    session = store.begin(NOW, "jo")
    with pytest.raises(RuntimeError):
        fail()
    assert store.session(session.token, NOW, IDLE, LONGEST) is not None


def test_the_file_is_private_and_a_newer_one_is_refused(store: Store) -> None:
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    with pytest.raises(OutboxUnusable, match="newer version"):
        Store(store.path)


def test_a_file_from_before_sessions_were_remembered_is_taken_on(store: Store) -> None:
    kept = store.save("referral", "jo", {"a": 1}, NOW, HOUR)
    store.begin(NOW, "jo")
    with store.writing() as connection:
        connection.execute("ALTER TABLE session DROP COLUMN lapsed_at")
        connection.execute("PRAGMA user_version = 2")

    again = Store(store.path)
    assert again.load("referral", "jo", kept.id, NOW) == kept
    assert sessions(again) == 0, "one signs in once more"
    assert again.session(again.begin(NOW, "jo").token, NOW, IDLE, LONGEST) is not None
    again.close()


def test_a_folder_that_is_no_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("")
    with pytest.raises(OutboxUnusable):
        Store(tmp_path / "outbox" / "web.sqlite3")
