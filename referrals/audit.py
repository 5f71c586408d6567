"""The disclosure log: who told whom what kind of thing, when and on what ground.

It holds names of fields, never their values. Each entry carries the hash of the one before it, so
that an entry taken out, altered or put in later is noticed; see `verify`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

FIRST = "0" * 64
"""What the first entry has for the hash of the one before it."""

_NOTED = re.compile(r"([0-9]{1,15}):([0-9a-f]{16,64})")
_FORMULA = re.compile(r"\s*[=+\-@\t\r＝＋－＠]")
_NO_TIME = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """One thing that happened, as it is written down.

    The hash is over `moment` and `facts` as text: two texts that mean the same to one reader may
    mean different things to another.
    """

    number: int
    moment: str
    actor: str
    action: str
    reference: str
    case_reference: str
    facts: str
    before: str
    hash: str

    @property
    def at(self) -> datetime:
        """When; year 1 where somebody has put in what is no time."""
        try:
            return datetime.fromisoformat(self.moment).astimezone(UTC)
        except (ValueError, OverflowError):
            return _NO_TIME

    @property
    def detail(self) -> Mapping[str, Any]:
        """Names, codes and dates; what is not JSON any more is `unreadable`."""
        try:
            detail = json.loads(self.facts)
        except (ValueError, RecursionError):
            detail = None
        return detail if isinstance(detail, dict) else {"unreadable": self.facts}

    def true_hash(self) -> str:
        """What `hash` has to be: SHA-256 over a JSON list of the rest, in ASCII, no blanks."""
        return _hash_of(
            self.number,
            self.moment,
            self.actor,
            self.action,
            self.reference,
            self.case_reference,
            self.facts,
            self.before,
        )


_text = json.JSONEncoder(separators=(",", ":")).encode
_sorted = json.JSONEncoder(sort_keys=True).encode


def _hash_of(*whole: Any) -> str:
    return hashlib.sha256(_text(whole).encode("ascii")).hexdigest()


def new_entry(
    *,
    number: int,
    before: str,
    at: datetime,
    actor: str,
    action: str,
    reference: str,
    case_reference: str,
    detail: Mapping[str, Any],
) -> Entry:
    """The entry that follows the one with number `number - 1` and hash `before`."""
    moment = at.astimezone(UTC).isoformat()
    whole = (number, moment, actor, action, reference, case_reference, _sorted(detail), before)
    return Entry(*whole, _hash_of(*whole))


@dataclass(frozen=True)
class Break:
    """Where the chain does not hold."""

    number: int
    what: str


@dataclass(frozen=True)
class Noted:
    """The number and hash of an entry that somebody wrote down: `12:5f3c…`, as it is printed."""

    number: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Noted:
        """The hash may be shortened to its first 16 digits; ValueError if it is none."""
        found = _NOTED.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError("it is not NUMBER:HASH")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


def verify(entries: Iterable[Entry], noted: Noted | None = None) -> Iterator[Break]:
    """Every place where the log is not what it was; nothing if it is whole.

    Entries cut off at the very end, or the whole log made anew, leave no trace in what remains:
    `noted` is what somebody wrote down elsewhere, and has to be there still.
    """
    before, number, seen = FIRST, 0, noted is None or noted.number == 0
    for entry in entries:
        number += 1
        if entry.number != number:
            yield Break(number, f"entry {number} is missing: {entry.number} follows.")
            number = entry.number
        if entry.before != before:
            yield Break(entry.number, "the entry before it was altered, taken out or put in.")
        if entry.hash != entry.true_hash():
            yield Break(entry.number, "it was altered.")
        if noted is not None and entry.number == noted.number:
            seen = True
            if not entry.hash.startswith(noted.hash):
                yield Break(entry.number, "it is not the entry that was noted.")
        before = entry.hash
    if noted is not None and not seen:
        yield Break(noted.number, f"the entry that was noted is gone: the log ends at {number}.")


COLUMNS = ("number", "at", "actor", "action", "reference", "case_reference", "detail", "before",
           "hash")  # fmt: skip


def as_csv(entries: Iterable[Entry]) -> Iterator[str]:
    """A line of CSV for the names, then one for each entry.

    A cell that a spreadsheet would take for a formula has an apostrophe before it.
    """
    line = io.StringIO()
    writer = csv.writer(line)
    for cells in chain([COLUMNS], map(_cells, entries)):
        writer.writerow(cells)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _cells(entry: Entry) -> list[str]:
    texts = (entry.moment, entry.actor, entry.action, entry.reference, entry.case_reference,
             entry.facts, entry.before, entry.hash)  # fmt: skip
    return [str(entry.number), *(f"'{text}" if _FORMULA.match(text) else text for text in texts)]
