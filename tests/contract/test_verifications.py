"""That an address was checked: written with the audit, read by every process, and no more."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import date
from pathlib import Path

import pytest
from pydantic import ValidationError

from referrals.audit import verify
from referrals.bootstrap import LiveService, build_service
from referrals.directory import Directory
from referrals.errors import NoAddress, NotPossibleNow
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.outboxes.sqlite.verified import Verified, read_verified
from referrals.settings import Settings
from referrals.verification import Verification, with_verifications
from tests.conftest import NOW, TODAY
from tests.older_files import make_older

DAY = date(2026, 11, 2)
ADDRESS = "admin@nottsvictimcare.org.uk"


def one(on: date = DAY, by: str = "Sam Smith", address: str = ADDRESS) -> Verification:
    return Verification(agency="victim-care", address=address, on=on, by=by)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "outbox" / "outbox.sqlite3"


@pytest.fixture
def outbox(file: Path) -> Iterator[SqliteOutbox]:
    with SqliteOutbox.open(file, "jo") as opened:
        yield opened


# Recording


def test_what_is_recorded_is_read(outbox: SqliteOutbox, file: Path) -> None:
    outbox.verify(one(), NOW)
    other = Verification(agency="nhipp", address="Hate.crime@example.org", on=DAY, by="Jo")
    outbox.verify(other, NOW)
    assert read_verified(file) == (other, one())


def test_the_newest_record_of_an_address_counts_whatever_its_day(
    outbox: SqliteOutbox, file: Path
) -> None:
    outbox.verify(one(), NOW)
    mended = one(date(2026, 10, 2), "Jo Bloggs")
    outbox.verify(mended, NOW)
    assert read_verified(file) == (mended,)


def test_a_withdrawn_one_is_gone_and_the_audit_stays(outbox: SqliteOutbox, file: Path) -> None:
    outbox.verify(one(), NOW)
    outbox.withdraw("victim-care", ADDRESS, NOW)
    assert read_verified(file) == ()
    entries = list(outbox.audit())
    detail = {"agency": "victim-care", "address": ADDRESS, "on": "2026-11-02", "by": "Sam Smith"}
    assert [(entry.action, entry.actor, entry.detail) for entry in entries] == [
        ("address verified", "jo", detail),
        ("address verification withdrawn", "jo", detail),
    ]
    assert list(verify(entries)) == []


def test_what_is_not_there_can_not_be_withdrawn(outbox: SqliteOutbox) -> None:
    outbox.verify(one(), NOW)
    for agency, address in (("victim-care", "other@example.org"), ("nhipp", ADDRESS)):
        with pytest.raises(NotPossibleNow):
            outbox.withdraw(agency, address, NOW)
    assert len(list(outbox.audit())) == 1


def test_nothing_is_recorded_without_its_entry(
    outbox: SqliteOutbox, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    outbox.verify(one(), NOW)
    monkeypatch.setattr(SqliteOutbox, "_log", broken)
    with pytest.raises(RuntimeError):
        outbox.verify(one(by="Jo"), NOW)
    with pytest.raises(RuntimeError):
        outbox.withdraw("victim-care", ADDRESS, NOW)
    assert read_verified(file) == (one(),)


# Reading


def test_reading_makes_nothing(file: Path) -> None:
    assert read_verified(file) == ()
    with closing(Verified(file)) as verified:
        assert verified.read() == ()
    assert not file.parent.exists()


def test_reading_leaves_nothing_beside_the_file(file: Path) -> None:
    with SqliteOutbox.open(file, "jo") as outbox:
        outbox.verify(one(), NOW)
    before = sorted(file.parent.iterdir())
    assert read_verified(file) == (one(),)
    assert sorted(file.parent.iterdir()) == before == [file]


@pytest.mark.parametrize("kind", ["not a database", "another program's", "a folder", "version 2"])
def test_where_it_can_not_be_read_nothing_is_known(kind: str, file: Path) -> None:
    file.parent.mkdir()
    if kind == "not a database":
        file.write_text("x" * 5000)
    elif kind == "a folder":
        file.mkdir()
    else:
        with closing(sqlite3.connect(file)) as db:
            db.execute("CREATE TABLE message (id INTEGER)")
            db.execute("PRAGMA user_version = 2")
    assert read_verified(file) == ()


def test_one_that_is_kept_open_sees_what_others_write(file: Path) -> None:
    with closing(Verified(file)) as verified:
        assert verified.read() == ()
        for number in range(3):
            with SqliteOutbox.open(file, "jo") as outbox:
                outbox.verify(one(by=f"Sam {number}"), NOW)
            assert verified.read() == (one(by=f"Sam {number}"),)


def test_one_that_is_kept_open_sees_that_the_file_was_replaced(file: Path) -> None:
    with closing(Verified(file)) as verified:
        with SqliteOutbox.open(file, "jo") as outbox:
            outbox.verify(one(), NOW)
            assert verified.read() == (one(),)
        for path in file.parent.iterdir():
            path.rename(path.with_name(f"old-{path.name}"))
        with SqliteOutbox.open(file, "jo") as outbox:
            outbox.verify(one(by="Jo"), NOW)
        assert verified.read() == (one(by="Jo"),)
        file.unlink()
        assert verified.read() == ()


def test_an_outbox_of_version_2_gets_its_table(file: Path) -> None:
    make_older(file, 2)
    with SqliteOutbox.open(file, "jo") as outbox:
        outbox.verify(one(), NOW)
    assert read_verified(file) == (one(),)


# What it means to the directory


def verified_on(directory: Directory, *recorded: Verification) -> date | None:
    return with_verifications(directory, recorded).agencies["victim-care"].verified_on


def test_it_holds_for_that_agency_and_that_very_address(directory: Directory) -> None:
    assert verified_on(directory, one()) == DAY
    assert verified_on(directory, one(address=ADDRESS.upper())) is None
    assert verified_on(directory, one(address="other@example.org")) is None
    nobody = dataclasses.replace(one(), agency="nobody")
    assert with_verifications(directory, [nobody]) is directory


@pytest.mark.parametrize(
    ("in_config", "counts"),
    [(None, DAY), (date(2026, 1, 1), DAY), (DAY, DAY), (date(2026, 11, 3), date(2026, 11, 3))],
)
def test_the_later_of_it_and_configs_counts(
    in_config: date | None, counts: date, directory: Directory
) -> None:
    agency = directory.agencies["victim-care"].model_copy(
        update={"verified_on": in_config, "verified_by": "config"}
    )
    agencies = {**directory.agencies, "victim-care": agency}
    known = with_verifications(
        Directory(directory.regions, agencies, directory.interventions), [one()]
    ).agencies["victim-care"]
    assert known.verified_on == counts
    assert known.verified_by == ("Sam Smith" if counts == DAY else "config")


def test_all_else_of_the_directory_stays(directory: Directory) -> None:
    known = with_verifications(directory, [one()])
    assert known.interventions is directory.interventions
    assert known.postcodes is directory.postcodes
    changed = {name for name in known.agencies if known.agencies[name] != directory.agencies[name]}
    assert changed == {"victim-care"}


def test_every_process_knows_it(file: Path) -> None:
    settings = Settings(outbox=file.parent)
    live = LiveService(settings)
    with SqliteOutbox.open(file, "jo") as outbox:
        for known in (True, False):
            if known:
                outbox.verify(one(), NOW)
            else:
                outbox.withdraw("victim-care", ADDRESS, NOW)
            for service in (live.current(), build_service(settings)):
                agency = service.directory.agencies["victim-care"]
                assert (agency.verified_on == DAY) is known
                assert agency.is_verified(TODAY) is known
    live.close()


def test_a_service_is_made_anew_only_when_something_has_changed(file: Path) -> None:
    live = LiveService(Settings(outbox=file.parent))
    with SqliteOutbox.open(file, "jo") as outbox:
        outbox.verify(one(), NOW)
        assert live.current() is live.current()
    live.close()


# What may be recorded


def test_what_may_not_be_recorded(directory: Directory) -> None:
    agency = directory.agencies["victim-care"]
    for on, by in (("2026-11-25", "Sam"), ("soon", "Sam"), (DAY, ""), (DAY, "x" * 81),
                   (DAY, "a\nb"), (DAY, "a\x00b")):  # fmt: skip
        with pytest.raises(ValidationError) as error:
            Verification.of(agency, on, by, TODAY)
        if by.strip():
            with suppress(ValueError):
                assert by not in str(error.value)
    assert Verification.of(agency, "24/11/2026", " Sam ", TODAY).by == "Sam"
    with pytest.raises(NoAddress):
        Verification.of(directory.agencies["authorising-inspector"], DAY, "Sam", TODAY)
