"""The audit's page: who did what, whether the log is whole, and the whole of it as a file."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from referrals.delivery import DeliveryStatus
from referrals.telling import entry_json
from referrals.web import audit_pages
from referrals.web.site import Role
from tests.conftest import NOW
from tests.queued import SENDER
from tests.web.conftest import web_settings
from tests.web.signing import said
from tests.web.visiting import Filled, Visitor, visiting

pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    """120 entries, of as many cases but for one, which has two."""
    made = Filled(web_settings(tmp_path))
    made.add_queued(119)
    with made.open() as outbox:
        outbox.cancel(made.reference("6"), NOW)
    return made


@pytest.fixture
def visitor(filled: Filled) -> Iterator[Visitor]:
    with visiting(filled.settings) as one:
        yield one


def tamper(filled: Filled) -> None:
    with closing(sqlite3.connect(filled.settings.outbox / "outbox.sqlite3")) as db:
        db.execute("DROP TRIGGER audit_is_not_altered")
        db.execute("UPDATE audit SET actor = 'somebody else' WHERE number = 3")
        db.commit()


def test_entries_are_told_the_newest_first_in_pages(visitor: Visitor) -> None:
    pages = [visitor.get(f"/audit?page={number}").text for number in (1, 2, 3)]
    assert [page.count('scope="row"') for page in pages] == [50, 50, 20]
    text = said(visitor.get("/audit"))
    assert "120 entries, the newest first" in text
    assert text.index("120 24 November 2026, 12:00 jo Cancelled") < text.index(" 119 24 November")
    assert "Facts : people.victim.name" in text, "names of facts are told"
    assert SENDER not in "".join(pages)


def test_one_case_can_be_shown(filled: Filled, visitor: Visitor) -> None:
    text = said(visitor.get("/audit?case=case-7"))
    assert "2 entries of CASE-7" in text
    assert filled.reference("6") in text
    assert filled.reference("7") not in text
    answer = visitor.get("/audit?case=<script>alert(1)</script>")
    assert "There is no entry of that case" in answer.text
    assert "<script>alert" not in answer.text


def test_the_chain_is_proved_and_its_end_told(filled: Filled, visitor: Visitor) -> None:
    text = said(visitor.get("/audit"))
    with filled.open() as outbox:
        [last] = outbox.newest_entries(limit=1)
    assert "the log is whole, 120 entries" in text
    assert f"120:{last.hash}" in text


def test_a_log_that_was_tampered_with_is_told(filled: Filled, visitor: Visitor) -> None:
    visitor.get("/audit")
    tamper(filled)
    assert visitor.post("/audit/verify").status_code == 303
    text = said(visitor.get("/audit"))
    assert "The log was tampered with" in text
    assert "At entry 3: it was altered." in text


def test_a_new_entry_has_it_proved_anew(filled: Filled, visitor: Visitor) -> None:
    visitor.get("/audit")
    tamper(filled)
    assert "the log is whole" in said(visitor.get("/audit")), "it was proved when it says so"
    filled.add("new", DeliveryStatus.QUEUED)
    assert "tampered with" in said(visitor.get("/audit"))


def test_a_long_log_is_proved_when_somebody_asks(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_pages, "_MOST_AT_ONCE", 100)
    assert "was not verified yet" in said(visitor.get("/audit"))
    visitor.post("/audit/verify")
    assert "the log is whole" in said(visitor.get("/audit"))


def test_it_is_saved_as_the_command_prints_it(filled: Filled, visitor: Visitor) -> None:
    with filled.open() as outbox:
        entries = list(outbox.audit())
    lines = visitor.get("/audit/audit.jsonl")
    assert 'filename="audit.jsonl"' in lines.headers["content-disposition"]
    assert [json.loads(line) for line in lines.text.splitlines()] == [
        json.loads(json.dumps(entry_json(entry))) for entry in entries
    ]
    sheet = visitor.get("/audit/audit.csv?case=CASE-7")
    rows = list(csv.DictReader(io.StringIO(sheet.text)))
    assert [row["case_reference"] for row in rows] == ["CASE-7"] * 2
    for answer in (lines, sheet):
        assert answer.headers["cache-control"] == "no-store"
    assert visitor.get("/audit/audit.exe").status_code == 404


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    with visiting(web_settings(tmp_path)) as one:
        assert "There is no entry yet." in said(one.get("/audit"))


@pytest.mark.parametrize("role", [Role.REFERRER, Role.SENDER])
def test_it_is_for_administrators_alone(role: Role, filled: Filled) -> None:
    with visiting(filled.settings, role) as one:
        for path in ("/audit", "/audit/audit.csv", "/audit/audit.jsonl"):
            assert one.get(path).status_code == 403
        assert one.post("/audit/verify").status_code == 403
