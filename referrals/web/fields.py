"""A field of a form: its inputs, what is typed into them, and what is said when that is wrong.

A field is named by the dotted path of its fact (`people.victim.name`, `incidents.2.on`,
`answers.mediation.began`), so whatever the core says of a path is said at its field. A day has
three inputs, `…-day`, `…-month` and `…-year`; a moment has `…-time` too. What was typed is kept by
the inputs' names, every value of each, just as it came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic_core import PydanticCustomError

from referrals.case import Sensitivity
from referrals.errors import Problem
from referrals.rendering import shown
from referrals.texts import as_date, as_moment, as_yes_no

Typed = Mapping[str, Sequence[str]]
"""What was typed, by the name of the input; every value of a name."""

MOST_ITEMS = 200
"""Incidents, or records of agreement, of one case."""


class Kind(StrEnum):
    """What a field looks like."""

    LINE = "line"
    TEXT = "text"
    DATE = "date"
    MOMENT = "moment"
    NUMBER = "number"
    YES_NO = "yes-no"
    CHOICE = "choice"
    CHOICES = "choices"


_PARTS = {
    Kind.DATE: ("day", "month", "year"),
    Kind.MOMENT: ("day", "month", "year", "time"),
}


@dataclass(frozen=True)
class Field:
    """One question. `options` are values and their labels, of a choice.

    `optional` says so beside the label; it is false too where a whole group is given or left out.
    """

    name: str
    label: str
    kind: Kind
    hint: str = ""
    options: tuple[tuple[str, str], ...] = ()
    required: bool = False
    optional: bool = False
    sensitivity: Sensitivity = Sensitivity.PUBLIC
    note: str = ""
    """Whom it is for, where that is not every intervention chosen."""

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs."""
        parts = _PARTS.get(self.kind)
        return tuple(f"{self.name}-{part}" for part in parts) if parts else (self.name,)

    @property
    def anchor(self) -> str:
        """The id of the first input, to link to."""
        return self.inputs[0]

    def typed(self, typed: Typed) -> tuple[str, ...]:
        """What stands in each input; of a choice among several, every value chosen."""
        if self.kind is Kind.CHOICES:
            return tuple(typed.get(self.name, ()))
        return tuple(last(typed, name) for name in self.inputs)

    def cell(self, typed: Typed) -> str:
        """All of it as one value, as a cell of a spreadsheet has it; blank if nothing is given."""
        values = self.typed(typed)
        if not any(value.strip() for value in values):
            return ""
        match self.kind:
            case Kind.DATE:
                return _day(values)
            case Kind.MOMENT:
                return f"{_day(values)} {_time(values[3])}"
            case Kind.CHOICES:
                return "; ".join(value for value in values if value.strip())
            case _:
                return values[0]

    def words(self, typed: Typed) -> str:
        """As it is read back: days in words, choices by their labels, anything else as typed."""
        cell = self.cell(typed)
        labels = dict(self.options)
        try:
            match self.kind:
                case Kind.DATE:
                    return str(shown(as_date(cell))) if cell else ""
                case Kind.MOMENT:
                    return str(shown(as_moment(cell))) if cell else ""
                case Kind.YES_NO:
                    return str(shown(as_yes_no(cell))) if cell else ""
                case Kind.CHOICE:
                    return labels.get(cell, cell)
                case Kind.CHOICES:
                    return "\n".join(labels.get(value, value) for value in self.typed(typed))
        except PydanticCustomError:
            return " ".join(value for value in self.typed(typed) if value.strip())
        return cell.strip()


def last(typed: Typed, name: str) -> str:
    values = typed.get(name)
    return values[-1] if values else ""


_SHORT_NUMBER = re.compile(r"\d", re.ASCII)
_TIME = re.compile(r"(\d{1,2})[:.](\d{2})", re.ASCII)


def _day(values: Sequence[str]) -> str:
    day, month, year = (value.strip() for value in values[:3])
    if _SHORT_NUMBER.fullmatch(day):
        day = f"0{day}"
    if _SHORT_NUMBER.fullmatch(month):
        month = f"0{month}"
    return f"{year}-{month}-{day}"


def _time(value: str) -> str:
    found = _TIME.fullmatch(value.strip())
    return f"{found[1]:0>2}:{found[2]}" if found else value.strip()


@dataclass(frozen=True)
class Group:
    """Fields under one heading. `id` can be linked to.

    `number` is that of an incident or a record among its like, counted as they are shown.
    """

    id: str
    title: str
    fields: tuple[Field, ...] = ()
    intro: str = ""
    groups: tuple[Group, ...] = ()
    number: int = 0
    role: str = ""
    """Whose agreement it is."""

    def every(self) -> Iterator[Field]:
        """Its own fields and those of the groups in it."""
        yield from self.fields
        for group in self.groups:
            yield from group.every()

    def any_typed(self, typed: Typed) -> bool:
        return any(field.cell(typed) for field in self.every())


def every_field(groups: Iterable[Group]) -> Iterator[Field]:
    for group in groups:
        yield from group.every()


def listed(titles: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(titles[:-1]), titles[-1])))


# Lists of incidents and of records

_ITEM = re.compile(r"(\w+)\.([1-9]\d{0,3})\.[\w-]+", re.ASCII)


def numbers(typed: Typed, group: str) -> list[int]:
    """Of a list, the numbers of the items that something stands for, as many as there may be."""
    found = {int(item[2]) for item in map(_ITEM.fullmatch, typed) if item and item[1] == group}
    return sorted(found)[:MOST_ITEMS]


# From what was typed to a case


def cells_of(groups: Iterable[Group], typed: Typed) -> dict[str, str]:
    """The columns of a case, as `case_files.unflatten` takes them. A blank record is none."""
    cells: dict[str, str] = {}
    for group in groups:
        own = {field.name: field.cell(typed) for field in group.fields}
        own = {name: cell for name, cell in own.items() if cell.strip()}
        if own and group.role:
            own[f"{group.id}.person"] = group.role
        cells |= own | cells_of(group.groups, typed)
    return cells


def without(typed: Typed, group: str, number: int) -> dict[str, list[str]]:
    """What was typed but for one item of a list; those after it move up."""
    return renumbered(
        {
            name: values
            for name, values in typed.items()
            if not name.startswith(f"{group}.{number}.")
        },
        group,
    )


def renumbered(typed: Typed, group: str) -> dict[str, list[str]]:
    """With a list's items numbered from 1 without gaps, in their order."""
    places = {str(old): str(new) for new, old in enumerate(numbers(typed, group), 1)}
    made = {}
    for name, values in typed.items():
        parts = name.split(".")
        if len(parts) == 3 and parts[0] == group and parts[1] in places:
            parts[1] = places[parts[1]]
        made[".".join(parts)] = list(values)
    return made


# What is wrong, in the words of a page

_REMEDIES = {
    "choice": "Choose one of the options.",
    "enum": "Choose one of the options.",
    "literal-error": "Choose one of the options.",
    "yes-no": "Choose yes or no.",
    "list": "Choose at least one.",
    "too-short": "Choose at least one.",
    "moment": "Give a real day, with the year in four digits, and a time such as 18:00.",
}
"""Where the core's own remedy speaks of how a file is written."""


def field_at(where: str, fields: Iterable[Field]) -> Field | None:
    """The field that a path stands for: itself, what it lies in, or the first within it."""
    listed = list(fields)
    for fits in (
        lambda one: one.name == where,
        lambda one: where.startswith(f"{one.name}."),
        lambda one: one.name.startswith(f"{where}."),
    ):
        found = next(filter(fits, listed), None)
        if found:
            return found
    return None


def told(problem: Problem, field: Field, typed: Typed) -> str:
    """A problem at its field."""
    choosing = field.kind in (Kind.CHOICE, Kind.CHOICES, Kind.YES_NO)
    question = field.label.endswith("?")
    if problem.where == "location" and problem.code == "missing":
        return "Say where help is needed: choose an area or a district, or give a postcode."
    if problem.code == "missing":
        verb = "Answer" if question else "Choose" if choosing else "Fill in"
        return f"{verb} “{field.label}”"
    label = "The answer" if question else field.label
    if field.kind is Kind.DATE and problem.code == "date":
        return f"{label} {_wrong_day(field.typed(typed))}"
    remedy = _REMEDIES.get(problem.code) if choosing or field.kind is Kind.MOMENT else None
    return f"{label} {problem.what} {remedy or problem.remedy}".rstrip()


def with_context(context: str, text: str) -> str:
    """A message that stands away from its heading."""
    return f"{context}: {text[:1].lower()}{text[1:]}" if context else text


def _wrong_day(values: Sequence[str]) -> str:
    absent = [
        part for part, value in zip(_PARTS[Kind.DATE], values, strict=False) if not value.strip()
    ]
    if absent:
        return f"needs a {listed(absent)}."
    return "is not a real day. Write the day, the month and the year in digits, the year in four."
