"""What the page keeps of one case, when all of the case is exported or erased."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from referrals.bootstrap import now
from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.reference import referral_reference
from referrals.samples import sample_case
from referrals.settings import Settings
from referrals.web.batch_folder import DRAFTS, LEFT_OUT, UPLOAD, BatchFolder, folders
from referrals.web.batch_shared import SharedBatch
from referrals.web.case_kept import kept_by_page
from referrals.web.store import Store, open_store
from tests.conftest import TODAY
from tests.e2e.conftest import Command
from tests.rows import as_csv, rows_of
from tests.web.stores import KINDS, octets, settings_of

CASE = "CASE-2"
CANARY = "Zqcanary"
HOUR = timedelta(hours=1)
HELD = "half-made referral"


class Page:
    """A page's store with what people have begun."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store: Store = open_store(settings)

    def half_made(self, reference: str, owner: str = "jo", keep: timedelta = HOUR) -> str:
        typed = {"people.victim.name": [f"{CANARY} {owner}"]}
        if reference:
            typed["reference"] = [reference]
        body = {"typed": typed, "chosen": [], "stage": "case", "submitted": {}}
        return self.store.save("journey", owner, body, now(), keep).id

    def spreadsheet(self, files: Mapping[str, bytes], owner: str = "jo") -> BatchFolder:
        body = {"at": now().isoformat(), "sheet": None, "leave_out": None}
        id = self.store.save("batch", owner, body, now(), HOUR).id
        folder = self.folder(id)
        folder.receive(io.BytesIO(files.get(UPLOAD, b"")))
        for name, content in files.items():
            if name != UPLOAD:
                self._put(folder, id, name, content)
        if UPLOAD not in files:
            self._forget(folder, id)
        return folder

    def folder(self, id: str) -> BatchFolder:
        outbox = self.settings.outbox
        if self.settings.database is not None:
            return SharedBatch(self.store.tables, outbox, id)
        return BatchFolder(folders(outbox) / id)

    def _put(self, folder: BatchFolder, id: str, name: str, content: bytes) -> None:
        if isinstance(folder, SharedBatch):
            with self.store.writing() as db:
                folder._put(db, name, io.BytesIO(content))
        else:
            (folder.path / name).write_bytes(content)

    def _forget(self, folder: BatchFolder, id: str) -> None:
        if isinstance(folder, SharedBatch):
            with self.store.writing() as db:
                folder._forget(db, UPLOAD)
        else:
            folder.upload.unlink()

    def documents(self) -> list[tuple[str, str]]:
        with self.store.reading() as db:
            rows = db.execute("SELECT kind, owner FROM document ORDER BY owner, kind").fetchall()
        return [(row["kind"], row["owner"]) for row in rows]


@pytest.fixture(params=KINDS)
def page(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Page]:
    """In a file, and in PostgreSQL; commands look there, too."""
    settings = settings_of(request.param, tmp_path)
    monkeypatch.setenv("REFERRALS_OUTBOX", str(settings.outbox))
    if settings.database is not None:
        monkeypatch.setenv("REFERRALS_DATABASE", settings.database.get_secret_value())
    made = Page(settings)
    yield made
    made.store.close()


@pytest.fixture
def rows(directory: Directory) -> list[dict[str, str]]:
    cells = dict(flatten(sample_case(directory, ["mediation"], TODAY)))
    return rows_of(cells, 3, **{"people.victim.name": CANARY})


def packed(*names: str) -> bytes:
    file = io.BytesIO()
    with ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"Subject: x\r\n\r\n")
    return file.getvalue()


def draft_of(case_reference: str) -> str:
    return f"{referral_reference(case_reference, 'mediation')}-mediation.eml"


def found(page: Page, directory: Directory | None) -> list[tuple[str, str, bool]]:
    with kept_by_page(page.settings) as kept:
        return [(one.kind, one.owner, one.is_sure) for one in kept.of_case(CASE, directory)]


def test_half_made_referrals_are_found_however_the_reference_was_typed(
    page: Page, directory: Directory
) -> None:
    for reference, owner in (
        ("CASE-2", "al"), (" case-2 ", "bo"), ("CASE-22", "cy"), ("", "di"), ("Kim Roe", "ed"),
    ):  # fmt: skip
        page.half_made(reference, owner)
    page.half_made("CASE-2", "flo", keep=-HOUR)  # expired, and not removed yet
    wanted = [(HELD, "al", True), (HELD, "bo", True), (HELD, "flo", True)]
    assert found(page, directory) == wanted
    assert found(page, None) == wanted


@pytest.mark.parametrize(
    ("name", "holds"),
    [("csv", True), ("jsonl", True), ("left-out", True), ("drafts", True), ("others", False)],
)
def test_a_spreadsheet_is_found_by_a_row_or_a_draft(
    name: str, holds: bool, page: Page, rows: list[dict[str, str]], directory: Directory
) -> None:
    case = sample_case(directory, ["mediation"], TODAY) | {"reference": "case-2"}
    others = as_csv([rows[0], rows[2]]).encode()
    files = {
        "csv": {UPLOAD: as_csv(rows).encode()},
        "jsonl": {UPLOAD: json.dumps(case, default=str).encode() + b"\n"},
        "left-out": {UPLOAD: others, LEFT_OUT: as_csv(rows[1:2]).encode()},
        "drafts": {DRAFTS: packed(draft_of("CASE-1"), draft_of("CASE-2"))},
        "others": {UPLOAD: others, LEFT_OUT: others, DRAFTS: packed(draft_of("CASE-1"))},
    }[name]
    page.spreadsheet(files)
    assert found(page, directory) == ([("spreadsheet", "jo", True)] if holds else [])


def test_what_can_not_be_read_may_hold_the_case(
    page: Page, rows: list[dict[str, str]], directory: Directory
) -> None:
    page.spreadsheet({UPLOAD: b"PK\x03\x04 no workbook"}, "al")
    page.spreadsheet({DRAFTS: b"no zip"}, "bo")
    assert found(page, directory) == [("spreadsheet", "al", False), ("spreadsheet", "bo", False)]
    page.spreadsheet({UPLOAD: as_csv(rows[:1]).encode()}, "cy")
    assert ("spreadsheet", "cy", False) in found(page, None), "without a directory"


def test_one_that_nobody_can_reach_any_more_is_found(
    page: Page, rows: list[dict[str, str]], directory: Directory
) -> None:
    page.spreadsheet({UPLOAD: as_csv(rows).encode()})
    with page.store.writing() as db:
        db.execute("DELETE FROM document")
    assert found(page, directory) == [("spreadsheet", "", True)]


def test_erasing_a_case_takes_what_the_page_keeps_of_it(
    page: Page, rows: list[dict[str, str]], referrals: Command
) -> None:
    page.half_made("case-2", "al")
    page.half_made("CASE-3", "bo")
    gone = page.spreadsheet({UPLOAD: as_csv(rows).encode(), DRAFTS: packed("x")}, "cy")
    other = page.spreadsheet({UPLOAD: as_csv(rows[:1]).encode()}, "di")
    unread = page.spreadsheet({UPLOAD: b"PK\x03\x04 no workbook"}, "ed")

    said = referrals("outbox", "erase", CASE)
    assert said.code == 0
    assert "  half-made referral of al, saved" in said.out
    assert "  spreadsheet of cy, saved" in said.out
    assert "could not be read and may hold the case; expires" in said.out
    assert CANARY not in said.said
    assert len(page.documents()) == 5, "nothing is changed yet"

    done = referrals("outbox", "erase", CASE, "--yes", "--json").json
    assert (done["erased"], done["page_removed"]) == (0, 2)
    assert [(one["kind"], one["owner"], one["sure"]) for one in done["page"]] == [
        (HELD, "al", True), ("spreadsheet", "cy", True), ("spreadsheet", "ed", False),
    ]  # fmt: skip
    assert page.documents() == [("journey", "bo"), ("batch", "di"), ("batch", "ed")]
    assert [one.has(UPLOAD) for one in (gone, other, unread)] == [False, True, True]
    assert f"{CANARY} al".encode() not in octets(page.store), "overwritten, in the log as well"
    assert f"{CANARY} bo".encode() in octets(page.store)
    [last] = referrals("audit", "list", "--json", "--case", CASE).json
    assert (last["action"], last["detail"]) == ("erased", {"page": 2})
    assert CANARY not in json.dumps(last)
    page.folder(page.store.listed("batch", "ed", now())[0].id).remove()
    page.store.forget("batch", "ed", page.store.listed("batch", "ed", now())[0].id)
    assert referrals("outbox", "erase", CASE, "--yes").code == 6, "nothing is left of it"


def test_nothing_is_erased_while_a_spreadsheet_of_the_case_is_worked_on(
    page: Page, rows: list[dict[str, str]], referrals: Command
) -> None:
    page.half_made(CASE, "al")
    folder = page.spreadsheet({UPLOAD: as_csv(rows).encode()}, "bo")
    with _at_work(page, folder):
        done = referrals("outbox", "erase", CASE, "--yes")
        assert (done.code, "worked on just now" in done.err) == (6, True)
        assert page.documents() == [("journey", "al"), ("batch", "bo")]
    assert referrals("outbox", "erase", CASE, "--yes").code == 0
    assert page.documents() == []


class _at_work:
    """As if a process had the spreadsheet's lock, or its lease."""

    def __init__(self, page: Page, folder: BatchFolder) -> None:
        self._page, self._folder = page, folder

    def __enter__(self) -> None:
        if isinstance(self._folder, SharedBatch):
            self._lease("now() + interval '1 hour'")
        else:
            self._handle = os.open(self._folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        if isinstance(self._folder, SharedBatch):
            self._lease("NULL")
        else:
            os.close(self._handle)

    def _lease(self, until: str) -> None:
        with self._page.store.writing() as db:
            db.execute(f"UPDATE batch SET lease_until = {until}")


def test_an_export_has_what_the_page_keeps_and_of_a_spreadsheet_no_other_case(
    page: Page, rows: list[dict[str, str]], referrals: Command, tmp_path: Path
) -> None:
    page.half_made(CASE, "al")
    rows[0]["people.victim.name"] = "Another Person"
    page.spreadsheet({UPLOAD: as_csv(rows).encode()}, "bo")
    out = tmp_path / "held"
    done = referrals("outbox", "export", CASE, "--out", str(out), "--json")
    assert (done.code, done.json["page"]) == (0, 2)
    text = (out / "index.json").read_text()
    told: list[Any] = json.loads(text)["page"]
    assert told[0]["holds"]["people.victim.name"] == [f"{CANARY} al"]
    [row] = told[1]["holds"]
    assert (row["reference"], row["people"]["victim"]["name"]) == (CASE, CANARY)
    assert "Another Person" not in text
    assert "half-made referral, saved" in (out / "index.txt").read_text()


def test_without_a_page_there_is_nothing_and_nothing_is_made(
    tmp_path: Path, directory: Directory
) -> None:
    settings = Settings(outbox=tmp_path / "outbox")
    with kept_by_page(settings) as kept:
        assert kept.of_case(CASE, directory) == []
        kept.erase([])
    assert not settings.outbox.exists()


def test_a_store_that_can_not_be_looked_into_stops_the_erasure(
    tmp_path: Path, referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else somebody would be told that all is gone."""
    outbox = tmp_path / "outbox"
    outbox.mkdir()
    monkeypatch.setenv("REFERRALS_OUTBOX", str(outbox))
    (outbox / "web.sqlite3").write_bytes(b"no database at all, but long enough to be read" * 99)
    done = referrals("outbox", "erase", CASE, "--yes")
    assert (done.code, "web.sqlite3 can't be used" in done.err) == (6, True)
