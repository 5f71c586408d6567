"""A table of cases: what its columns mean, and what a spreadsheet program did to its cells.

A header is looked at once, so that a row costs little. What a program put in the place of a value
that was typed (an error, ####, a number without its zero) is said and never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_origin

from pydantic import BaseModel

from referrals.case import Case
from referrals.case_files import UNSEEN, Columns, Numbers, column_name, letters
from referrals.directory import Directory, QuestionType
from referrals.errors import CaseInvalid, CaseUnreadable, ColumnsInvalid, Problem

if TYPE_CHECKING:
    from referrals.sheets import CellError

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


STRAY_BYTE = re.compile("[\udc80-\udcff]")  # how `surrogateescape` shows what it could not decode


FORMULA_STARTS = "=+-@\t\r＝＋－＠"
_GUARD = re.compile(rf"'(?=[{re.escape(FORMULA_STARTS)}]|\d[\d ]{{4,}}(?:\n|\Z))", re.ASCII)


def guarded(cell: str) -> str:
    """A cell that no spreadsheet program takes for a formula, whoever wrote it."""
    return f"'{cell}" if cell[:1] and cell[0] in FORMULA_STARTS else cell


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
            (place, _LOST[kind])
            for place, (column, want) in enumerate(zip(self._names, self._wants, strict=True))
            if (kind := "code" if want == "code" else column[-5:]) in _LOST
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
        if "'" in whole and _GUARD.search(whole):
            texts = [text[1:] if _GUARD.match(text) else text for text in texts]
        if not whole.isascii():
            texts = self._without_unseen(texts)
        if not self._typed and ("=" in whole or ' "' in whole or "“" in whole):
            texts, wrong = self._as_opened(texts)
            problems += wrong
        if self._mixed or any(map(whole.__contains__, _SUSPECT)) or not _NULLS.isdisjoint(texts):
            texts, wrong = self._checked(texts, cells)
            problems += wrong
        for place, form in self._lost:
            if (
                place < len(texts)
                and (found := form.fullmatch(texts[place].strip()))
                and type(cells[place]) is str  # of others it is said already
            ):
                problems += (Problem(self._names[place], *_HOW[found.lastgroup or ""]),)
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
        """As a spreadsheet program that opens a CSV makes it of formulas and quotation marks."""
        shown = list(texts)
        problems = []
        for place, text in enumerate(texts[: len(self._names)]):
            if text[:1] == "=":
                if quoted := _QUOTED.fullmatch(text):
                    shown[place] = quoted[1].replace('""', '"')
                elif _CALCULATED.match(text):
                    problems.append(Problem(self._names[place], *_FORMULA))
            elif _TORN_APART.fullmatch(text) or (
                _OPENED.fullmatch(text) and "”" in "".join(texts[place + 1 : place + 2])
            ):
                problems.append(Problem(self._names[place], *_LATE_QUOTE))
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
                    problem = _shown_only(text, self._wants[place])
            elif self._mixed and (byte := STRAY_BYTE.search(text)):
                checked[place] = STRAY_BYTE.sub("\ufffd", text)
                problem = (
                    f"has a letter that is not UTF-8, as the rest of the file is: its "
                    f"{byte.start() + 1}{_th(byte.start() + 1)}.",
                    "Type that letter again, and save the file as CSV UTF-8.",
                    "encoding",
                )
            elif _is_garbled(text):
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


# What a row holds if a cell of it is to be looked at: most have none of them.
_SUSPECT = ("#", "E+", "E-0", "e+", "Ã", "Â", "â€", "Å", "Ä")
_LOST_ZERO = (
    "has lost its leading zero, as happens where a spreadsheet takes a phone number for a number.",
    "Format the column as Text in the spreadsheet and type the whole number again.",
    "cell-type",
)
_TO_NUMBER = (
    "ends in .0, as a program writes what it took for a number: what was typed may have changed.",
    "Type the number again, and have the program keep the column as text.",
    "cell-type",
)
MERGED = "merged"
_IS_MERGED = (
    "is merged with the cell above, which alone holds the value.",
    "Unmerge the cells and fill in each.",
    MERGED,
)
_NOUGHT = (
    "is 0, which a spreadsheet's formula makes of a blank cell.",
    "Type the number itself, or leave the cell blank.",
    "cell-error",
)
_MADE_A_DATE = (
    "is a date that a spreadsheet made of what was typed, as 10-12 becomes 10-Dec.",
    "Format the column as Text in the spreadsheet and type it again.",
    "cell-type",
)
_DATED = r"(?P<dated>\d{1,2}-[A-Z][a-z]{2}|[A-Z][a-z]{2}-\d{2})"
# What is lost in texts that were numbers for a while: by the column's kind, and how it shows.
_LOST = {
    "phone": re.compile(r"(?P<zero>[1-9]\d{8,9}(?:\.0)?)", re.ASCII),
    "code": re.compile(rf"(?P<point>\d{{3,}}\.0)|(?P<nought>0)|{_DATED}", re.ASCII),
    "times": re.compile(_DATED, re.ASCII),
}
_HOW = {"zero": _LOST_ZERO, "point": _TO_NUMBER, "nought": _NOUGHT, "dated": _MADE_A_DATE}
_NULLS = frozenset({"NULL", "null", "(null)", "<null>", "NaN", "nan", "NaT", "<NA>"})
_NULL = (
    "holds NULL or NaN, as a program exports a blank.",
    "Leave the cell blank, or type the value.",
    "cell-error",
)
_QUOTED = re.compile('="((?:[^"]|"")*)"')  # how programs save a CSV's digits from Excel
_CALCULATED = re.compile(r"=\s*[\w$(\"'+\-{]")  # but => and ==== are no formulas
_FORMULA = (
    "holds a formula, and its value is not in the file.",
    "Type the value itself; or open the file in the program that made it and save the values.",
    "cell-error",
)
_TORN_APART = re.compile(r'\s+"[^"]*(?:"[^"]*"[^"]*)*')
_OPENED = re.compile(r"\s*“[^”]*")
_LATE_QUOTE = (
    "begins with a quotation mark that quotes no cell, as it is a curly one or has blank space "
    "before it: a separator in the quotation may have moved what follows to other columns.",
    'Begin the cell with a plain quotation mark (").',
    "quote",
)
_SCIENTIFIC = re.compile(r"\s*-?\d(?:[.,]\d+)?[Ee][+-]\d{2,3}\s*", re.ASCII)
_HASHES = re.compile(r"\s*#{2,}\s*")
_ERRORS = frozenset(
    {"#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!",
     "#FIELD!", "#BLOCKED!", "#CONNECT!", "#GETTING_DATA", "#BUSY!", "#UNKNOWN!", "#PYTHON!",
     "#EXTERNAL!"}
)  # fmt: skip
_FORMULA_ERROR = ("holds a formula's error.", "Type the value itself.", "cell-error")
_Words = tuple[str, str, str]  # what, remedy, code


def _shown_only(text: str, want: Wanted) -> _Words | None:
    if text in _NULLS:
        return _NULL
    if text.strip() in _ERRORS:
        return _FORMULA_ERROR
    if _HASHES.fullmatch(text):
        return (
            "holds only #####, which a spreadsheet shows for a column that is too narrow and for "
            "a date that can't be.",
            "Widen the column or type the value again, and save the file anew.",
            "cell-error",
        )
    if want in ("text", "code") and _SCIENTIFIC.fullmatch(text):
        return (
            "holds a long number as the spreadsheet shortened it (such as 2.4E+10): digits are "
            "lost.",
            "Format the column as Text in the spreadsheet and type the value again.",
            "cell-type",
        )
    return None


def _is_garbled(text: str) -> bool:
    """Whether its letters make sense only as UTF-8 that was taken for CP1252."""
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


Wanted = Literal["text", "code", "moment", "other"]


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


def as_cell_text(value: Any, wanted: Wanted = "other") -> tuple[str, _Words | None]:
    """A typed cell as one would type it into a CSV, and what is wrong with it: what, remedy, code.

    A number where text is wanted has lost what was typed, a leading zero for example: it is said
    and not guessed.
    """
    match value:
        case None:
            return "", None
        case str():
            return value, _shown_only(value, wanted)
        case bool():
            text, kind = ("yes" if value else "no"), "yes or no"
        case datetime():
            text, kind = _moment_text(value, wanted), "a date"
        case date():
            text, kind = value.isoformat(), "a date"
        case time():
            text, kind = value.isoformat("seconds" if value.second else "minutes"), "a time"
        case timedelta():
            text, kind = str(value), "a time"
        case int() | float():
            whole = isinstance(value, float) and value.is_integer()
            text, kind = str(int(value) if whole else value), "a number"
            if wanted == "code" and text.isdigit() and len(text) <= _EXACT_DIGITS:
                return text, None if value else _NOUGHT
        case _:
            return value.shown, _error_of(value)
    if wanted not in ("text", "code"):
        return text, None
    return text, (
        f"is stored as {kind}, where text is wanted: what was typed may have changed, as a "
        "leading zero is lost.",
        "Format the column as Text in the spreadsheet and type the value again.",
        "cell-type",
    )


_EXACT_DIGITS = 15  # Excel makes zeros of those behind


def _error_of(error: CellError) -> _Words:
    if error.uncalculated:
        return (
            "holds a formula whose value was not saved with it.",
            "Open the workbook in a spreadsheet program and save it; or type the value itself.",
            "cell-error",
        )
    if error.dayless:
        return (
            "is a date of which only the month or the year is shown: its day was never typed.",
            "Type the whole date, as 31/01/2026, and format the cell as a date with its day.",
            "cell-type",
        )
    return _shown_only(error.shown, "other") or _FORMULA_ERROR


def _moment_text(value: datetime, wanted: Wanted) -> str:
    """A day where the cell has no time; Excel's fractions of a day miss seconds by a little."""
    half = timedelta(milliseconds=500 if value.year < 9999 else 0)
    nearest = (value + half).replace(microsecond=0)
    if wanted != "moment" and nearest.time() == time():
        return nearest.date().isoformat()
    return f"{nearest:%Y-%m-%d %H:%M:%S}" if nearest.second else f"{nearest:%Y-%m-%d %H:%M}"
