"""An XLSX workbook as a stream: its rows, numbered as Excel shows them, in bounded memory.

Ours, since what people really save asks for more than the readers that there are. openpyxl takes
twice the time, holds every text of a workbook in memory, can't read Strict Open XML, and does not
say which rows are hidden or how a number is shown; calamine is faster still, but holds the whole
sheet: 500 MB for 100,000 rows.

Source: ECMA-376 part 1, §18 (SpreadsheetML); namespaces are left aside, since the strict and the
transitional form differ in nothing else that matters here.
"""

# ruff: noqa: DTZ001 - the cells of a workbook have no time zone

from __future__ import annotations

import math
import posixpath
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple, Self
from xml.parsers.expat import ExpatError, ParserCreate, XMLParserType
from zipfile import BadZipFile, ZipFile

from referrals.errors import CaseUnreadable

_PIECE = 1 << 16
_LONGEST_ROW = 32 << 20  # bytes of XML; far more than a row of 16,384 short cells
_MOST_COLUMNS = 16_384
_IN_MEMORY = 16 << 20  # bytes of texts; the rest waits in a temporary file without a name
_SHORT = 100
_MOST_SHORT = 20_000


@dataclass(frozen=True)
class CellError:
    """What a cell shows in place of a value.

    `uncalculated`: it is a formula whose value was not saved, as programs leave it that only
    write workbooks. `dayless`: it is a date of which only the month or the year is shown, as Excel
    makes one of "Feb 2026"; the day was never typed.
    """

    shown: str
    uncalculated: bool = False
    dayless: date | None = None


class Sheet(NamedTuple):
    name: str
    part: str
    hidden: bool


class SheetRow(NamedTuple):
    """A row with something in it; `cells` begin at column A and end at the last that is filled."""

    number: int
    hidden: bool
    cells: list[Any]


class Merged(NamedTuple):
    """Merged cells: the first row and column, counted from 1 and from 0, and the last row."""

    first_row: int
    last_row: int
    column: int


class Workbook:
    """A workbook that is open. What is wrong with its form shows as any of `BROKEN`.

    Raises:
        CaseUnreadable: it is a file of another kind, said in words.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")  # ours to close, even while a part is being read
        try:
            self._zip = ZipFile(self._file)
            # Some programs pack parts under "/xl/…" or, against ECMA-376 part 2, "xl\\…".
            self._parts = {
                name.lower().replace("\\", "/").lstrip("/"): name for name in self._zip.namelist()
            }
            self._read_outline(path)
        except BaseException:
            self._file.close()
            raise
        self._texts: _Texts | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._texts is not None:
            self._texts.close()
        self._zip.close()
        self._file.close()

    def _read_outline(self, path: Path) -> None:
        main = next(iter(self._related("", "officeDocument").values()), "")
        if not main or main.endswith(".bin"):
            raise CaseUnreadable(f"{path} {_other_kind(self._zip, self._parts)}")
        sheets = self._related(main, "worksheet")
        self.sheets: list[Sheet] = []
        self._epoch = 1900
        for name, attributes in self._elements(main):
            if name == "workbookPr" and attributes.get("date1904") in ("1", "true"):
                self._epoch = 1904
            elif name == "sheet":
                key = next((attributes[one] for one in attributes if one.endswith(":id")), "")
                if key in sheets:  # others are charts, dialogues and macros
                    hidden = attributes.get("state", "visible") != "visible"
                    self.sheets.append(Sheet(attributes["name"], sheets[key], hidden))
        self._strings = next(iter(self._related(main, "sharedStrings").values()), "")
        styles = next(iter(self._related(main, "styles").values()), "")
        self._forms = _forms(self._elements(styles)) if styles else []

    def _related(self, part: str, kind: str) -> dict[str, str]:
        """The parts of one kind that a part refers to, by their ids."""
        folder, name = posixpath.split(part)
        links = posixpath.join(folder, "_rels", f"{name}.rels")
        found: dict[str, str] = {}
        if links.lower() not in self._parts:
            return found
        for element, attributes in self._elements(links):
            if element == "Relationship" and attributes["Type"].endswith(f"/{kind}"):
                target = attributes["Target"].replace("\\", "/")
                whole = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
                found[attributes["Id"]] = whole
        return found

    def _pieces(self, part: str) -> Iterator[bytes]:
        with self._zip.open(self._parts[part.lower()]) as file:
            while piece := file.read(_PIECE):
                yield piece

    def _elements(self, part: str) -> Iterator[tuple[str, dict[str, str]]]:
        found: list[tuple[str, dict[str, str]]] = []
        parser = _parser()
        parser.StartElementHandler = lambda name, attributes: found.append(
            (name.rpartition(":")[2], attributes)
        )
        for piece in self._pieces(part):
            parser.Parse(piece)
            yield from found
            found.clear()
        parser.Parse(b"", True)

    def merged(self, sheet: Sheet) -> list[Merged]:
        """Cells merged over more than one row. They stand behind the rows, so it takes a pass."""
        found = []
        kept = b""
        for piece in self._pieces(sheet.part):
            whole = kept + piece
            end = 0
            if b"mergeCell " in whole:
                for one in _MERGED.finditer(whole):
                    end = one.end()
                    first, last = int(one[2]), int(one[3])
                    if first < last:
                        found.append(Merged(first, last, _column(one[1].decode())))
            kept = whole[max(end, len(whole) - 200) :]
        return found

    def rows(self, sheet: Sheet) -> Iterator[list[SheetRow]]:
        """The rows that are not empty, in groups, as they come out of the file."""
        if self._texts is None:
            self._texts = _Texts()
            if self._strings.lower() in self._parts:
                _read_texts(self._pieces(self._strings), self._texts)
        reader = _Rows(self._texts, self._forms, self._epoch)
        number = since = 0
        for piece in self._pieces(sheet.part):
            if rows := reader.feed(piece):
                yield rows
            since = since + len(piece) if reader.number == number else 0
            number = reader.number
            if since > _LONGEST_ROW:
                raise ValueError("a row without end")
        reader.close()


# What an open workbook raises if its form is not that of one.
BROKEN = (BadZipFile, zlib.error, ExpatError, LookupError, ValueError, EOFError, RuntimeError,
          OverflowError, NotImplementedError)  # fmt: skip

_MERGED = re.compile(
    rb"""<(?:\w+:)?mergeCell\s[^>]*?\bref\s*=\s*["']([A-Z]{1,3})(\d{1,7}):[A-Z]{1,3}(\d{1,7})["']"""
)
_UNHELD = re.compile("_(?=x[0-9A-Fa-f]{4}_)|[\0-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
_LITERAL = re.compile(r'"[^"]*"|\\.|[_*].')
_TOKEN = re.compile(r'"[^"]*"|\\.|[_*].|.')
_FORMING = ".,%?/@[]"
_BRACKETS = re.compile(r"\[[^\]]*\]")


def _parser() -> XMLParserType:
    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _no_doctype
    return parser


def _no_doctype(*_: object) -> None:
    raise ValueError("no workbook has one; entities are for attackers")


def _other_kind(packed: ZipFile, parts: dict[str, str]) -> str:
    if any(part.endswith("workbook.bin") for part in parts):
        return "is a binary workbook (.xlsb). Save it as .xlsx, or as CSV."
    if "mimetype" in parts and b"opendocument" in packed.read(parts["mimetype"])[:100]:
        return "is an OpenDocument file (.ods). Save it as .xlsx, or as CSV."
    if any(part.endswith(".iwa") or part == "index.zip" for part in parts):
        return "is from Apple Numbers. Choose File, Export To, Excel or CSV there."
    return "is not a workbook, though it is packed like one. Save it as .xlsx, or as CSV."


# Texts


class _Texts:
    """The texts that cells share, by their number. Few stay in memory, whatever the number."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by the workbook
        self._ends = array("Q", [0])
        self.short: dict[str, str] = {}

    def append(self, text: str) -> None:
        content = text.encode("utf-8", "surrogatepass")
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def read(self, written: str) -> str:
        """The text of a number; a short one is to be found in `short` from then on."""
        number = int(written)
        start, end = self._ends[number], self._ends[number + 1]
        self._file.seek(start)
        text = self._file.read(end - start).decode("utf-8", "surrogatepass")
        if end - start < _SHORT:
            if len(self.short) == _MOST_SHORT:
                self.short.clear()
            self.short[written] = text
        return text

    def close(self) -> None:
        self._file.close()


def _read_texts(pieces: Iterator[bytes], texts: _Texts) -> None:
    parser = _parser()
    runs: list[str] = []
    phonetic = False

    def start(name: str, _: dict[str, str]) -> None:
        nonlocal phonetic
        local = name.rpartition(":")[2]
        if local == "t" and not phonetic:
            parser.CharacterDataHandler = runs.append
        elif local == "rPh":
            phonetic = True

    def end(name: str) -> None:
        nonlocal phonetic
        parser.CharacterDataHandler = None
        local = name.rpartition(":")[2]
        if local == "si":
            texts.append(_unescaped("".join(runs)))
            runs.clear()
        elif local == "rPh":
            phonetic = False

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    for piece in pieces:
        parser.Parse(piece)
    parser.Parse(b"", True)


def _unescaped(text: str) -> str:
    """`_x000D_` is how Excel writes what XML can't hold; of `_x005F_` only the first is meant."""
    if "_x" not in text:
        return text
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def escaped(text: str) -> str:
    """The reverse of `_unescaped`, for what XML can't hold or would change."""
    return _UNHELD.sub(lambda found: f"_x{ord(found[0]):04X}_", text)


# How numbers are shown

_MOMENT = "moment"
_DAY = "day"
_MONTH = "month"
_DURATION = "duration"
_SCIENTIFIC = "scientific"
_BUILT_IN = {
    **dict.fromkeys([11, 48], _SCIENTIFIC),
    **dict.fromkeys([*range(18, 23), *range(32, 36), 45, 47], _MOMENT),
    **dict.fromkeys([14, 15, 16, *range(27, 32), 36, *range(50, 59)], _DAY),
    17: _MONTH,
    46: _DURATION,
}


def _forms(elements: Iterator[tuple[str, dict[str, str]]]) -> list[str]:
    """For each cell style: a moment, a day …, a mask such as `00000 000000`, or ""."""
    codes: dict[int, str] = {}
    forms = []
    of_cells = False
    for name, attributes in elements:
        if name == "numFmt":
            codes.setdefault(int(attributes["numFmtId"]), attributes["formatCode"])
        elif name in ("cellStyleXfs", "cellXfs", "cellStyles", "dxfs"):
            of_cells = name == "cellXfs"
        elif name == "xf" and of_cells:
            number = int(attributes.get("numFmtId", 0))
            code = codes.get(number)
            forms.append(_BUILT_IN.get(number, "") if code is None else _form(code))
    return forms


def _form(code: str) -> str:
    first = code.partition(";")[0]
    if mask := _mask(first.replace("General", "0")):
        return mask
    bare = _LITERAL.sub("", first).lower()
    if re.search(r"\[(?:h+|m+|s+)\]", bare):
        return _DURATION
    if "e+" in bare or "e-" in bare:
        return _SCIENTIFIC
    shown = set(_BRACKETS.sub("", bare)) & set("dmyhs")
    if shown & set("hs"):
        return _MOMENT
    return _DAY if "d" in shown else _MONTH if shown else ""


def _mask(code: str) -> str:
    """What a whole number is shown with, as `"HC/"0000` does: literals, each behind a backslash.

    "" if it is shown as it is, or in a way that its digits don't tell.
    """
    mask = ""
    literal = ""
    for one in _TOKEN.findall(code):
        if one in ("0", "#"):
            mask += one
        elif one[0] not in "_*":  # blank space as wide as a character
            text = one[1:-1] if one[0] == '"' else one[-1]
            if one in tuple(_FORMING) or one.isalpha():
                return ""
            literal += text
            mask += "".join(f"\\{letter}" for letter in text)
    told = mask.count("0") > 1 or any(map(str.isalnum, literal))
    return mask if told and re.search("[0#]", re.sub(r"\\.", "", mask)) else ""


def _masked(number: int, mask: str) -> str:
    digits = list(str(number)) if number else []
    shown = []
    for one in reversed(re.findall(r"\\.|.", mask)):
        if one[0] == "\\":
            shown.append(one[1])
        elif digits or one == "0":
            shown.append(digits.pop() if digits else "0")
    if digits:  # more than there are places: they stand before the first of them
        first = len(shown) - len(re.match(r"(?:\\.)*", mask)[0]) // 2  # type: ignore[index]
        shown[first:first] = reversed(digits)
    return "".join(reversed(shown))


def _number(text: str, form: str, epoch: int) -> Any:
    value: int | float = int(text) if text.isdigit() else float(f"{float(text):.15g}")
    if not math.isfinite(value):
        return CellError("#NUM!")
    if form in (_MOMENT, _DAY, _MONTH, _DURATION):
        return _moment(value, form, epoch)
    if form == _SCIENTIFIC:
        return f"{value:.2E}"  # what Excel makes of 26E10, which was typed as a reference
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if form and isinstance(value, int) and 0 <= value < 10**15:
        return _masked(value, form)
    return value


def _moment(serial: float, form: str, epoch: int) -> Any:
    """A count of days as Excel shows it; what it can't show as a date, it shows as #####."""
    if form == _DURATION and abs(serial) < 10_000_000:
        return timedelta(milliseconds=round(serial * 86_400_000))
    if 0 <= serial < 1:
        return (datetime(2000, 1, 1) + timedelta(seconds=round(serial * 86_400))).time()
    if epoch == 1904:
        start = datetime(1904, 1, 1)
    else:
        # Excel counts 29 February 1900, which there was not, as day 60.
        start = datetime(1899, 12, 31) if serial < 60 else datetime(1899, 12, 30)
    if serial < 0 or serial > 2_958_466 or (epoch == 1900 and 60 <= serial < 61):
        return CellError("#####")
    try:
        return _as_shown(start + timedelta(milliseconds=round(serial * 86_400_000)), form)
    except OverflowError:
        return CellError("#####")


def _as_shown(moment: datetime, form: str) -> Any:
    """Without a midnight that nobody typed, and never as a day that nobody typed."""
    if form == _MONTH:
        return CellError(f"{moment.year:04}-{moment.month:02}", dayless=moment.date())
    return moment.date() if form == _DAY and moment.time() == time() else moment


def _iso(text: str, form: str) -> Any:
    """A cell of type `d`, which Strict Open XML has."""
    try:
        if "T" not in text and "-" not in text:
            return time.fromisoformat(text)
        return _as_shown(datetime.fromisoformat(text).replace(tzinfo=None), form)
    except ValueError:
        return text


# Rows


class _Rows:
    """Takes XML in pieces and gives the rows that are complete."""

    def __init__(self, texts: _Texts, forms: Sequence[str], epoch: int) -> None:
        self._texts = texts
        self._forms = forms
        self._epoch = epoch
        self._parser = _parser()
        self._parser.StartElementHandler = self._root
        self._done: list[SheetRow] = []
        self.number = 0

    def feed(self, piece: bytes) -> list[SheetRow]:
        self._parser.Parse(piece)
        rows = self._done[:]
        self._done.clear()
        return rows

    def close(self) -> None:
        self._parser.Parse(b"", True)

    def _root(self, root: str, _: dict[str, str]) -> None:
        """The first tag; its prefix, if any, is that of all the others.

        The handlers are closures: they run for every tag, which is where the time goes.
        """
        prefix, colon, local = root.rpartition(":")
        if local != "worksheet":
            raise ValueError("not a worksheet")
        row_, cell_, value_, text_, formula_, phonetic_ = (
            f"{prefix}{colon}{name}" for name in ("row", "c", "v", "t", "f", "rPh")
        )
        parser, typed, done = self._parser, self._typed, self._done
        known, read = self._texts.short.get, self._texts.read
        hidden = formula = phonetic = False
        digits = 1
        text = ""
        cells: list[Any] = []
        cell: dict[str, str] = {}
        runs: list[str] = []
        columns: dict[str, int] = {}

        def start(name: str, attributes: dict[str, str]) -> None:
            nonlocal digits, hidden, formula, phonetic, cells, cell
            if name == cell_:
                cell = attributes
                formula = False
            elif name in (value_, text_):
                runs.clear()
            elif name == row_:
                number = int(attributes.get("r", self.number + 1))
                if number <= self.number:
                    raise ValueError("rows out of order")
                self.number = number
                digits = len(str(number))
                hidden = attributes.get("hidden") in ("1", "true") or attributes.get("ht") == "0"
                cells = []
            elif name == formula_:
                formula = True
            elif name == phonetic_:
                phonetic = True

        def end(name: str) -> None:
            nonlocal phonetic, text
            if name == value_:
                text = "".join(runs)
            elif name == cell_:
                value: Any = None
                if text:
                    kind = cell.get("t")
                    if kind == "s":
                        value = known(text)
                        if value is None:
                            value = read(text)
                    else:
                        value = typed(text, kind, cell)
                    text = ""
                elif formula and cell.get("t") != "str":
                    value = CellError("#N/A", uncalculated=True)
                place = cell.get("r")
                if place is None:
                    cells.append(value)
                elif value is not None and value != "":
                    letters = place[:-digits]
                    column = columns.get(letters)
                    if column is None:
                        column = columns[letters] = _column(letters)
                    if len(cells) < column:
                        cells.extend([None] * (column - len(cells)))
                    if len(cells) > column:
                        raise ValueError("cells out of order")
                    cells.append(value)
            elif name == row_:
                if cells:
                    done.append(SheetRow(self.number, hidden, cells))
            elif name == text_:
                if not phonetic:
                    text += "".join(runs)
            elif name == phonetic_:
                phonetic = False

        parser.CharacterDataHandler = runs.append
        parser.StartElementHandler = start
        parser.EndElementHandler = end

    def _typed(self, text: str, kind: str | None, cell: dict[str, str]) -> Any:
        if kind in (None, "n", "d"):
            style = int(cell.get("s", 0))
            form = self._forms[style] if style < len(self._forms) else ""
            if kind == "d":
                return _iso(text.strip(), form)
            return _number(text.strip(), form, self._epoch)
        if kind == "b":
            return text.strip() in ("1", "true")
        if kind == "e":
            return CellError(text.strip())
        return _unescaped(text)


def _column(letters: str) -> int:
    """A is 0."""
    column = 0
    for letter in letters:
        if not "A" <= letter <= "Z":
            raise ValueError("no column")
        column = column * 26 + ord(letter) - 64
    if not 0 < column <= _MOST_COLUMNS:
        raise ValueError("no column")
    return column - 1
