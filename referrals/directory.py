"""Who offers what, where: regions, agencies and interventions, and look-ups on them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from referrals.case import Sensitivity
from referrals.errors import InterventionUnknown
from referrals.postcodes import PostcodeTable
from referrals.rules import Rule
from referrals.texts import as_date, check_email, fault, split_list

_ID = r"^[a-z][a-z0-9]*(?:-[a-z0-9]+)*$"
_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")


def _check_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise fault("name", "is not a name.", "Use lower-case letters, digits and _.")
    return value


def _check_timezone(value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (KeyError, ValueError, OSError):
        raise fault(
            "timezone", "is not a time zone.", "Use a name such as Europe/London."
        ) from None


Id = Annotated[str, Field(pattern=_ID, max_length=60)]
Name = Annotated[str, AfterValidator(_check_name)]
Title = Annotated[str, Field(min_length=1, max_length=120)]
Day = Annotated[date, BeforeValidator(as_date)]


class _Entry(BaseModel):
    # Built when first used: a command needs a few of the models, not all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )


@lru_cache(maxsize=1024)
def plain_name(name: str) -> str:
    """How a place's name is compared: `Newark & Sherwood` is `newark-and-sherwood`."""
    return " ".join(name.casefold().replace("&", " and ").replace("-", " ").split())


class District(_Entry):
    id: Id
    title: Title
    ons_code: str | None = Field(None, pattern=r"^[EWSN]\d{8}$")


class Area(_Entry):
    id: Id
    title: Title
    districts: tuple[District, ...] = ()


class Region(_Entry):
    """A part of the country with its own directory. `timezone` decides what day it is."""

    id: Id
    title: Title
    timezone: Annotated[str, AfterValidator(_check_timezone)] = "Europe/London"
    areas: tuple[Area, ...] = Field(min_length=1)


class Agency(_Entry):
    """Who receives a referral.

    `email` keeps the source's spelling, the local part's case above all (RFC 5321 §2.4). It is
    absent where the source gives none. `verified_on` is the day on which somebody of the
    deployment asked the agency whether the address is theirs; it ships empty.
    """

    id: Id
    title: Title
    email: Annotated[str, AfterValidator(check_email)] | None = None
    phone: str | None = Field(None, pattern=r"^[0-9+() ]{5,20}$")
    source: str = Field(min_length=3)
    verified_on: Annotated[Day | None, BeforeValidator(lambda value: value or None)] = None
    verified_by: str = ""
    review_after_days: int = Field(180, ge=1, le=3650)
    alert: str = ""

    def is_verified(self, today: date) -> bool:
        """Whether somebody checked the address within its review time."""
        if self.verified_on is None or self.verified_on > today:
            return False
        return today - self.verified_on <= timedelta(days=self.review_after_days)

    @property
    def check_again_by(self) -> date | None:
        """The last day on which the address still counts as verified; None if nobody checked it."""
        if self.verified_on is None:
            return None
        return self.verified_on + timedelta(days=self.review_after_days)


class QuestionType(StrEnum):
    LINE = "line"
    TEXT = "text"
    CHOICE = "choice"
    CHOICES = "choices"
    YES_NO = "yes-no"
    DATE = "date"
    MOMENT = "moment"
    NUMBER = "number"


class Option(_Entry):
    value: Id
    label: Title
    no_address: str | None = Field(None, min_length=10)
    """Why nobody can be written to about this option, where the directory has no address."""


class Question(_Entry):
    """A field of an intervention's own."""

    name: Name
    label: Title
    type: QuestionType
    required: bool = False
    hint: str = ""
    sensitivity: Sensitivity
    options: tuple[Option, ...] = ()
    min_length: int = Field(0, ge=0)
    max_length: int | None = Field(None, ge=1)
    minimum: int | None = None
    maximum: int | None = None
    sample: Any = None

    @cached_property
    def labels(self) -> dict[str, str]:
        return {option.value: option.label for option in self.options}

    @cached_property
    def values(self) -> dict[str, str]:
        """Option by its value or its label, without regard to case; the first of a name wins."""
        named: dict[str, str] = {}
        for option in self.options:
            for name in (option.value, option.label.casefold()):
                named.setdefault(name, option.value)
        return named

    @cached_property
    def unaddressed(self) -> dict[str, str]:
        return {opt.value: opt.no_address for opt in self.options if opt.no_address}


FactPaths = Annotated[tuple[str, ...], BeforeValidator(split_list)]


class Facts(_Entry):
    """Which of the case's facts the agency is told; nothing else reaches the templates."""

    required: FactPaths = ()
    optional: FactPaths = ()

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]  # a list of paths, not of pairs
        return iter((*self.required, *self.optional))


class Intervention(_Entry):
    id: Id
    title: Title
    summary: str = Field(min_length=10)
    source: str = Field(min_length=3)
    areas: tuple[Id, ...] = ()
    routes: dict[Id, Id] = Field(default_factory=dict)
    """Agency by area or, more exactly, by district."""
    template: Id
    acknowledge_within_days: int = Field(ge=1, le=90)
    facts: Facts = Field(default_factory=Facts)
    fields: tuple[Question, ...] = ()
    rules: tuple[Rule, ...] = ()

    def acknowledge_by(self, today: date) -> date:
        """When an answer may be expected; a Saturday or Sunday becomes the Monday after."""
        day = today + timedelta(days=self.acknowledge_within_days)
        return day + timedelta(days=(0, 0, 0, 0, 0, 2, 1)[day.weekday()])

    def question(self, name: str) -> Question | None:
        return next((question for question in self.fields if question.name == name), None)


@dataclass(frozen=True)
class Place:
    """Where a case is, as exactly as it is known."""

    region: Region
    area: Area
    district: District | None


@dataclass(frozen=True)
class Directory:
    """Everything in config/, checked. Made by `directory_files.read_directory`."""

    regions: Mapping[str, Region]
    agencies: Mapping[str, Agency]
    interventions: Mapping[str, Intervention]
    postcodes: Mapping[str, PostcodeTable] = field(default_factory=dict)

    def intervention(self, intervention_id: str) -> Intervention:
        """Raises InterventionUnknown, which lists those that there are."""
        try:
            return self.interventions[intervention_id]
        except KeyError:
            from difflib import get_close_matches

            close = get_close_matches(intervention_id, self.interventions, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InterventionUnknown(
                f"There is no such intervention.{hint} There are: "
                f"{', '.join(sorted(self.interventions))}."
            ) from None

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """Every area without a district, then with each of its districts."""
        return tuple(self._places())

    def _places(self) -> Iterator[Place]:
        for region in self.regions.values():
            for area in region.areas:
                yield Place(region, area, None)
                for district in area.districts:
                    yield Place(region, area, district)

    @cached_property
    def overridable(self) -> tuple[str, ...]:
        """The codes of the rules that a supervisor may set aside."""
        codes = {
            rule.code
            for intervention in self.interventions.values()
            for rule in intervention.rules
            if rule.override == "supervisor"
        }
        return tuple(sorted(codes))

    def agency_for(self, intervention: Intervention, place: Place) -> Agency | None:
        """The one agency for this place; a district's own route comes before its area's."""
        if place.area.id not in intervention.areas:
            return None
        keys = (place.district.id, place.area.id) if place.district else (place.area.id,)
        agency_id = next(
            (intervention.routes[key] for key in keys if key in intervention.routes), None
        )
        return self.agencies[agency_id] if agency_id else None
