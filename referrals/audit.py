"""The disclosure log: who told whom what kind of thing, when and on what ground.

It holds names of fields, never their values. Each entry carries the hash of the one before it, so
that an entry taken out, altered or put in later is noticed; see `verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

FIRST = "0" * 64
"""What the first entry has for the hash of the one before it."""

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
        whole = [
            self.number,
            self.moment,
            self.actor,
            self.action,
            self.reference,
            self.case_reference,
            self.facts,
            self.before,
        ]
        text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


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
    entry = Entry(
        number=number,
        moment=at.astimezone(UTC).isoformat(),
        actor=actor,
        action=action,
        reference=reference,
        case_reference=case_reference,
        facts=json.dumps(detail, sort_keys=True),
        before=before,
        hash="",
    )
    return replace(entry, hash=entry.true_hash())


@dataclass(frozen=True)
class Break:
    """Where the chain does not hold."""

    number: int
    what: str


def verify(entries: Iterable[Entry]) -> Iterator[Break]:
    """Every place where the log is not what it was; nothing if it is whole.

    Entries cut off at the very end leave no trace in what remains: keep the last hash that
    `audit verify` prints somewhere else, and compare.
    """
    before, number = FIRST, 0
    for entry in entries:
        number += 1
        if entry.number != number:
            yield Break(number, f"entry {number} is missing: {entry.number} follows.")
            number = entry.number
        if entry.before != before:
            yield Break(entry.number, "the entry before it was altered, taken out or put in.")
        if entry.hash != entry.true_hash():
            yield Break(entry.number, "it was altered.")
        before = entry.hash
