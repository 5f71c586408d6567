"""What a spreadsheet program made of what was typed into a cell: read as shown, or said wrong.

Nothing is guessed: where what was typed can't be known any more, the words for it are given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from referrals.sheets import CellError

Wanted = Literal["text", "code", "moment", "other"]
"""What a column is to hold; a code is a text that may be all digits."""

Words = tuple[str, str, str]
"""What is wrong, the remedy, and the code of a problem."""

STRAY_BYTE = re.compile("[\udc80-\udcff]")  # how `surrogateescape` shows what it could not decode


FORMULA_STARTS = "=+-@\t\r＝＋－＠"
_GUARD = re.compile(rf"'(?=[{re.escape(FORMULA_STARTS)}]|\d[\d ]{{4,}}(?:\n|\Z))", re.ASCII)


def unguarded(whole: str, texts: Sequence[str]) -> Sequence[str]:
    """A row without the apostrophes that `guarded` wrote, or that keep the zero of a number.

    Args:
        whole: the texts, joined, in which one look tells most.
    """
    if "'" not in whole or not _GUARD.search(whole):
        return texts
    return [text[1:] if _GUARD.match(text) else text for text in texts]


def guarded(cell: str) -> str:
    """A cell that no spreadsheet program takes for a formula, whoever wrote it."""
    return f"'{cell}" if cell[:1] and cell[0] in FORMULA_STARTS else cell


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


def is_suspect(whole: str, texts: Sequence[str]) -> bool:
    """Whether a row, joined and in parts, may hold what `shown_only` and `is_garbled` tell of."""
    return any(map(whole.__contains__, _SUSPECT)) or not _NULLS.isdisjoint(texts)


def as_opened(text: str, following: str) -> tuple[str, Words | None]:
    """What a spreadsheet program that opens a CSV makes of a formula or a late quotation mark.

    Args:
        following: the text of the next cell.
    """
    if text[:1] == "=":
        if quoted := _QUOTED.fullmatch(text):
            return quoted[1].replace('""', '"'), None
        return text, _FORMULA if _CALCULATED.match(text) else None
    torn = _TORN_APART.fullmatch(text) or ("”" in following and _OPENED.fullmatch(text))
    return text, _LATE_QUOTE if torn else None


def lost_form(column: str, wanted: Wanted) -> re.Pattern[str] | None:
    """How a text shows that it was a number or a date for a while, for `lost_words`."""
    return _LOST.get("code" if wanted == "code" else column.rpartition(".")[2])


def lost_words(found: re.Match[str]) -> Words:
    return _HOW[found.lastgroup or ""]


def shown_only(text: str, want: Wanted) -> Words | None:
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


def is_garbled(text: str) -> bool:
    """Whether its letters make sense only as UTF-8 that was taken for CP1252."""
    try:
        return text.encode("cp1252").decode("utf-8") != text
    except UnicodeError:
        return False


def as_cell_text(value: Any, wanted: Wanted = "other") -> tuple[str, Words | None]:
    """A typed cell as one would type it into a CSV, and what is wrong with it: what, remedy, code.

    A number where text is wanted has lost what was typed, a leading zero for example: it is said
    and not guessed.
    """
    match value:
        case None:
            return "", None
        case str():
            return value, shown_only(value, wanted)
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


def _error_of(error: CellError) -> Words:
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
    return shown_only(error.shown, "other") or _FORMULA_ERROR


def _moment_text(value: datetime, wanted: Wanted) -> str:
    """A day where the cell has no time; Excel's fractions of a day miss seconds by a little."""
    half = timedelta(milliseconds=500 if value.year < 9999 else 0)
    nearest = (value + half).replace(microsecond=0)
    if wanted != "moment" and nearest.time() == time():
        return nearest.date().isoformat()
    return f"{nearest:%Y-%m-%d %H:%M:%S}" if nearest.second else f"{nearest:%Y-%m-%d %H:%M}"
