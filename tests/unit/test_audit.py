"""The log notices whatever is done to it, one entry at a time or many."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from referrals.audit import COLUMNS, FIRST, Entry, Noted, as_csv, new_entry, verify
from tests.conftest import NOW


def chain(count: int) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(1, count + 1):
        entries.append(
            new_entry(
                number=number,
                before=entries[-1].hash if entries else FIRST,
                at=NOW + timedelta(seconds=number),
                actor="officer",
                action="queued",
                reference=f"R-{number}",
                case_reference="CASE-1",
                detail={"facts": ["people.victim.name"], "überschrift": None},
            )
        )
    return entries


def rehashed(entry: Entry) -> Entry:
    return replace(entry, hash=entry.true_hash())


def test_an_untouched_log_is_whole() -> None:
    assert list(verify(chain(5))) == []
    assert list(verify([])) == []


def test_the_hash_is_what_the_docs_say() -> None:
    """So that anybody can check it, in any language."""
    entry = chain(1)[0]
    whole = [1, "2026-11-24T12:00:01+00:00", "officer", "queued", "R-1", "CASE-1",
             '{"facts": ["people.victim.name"], "\\u00fcberschrift": null}', "0" * 64]  # fmt: skip
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True)

    assert entry.hash == hashlib.sha256(text.encode("ascii")).hexdigest()


@pytest.mark.parametrize("name", [field.name for field in fields(Entry)])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_an_altered_entry_is_noticed(name: str, position: int) -> None:
    entries = chain(5)
    value = getattr(entries[position], name)
    altered: Any = value + 1 if isinstance(value, int) else f"{value[:-1]}~"
    entries[position] = replace(entries[position], **{name: altered})

    assert list(verify(entries))


Tamper = Callable[[list[Entry]], list[Entry]]
TAMPERED: dict[str, Tamper] = {
    "first taken out": lambda log: log[1:],
    "one taken out": lambda log: [*log[:2], *log[3:]],
    "one taken out, the rest renumbered": lambda log: (
        log[:2] + [rehashed(replace(one, number=one.number - 1)) for one in log[3:]]
    ),
    "one put in twice": lambda log: [*log[:3], *log[2:]],
    "one put in before the first": lambda log: [rehashed(replace(log[0], number=0)), *log],
    "two swapped": lambda log: [log[0], log[2], log[1], *log[3:]],
    "two swapped and renumbered": lambda log: [
        log[0], rehashed(replace(log[2], number=2)), rehashed(replace(log[1], number=3)), *log[3:],
    ],
    "altered, its hash made anew": lambda log: [
        *log[:2], rehashed(replace(log[2], actor="nobody")), *log[3:],
    ],
    "the first altered, its hash made anew": lambda log: [
        rehashed(replace(log[0], facts="{}")), *log[1:],
    ],
    "another chain behind": lambda log: [*log, rehashed(replace(chain(6)[5], before=FIRST))],
}  # fmt: skip


@pytest.mark.parametrize("tampered", TAMPERED)
def test_tampering_is_noticed(tampered: str) -> None:
    assert list(verify(TAMPERED[tampered](chain(5))))


def test_a_break_says_where() -> None:
    log = chain(6)
    log[3] = replace(log[3], actor="nobody")
    assert [(one.number, one.what) for one in verify(log)] == [(4, "it was altered.")]

    log = chain(6)
    del log[3]
    assert [one.number for one in verify(log)] == [4, 5]


def test_the_same_meaning_in_other_text_is_noticed() -> None:
    """What one reader takes for the same, another may not: a key given twice, for one."""
    changes: tuple[dict[str, Any], ...] = (
        {"facts": '{"facts": ["people.victim.name"],"\\u00fcberschrift": null}'},
        {"facts": '{"facts": [], "facts": ["people.victim.name"], "\\u00fcberschrift": null}'},
        {"moment": "2026-11-24 12:00:03+00:00"},
        {"moment": "2026-11-24T13:00:03+01:00"},
    )
    for change in changes:
        log = chain(4)
        log[2] = replace(log[2], **change)
        assert [one.number for one in verify(log)] == [3], change


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_an_entry_that_makes_no_sense_can_still_be_listed(text: str) -> None:
    entry = replace(chain(1)[0], facts=text, moment=text)

    assert entry.at.year == 1
    assert entry.detail == {"unreadable": text}
    assert len(list(verify([entry]))) == 1


def test_time_is_told_in_utc_whatever_zone_it_came_in() -> None:
    at = datetime(2026, 7, 1, 13, 0, tzinfo=timezone(timedelta(hours=1)))
    entry = new_entry(
        number=1, before=FIRST, at=at, actor="a", action="b", reference="c", case_reference="d",
        detail={},
    )  # fmt: skip

    assert entry.moment == "2026-07-01T12:00:00+00:00"
    assert entry.at == at


def test_what_was_noted_has_to_be_there_still() -> None:
    """Otherwise a log cut short at its end, or made anew as a whole, would pass."""
    log = chain(5)
    noted = Noted(5, log[4].hash)
    assert Noted.parse(str(noted)) == noted
    short = Noted.parse(f" 5:{log[4].hash[:16].upper()}")
    for one in (noted, short, Noted(3, log[2].hash), Noted(0, FIRST)):
        assert list(verify(log, one)) == []
    assert [found.number for found in verify(log[:4], noted)] == [5]
    assert [found.number for found in verify([], noted)] == [5]
    another = [rehashed(replace(one, actor="nobody", before=FIRST)) for one in chain(1)]
    assert [found.number for found in verify(another, Noted(1, log[0].hash))] == [1]


@pytest.mark.parametrize("text", ["", "5", "5:", ":abc", f"5:{'0' * 15}", f"5:{'g' * 16}", "5:0 0"])
def test_what_is_no_note_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NUMBER:HASH"):
        Noted.parse(text)


def test_csv_tells_every_entry_as_it_is() -> None:
    log = chain(3)
    rows = list(csv.reader(io.StringIO("".join(as_csv(log)))))
    assert rows[0] == list(COLUMNS)
    assert [[row[0], *row[1:]] for row in rows[1:]] == [
        [str(one.number), one.moment, one.actor, one.action, one.reference, one.case_reference,
         one.facts, one.before, one.hash]
        for one in log
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "＝1", '=HYPERLINK("x")']
)
def test_nothing_in_the_csv_is_a_formula(text: str) -> None:
    """A name of a user, or what somebody has put in, is read as text by any spreadsheet."""
    whole = "".join(as_csv([replace(chain(1)[0], actor=text, case_reference=text, facts=text)]))
    row = list(csv.reader(io.StringIO(whole, newline="")))[1]
    assert [row[2], row[5], row[6]] == [f"'{text}"] * 3
