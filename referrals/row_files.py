"""Files of many cases, read row by row and never held whole: CSV, JSON lines, XLSX.

Rows are numbered as a spreadsheet program or an editor shows them. Each can be written out again
as it was, so that rows left out may be mended and read anew.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from referrals.case_files import OLE, WORKBOOKS, ZIP, column_name, parse_json
from referrals.cells import FORMULA_STARTS, STRAY_BYTE, guarded
from referrals.directory import Directory
from referrals.errors import CaseInvalid, CaseUnreadable, Problem
from referrals.tables import (
    HEADER_WITHIN,
    MERGED,
    WHOLE_ROW,
    KnownColumns,
    Record,
    Row,
    Torn,
    cases_of,
    header_at,
    name_of,
)

if TYPE_CHECKING:
    from referrals.sheets import Merged, Sheet, SheetRow, Workbook

_LONGEST_LINE = 1_000_000
_LARGEST_WORKBOOK = 2_000_000_000  # unpacked; a few MB of zip may claim any size
_LARGEST_STRINGS = 500_000_000
_PIECE = 1 << 18
_LINE = "(the line)"


class RowFile(Protocol):
    """A file of rows, which may be read any number of times."""

    def rows(self) -> Iterator[Row]:
        """Those that are not blank.

        Raises:
            CaseUnreadable: nothing more can be made of it from there on.
            CaseInvalid: column names that contradict one another or that nobody knows.
        """
        ...

    def copy(self, to: Path, numbers: Container[int]) -> None:
        """Write a file of the same form and columns, with only the rows of these numbers."""
        ...


def open_rows(path: Path, directory: Directory, sheet: str | None = None) -> RowFile:
    """Told by its content first and its name second, since files are renamed.

    Args:
        sheet: of a workbook, the name of the sheet to read or its number, counted from 1; without
            it, there must be only one sheet with cases.

    Raises:
        CaseUnreadable: not there, not a file, or of no form that we read.
    """
    with _reading(path):
        if not path.is_file():
            raise CaseUnreadable(f"{path} is not a file: it must be one that can be read twice.")
        with path.open("rb") as file:
            start = file.read(4096)
    name = path.suffix.lower()
    if start.startswith(OLE):
        raise CaseUnreadable(_old_workbook(path))
    if start.startswith(ZIP) or name in WORKBOOKS:
        return _Workbook(path, directory, sheet)
    if sheet is not None:
        raise CaseUnreadable(f"{path} is not a workbook: it has no sheets to choose from.")
    if start.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<"):
        raise CaseUnreadable(
            f"{path} is a web page or XML, though a spreadsheet program opens it. Open it there "
            "and save it as .xlsx, or as CSV."
        )
    encoding, mixed = _encoding(path, start)
    text = start.decode(encoding, "ignore").lstrip()
    if text.startswith("[") and name in (".json", ".jsonl", ".ndjson"):
        raise CaseUnreadable(
            f"{path} is one list in JSON. Write one case a line instead, without the brackets and "
            "the commas between."
        )
    if text.startswith("{") or name in (".jsonl", ".ndjson"):
        return _JsonLines(path, "utf-16" if encoding.startswith("utf-16") else "utf-8-sig")
    return _Csv(path, directory, encoding, mixed)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        raise CaseUnreadable(f"{path} can't be read: {reason}.") from None


def _old_workbook(path: Path) -> str:
    with _reading(path), path.open("rb") as file:
        start = file.read(_PIECE)
        file.seek(max(path.stat().st_size - _PIECE, 0))
        locked = "EncryptedPackage".encode("utf-16-le") in start + file.read()
    if locked:
        return (
            f"{path} has a password. Open it in Excel, take the password away under File, Info, "
            "Protect Workbook, Encrypt with Password, and save it; or save it as CSV."
        )
    return f"{path} is an old .xls workbook. Save it as .xlsx, or as CSV."


def _encoding(path: Path, start: bytes) -> tuple[str, bool]:
    """What a text is written in, and whether some of it is not.

    UTF-16 if it says so (Excel's "Unicode Text") or has a NUL in every second place; UTF-8 if all
    of its letters are, or most; else CP1252. Which the few are is said at each, not guessed.
    """
    import codecs

    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16", False
    if len(start) > 9 and not any(start[1:10:2]) and all(start[0:9:2]):
        return "utf-16-le", False
    make = codecs.getincrementaldecoder("utf-8")
    with _reading(path), path.open("rb") as file:
        decoder = make()
        try:
            while piece := file.read(_PIECE):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            pass
        else:
            return "utf-8-sig", False
        file.seek(0)
        decoder = make("surrogateescape")
        good = bad = 0
        while piece := file.read(_PIECE):
            text = decoder.decode(piece)
            if not text.isascii():
                wrong = len(STRAY_BYTE.findall(text))
                bad += wrong
                good += len(text) - len(text.encode("ascii", "ignore")) - wrong
        bad += len(decoder.decode(b"", final=True))
    if start.startswith(codecs.BOM_UTF8) or good >= bad:
        return "utf-8-sig", True
    _check_cp1252(path)
    return "cp1252", False


# What becomes of é, è, ü, ’, £ … of a Macintosh or of MS-DOS, where no word has it; and what
# CP1252 does not have at all. Not all that may: ‘ for ë is in other names.
_FOREIGN = re.compile(
    "(?<=[a-z])[ŽŠŒŸƒ‡ˆ‰‹˜‚„]|[A-Z][ŒŸƒ‡ˆ‰‹˜‚„][a-z]|[A-Za-z][¤¡¢£][a-z]|^[^“]*[A-Za-z]”[a-z]|"
    "[a-z]Õ[a-z]|[A-Z]Õ[A-Z][a-z]|\\sÐ\\s|œ\\d|[\udc80-\udcff]"
)


def _check_cp1252(path: Path) -> None:
    """Raises CaseUnreadable if its letters make no sense as those of Windows."""
    with _reading(path), path.open("rb") as file:
        lines = iter(lambda: file.readline(_LONGEST_LINE), b"")
        for number, line in enumerate(lines, 1):
            if not line.isascii() and _FOREIGN.search(line.decode("cp1252", "surrogateescape")):
                raise CaseUnreadable(
                    f"{path} is neither UTF-8 nor in the encoding of Windows, as line {number} "
                    "shows: letters such as é would come out wrong. Save it from the workbook "
                    "once more as CSV UTF-8, not as CSV (Macintosh) or CSV (MS-DOS)."
                )


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    readline = file.readline
    try:
        while line := readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise CaseUnreadable(f"{path} has a line without end: it is no file of cases.")
            yield line
    except UnicodeDecodeError:
        raise CaseUnreadable(
            f"{path} is not text of any kind that we know. Save it as CSV UTF-8."
        ) from None


class _RowFile:
    def all(self) -> Iterator[Row]:
        """The header as row 0, and then the others."""
        raise NotImplementedError

    def rows(self) -> Iterator[Row]:
        return (row for row in self.all() if row.number)

    def chosen(self, numbers: Container[int]) -> Iterator[Row]:
        return (row for row in self.all() if not row.number or row.number in numbers)


class _Csv(_RowFile):
    """As Excel saves it: with a mark or without, `,` `;` or tab, perhaps a line `sep=;`.

    Args:
        mixed: it is UTF-8 but for a few letters.
    """

    def __init__(self, path: Path, directory: Directory, encoding: str, mixed: bool) -> None:
        self._path = path
        self._directory = directory
        self._encoding = encoding
        self._mixed = mixed
        self._delimiter = ","

    def all(self) -> Iterator[Row]:
        with self._open() as file:
            lines = _lines(file, self._path)
            first = list(islice(lines, HEADER_WITHIN))
            told = bool(first) and re.fullmatch(r"sep=([^\r\n])[\r\n]*", first[0], re.IGNORECASE)
            if told:
                self._delimiter = told[1]  # Excel shows no row for it
                first.pop(0)
            else:
                self._delimiter = _delimiter(first, KnownColumns(self._directory))
            cells = csv.reader(chain(first, lines), delimiter=self._delimiter, strict=True)
            records = self._records(cells, 1 if told else 0)
            yield from cases_of(records, self._directory, self._path, mixed=self._mixed)

    @contextmanager
    def _open(self) -> Iterator[IO[str]]:
        with (
            _reading(self._path),
            self._path.open(encoding=self._encoding, errors=self._errors, newline="") as file,
        ):
            yield file

    @property
    def _errors(self) -> str:
        return "strict" if self._encoding.startswith("utf-16") else "surrogateescape"

    def _records(self, rows: Any, above: int) -> Iterator[Record]:
        """`rows` is a csv.reader. A quotation mark at fault ends them.

        Where it was meant to close can't be told: going on with the next line would take the rest
        of a cell for a row, and number all that follows wrongly.
        """
        number = 0
        while True:
            number += 1
            start = rows.line_num
            try:
                cells = next(rows, None)
            except csv.Error:
                yield Record(number, (), (_TORN,), torn_at=start + above)
                return
            if cells is None:
                return
            yield Record(number, cells)

    def copy(self, to: Path, numbers: Container[int]) -> None:
        """What begins like a formula gets an apostrophe, which is dropped when it is read."""
        errors = "surrogateescape"  # a byte that was no UTF-8 stays one, to be found again
        with to.open("w", encoding="utf-8-sig", errors=errors, newline="") as file:
            writer: Any = None
            for row in self.chosen(numbers):
                writer = writer or csv.writer(file, delimiter=self._delimiter)
                if isinstance(row, Torn):
                    with self._open() as source:
                        file.writelines(islice(_lines(source, self._path), row.line, None))
                else:
                    writer.writerow([guarded(cell) for cell in row.cells])


def _delimiter(lines: Sequence[str], known: Container[str]) -> str:
    """The one that makes the most columns that we know of a line near the top."""
    scores = {
        one: max(
            (sum(column_name(cell.strip('" \r\n')) in known for cell in line.split(one))
             for line in lines),
            default=0,
        )
        for one in ",;\t|"
    }  # fmt: skip
    if any(scores.values()):
        return max(scores, key=lambda one: scores[one])
    first = next((line for line in lines if line.strip(",;\t \r\n")), "")
    return max(",;\t", key=first.count)


_TORN = Problem(
    WHOLE_ROW,
    "has a quotation mark that is not closed. This row and all rows after it were not read.",
    'Close it, or write a quotation mark that belongs to the text twice (""). Then run the same '
    "command again, since the rows after it may hold errors too.",
    "quote",
)


class _JsonLines(_RowFile):
    def __init__(self, path: Path, encoding: str) -> None:
        self._path = path
        self._encoding = encoding

    def all(self) -> Iterator[Row]:
        errors = "strict" if self._encoding == "utf-16" else "surrogateescape"
        with (
            _reading(self._path),
            self._path.open(encoding=self._encoding, errors=errors, newline="\n") as file,
        ):
            yield Row(0, (), {})
            first = True
            for number, line in enumerate(_lines(file, self._path), 1):
                if not line.strip():
                    continue
                if first and line.strip() == "{":
                    raise CaseUnreadable(
                        f"{self._path} has one case over many lines. Write each case on a line of "
                        "its own; or give a single case to `referrals draft` or `send`."
                    )
                first = False
                yield self._row(number, line)

    def _row(self, number: int, line: str) -> Row:
        wrong = None if line.isascii() else STRAY_BYTE.search(line)
        if wrong:
            what = f"is not UTF-8 at character {wrong.start() + 1}."
            return Row(number, (line,), {}, (Problem(_LINE, what, "Save it as UTF-8.", "json"),))
        try:
            return Row(number, (line,), parse_json(line.strip(), "The line"))
        except CaseInvalid as error:
            return Row(number, (line,), {}, error.problems)
        except CaseUnreadable as error:
            words = str(error).removeprefix("The line ")
            what = re.sub(r"line 1, column (\d+)\..*", r"at character \1.", words)
            remedy = "Write one case a line, in braces, as in `referrals new`."
            return Row(number, (line,), {}, (Problem(_LINE, what, remedy, "json"),))

    def copy(self, to: Path, numbers: Container[int]) -> None:
        with to.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in self.chosen(numbers):
                file.writelines(f"{line.rstrip()}\n" for line in row.cells)


class _Workbook(_RowFile):
    """The one sheet with cases that is shown, with the values that Excel saved for its formulas."""

    def __init__(self, path: Path, directory: Directory, sheet: str | None) -> None:
        self._path = path
        self._directory = directory
        self._wanted = sheet
        self._chosen: tuple[Sheet, list[Merged]] | None = None

    def all(self) -> Iterator[Row]:
        from referrals.sheets import Workbook

        with _reading(self._path), ExitStack() as stack:
            with _translated(self._path):
                _check_size(self._path)
                book = stack.enter_context(Workbook(self._path))
                if self._chosen is None:
                    sheet = self._choose(book)
                    self._chosen = sheet, book.merged(sheet)
            sheet, merged = self._chosen
            rows = _next_ones(self._path, book.rows(sheet))
            records = _with_merged(rows, merged) if merged else map(_record, rows)
            yield from cases_of(records, self._directory, self._path, typed=True)

    def _choose(self, book: Workbook) -> Sheet:
        """Raises CaseUnreadable, without their names, if several could be meant."""
        shown = [sheet for sheet in book.sheets if not sheet.hidden]
        if self._wanted is not None:
            wanted = self._wanted.strip().casefold()
            for sheet in book.sheets:
                if sheet.name.strip().casefold() == wanted:
                    return sheet
            if wanted.isdecimal() and 0 < int(wanted) <= len(shown):
                return shown[int(wanted) - 1]
            raise CaseUnreadable(
                f"{self._path} has no such sheet: give its name, or a number from 1 to "
                f"{len(shown)}."
            )
        if not shown:
            raise CaseUnreadable(f"{self._path} has no sheet that is shown.")
        if len(shown) == 1:
            return shown[0]
        headed = [(number, self._is_headed(book, sheet)) for number, sheet in enumerate(shown, 1)]
        filled = [number for number, found in headed if found == "filled"]
        if len(filled) > 1:
            numbers = ", ".join(map(str, filled[:-1])) + f" and {filled[-1]}"
            raise CaseUnreadable(
                f"{self._path} has cases in more than one sheet: {numbers}, counted from the left. "
                "Choose one with --sheet, by number or name, and run the others after it; or hide "
                "those that are not meant."
            )
        chosen = filled or [number for number, found in headed if found]
        if not chosen:
            raise CaseUnreadable(
                f"{self._path} has {len(shown)} sheets, and none has our column names in its first "
                f"{HEADER_WITHIN} rows. `referrals new --csv` prints them."
            )
        return shown[chosen[0] - 1]

    def _is_headed(self, book: Workbook, sheet: Sheet) -> str:
        """Whether there are column names: "" if not, else "filled" or "empty" below them.

        The reference, or two others: a sheet whose reference has a wrong name holds cases too.
        """
        early = list(islice(chain.from_iterable(book.rows(sheet)), HEADER_WITHIN))
        known = KnownColumns(self._directory)
        place = header_at([row.cells for row in early], known)
        names = [] if place is None else [name_of(cell) for cell in early[place].cells]
        if place is None or ("reference" not in names and sum(map(known.__contains__, names)) < 2):
            return ""
        return "filled" if len(early) > place + 1 else "empty"

    def copy(self, to: Path, numbers: Container[int]) -> None:
        openpyxl = _openpyxl(self._path)
        from openpyxl.cell import WriteOnlyCell

        from referrals.sheets import CellError, escaped

        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()

        def cell_of(value: Any) -> Any:
            dayless = value.dayless if isinstance(value, CellError) else None
            if isinstance(value, CellError):
                value = dayless or value.shown
            cell = WriteOnlyCell(sheet, escaped(value) if isinstance(value, str) else value)
            if dayless:
                cell.number_format = "mmm yyyy"
            if isinstance(value, str):
                cell.data_type = "s"  # what begins with = is text here, never a formula
                cell.number_format = "@"  # and what is typed in its place stays as typed
                cell.quotePrefix = value[:1] in tuple(FORMULA_STARTS)
            return cell

        places: dict[str, int] = {}
        for written, row in enumerate(self.chosen(numbers), 1):
            cells = list(row.cells)
            places = places or {name_of(cell): place for place, cell in enumerate(cells)}
            for problem in row.problems:
                # What is wrong with a row must still be so in its copy.
                if problem is _HIDDEN:
                    sheet.row_dimensions[written].hidden = True
                elif problem.code == MERGED and problem.where in places:
                    place = places[problem.where]
                    cells += [None] * (place + 1 - len(cells))
                    cells[place] = cells[place] or CellError("#N/A")
            sheet.append([cell_of(cell) for cell in cells])
        book.save(to)


def _openpyxl(path: Path) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise CaseUnreadable(
            f"Rows of {path} can only be written with openpyxl: pip install 'referrals[xlsx]'. Or "
            "save it as CSV."
        ) from None
    return openpyxl


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    from referrals.sheets import BROKEN

    try:
        yield
    except BROKEN:
        raise CaseUnreadable(
            f"{path} is not a workbook that can be read. Open it in the spreadsheet program and "
            "save it again as .xlsx, or as CSV."
        ) from None


def _check_size(path: Path) -> None:
    from zipfile import ZipFile

    with ZipFile(path) as packed:
        entries = packed.infolist()
    strings = sum(one.file_size for one in entries if one.filename.endswith("haredStrings.xml"))
    if sum(one.file_size for one in entries) > _LARGEST_WORKBOOK or strings > _LARGEST_STRINGS:
        raise CaseUnreadable(f"{path} is too large a workbook. Save it as CSV.")


def _next_ones(path: Path, groups: Iterator[list[SheetRow]]) -> Iterator[SheetRow]:
    """The rows, each group fetched under `_translated`, which is not held while others run."""
    while True:
        with _translated(path):
            group = next(groups, None)
        if group is None:
            return
        yield from group


def _record(row: SheetRow) -> Record:
    return Record(row.number, row.cells, (_HIDDEN,) if row.hidden else ())


def _with_merged(rows: Iterator[SheetRow], merged: Sequence[Merged]) -> Iterator[Record]:
    """Says of each row that a merged cell covers, but the first, that it has no value there."""
    coming = sorted(merged, reverse=True)
    reaching: list[Merged] = []
    for row in rows:
        while coming and coming[-1].first_row < row.number:
            reaching.append(coming.pop())
        reaching = [one for one in reaching if one.last_row >= row.number]
        yield _record(row)._replace(merged=tuple(one.column for one in reaching))


_HIDDEN = Problem(
    WHOLE_ROW,
    "is hidden, by a filter perhaps.",
    "Show the row to have it read, or delete it.",
    "hidden",
)
