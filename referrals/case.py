"""What a referrer tells us: the case, its people, incidents, consents and answers.

A case is frozen and closed: an unknown key is a problem, not a guess. Its `repr` shows nothing
that was typed.
"""

from collections.abc import Mapping
from datetime import date
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)

from referrals.texts import (
    Day,
    Email,
    Line,
    Reference,
    Text,
    YesNo,
    as_choice,
    as_names,
    fault,
)


class Sensitivity(StrEnum):
    """How carefully a value is handled. Only `public` may stand in a subject or a file name.

    `special` is special category data (UK GDPR art. 9; DPA 2018 s.35(8)); `third-party` is about
    somebody other than the person referred.
    """

    PUBLIC = "public"
    PERSONAL = "personal"
    SPECIAL = "special"
    THIRD_PARTY = "third-party"


_Choice = BeforeValidator(as_choice)

Role = Literal["victim", "other_party", "young_person", "parent_or_carer"]


class CaseModel(BaseModel):
    # Built when first used: a command needs a few of the models, not all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return []


def _within_memory(value: date, info: ValidationInfo) -> date:
    today = (info.context or {}).get("today")
    if today is not None and value > today:
        raise fault("future", "lies in the future.", "Write the day on which it happened.")
    if today is not None and value.year <= 1900:
        raise fault(
            "past",
            "lies before 1901, as the date that programs write where there is none.",
            "Write the day on which it happened, or nothing.",
        )
    return value


PastDay = Annotated[Day, AfterValidator(_within_memory)]


def _field(
    title: str,
    *,
    hint: str = "",
    sensitivity: Sensitivity = Sensitivity.PERSONAL,
    optional: bool = True,
) -> Any:
    default = None if optional else ...
    return Field(
        default,
        title=title,
        description=hint or None,
        json_schema_extra={"sensitivity": str(sensitivity)},
    )


def _public(title: str, *, hint: str = "", optional: bool = True) -> Any:
    return _field(title, hint=hint, sensitivity=Sensitivity.PUBLIC, optional=optional)


class Referrer(CaseModel):
    """Who makes the referral, at work; replies go to them."""

    name: Line = _field("Name", optional=False)
    role: Line = _public("Role", hint="For example police constable, PCSO.", optional=False)
    organisation: Line = _public("Organisation", optional=False)
    email: Email = _field("E-mail", hint="Your address at work.", optional=False)
    phone: Line | None = _field("Phone")


class Location(CaseModel):
    """Where help is needed. The agency is chosen by it."""

    area: Line | None = _public("Area", hint="For example city or county.")
    district: Line | None = _public("District", hint="For example gedling.")
    postcode: Line | None = _field("Postcode")
    place: Text | None = _field("Place", hint="Street, building or landmark.")


class SafeContact(CaseModel):
    """How to reach a person without putting them at risk."""

    method: Line = _field("Safe way to contact", optional=False)
    times: Line = _field("Safe times", optional=False)
    avoid: Text | None = _field("What to avoid")


class Person(CaseModel):
    name: Line | None = _field("Name")
    date_of_birth: PastDay | None = _field("Date of birth")
    address: Text | None = _field("Address")
    postcode: Line | None = _field("Postcode")
    phone: Line | None = _field("Phone")
    email: Email | None = _field("E-mail")
    safe_contact: SafeContact | None = _field("Safe contact")
    language: Line | None = _field("Language and interpreter", sensitivity=Sensitivity.SPECIAL)
    access_needs: Text | None = _field("Access needs", sensitivity=Sensitivity.SPECIAL)


class People(CaseModel):
    victim: Person | None = _field("Person harmed")
    other_party: Person | None = _field("Other party", sensitivity=Sensitivity.THIRD_PARTY)
    young_person: Person | None = _field("Young person")
    parent_or_carer: Person | None = _field("Parent or carer", sensitivity=Sensitivity.THIRD_PARTY)


class Record(StrEnum):
    """Whether the police recorded a crime. A non-crime report is never called a crime."""

    CRIME = "crime"
    NON_CRIME = "non-crime"
    NOT_REPORTED = "not-reported"
    NOT_KNOWN = "not-known"


class Strand(StrEnum):
    """The hostility that the person harmed, or anybody else, perceived. Never assumed."""

    DISABILITY = "disability"
    RACE = "race"
    RELIGION = "religion"
    SEXUAL_ORIENTATION = "sexual-orientation"
    TRANSGENDER = "transgender"
    OTHER = "other"


class Incident(CaseModel):
    on: PastDay = _public("Date", optional=False)
    what: Text = _field("What happened", optional=False)
    record: Annotated[Record | None, _Choice] = _public("Crime or non-crime")
    reference: Line | None = _public("Crime or incident number")
    strand: Annotated[Strand | None, _Choice] = _field(
        "Strand", hint="As the person sees it.", sensitivity=Sensitivity.SPECIAL
    )
    place: Line | None = _field("Place")


class How(StrEnum):
    IN_PERSON = "in-person"
    PHONE = "phone"
    VIDEO = "video"
    WRITING = "writing"
    EMAIL = "email"


class Consent(CaseModel):
    """A person's answer when asked whether they agree to a referral.

    It stands for the interventions that it names and no others. The newest record counts.
    Source: UK GDPR art. 7(1) (must be provable), art. 7(3) (may be withdrawn).
    """

    person: Annotated[Role, _Choice]
    interventions: Annotated[list[Line], BeforeValidator(as_names), Field(min_length=1)]
    given: YesNo = _public("Agreed", optional=False)
    on: PastDay = _public("Date", optional=False)
    recorded_by: Line = _field("Recorded by", optional=False)
    how: Annotated[How, _Choice] = _public("How it was given", optional=False)
    withdrawn_on: PastDay | None = _public("Withdrawn on")

    @property
    def stands(self) -> bool:
        """Given, and not taken back."""
        return self.given and self.withdrawn_on is None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.withdrawn_on and not self.given:
            raise fault(
                "withdrawn",
                "a refusal has a date of withdrawal.",
                "Remove withdrawn_on, or set given to true.",
            )
        if self.withdrawn_on and self.withdrawn_on < self.on:
            raise fault(
                "withdrawn",
                "was withdrawn before it was given.",
                "Put the two dates right.",
            )
        return self


class Basis(StrEnum):
    """On what ground personal data is shared; apart from the person's agreement.

    Source: UK GDPR art. 6(1); DPA 2018 s.35(2) for law enforcement.
    """

    PUBLIC_TASK = "public-task"
    LAW_ENFORCEMENT = "law-enforcement"
    LEGAL_OBLIGATION = "legal-obligation"
    VITAL_INTERESTS = "vital-interests"
    LEGITIMATE_INTERESTS = "legitimate-interests"
    CONSENT = "consent"


class LawfulBasis(CaseModel):
    basis: Annotated[Basis, _Choice] = _public("Lawful basis for sharing", optional=False)
    reason: Text = _field("Why sharing is necessary", optional=False)
    recorded_by: Line = _field("Recorded by", optional=False)
    on: PastDay = _public("Recorded on", optional=False)


def _a_sentence(value: str) -> str:
    if len(value) < 10:
        raise fault("too-short", "is too short.", "Give the reason in a sentence.")
    return value


class Override(CaseModel):
    """A supervisor's decision that a referral goes ahead in spite of a rule."""

    code: Line = _public("Rule", hint="For example MED-004.", optional=False)
    reason: Annotated[Text, AfterValidator(_a_sentence)] = _field("Reason", optional=False)
    authorised_by: Line = _field("Supervisor", optional=False)
    on: PastDay = _public("Date", optional=False)


class Case(CaseModel):
    """The facts, once, for every intervention. `answers` are checked against config/."""

    reference: Reference = _public("Case reference", optional=False)
    referrer: Referrer
    location: Location
    incidents: Annotated[list[Incident], Field(max_length=200)] = Field(default_factory=list)
    people: People = Field(default_factory=People)
    consents: Annotated[list[Consent], Field(max_length=200)] = Field(default_factory=list)
    lawful_basis: LawfulBasis | None = None
    overrides: Annotated[list[Override], Field(max_length=50)] = Field(default_factory=list)
    answers: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def person(self, role: str) -> Person | None:
        found: Person | None = getattr(self.people, role)
        return found

    def consent_of(self, role: str, intervention_id: str) -> Consent | None:
        """The newest record of this person's answer on this intervention; a refusal wins a tie.

        A record that was withdrawn is as new as its withdrawal.
        """
        records = [
            consent
            for consent in self.consents
            if consent.person == role and intervention_id in consent.interventions
        ]
        return max(records, key=_newest, default=None)

    def override_of(self, code: str) -> Override | None:
        return next((override for override in self.overrides if override.code == code), None)


def _newest(consent: Consent) -> tuple[date, bool]:
    return consent.withdrawn_on or consent.on, not consent.stands


def age_on(day: date, born: date) -> int:
    """Whole years of age.

    An age is attained at the start of the birthday (Family Law Reform Act 1969 s.9); someone born
    on 29 February attains it on 1 March in a common year.
    """
    return day.year - born.year - ((day.month, day.day) < (born.month, born.day))


class Fact:
    """What is known of a case fact's place, `people.victim.phone` for example."""

    __slots__ = ("label", "path", "sensitivity")

    def __init__(self, path: str, label: str, sensitivity: Sensitivity) -> None:
        self.path = path
        self.label = label
        self.sensitivity = sensitivity


def _facts_of(model: type[BaseModel], prefix: str, floor: Sensitivity | None) -> dict[str, Fact]:
    facts: dict[str, Fact] = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        own = Sensitivity(str(extra["sensitivity"])) if isinstance(extra, dict) else None
        level = floor or own or Sensitivity.PUBLIC
        path = f"{prefix}{name}"
        facts[path] = Fact(path, field.title or name, level)
        inner = _model_in(field.annotation)
        if inner is not None:
            third = level if level is Sensitivity.THIRD_PARTY else None
            facts |= _facts_of(inner, f"{path}.", third)
    return facts


def _model_in(annotation: Any) -> type[BaseModel] | None:
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


@cache
def shared_facts() -> Mapping[str, Fact]:
    """Every fact that an intervention may name in its `[facts]`, by its path.

    `consents.victim` and so on stand for the record that covers the intervention.
    """
    facts = _facts_of(Case, "", None)
    for path in [path for path in facts if path.startswith(("consents", "answers"))]:
        del facts[path]
    for role in People.model_fields:
        facts[f"consents.{role}"] = Fact(
            f"consents.{role}", "Agreement to this referral", Sensitivity.PERSONAL
        )
    return facts
