"""What a relay's log shows: which of our messages the relay took.

A Message-ID in a log is not yet a message that was taken: a relay logs it before it looks at the
content, and may refuse that. So a line counts only as follows; `docs/backup.md` says the same.

- A line that is nothing but a Message-ID, with or without angle brackets.
- Postfix: `cleanup` gives the Message-ID of a queue id, and `qmgr` (or a later `status=`) shows
  that very queue id in the queue. Postfix writes the first before the content has come to its end,
  and the second only once the message is in its queue.
- Exim: the line of arrival, ` <= … id=…`, written once the message is taken.
- Exchange's message tracking (`#Fields: …`): the events RECEIVE, SEND, SENDEXTERNAL and DELIVER.
- Any other line with the Message-ID in angle brackets and "queued as" or "status=sent".
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from referrals.reference import is_reference

_LONGEST_LINE = 100_000
_ID = r"([2-9A-Z]{4}-[2-9A-Z]{4}-[2-9A-Z]{4})\.[^\s<>@,;]+@[^\s<>@,;]+"
_OURS = re.compile(rf"<({_ID})>")
_ALONE = re.compile(rf"<?({_ID})>?")
# From the line's start, since what follows may hold what a sender chose.
_POSTFIX = re.compile(
    r"(?:[A-Z][a-z]{2} +\d+ [\d:.]+|\d\S+) (?P<host>\S+) "
    r"(?P<instance>[\w.-]+)(?:/[\w.-]+)*/(?P<service>[\w-]+)\[\d+\]: "
    r"(?P<queue>[0-9A-Za-z]{5,30}): (?P<rest>.*)"
)
_EXIM = re.compile(rf" <= .* id=({_ID})(?:\s|$)")
_TAKEN = re.compile(r"\bqueued[ _]as\b|\bstatus=sent\b")
_REFUSED = re.compile(r"\b(?:milter-)?reject\b")
_IN_QUEUE = re.compile(r"from=<[^>]*>, size=\d+, nrcpt=\d+ \(queue active\)|.*\bstatus=\w+ \(")
_BEFORE_THE_QUEUE = frozenset({"smtpd", "cleanup"})
_EXCHANGE_TOOK = frozenset({"RECEIVE", "SEND", "SENDEXTERNAL", "DELIVER"})


class LogUnreadable(ValueError):
    """Why a log can't be read to its end."""


@dataclass
class RelayLog:
    """Of our Message-IDs, with angle brackets: those that the relay took, and all it names."""

    taken: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    lines: int = 0
    _queued: dict[tuple[str, str, str], str] = field(default_factory=dict, repr=False)
    _columns: list[str] = field(default_factory=list, repr=False)

    def read(self, file: BinaryIO) -> None:
        """Read one log to its end: text, or gzip. Of several, the oldest first.

        Raises:
            OSError, LogUnreadable.
        """
        with ExitStack() as stack:
            try:
                for line in _lines(file, stack):
                    self.lines += 1
                    self._look(line.strip())
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise LogUnreadable("its compressed content is damaged or cut short") from None
            except UnicodeError:
                raise LogUnreadable("it is not text") from None
        self._columns = []

    def _look(self, line: str) -> None:
        if line.startswith("#Fields:"):
            self._columns = line.removeprefix("#Fields:").strip().split(",")
        elif alone := _ALONE.fullmatch(line):
            self._took(_known(alone))
        elif ": " in line and (found := _POSTFIX.match(line)):
            self._look_at_postfix(found)
        elif "@" in line:
            self._look_at_other(line)

    def _look_at_postfix(self, found: re.Match[str]) -> None:
        key, rest = (found["host"], found["instance"], found["queue"]), found["rest"]
        named = rest.removeprefix("message-id=")
        if named != rest and found["service"] == "cleanup":
            ours = _OURS.fullmatch(named)
            if message_id := ours and _known(ours):
                self._queued[key] = message_id
                self.named.add(message_id)
            else:
                self._queued.pop(key, None)  # the queue id was given out anew
        elif key in self._queued:
            if rest == "removed" or _REFUSED.match(rest):
                del self._queued[key]
            elif found["service"] not in _BEFORE_THE_QUEUE and _IN_QUEUE.match(rest):
                self._took(self._queued[key])

    def _look_at_other(self, line: str) -> None:
        if self._columns:
            row = dict(zip(self._columns, next(csv.reader([line])), strict=False))
            if ours := _OURS.fullmatch(row.get("message-id", "")):
                took = row.get("event-id", "") in _EXCHANGE_TOOK
                (self._took if took else self._names)(_known(ours))
            return
        if arrival := _EXIM.search(line):
            self._took(_known(arrival))
        says_so = bool(_TAKEN.search(line)) and not _REFUSED.search(line)
        for ours in _OURS.finditer(line):
            (self._took if says_so else self._names)(_known(ours))

    def _took(self, message_id: str | None) -> None:
        if message_id:
            self.taken.add(message_id)
            self.named.add(message_id)

    def _names(self, message_id: str | None) -> None:
        if message_id:
            self.named.add(message_id)


def reference_of(message_id: str) -> str:
    """The referral's reference, with which our Message-IDs begin."""
    return message_id.strip("<").partition(".")[0]


def _known(found: re.Match[str]) -> str | None:
    """With angle brackets, if what it begins with is a reference and no chance."""
    return f"<{found[1]}>" if is_reference(found[2]) else None


def _lines(file: BinaryIO, stack: ExitStack) -> Iterable[str]:
    plain: Any = stack.enter_context(io.BufferedReader(_Raw(file)))
    if plain.peek(2)[:2] == b"\x1f\x8b":
        unpacked = stack.enter_context(gzip.GzipFile(fileobj=plain))
        plain = stack.enter_context(io.BufferedReader(unpacked))
    # What PowerShell writes has a mark in front, and is UTF-16.
    utf_16 = plain.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
    text = io.TextIOWrapper(plain, "utf-16" if utf_16 else "utf-8-sig", errors="replace")
    stack.callback(text.detach)
    return iter(lambda: text.readline(_LONGEST_LINE), "")


class _Raw(io.RawIOBase):
    """Somebody else's file, which stays open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        some = self._file.read(len(buffer))
        buffer[: len(some)] = some
        return len(some)
