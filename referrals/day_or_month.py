"""Dates whose day and month may have changed places, told by the other dates of a file.

02/03/2026 is 2 March here and 3 February in an American export, and nothing in it says which. A
spreadsheet program that opens such an export turns what it can into dates, the wrong way round,
and leaves 02/13/2026 as text: that one gives the others away.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from datetime import date
from functools import cache

from referrals.case_files import flatten, name_in_file
from referrals.directory import Directory
from referrals.errors import Problem
from referrals.tables import Row, wanted_of

_SLASHED = re.compile(r"(\d{1,2})/(\d{1,2})/\d{4}(?:[T ].*)?", re.ASCII)
_TYPED = re.compile(r"\d{4}-(\d\d)-(\d\d)(?:[T ].*)?", re.ASCII)


def in_doubt(rows: Iterable[Row], directory: Directory) -> Iterator[tuple[int, Problem]]:
    """Each date that makes sense either way, with the number of its row.

    Only in a column of which another date makes sense month first alone and none day first alone;
    or in any without such a date, if that is so of the whole file.
    """
    is_of_dates = cache(lambda column: wanted_of(column, directory) in ("moment", "other"))
    month_first: set[str] = set()
    day_first: set[str] = set()
    either: dict[str, array[int]] = {}
    for row in rows:
        typed = any(isinstance(cell, date) for cell in row.cells)
        for path, text in flatten(row.raw):
            if not text[:1].isdecimal():
                continue
            column = name_in_file(path, row.numbers)
            if not is_of_dates(column):
                continue
            if found := _SLASHED.fullmatch(text.strip()):
                day, month = int(found[1]), int(found[2])
            elif typed and (found := _TYPED.fullmatch(text)):
                day, month = int(found[2]), int(found[1])
            else:
                continue
            if max(day, month) > 12:
                if min(day, month) <= 12 and max(day, month) <= 31:
                    (month_first if month > 12 else day_first).add(column)
            elif day != month and min(map(len, found.groups())) > 1:  # others are said already
                either.setdefault(column, array("L")).append(row.number)
    for column, numbers in either.items():
        if column not in day_first and (column in month_first or (month_first and not day_first)):
            for number in numbers:
                yield number, Problem(column, *_DOUBT)


_DOUBT = (
    "may have its day and month the wrong way round: another date of this file, such as "
    "02/13/2026, has the month first, and none has the day first for certain.",
    "Write the dates as 2026-01-31, which can't be mistaken; or put those right that are no dates.",
    "day-or-month",
)
