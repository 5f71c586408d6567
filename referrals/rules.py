"""The named rules that config/ may use, and what they find.

A rule is data: a code, a level, words, a source, and the name of a check with its values. The
checks are pure: they see one referral's circumstances and give the places where the rule bites.

    [[rules]]
    code = "MED-004"
    check = "answer-is"
    answer = "domestic_abuse"
    value = true
    level = "block"
    override = "supervisor"
    text = "There is domestic abuse between the parties: mediation is not safe."
    source = "..."
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from referrals.case import Basis, Case, Override, Role, age_on
from referrals.texts import as_date

Answer = str | bool | int | date | datetime | tuple[str, ...]


class Level(StrEnum):
    """`block` stops a referral, `advise` asks for a second look, `info` is good to know."""

    BLOCK = "block"
    ADVISE = "advise"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """What one rule says of one referral. `where` is the path of the fact it looked at.

    `missing`: it bites for want of a record, which may yet be made.
    """

    code: str
    level: Level
    text: str
    source: str
    where: str | None = None
    missing: bool = False
    overridable: bool = False
    override: Override | None = field(default=None, repr=False)

    @property
    def blocks(self) -> bool:
        return self.level is Level.BLOCK and self.override is None


@dataclass(frozen=True)
class Circumstances:
    """All that a rule may look at."""

    case: Case = field(repr=False)
    intervention_id: str
    answers: Mapping[str, Answer] = field(repr=False)
    free_texts: tuple[tuple[str, str], ...] = field(repr=False)
    """Path and text of everything in the referrer's own words that the agency will read."""
    unaddressed: Mapping[str, Mapping[str, str]]
    """By question: the options that have no address, and why."""
    area: str | None
    district: str | None
    area_served: bool
    today: date
    timezone: tzinfo

    def path_of(self, question: str) -> str:
        return f"answers.{self.intervention_id}.{question}"


@dataclass(frozen=True)
class Hit:
    """A place where a check bites."""

    where: str | None = None
    text: str | None = None
    """Replaces the rule's own words."""
    detail: str = ""
    """Follows them."""
    missing: bool = False
    level: Level | None = None
    """Replaces the rule's own level."""


class _Check(BaseModel):
    """A named check and its values."""

    # Built when first used: a command needs a few of the models, not all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        raise NotImplementedError

    def answers_read(self) -> Iterator[tuple[str, str]]:
        """(key, question) for each question that the check looks at."""
        return iter(())

    needs_answers: ClassVar[bool] = False
    """Whether the check sees nothing amiss where its questions are not answered."""


class AreaServed(_Check):
    """Bites where the intervention is not offered."""

    name: Literal["area-served"]

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        if not seen.area_served:
            yield Hit("location")


class ConsentGiven(_Check):
    """Bites unless this person agreed to this intervention, and has not taken it back.

    `unless_answer` names a question whose answer may stand instead; `unless_lawful_basis` lets
    the recorded lawful basis stand instead, if that basis is not itself consent.
    """

    name: Literal["consent-given"]
    person: Role
    unless_answer: str | None = None
    unless_lawful_basis: bool = False

    def answers_read(self) -> Iterator[tuple[str, str]]:
        if self.unless_answer:
            yield "unless_answer", self.unless_answer

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        consent = seen.case.consent_of(self.person, seen.intervention_id)
        if consent and consent.stands:
            return
        if self.unless_answer and seen.answers.get(self.unless_answer):
            return
        basis = seen.case.lawful_basis
        if self.unless_lawful_basis and basis and basis.basis is not Basis.CONSENT:
            return
        if consent is None:
            state = "No answer of theirs is recorded for this intervention."
        elif not consent.given:
            state = "They were asked and did not agree."
        else:
            state = "They took their agreement back."
        yield Hit("consents", detail=state, missing=consent is None)


class IncidentsAtLeast(_Check):
    """Bites if fewer incidents are listed, unless a reason is given as an answer."""

    name: Literal["incidents-at-least"]
    number: int = Field(ge=1)
    unless_answer: str | None = None

    def answers_read(self) -> Iterator[tuple[str, str]]:
        if self.unless_answer:
            yield "unless_answer", self.unless_answer

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        excused = self.unless_answer and seen.answers.get(self.unless_answer)
        if len(seen.case.incidents) < self.number and not excused:
            yield Hit("incidents")


class _AgeRule(_Check):
    person: Role
    age: int = Field(ge=0, le=130)

    def _age(self, seen: Circumstances) -> int | None:
        person = seen.case.person(self.person)
        born = person.date_of_birth if person else None
        return None if born is None else age_on(seen.today, born)

    @property
    def _where(self) -> str:
        return f"people.{self.person}.date_of_birth"

    def _unknown(self) -> Hit:
        return Hit(self._where, "Without a date of birth the age can't be told.", missing=True)


class AgeBelow(_AgeRule):
    """Bites from the day on which the person reaches `age`."""

    name: Literal["age-below"]

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        age = self._age(seen)
        if age is None:
            yield self._unknown()
        elif age >= self.age:
            yield Hit(self._where)


class AgeAtLeast(_AgeRule):
    """Bites until the day on which the person reaches `age`."""

    name: Literal["age-at-least"]

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        age = self._age(seen)
        if age is not None and age < self.age:
            yield Hit(self._where)


class AnsweredIfYounger(_AgeRule):
    """Below `age`, one of `answers` must be given; a yes-or-no question counts if it is yes."""

    name: Literal["answered-if-younger"]
    answers: tuple[str, ...] = Field(min_length=1)

    def answers_read(self) -> Iterator[tuple[str, str]]:
        for name in self.answers:
            yield "answers", name

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        age = self._age(seen)
        if age is None or age >= self.age:
            return
        if not any(seen.answers.get(name) for name in self.answers):
            yield Hit(seen.path_of(self.answers[0]), missing=True)


class AnswerIs(_Check):
    """Bites if the answer is, or among several holds, `value`."""

    name: Literal["answer-is"]
    needs_answers: ClassVar[bool] = True
    answer: str
    value: bool | str

    def answers_read(self) -> Iterator[tuple[str, str]]:
        yield "answer", self.answer

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        answer = seen.answers.get(self.answer)
        if answer is None:
            return
        among = isinstance(answer, tuple) and self.value in answer
        if among or answer == self.value:
            yield Hit(seen.path_of(self.answer))


class SpanAtMost(_Check):
    """Bites if the time from `start` to `end` is nothing, or more than `hours` on the clock.

    Elapsed hours count: a span over the end of summer time is an hour longer than it looks.
    `as_at` is the day on which the figure was read in its source.
    """

    name: Literal["span-at-most"]
    needs_answers: ClassVar[bool] = True
    start: str
    end: str
    hours: int = Field(ge=1)
    as_at: Annotated[date, BeforeValidator(as_date)]

    def answers_read(self) -> Iterator[tuple[str, str]]:
        yield "start", self.start
        yield "end", self.end

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        start, end = seen.answers.get(self.start), seen.answers.get(self.end)
        if not (isinstance(start, datetime) and isinstance(end, datetime)):
            return
        where = seen.path_of(self.end)
        # Of an hour that comes twice, the end is taken as the later one: the longest it can mean.
        elapsed = _utc(end.replace(fold=1), seen.timezone) - _utc(start, seen.timezone)
        if elapsed <= timedelta(0):
            yield Hit(where, "The end is not after the start.")
        elif elapsed > timedelta(hours=self.hours):
            yield Hit(where)


def _utc(moment: datetime, timezone: tzinfo) -> datetime:
    offset = moment.replace(tzinfo=timezone).utcoffset()
    return moment - (offset or timedelta(0))


class DistrictAmong(_Check):
    """Bites in `area` if the district is another one, or is not known."""

    name: Literal["district-among"]
    area: str
    districts: tuple[str, ...] = Field(min_length=1)

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        if seen.area == self.area and seen.district not in self.districts:
            yield Hit("location.district")


class Addressed(_Check):
    """Bites for each chosen option that the directory has no address for.

    If no chosen option has one, there is nobody to write to, whatever the level says.
    """

    name: Literal["addressed"]
    needs_answers: ClassVar[bool] = True
    answer: str

    def answers_read(self) -> Iterator[tuple[str, str]]:
        yield "answer", self.answer

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        answer = seen.answers.get(self.answer)
        chosen = answer if isinstance(answer, tuple) else (answer,)
        reasons = seen.unaddressed.get(self.answer, {})
        where = seen.path_of(self.answer)
        for option in chosen:
            if option in reasons:
                yield Hit(where, reasons[str(option)])
        if answer and all(option in reasons for option in chosen):
            yield Hit(where, level=Level.BLOCK)


class ReferenceListed(_Check):
    """Bites unless an incident has a reference, or `answer` lists one."""

    name: Literal["reference-listed"]
    answer: str | None = None

    def answers_read(self) -> Iterator[tuple[str, str]]:
        if self.answer:
            yield "answer", self.answer

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        if any(incident.reference for incident in seen.case.incidents):
            return
        if not (self.answer and seen.answers.get(self.answer)):
            yield Hit("incidents", missing=True)


_HONORIFIC = re.compile(r"^(?:mr|mrs|ms|miss|mx|dr)\b\.?", re.IGNORECASE)


class NamesAbsent(_Check):
    """Bites where the referrer's own words give the full name of one of `people`."""

    name: Literal["names-absent"]
    people: tuple[Role, ...] = Field(min_length=1)

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        for role in self.people:
            person = seen.case.person(role)
            words = _HONORIFIC.sub("", person.name).split() if person and person.name else []
            if not words:
                continue
            # One word alone (Mark, Green) is a name only as it is spelt.
            flags = re.IGNORECASE if len(words) > 1 else re.NOFLAG
            spelt = r"\s+".join(map(re.escape, words))
            name = re.compile(rf"(?<!\w)(?:{spelt})(?!\w)", flags)
            for path, text in seen.free_texts:
                if name.search(text):
                    yield Hit(path)


class WordsAbsent(_Check):
    """Bites where the referrer's own words use a word that judges a person."""

    name: Literal["words-absent"]
    words: tuple[str, ...] = Field(min_length=1)

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        either = "|".join(map(re.escape, self.words))
        words = re.compile(rf"(?<!\w)(?:{either})s?(?!\w)", re.IGNORECASE)
        for path, text in seen.free_texts:
            if words.search(text):
                yield Hit(path)


class Notice(_Check):
    """Always said."""

    name: Literal["notice"]

    def hits(self, seen: Circumstances) -> Iterator[Hit]:
        yield Hit()


Check = Annotated[
    AreaServed
    | ConsentGiven
    | IncidentsAtLeast
    | AgeBelow
    | AgeAtLeast
    | AnsweredIfYounger
    | AnswerIs
    | SpanAtMost
    | DistrictAmong
    | Addressed
    | ReferenceListed
    | NamesAbsent
    | WordsAbsent
    | Notice,
    Field(discriminator="name"),
]


class Rule(BaseModel):
    """What a rule is called and says, and the check that decides whether it bites."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )

    code: str = Field(pattern=r"^[A-Z]{2,5}-\d{3}$")
    level: Level = Level.BLOCK
    text: str = Field(min_length=10)
    source: str = Field(min_length=3)
    override: Literal["never", "supervisor"] = "never"
    check: Check

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, raw: Any) -> Any:
        """In a file, the check's values stand beside its name."""
        if not isinstance(raw, dict) or not isinstance(raw.get("check"), str):
            return raw
        known = {*cls.model_fields, "name"}  # `name` is ours: in a file it is a stranger
        own = {key: raw[key] for key in raw if key in known}
        values = {key: raw[key] for key in raw if key not in known}
        return own | {"check": values | {"name": raw["check"]}}

    def findings(self, seen: Circumstances) -> Iterator[Finding]:
        """What the rule has to say, once for each place where its check bites."""
        for hit in self.check.hits(seen):
            level = hit.level or self.level
            overridable = level is Level.BLOCK and self.override == "supervisor"
            yield Finding(
                code=self.code,
                level=level,
                text=hit.text or f"{self.text} {hit.detail}".strip(),
                source=self.source,
                where=hit.where,
                missing=hit.missing,
                overridable=overridable,
                override=seen.case.override_of(self.code) if overridable else None,
            )
