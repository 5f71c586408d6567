"""Which files belong to a case, and which drafts are old; never any other file."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.audit import verify
from referrals.errors import DraftUnwritable
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.reference import referral_reference
from referrals.retention import delete, files_of, old_drafts
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
