"""A case as people keep it: a JSON object, or a row of a CSV file with dotted column names.

`people.victim.name` is a column; so are `incidents.1.on` and `incidents.2.on`, counted from 1. A
list in one cell is written `one; two`. Blank means not given, in both forms.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from referrals.errors import CaseInvalid, CaseUnreadable, Problem
from referrals.problems import is_safe_key, path_of

LARGEST_FILE = 5_000_000
ZIP = b"PK\x03\x04"  # a workbook of today
OLE = b"\xd0\xcf\x11\xe0"  # old .xls, and every workbook with a password
WORKBOOKS = (".xlsx", ".xlsm")
_MOST_ITEMS = 200
_DEEPEST = 12


def read_text(content: bytes, name: str) -> str:
    """UTF-8, with or without a mark; else CP1252, as Excel saves a CSV on a British machine.

    Raises:
        CaseUnreadable: too large, or neither encoding.
    """
    if len(content) > LARGEST_FILE:
        raise CaseUnreadable(f"{name} is over {LARGEST_FILE // 1_000_000} MB: no case is so large.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if not name.lower().endswith(".csv"):
            raise CaseUnreadable(f"{name} is not UTF-8 text. Save it as UTF-8.") from None
    try:
        return content.decode("cp1252")
    except UnicodeDecodeError:
        raise CaseUnreadable(f"{name} is not UTF-8 text. Save it as UTF-8.") from None


def parse(content: bytes, name: str) -> list[dict[str, Any]]:
    """The raw cases in a file: one for JSON, one a row for CSV.

    Raises:
        CaseUnreadable: nothing can be made of it.
        CaseInvalid: columns or keys that contradict one another.
    """
    text = read_text(content, name)
    if name.lower().endswith(".csv") or _looks_like_csv(text):
        return list(parse_csv(text, name))
    return [parse_json(text, name)]


def is_table(content: bytes, name: str) -> bool:
    """Whether a file holds rows of cells, in text or packed, rather than one case in JSON."""
    if name.lower().endswith((".csv", *WORKBOOKS)) or content.startswith((ZIP, OLE)):
        return True
    return _looks_like_csv(content[:100_000].decode("utf-8-sig", "replace"))


def _looks_like_csv(text: str) -> bool:
    first = text.lstrip().partition("\n")[0]
    return not first.startswith(("{", "[", '"{')) and "reference" in first and "." in first


def parse_json(text: str, name: str) -> dict[str, Any]:
    """A JSON object; a key that stands twice is a problem, never a silent choice."""
    doubled: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in pairs:
            if key in made:
                doubled.append(path_of([key]))
            made[key] = value
        return made

    try:
        raw = json.loads(text, object_pairs_hook=once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise CaseUnreadable(
            f"{name} is not JSON: {error.msg}, line {error.lineno}, column {error.colno}. "
            "`referrals new` prints a case to start from."
        ) from None
    except (RecursionError, ValueError):
        raise CaseUnreadable(f"{name} is not a case: a value in it is out of bounds.") from None
    if not isinstance(raw, dict):
        raise CaseUnreadable(f"{name} is not a case: it must be one JSON object, in braces.")
    if doubled:
        raise CaseInvalid(
            [
                Problem(key, "stands twice.", "Keep the one that is right.", "doubled")
                for key in dict.fromkeys(doubled)
            ]
        )
    return tidy(raw)


def _no_constant(_: str) -> NoReturn:
    raise ValueError


def parse_csv(text: str, name: str) -> Iterator[dict[str, Any]]:
    """One raw case for each row that is not blank."""
    header_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = Columns(next(rows, []), name)
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            over = columns.without_name(row)
            if over is not None:
                raise CaseUnreadable(
                    f"{name}, row {number}: a value in column {letters(over)}, which has no name. "
                    "Name the column; or quote a cell that holds the separator "
                    f"({'tab' if delimiter == chr(9) else delimiter})."
                )
            yield columns.nested(row)[0]
    except csv.Error as error:
        raise CaseUnreadable(f"{name} is not CSV: {error}, line {rows.line_num}.") from None


def letters(position: int) -> str:
    """What a spreadsheet program calls the column at a position: A, B … Z, AA."""
    name = ""
    number = position + 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(65 + letter) + name
    return name


_BREAKS = re.compile(r"\s*(?:[\r\n\u2028\u2029]|(?<=\.)\s|\s(?=\.))\s*")
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


def column_name(cell: str) -> str:
    """A column's name without what a spreadsheet program or a mail does to it.

    Blank space around its parts, line breaks, characters that can't be seen, and capitals.
    """
    name = _BREAKS.sub("", UNSEEN.sub("", cell).strip())
    lower = name.lower()
    # A single word in capitals is rather somebody's name, in a file without a header.
    return lower if "." in name or lower in ("reference", "intervention") else name


Numbers = Mapping[str, Sequence[int]]
"""For each list with gaps, closed up in the case, the numbers that its items have in the file."""


def name_in_file(path: str, numbers: Numbers) -> str:
    """The column of a path within a case, where a list before it has gaps."""
    for group, filled in numbers.items():
        if path.startswith(f"{group}."):
            number, dot, rest = path.removeprefix(f"{group}.").partition(".")
            if number.isdigit():
                return f"{group}.{filled[int(number) - 1]}{dot}{rest}"
    return path


class Columns:
    """A header, looked at once, so that a row costs little.

    Raises:
        CaseUnreadable: no names at all.
        CaseInvalid: names that can't be columns.
    """

    def __init__(self, header: Sequence[str], name: str) -> None:
        names = [column_name(cell) for cell in header]
        while names and not names[-1]:
            names.pop()  # Excel leaves a separator behind what was deleted
        if not names:
            raise CaseUnreadable(
                f"{name} is empty. `referrals new --csv` prints one to start from."
            )
        self.names: Sequence[str] = names
        problems = list(self._problems(header))
        if problems:
            raise CaseInvalid(problems)
        self._nameless = [position for position, one in enumerate(names) if not one]
        self._top = _Group("")
        self._plain = all(
            self._top.take(one.split("."), position) for position, one in enumerate(names) if one
        ) and self._top.settle(_DEEPEST)

    def _problems(self, header: Sequence[str]) -> Iterator[Problem]:
        for position, column in enumerate(self.names):
            if not column:
                continue
            first = self.names.index(column)
            if not all(map(_is_part, column.split("."))):
                yield Problem(
                    f"column {letters(position)}",
                    "has a name that is not of our form.",
                    "Use dotted names such as people.victim.name; take a column of your own out.",
                    "column",
                )
            elif first != position:
                # A name that was typed otherwise may be no column of ours: it is not repeated.
                ours = column == header[position].strip()
                yield Problem(
                    column if ours else f"column {letters(position)}",
                    f"stands twice: in columns {letters(first)} and {letters(position)}.",
                    "Keep one column.",
                    "doubled",
                )

    def without_name(self, cells: Sequence[str]) -> int | None:
        """The position of the first value that stands in a column without a name."""
        for position in self._nameless:
            if position < len(cells) and cells[position].strip():
                return position
        for position in range(len(self.names), len(cells)):
            if cells[position].strip():
                return position
        return None

    def nested(self, cells: Sequence[str]) -> tuple[dict[str, Any], Numbers]:
        """As `unflatten` makes it of the names and the cells; and how the file counts lists."""
        if not self._plain:
            return unflatten(
                (one, cell) for one, cell in zip(self.names, cells, strict=False) if one
            ), {}
        if len(cells) < len(self.names):
            cells = [*cells, *[""] * (len(self.names) - len(cells))]
        numbers: dict[str, tuple[int, ...]] = {}
        return self._top.made(cells, numbers), numbers


class _Group:
    """What belongs under one name: values by their position in a row, and further groups."""

    __slots__ = ("groups", "has_gaps", "is_list", "name", "values")

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: dict[str, int] = {}
        self.groups: dict[str, _Group] = {}
        self.is_list = self.has_gaps = False

    def take(self, parts: Sequence[str], position: int) -> bool:
        """False if a name would be both a value and a group."""
        name, *rest = parts
        if not rest:
            self.values[name] = position
            return name not in self.groups
        whole = f"{self.name}.{name}" if self.name else name
        return name not in self.values and self.groups.setdefault(name, _Group(whole)).take(
            rest, position
        )

    def settle(self, deepest: int) -> bool:
        """Order lists; False for what needs a look at each row: names among numbers, depth."""
        numbers = [name.isdigit() for name in (*self.values, *self.groups)]
        self.is_list = all(numbers)
        if self.is_list:
            if self.values or any(map(str.isdigit, self._within())):
                return False
            self.groups = dict(sorted(self.groups.items(), key=lambda one: int(one[0])))
            self.has_gaps = list(map(int, self.groups)) != list(range(1, len(self.groups) + 1))
        within = all(group.settle(deepest - 1) for group in self.groups.values())
        return within and deepest > 1 and self.is_list == any(numbers)

    def _within(self) -> Iterator[str]:
        return (name for group in self.groups.values() for name in (*group.values, *group.groups))

    def made(self, cells: Sequence[str], numbers: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        """What the cells hold; `numbers` takes the lists in which something was left out."""
        made: dict[str, Any] = {
            name: cell
            for name, position in self.values.items()
            if (cell := cells[position]) and not cell.isspace()
        }
        for name, group in self.groups.items():
            if group.is_list:
                found = [one.made(cells, numbers) for one in group.groups.values()]
                items = [item for item in found if item]
                if items:
                    made[name] = items
                    if group.has_gaps or not all(found[: len(items)]):
                        numbers[group.name] = tuple(
                            int(one) for one, item in zip(group.groups, found, strict=True) if item
                        )
            elif inner := group.made(cells, numbers):
                made[name] = inner
        return made


def _is_part(part: str) -> bool:
    if part.isascii() and part.isdigit():
        return part[0] != "0" and int(part[:6]) <= _MOST_ITEMS
    return is_safe_key(part)


def unflatten(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Dotted names and their values → nested groups; numbers make lists, gaps closed up.

    Raises:
        CaseInvalid: a name is used both as a value and as a group.
    """
    root: dict[str, Any] = {}
    problems = []
    for column, value in cells:
        if not value.strip():
            continue
        *groups, last = column.split(".")
        place: Any = root
        for part in groups:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or isinstance(place.get(last), dict):
            problems.append(
                Problem(column, "is both a value and a group.", "Keep one of the two.", "column")
            )
            continue
        place[last] = value
    if problems:
        raise CaseInvalid(problems)
    return tidy({key: _numbered(inner) for key, inner in root.items()})


def _numbered(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value and all(key.isdigit() for key in value):
        return [_numbered(value[key]) for key in sorted(value, key=int)]
    return {key: _numbered(inner) for key, inner in value.items()}


def flatten(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The columns of a raw case: the reverse of `unflatten`."""
    for key, value in raw.items():
        yield from _cells(f"{prefix}{key}", value)


def _cells(column: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        yield from flatten(value, f"{column}.")
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            yield from _cells(f"{column}.{number}", item)
    elif isinstance(value, list):
        yield column, "; ".join(map(str, value))
    elif isinstance(value, bool):
        yield column, "yes" if value else "no"
    else:
        yield column, str(value)


def tidy(raw: dict[str, Any]) -> dict[str, Any]:
    """Without what was not given: null, blank text and groups with nothing in them.

    Raises:
        CaseUnreadable: groups within groups beyond anything that a case has.
    """
    tidied = _tidied(raw, _DEEPEST)
    made: dict[str, Any] = tidied if isinstance(tidied, dict) else {}
    answers = raw.get("answers")
    if isinstance(answers, dict):  # an intervention asked for without answers is still asked for
        made["answers"] = {
            key: _tidied(value, _DEEPEST) or ({} if _is_blank(value) else value)
            for key, value in answers.items()
        }
    return made


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or isinstance(value, dict)


def _tidied(value: Any, deepest: int) -> Any:
    if deepest == 0:
        raise CaseUnreadable("The case is not a case: it has groups within groups without end.")
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, dict):
        inner = {key: _tidied(item, deepest - 1) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None} or None
    if isinstance(value, list):
        return [_tidied(item, deepest - 1) for item in value]
    return value
