"""Which files belong to a case, and which drafts are old; never any other file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from referrals.audit import verify
from referrals.errors import DraftUnwritable, OutboxUnusable
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.ports import Retention
from referrals.reference import referral_reference
from referrals.retention import DailyPurge, Retained, delete, files_of, old_drafts
from referrals.settings import Settings
from tests.conftest import NOW
from tests.queued import submissions

REFERENCE = referral_reference("CASE-1", "victim-hardening")
OTHER = referral_reference("CASE-2", "victim-hardening")


def put(folder: Path, name: str, content: str = "Subject: x\r\n\r\n", days_old: float = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(content, encoding="utf-8")
    when = (NOW - timedelta(days=days_old)).timestamp()
    os.utime(file, (when, when))
    return file


def found(outbox: Path, *interventions: str) -> set[str]:
    return {path.name for path in files_of(outbox, "CASE-1", interventions)}


@pytest.mark.parametrize(
    "name",
    [
        f"{REFERENCE}-victim-hardening.eml",
        f"{REFERENCE}-victim-hardening-2.eml",
        f"{REFERENCE}-victim-hardening-reminder.eml",
        f".{REFERENCE}-victim-hardening.0a1b2c3d.referral-tmp",
    ],
)
def test_a_draft_is_found_by_its_name_whatever_the_directory_knows(
    name: str, tmp_path: Path
) -> None:
    put(tmp_path / "drafts", name)
    assert found(tmp_path) == {name}


@pytest.mark.parametrize(
    "name",
    [
        f"{OTHER}-victim-hardening.eml",
        f"{REFERENCE}-mediation.eml",
        f"{REFERENCE}.eml",
        "victim-hardening.eml",
        f"{REFERENCE}-victim-hardening.txt",
        ".eml",
    ],
)
def test_another_case_s_draft_is_left(name: str, tmp_path: Path) -> None:
    put(tmp_path / "drafts", name)
    assert found(tmp_path, "mediation") == set()


@pytest.mark.parametrize(
    "subject",
    [
        f"OFFICIAL: Referral: Victim hardening - {REFERENCE}",
        f"OFFICIAL-SENSITIVE: Referral: Victim hardening -\r\n {REFERENCE}",
        f"=?utf-8?q?Referral=3A_{REFERENCE}?=",
        f"Re: {REFERENCE}: fwd",
    ],
)
@pytest.mark.parametrize("folder", ["drafts", "sink"])
def test_one_saved_by_another_name_is_found_by_its_subject(
    subject: str, folder: str, tmp_path: Path
) -> None:
    put(tmp_path / folder, "renamed.eml", f"To: x\r\nSubject: {subject}\r\n\r\nbody\r\n")
    put(tmp_path / folder, "other.eml", f"Subject: Referral {OTHER}\r\n\r\n{REFERENCE}\r\n")
    put(tmp_path / folder, "odd.eml", "Subject: =?no-such-charset?q?x?=\r\n\r\n")
    assert found(tmp_path, "victim-hardening", "mediation") == {"renamed.eml"}


def test_only_the_outbox_s_own_drafts_grow_old(tmp_path: Path) -> None:
    """Nothing in another folder, nothing that a link leads to, nothing that is no draft."""
    outbox = tmp_path / "outbox"
    old = put(outbox / "drafts", "a.eml", days_old=91)
    put(outbox / "drafts", "edited.eml", days_old=89)
    put(outbox / "drafts", "notes.txt", days_old=999)
    put(outbox / "drafts" / "inner", "b.eml", days_old=999)
    put(outbox / "sink", "c.eml", days_old=999)
    mine = put(tmp_path / "mine", "d.eml", days_old=999)
    (outbox / "drafts" / "link.eml").symlink_to(mine)
    assert old_drafts(outbox, NOW - timedelta(days=90)) == [old]
    assert old_drafts(tmp_path / "none", NOW) == []


def test_what_can_not_be_deleted_is_named_and_the_rest_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "drafts"
    first, second = put(folder, "a.eml"), put(folder, "c.eml")
    stuck = folder / "b.eml"
    stuck.mkdir()  # whoever runs this, a folder can't be unlinked
    with pytest.raises(DraftUnwritable, match=r"b\.eml"):
        delete([first, stuck, second, folder / "gone.eml"])
    assert [path.name for path in folder.iterdir()] == ["b.eml"]


def test_a_purge_in_portions_forgets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than fits one transaction, with others between that are kept."""
    monkeypatch.setattr("referrals.outboxes.sqlite.retention._PORTION", 3)
    with SqliteOutbox.open(tmp_path / "outbox.sqlite3", "me") as outbox:
        outbox.queue(submissions(20), NOW)
        gone = [f"R-{number}" for number in range(1, 20, 2)]
        for reference in gone:
            outbox.cancel(reference, NOW)
        assert outbox.purgeable(NOW + timedelta(days=1)) == 10
        assert outbox.purge(NOW + timedelta(days=1), NOW) == 10
        assert outbox.purge(NOW + timedelta(days=1), NOW) == 0
        kept = {one.reference for one in outbox.held() if one.purged_at is None}
        assert kept == {f"R-{number}" for number in range(2, 21, 2)}
        assert list(verify(outbox.audit())) == []


class Purging:
    """A daily purge, and what it has told. It begins once `go` is set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.go = threading.Event()
        self.go.set()
        self.opened = 0
        self.fault: Exception | None = None
        self.done: list[int] = []
        self.failed: list[str] = []
        self.daily = DailyPurge(
            self.outbox, Settings(outbox=folder), done=self._done, failed=self.failed.append
        )

    @contextmanager
    def outbox(self) -> Iterator[Retention]:
        self.opened += 1
        self.go.wait(10)
        if self.fault is not None:
            raise self.fault
        with SqliteOutbox.open(self.folder / "outbox.sqlite3", "me") as opened:
            yield opened

    def look(self, now: datetime) -> None:
        """And wait until it has ended."""
        self.daily.look(now)
        self.daily.stop()

    def _done(self, retained: Retained, now: datetime) -> None:
        self.done.append(retained.messages)


def test_the_daily_purge_looks_every_ten_minutes_and_purges_once_a_day(tmp_path: Path) -> None:
    purging = Purging(tmp_path)
    with SqliteOutbox.open(tmp_path / "outbox.sqlite3", "me") as outbox:
        outbox.queue(submissions(3), NOW - timedelta(days=40))
        outbox.cancel("R-2", NOW - timedelta(days=40))
    for minutes in (0, 9, 11, 23 * 60, 24 * 60 + 1):
        purging.look(NOW + timedelta(minutes=minutes))
    assert (purging.done, purging.failed, purging.opened) == ([1, 0], [], 4)


def test_the_daily_purge_tells_a_fault_once_until_it_is_another(tmp_path: Path) -> None:
    purging = Purging(tmp_path)
    faults = (
        OutboxUnusable("away"),
        OutboxUnusable("away"),
        PermissionError(13, "denied"),
        None,
        OutboxUnusable("away"),
        KeyError("Kim Roe"),
    )
    for number, fault in enumerate(faults):
        purging.fault = fault
        purging.look(NOW + timedelta(hours=number))
    ours = "there is a fault of ours in it (KeyError)."
    assert purging.failed == ["away", "[Errno 13] denied", "away", ours]
    assert purging.done == [0]


def test_nobody_waits_for_the_daily_purge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who delivers nor a stop; there is one at a time, and once stopped it is silent."""
    monkeypatch.setattr("referrals.retention._STOPPED_S", 0.01)
    purging = Purging(tmp_path)
    purging.go.clear()
    purging.daily.look(NOW)
    purging.daily.look(NOW + timedelta(hours=1))
    purging.daily.stop()
    purging.go.set()
    [thread] = [one for one in threading.enumerate() if one.name == "purge"]
    thread.join()
    assert (purging.opened, purging.done, purging.failed) == (1, [], [])


def test_the_daily_purge_may_be_switched_off(tmp_path: Path) -> None:
    purging = Purging(tmp_path)
    settings = Settings.model_validate({"outbox": tmp_path, "delivery": {"purge": "by-hand"}})
    daily = DailyPurge(purging.outbox, settings, failed=purging.failed.append)
    daily.look(NOW)
    daily.stop()
    assert purging.opened == 0
