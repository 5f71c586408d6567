"""A table of cases: what its columns mean, and which cases its rows are.

A header is looked at once, so that a row costs little.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel

from referrals.case import Case
from referrals.case_files import UNSEEN, Columns, Numbers, column_name, letters
from referrals.cells import (
    STRAY_BYTE,
    Wanted,
    as_cell_text,
    as_opened,
    is_garbled,
    is_suspect,
    lost_form,
    lost_words,
    shown_only,
    unguarded,
)
from referrals.directory import Directory, QuestionType
from referrals.errors import CaseInvalid, CaseUnreadable, ColumnsInvalid, Problem

HEADER_WITHIN = 20
"""Rows among which the column names stand; above them there may be a title and blank space."""

WHOLE_ROW = "(the row)"
_INTERVENTION = "intervention"
_TITLE = 2  # filled cells; a row with more of them above the header may be a case


@dataclass(frozen=True)
class Row:
    """One case as it stands in the file.

    `cells` are what the file holds, to be written out again; `raw` is the case, as far as it could
    be read; `problems` are those of the form, before the case is looked at; `numbers` are for
    `name_in_file`.
    """

    number: int
    cells: Sequence[Any] = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)
    problems: tuple[Problem, ...] = ()
    numbers: Numbers = field(default_factory=dict)


class Record(NamedTuple):
    """A row as it was found, before its columns have names."""

    number: int
    cells: Sequence[Any]
    problems: tuple[Problem, ...] = ()
    torn_at: int | None = None
    merged: tuple[int, ...] = ()
    """The positions of cells whose value stands in a row above."""


@dataclass(frozen=True)
class Torn(Row):
    """The rest of a CSV that could not be taken apart, from this row on.

    `line`: how many lines stand before it.
    """

    line: int = 0


def name_of(cell: Any) -> str:
    return column_name(cell) if isinstance(cell, str) else ""


def header_at(rows: Sequence[Sequence[Any]], known: Container[str]) -> int | None:
    """Which row has the most names of columns that we know; None if none has any."""
    counts = [sum(name_of(cell) in known for cell in cells) for cells in rows]
    return counts.index(max(counts)) if any(counts) else None


def cases_of(
    records: Iterator[Record],
    directory: Directory,
    path: Path,
    *,
    typed: bool = False,
    mixed: bool = False,
) -> Iterator[Row]:
    """The header as row 0, then each row that is not blank.

    Args:
        typed: the cells are those of a workbook, where no separator can shift them.
        mixed: the text is UTF-8 but for a few letters.
    """
    early = list(islice(records, HEADER_WITHIN))
    known = KnownColumns(directory)
    place = header_at([one.cells for one in early], known)
    if place is None:
        broken = next((one for one in early if one.torn_at is not None), None)
        if broken:
            raise CaseUnreadable(f"{path}, row {broken.number}: {broken.problems[0]}")
        filled = (n for n, one in enumerate(early) if any(_is_filled(cell) for cell in one.cells))
        place = next(filled, None)
        if place is None:
            raise CaseUnreadable(
                f"{path} is empty. `referrals new --csv` prints one to start from."
            )
        if len(early[place].cells) > 1:
            raise CaseUnreadable(
                f"{path} has no row of column names, such as reference or people.victim.name, "
                f"among its first {HEADER_WITHIN}. `referrals new --csv` prints one."
            )
    header = early[place].cells
    table = _Table(header, directory, str(path), typed=typed, mixed=mixed)
    yield Row(0, header, {})
    for one in early[:place]:
        if sum(map(_is_filled, one.cells)) > _TITLE:
            yield Row(one.number, one.cells, {}, (*one.problems, _ABOVE))
    row_of = table.row
    for record in chain(early[place + 1 :], records):
        row = row_of(record)
        if row is not None:
            yield row


_ABOVE = Problem(
    WHOLE_ROW,
    "stands above the column names.",
    "Move it below them if it is a case; delete it if it is a heading.",
    "above",
)


def _is_filled(cell: Any) -> bool:
    return bool(cell.strip()) if isinstance(cell, str) else cell is not None


class _Table:
    """What is known of a file's columns, so that a row costs little."""

    def __init__(
        self, header: Sequence[Any], directory: Directory, name: str, *, typed: bool, mixed: bool
    ) -> None:
        shown = ["" if cell is None else str(cell) for cell in header]
        problems: list[Problem] = []
        try:
            self._columns = Columns(shown, name)
        except CaseInvalid as error:
            problems += error.problems
        problems += _strangers(shown, directory, {one.where for one in problems})
        if problems:
            raise ColumnsInvalid(problems)
        self._typed = typed
        self._mixed = mixed
        self._names = self._columns.names
        self._wants = [_wanted(column, directory) for column in self._names]
        self._lost = [
            (place, form)
            for place, (column, want) in enumerate(zip(self._names, self._wants, strict=True))
            if (form := lost_form(column, want))
        ]
        self._bare = [
            place
            for place, (column, want) in enumerate(zip(self._names, self._wants, strict=True))
            if want != "text" or column.endswith(("email", "postcode", "area", "district"))
        ]

    def row(self, record: Record) -> Row | None:
        number, cells, problems, torn_at, merged = record
        if torn_at is not None:
            return Torn(number, cells, {}, problems, line=torn_at)
        texts: Sequence[str] = cells
        try:
            whole = "\n".join(texts)
        except TypeError:
            texts, wrong = self._texts(cells)
            problems += wrong
            whole = "\n".join(texts)
        if not whole or whole.isspace():
            return None
        problems += tuple(
            Problem(self._names[place], *_IS_MERGED)
            for place in merged
            if place < len(self._names) and self._names[place]
        )
        texts = unguarded(whole, texts)
        if not whole.isascii():
            texts = self._without_unseen(texts)
        if not self._typed and ("=" in whole or ' "' in whole or "“" in whole):
            texts, wrong = self._as_opened(texts)
            problems += wrong
        if self._mixed or is_suspect(whole, texts):
            texts, wrong = self._checked(texts, cells)
            problems += wrong
        for place, form in self._lost:
            if (
                place < len(texts)
                and (found := form.fullmatch(texts[place].strip()))
                and type(cells[place]) is str  # of others it is said already
            ):
                problems += (Problem(self._names[place], *lost_words(found)),)
        over = self._columns.without_name(texts)
        if over is not None:
            problems += (_over(over, self._typed or over < len(self._names)),)
            if not self._typed:
                return Row(number, cells, {}, problems)
        raw, numbers = self._columns.nested(texts)
        return Row(number, cells, raw, problems, numbers)

    def _texts(self, cells: Sequence[Any]) -> tuple[list[str], tuple[Problem, ...]]:
        """Typed cells as texts."""
        texts = []
        problems = []
        for place, cell in enumerate(cells):
            if type(cell) is str:
                texts.append(cell)
                continue
            want = self._wants[place] if place < len(self._wants) else "other"
            text, problem = as_cell_text(cell, want)
            texts.append(text)
            if problem and place < len(self._names):
                problems.append(Problem(self._names[place], *problem))
        return texts, tuple(problems)

    def _without_unseen(self, texts: Sequence[str]) -> Sequence[str]:
        """Where no text is wanted, what nobody can see would make a right value a wrong one."""
        bare: list[str] | None = None
        for place in self._bare:
            if place < len(texts) and not texts[place].isascii():
                bare = bare or list(texts)
                bare[place] = UNSEEN.sub("", bare[place])
        return bare or texts

    def _as_opened(self, texts: Sequence[str]) -> tuple[Sequence[str], tuple[Problem, ...]]:
        """As a spreadsheet program shows them that opens the file."""
        shown = list(texts)
        problems = []
        for place, text in enumerate(texts[: len(self._names)]):
            shown[place], words = as_opened(text, "".join(texts[place + 1 : place + 2]))
            if words:
                problems.append(Problem(self._names[place], *words))
        return shown, tuple(problems)

    def _checked(
        self, texts: Sequence[str], cells: Sequence[Any]
    ) -> tuple[Sequence[str], tuple[Problem, ...]]:
        """What a spreadsheet program put in the place of a text that was typed."""
        checked = list(texts)
        problems = []
        for place, text in enumerate(texts[: len(self._names)]):
            problem = None
            if text.isascii():
                if type(cells[place]) is str:
                    problem = shown_only(text, self._wants[place])
            elif self._mixed and (byte := STRAY_BYTE.search(text)):
                checked[place] = STRAY_BYTE.sub("\ufffd", text)
                problem = (
                    f"has a letter that is not UTF-8, as the rest of the file is: its "
                    f"{byte.start() + 1}{_th(byte.start() + 1)}.",
                    "Type that letter again, and save the file as CSV UTF-8.",
                    "encoding",
                )
            elif is_garbled(text):
                problem = (
                    "holds letters that were read in the wrong encoding, as é that became Ã©.",
                    "Type them again. In Excel, open a CSV by Data, From Text/CSV, as UTF-8.",
                    "encoding",
                )
            if problem:
                problems.append(Problem(self._names[place], *problem))
        return checked, tuple(problems)


def _th(number: int) -> str:
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10 * (number % 100 not in (11, 12, 13)), "th")


def _over(place: int, in_place: bool) -> Problem:
    """`in_place`: the value stands where it was typed; no separator can have moved it."""
    if not in_place:
        return Problem(
            WHOLE_ROW,
            "has more cells than there are columns.",
            "Quote a cell that holds the separator, or name the column.",
            "cells",
        )
    return Problem(
        f"column {letters(place)}",
        "has a value, but the column has no name.",
        "Delete the column, or give it one of our names.",
        "column",
    )


MERGED = "merged"
_IS_MERGED = (
    "is merged with the cell above, which alone holds the value.",
    "Unmerge the cells and fill in each.",
    MERGED,
)


@cache
def _case_columns() -> Mapping[str, frozenset[Any]]:
    """The columns of a case but for its answers: their types by their names, # for any number."""
    return {_INTERVENTION: frozenset({list}), **dict(_columns_of(Case, ""))}


def _columns_of(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, frozenset[Any]]]:
    for name, info in model.model_fields.items():
        types = frozenset(_types(info.annotation))
        inner = next((one for one in types if issubclass(one, BaseModel)), None)
        if inner is not None:
            many = ".#" if get_origin(info.annotation) is list else ""
            yield from _columns_of(inner, f"{prefix}{name}{many}.")
        elif name != "answers":
            yield f"{prefix}{name}", types


def _types(annotation: Any) -> Iterator[type]:
    inner = getattr(annotation, "__args__", ())
    if not inner and isinstance(annotation, type):
        yield annotation
    for part in inner:
        yield from _types(part)


_NUMBER = re.compile(r"(?<=\.)[1-9]\d{0,2}(?=\.)", re.ASCII)


class KnownColumns:
    """The names that a column may have."""

    def __init__(self, directory: Directory) -> None:
        self._names = {
            *_case_columns(),
            *(
                f"answers.{one.id}.{question.name}"
                for one in directory.interventions.values()
                for question in one.fields
            ),
        }

    def __contains__(self, column: object) -> bool:
        return isinstance(column, str) and _NUMBER.sub("#", column) in self._names

    def nearest(self, column: str) -> str:
        """One that may have been meant, with its numbers, or nothing."""
        from difflib import get_close_matches

        close = get_close_matches(_NUMBER.sub("#", column), self._names, 1)
        numbers = iter(_NUMBER.findall(column))
        return re.sub("#", lambda _: next(numbers, "1"), close[0]) if close else ""


def _strangers(
    header: Sequence[str], directory: Directory, said: Container[str]
) -> Iterator[Problem]:
    """Columns that we would not read; their names may be somebody's, so they are not repeated."""
    known = KnownColumns(directory)
    for place, cell in enumerate(header):
        name = column_name(cell)
        where = f"column {letters(place)}"
        if name and name not in known and where not in said:
            near = known.nearest(name)
            remedy = f"Did you mean {near}? " if near else ""
            yield Problem(
                where,
                "has a name that we don't know.",
                f"{remedy}A column of your own must be taken out of the file.",
                "column",
            )


def wanted_of(column: str, directory: Directory) -> Wanted:
    """What a column is to hold, as far as it matters for a typed cell."""
    parts = column.split(".")
    if parts[0] == "answers":
        intervention = directory.interventions.get(parts[1]) if len(parts) == 3 else None
        fields = intervention.fields if intervention else ()
        kinds = {one.type for one in fields if one.name == parts[2]}
        if QuestionType.MOMENT in kinds:
            return "moment"
        return "text" if {QuestionType.LINE, QuestionType.TEXT} & kinds else "other"
    types = _case_columns().get(_NUMBER.sub("#", column), frozenset())
    return "text" if str in types and not {date, bool} & types else "other"


def _wanted(column: str, directory: Directory) -> Wanted:
    """As `wanted_of`, but crime numbers and the like may be numbers: all of one is its digits."""
    want = wanted_of(column, directory)
    return "code" if want == "text" and column.endswith(("reference", "references")) else want
