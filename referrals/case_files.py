"""A case as people keep it: a JSON object, or a row of a CSV file with dotted column names.

`people.victim.name` is a column; so are `incidents.1.on` and `incidents.2.on`, counted from 1. A
list in one cell is written `one; two`. Blank means not given, in both forms.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from referrals.errors import CaseInvalid, CaseUnreadable, Problem
from referrals.problems import is_safe_key, path_of

LARGEST_FILE = 5_000_000
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
        header = [cell.strip() for cell in next(rows, [])]
        while header and not header[-1]:
            header.pop()  # Excel leaves a separator behind what was deleted
        check_header(header, name)
        for number, row in enumerate(rows, 2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
                raise CaseUnreadable(
                    f"{name}, row {number}: more cells than columns. Quote a cell that holds the "
                    f"separator ({'tab' if delimiter == chr(9) else delimiter})."
                )
            yield unflatten(zip(header, row, strict=False))
    except csv.Error as error:
        raise CaseUnreadable(f"{name} is not CSV: {error}, line {rows.line_num}.") from None


def check_header(header: list[str], name: str) -> None:
    """Raises CaseUnreadable for none at all, CaseInvalid for names that can't be columns."""
    if not any(header):
        raise CaseUnreadable(f"{name} is empty. `referrals new --csv` prints one to start from.")
    problems = []
    for column in dict.fromkeys(header):
        shown = column if all(map(_is_part, column.split("."))) else "(a column)"
        if shown != column:
            problems.append(
                Problem(
                    shown,
                    "has a name that is not of our form.",
                    "Use dotted names such as people.victim.name.",
                    "column",
                )
            )
        elif header.count(column) > 1:
            problems.append(Problem(shown, "stands twice.", "Keep one column.", "doubled"))
    if problems:
        raise CaseInvalid(problems)


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
    return tidy(_numbered(root))


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
