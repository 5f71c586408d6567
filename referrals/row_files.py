"""Files of many cases, read row by row and never held whole: CSV, JSON lines, XLSX.

Rows are numbered as a spreadsheet program or an editor shows them. Each can be written out again
as it was, so that rows left out may be mended and read anew.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from pydantic import BaseModel

from referrals.case import Case
from referrals.case_files import check_header, parse_json, unflatten
from referrals.directory import Directory, QuestionType
from referrals.errors import CaseInvalid, CaseUnreadable, Problem

_LONGEST_LINE = 1_000_000
_LARGEST_WORKBOOK = 2_000_000_000  # unpacked; a few MB of zip may claim any size
_LARGEST_STRINGS = 500_000_000  # openpyxl keeps a workbook's table of texts in memory
_PIECE = 1 << 20
_OLE = b"\xd0\xcf\x11\xe0"  # old .xls, and every workbook with a password
_ZIP = b"PK\x03\x04"
_LINE = "(the line)"


@dataclass(frozen=True)
class Row:
    """One case as it stands in the file.

    `cells` are what the file holds, to be written out again; `raw` is the case, as far as it could
    be read; `problems` are those of the form, before the case is looked at.
    """

    number: int
    cells: Sequence[Any] = field(repr=False)
    raw: Mapping[str, Any] = field(repr=False)
    problems: tuple[Problem, ...] = ()


class RowFile(Protocol):
    """A file of rows, which may be read any number of times."""

    def rows(self) -> Iterator[Row]:
        """Those that are not blank.

        Raises:
            CaseUnreadable: nothing more can be made of it from there on.
            CaseInvalid: column names that contradict one another.
        """
        ...

    def copy(self, to: Path, numbers: Container[int]) -> None:
        """Write a file of the same form and columns, with only the rows of these numbers."""
        ...


def open_rows(path: Path, directory: Directory) -> RowFile:
    """Told by its content first and its name second, since files are renamed.

    Raises:
        CaseUnreadable: not there, not a file, or of no form that we read.
    """
    with _reading(path):
        if not path.is_file():
            raise CaseUnreadable(f"{path} is not a file: it must be one that can be read twice.")
        with path.open("rb") as file:
            start = file.read(4096)
    if start.startswith(_OLE):
        raise CaseUnreadable(
            f"{path} is an old .xls workbook, or one with a password. Save it as .xlsx without a "
            "password, or as CSV."
        )
    if start.startswith(_ZIP) or path.suffix.lower() == ".xlsx":
        return _Workbook(path, directory)
    is_json = start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    if is_json or path.suffix.lower() in (".jsonl", ".ndjson"):
        return _JsonLines(path)
    return _Csv(path, _encoding(path, start))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        raise CaseUnreadable(f"{path} can't be read: {reason}.") from None


def _encoding(path: Path, start: bytes) -> str:
    """UTF-8 if all of it is, UTF-16 if it says so (Excel's "Unicode text"), else CP1252."""
    import codecs

    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _reading(path), path.open("rb") as file:
        try:
            while piece := file.read(_PIECE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8-sig"


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    try:
        while line := file.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise CaseUnreadable(f"{path} has a line without end: it is no file of cases.")
            yield line
    except UnicodeDecodeError:
        raise CaseUnreadable(f"{path} is not UTF-8 text. Save it as UTF-8.") from None


class _RowFile:
    def all(self) -> Iterator[Row]:
        """The header as row 0, and then the others."""
        raise NotImplementedError

    def rows(self) -> Iterator[Row]:
        return (row for row in self.all() if row.number)

    def chosen(self, numbers: Container[int]) -> Iterator[Row]:
        return (row for row in self.all() if not row.number or row.number in numbers)


class _Csv(_RowFile):
    """As Excel saves it: with a mark or without, `,` `;` or tab, perhaps a line `sep=;`."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._path = path
        self._encoding = encoding
        self._delimiter = ","

    def all(self) -> Iterator[Row]:
        with _reading(self._path), self._path.open(encoding=self._encoding, newline="") as file:
            lines = _lines(file, self._path)
            first = next(lines, "")
            if first.lower().startswith("sep=") and len(first.strip("\r\n")) == 5:
                self._delimiter = first[4]  # Excel shows no row for it
                first = next(lines, "")
            else:
                self._delimiter = max(",;\t", key=first.count)
            cells = csv.reader(_again(first, lines), delimiter=self._delimiter, strict=True)
            yield from self._cases(cells)

    def _cases(self, rows: Iterator[list[str]]) -> Iterator[Row]:
        number = 1
        try:
            header = _header(next(rows, []), str(self._path))
            yield Row(0, header, {})
            for number, cells in enumerate(rows, 2):
                if any(cell.strip() for cell in cells):
                    yield _row(number, header, cells, cells)
        except csv.Error as error:
            raise CaseUnreadable(
                f"{self._path} is not CSV: {error}, after row {number}. Look for a quotation mark "
                "that is not closed."
            ) from None

    def copy(self, to: Path, numbers: Container[int]) -> None:
        with to.open("w", encoding="utf-8-sig", newline="") as file:
            writer: Any = None
            for row in self.chosen(numbers):
                writer = writer or csv.writer(file, delimiter=self._delimiter)
                writer.writerow(row.cells)


class _JsonLines(_RowFile):
    def __init__(self, path: Path) -> None:
        self._path = path

    def all(self) -> Iterator[Row]:
        with _reading(self._path), self._path.open(encoding="utf-8-sig", newline="\n") as file:
            yield Row(0, (), {})
            for number, line in enumerate(_lines(file, self._path), 1):
                if not line.strip():
                    continue
                try:
                    yield Row(number, (line,), parse_json(line, "The line"))
                except CaseInvalid as error:
                    yield Row(number, (line,), {}, error.problems)
                except CaseUnreadable as error:
                    words = str(error).removeprefix("The line ")
                    yield Row(number, (line,), {}, (Problem(_LINE, words, "", "json"),))

    def copy(self, to: Path, numbers: Container[int]) -> None:
        with to.open("w", encoding="utf-8", newline="") as file:
            for row in self.chosen(numbers):
                file.writelines(f"{line.rstrip()}\n" for line in row.cells)


class _Workbook(_RowFile):
    """The first sheet that is shown, with the values that Excel saved for its formulas."""

    def __init__(self, path: Path, directory: Directory) -> None:
        self._path = path
        self._directory = directory
        _openpyxl(path)

    def all(self) -> Iterator[Row]:
        openpyxl = _openpyxl(self._path)
        path = self._path
        with _reading(path), path.open("rb") as file:
            with _translated(path):
                _check_size(path)
                # Read only: sheets are streamed, and links to other files are left alone.
                book = openpyxl.load_workbook(
                    file, read_only=True, data_only=True, keep_links=False
                )
                sheet = next(one for one in book.worksheets if one.sheet_state == "visible")
                sheet.reset_dimensions()  # they may claim a million rows
                rows = sheet.iter_rows(values_only=True)
            try:
                yield from self._cases(_next_ones(path, rows))
            finally:
                book.close()

    def _cases(self, rows: Iterator[Sequence[Any]]) -> Iterator[Row]:
        names = ["" if cell is None else str(cell) for cell in next(rows, ())]
        header = _header(names, str(self._path))
        wanted = [wanted_of(column, self._directory) for column in header]
        yield Row(0, header, {})
        for number, cells in enumerate(rows, 2):
            if all(cell is None or cell == "" for cell in cells):
                continue
            problems = []
            texts = []
            for position, cell in enumerate(cells):
                kind = wanted[position] if position < len(wanted) else "other"
                text, problem = as_cell_text(cell, kind)
                texts.append(text)
                if problem and position < len(header):
                    problems.append(Problem(header[position], *problem))
            if any(text.strip() for text in texts):
                yield _row(number, header, texts, cells, tuple(problems))

    def copy(self, to: Path, numbers: Container[int]) -> None:
        openpyxl = _openpyxl(self._path)
        from openpyxl.cell import WriteOnlyCell

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()

        def cell_of(value: Any) -> Any:
            cell = WriteOnlyCell(sheet, value)
            if isinstance(value, str):
                cell.data_type = "s"  # what begins with = is text here, never a formula
            return cell

        for row in self.chosen(numbers):
            sheet.append([cell_of(cell) for cell in row.cells])
        book.save(to)


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise CaseUnreadable(
            f"{path} is a workbook, which needs openpyxl: pip install 'referrals[xlsx]'. Or save "
            "it as CSV."
        ) from None
    return openpyxl


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The many errors of openpyxl as one of ours; its warnings are of what we do not use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (CaseUnreadable, OSError):
        raise
    except Exception:
        raise CaseUnreadable(
            f"{path} is not a workbook that can be read. Open it in the spreadsheet program and "
            "save it again as .xlsx, or as CSV."
        ) from None


def _check_size(path: Path) -> None:
    from zipfile import ZipFile

    with ZipFile(path) as packed:
        entries = packed.infolist()
    strings = sum(one.file_size for one in entries if one.filename.endswith("sharedStrings.xml"))
    if sum(one.file_size for one in entries) > _LARGEST_WORKBOOK or strings > _LARGEST_STRINGS:
        raise CaseUnreadable(f"{path} is too large a workbook. Save it as CSV.")


def _next_ones(path: Path, rows: Iterator[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """The rows, each fetched under `_translated`, which is not held while others run."""
    while True:
        with _translated(path):
            row = next(rows, None)
        if row is None:
            return
        yield row


Wanted = Literal["text", "moment", "other"]


def wanted_of(column: str, directory: Directory) -> Wanted:
    """What a column is to hold, as far as it matters for a typed cell."""
    parts = column.split(".")
    if parts[0] == "answers":
        intervention = directory.interventions.get(parts[1]) if len(parts) == 3 else None
        kinds = [one.type for one in intervention.fields if one.name == parts[2]] if (
            intervention
        ) else []  # fmt: skip
        if QuestionType.MOMENT in kinds:
            return "moment"
        return "text" if {QuestionType.LINE, QuestionType.TEXT} & set(kinds) else "other"
    found: set[Any] = {Case}
    for part in parts:
        models = [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]
        if part.isdigit() or not models:
            continue
        info = models[0].model_fields.get(part)
        found = set(_types(info.annotation)) if info else set()
    return "text" if str in found and not {date, bool} & found else "other"


def _types(annotation: Any) -> Iterator[Any]:
    inner = getattr(annotation, "__args__", ())
    if not inner:
        yield annotation
    for part in inner:
        yield from _types(part)


def as_cell_text(value: Any, wanted: Wanted = "other") -> tuple[str, tuple[str, str, str] | None]:
    """A typed cell as one would type it into a CSV, and what is wrong with it: what, remedy, code.

    A number where text is wanted has lost what was typed, a leading zero for example: it is said
    and not guessed.
    """
    problem = None
    match value:
        case None:
            return "", None
        case str():
            text = value.replace("_x000D_", "")  # how Excel stores a carriage return
            if text in ("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!"):
                problem = ("holds a formula's error.", "Type the value itself.", "cell-error")
            return text, problem
        case bool():
            text, kind = ("yes" if value else "no"), "yes or no"
        case datetime():
            text, kind = _moment_text(value, wanted), "a date"
        case date():
            text, kind = value.isoformat(), "a date"
        case time() | timedelta():
            text, kind = str(value), "a time"
        case int() | float():
            whole = isinstance(value, float) and value.is_integer()
            text, kind = str(int(value) if whole else value), "a number"
        case _:
            text, kind = str(value), "something else"
    if wanted == "text":
        problem = (
            f"is stored as {kind}, where text is wanted: what was typed may have changed, as a "
            "leading zero is lost.",
            "Format the column as Text in the spreadsheet and type the value again.",
            "cell-type",
        )
    return text, problem


def _moment_text(value: datetime, wanted: Wanted) -> str:
    """A day where the cell has no time; Excel's fractions of a day miss seconds by a little."""
    half = timedelta(milliseconds=500 if value.year < 9999 else 0)
    nearest = (value + half).replace(microsecond=0)
    if wanted != "moment" and nearest.time() == time():
        return nearest.date().isoformat()
    return f"{nearest:%Y-%m-%d %H:%M:%S}" if nearest.second else f"{nearest:%Y-%m-%d %H:%M}"


def _header(names: Sequence[str], name: str) -> list[str]:
    header = [cell.strip() for cell in names]
    while header and not header[-1]:
        header.pop()  # Excel leaves a separator behind what was deleted
    check_header(header, name)
    return header


def _row(
    number: int,
    header: Sequence[str],
    texts: Sequence[str],
    cells: Sequence[Any],
    problems: tuple[Problem, ...] = (),
) -> Row:
    if any(text.strip() for text in texts[len(header) :]):
        over = Problem(
            "(the row)",
            "has more cells than there are columns.",
            "Quote a cell that holds the separator, or name the column.",
            "cells",
        )
        return Row(number, cells, {}, (*problems, over))
    try:
        return Row(number, cells, unflatten(zip(header, texts, strict=False)), problems)
    except CaseInvalid as error:
        return Row(number, cells, {}, (*problems, *error.problems))
    except CaseUnreadable as error:
        return Row(number, cells, {}, (*problems, Problem("(the row)", str(error), "", "depth")))


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest
