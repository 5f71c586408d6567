"""May this referral be made, to whom, and what is missing? Every problem, not the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from referrals.answers import read_answers
from referrals.case import Case, Location, Sensitivity, shared_facts
from referrals.directory import Agency, Directory, Intervention, Place
from referrals.errors import CaseInvalid, Problem
from referrals.problems import keys_of, path_of, problems_of, unknown_key
from referrals.routing import locate
from referrals.rules import Answer, Circumstances, Finding, Level
from referrals.texts import as_names

GENERAL_SOURCE = "shared rule of every intervention"


@dataclass(frozen=True)
class Assessment:
    """What we know of one case and one intervention.

    `problems` are for the referrer to put right; `findings` are what the rules say.
    """

    intervention: Intervention
    case: Case = field(repr=False)
    place: Place
    agency: Agency | None
    answers: Mapping[str, Answer] = field(repr=False)
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]

    @property
    def blocks(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.blocks)

    @property
    def fits(self) -> bool:
        """No rule says no; facts may still be missing."""
        return not self.blocks

    @property
    def ready(self) -> bool:
        return self.fits and not self.problems

    @property
    def may_fit(self) -> bool:
        """Nothing speaks against it but records that are still to be made."""
        return all(finding.missing for finding in self.blocks)


def read_case(raw: Mapping[str, Any], directory: Directory, today: date) -> tuple[Case, Place]:
    """A checked case and where it is.

    Raises:
        CaseInvalid: with every problem: of form, of place, and of each intervention's answers.
    """
    problems: list[Problem] = []
    case: Case | None = None
    try:
        case = Case.model_validate(dict(raw), context={"today": today})
    except ValidationError as error:
        problems += problems_of(error, keys_of(Case), private=True)
    place, misplaced = locate(case.location, directory) if case else _locate_raw(raw, directory)
    problems += misplaced
    problems += _unknown_interventions(raw, directory)
    unanswered: list[Problem] = []
    for intervention_id, answers in _answers_in(raw, directory):
        for problem in read_answers(directory.interventions[intervention_id], answers)[1]:
            (unanswered if problem.code == "missing" else problems).append(problem)
    if problems or case is None or place is None:
        # An answer still missing for one intervention does not keep another from being made.
        raise CaseInvalid([*problems, *unanswered])
    return case, place


def _locate_raw(raw: Mapping[str, Any], directory: Directory) -> tuple[Place | None, list[Problem]]:
    given = raw.get("location")
    if not isinstance(given, dict):
        return None, []  # the whole case's check has said it
    known = {key: value for key, value in given.items() if key in Location.model_fields}
    try:
        location = Location.model_validate(known)
    except ValidationError:
        return None, []  # the whole case's check has said it
    return locate(location, directory)


def _answers_in(
    raw: Mapping[str, Any], directory: Directory
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    answers = raw.get("answers")
    if isinstance(answers, dict):
        for intervention_id, given in answers.items():
            if intervention_id in directory.interventions and isinstance(given, dict):
                yield intervention_id, given


def _unknown_interventions(raw: Mapping[str, Any], directory: Directory) -> Iterator[Problem]:
    known = directory.interventions
    answers = raw.get("answers")
    for key in answers if isinstance(answers, dict) else ():
        if key not in known:
            where = f"answers.{path_of([key])}"
            yield unknown_key(where, key, sorted(known), private=True)
    consents = raw.get("consents")
    for number, consent in enumerate(consents if isinstance(consents, list) else (), 1):
        named = consent.get("interventions") if isinstance(consent, dict) else None
        listed = as_names(named)
        for key in listed if isinstance(listed, list) else ():
            if isinstance(key, str) and key not in known:
                yield unknown_key(f"consents.{number}.interventions", key, sorted(known))
    overrides = raw.get("overrides")
    for number, override in enumerate(overrides if isinstance(overrides, list) else (), 1):
        code = override.get("code") if isinstance(override, dict) else None
        if isinstance(code, str) and code.strip() not in directory.overridable:
            yield Problem(
                f"overrides.{number}.code",
                "is not a rule that a supervisor may set aside.",
                f"Those are: {', '.join(directory.overridable)}.",
                "override",
            )


def assess(
    case: Case, place: Place, intervention: Intervention, directory: Directory, today: date
) -> Assessment:
    """Whether this intervention fits the case, on this day, and what is still missing."""
    agency = directory.agency_for(intervention, place)
    answers, problems = read_answers(intervention, case.answers.get(intervention.id, {}))
    problems += _missing_facts(case, intervention)
    seen = Circumstances(
        case=case,
        intervention_id=intervention.id,
        answers=answers,
        free_texts=tuple(_free_texts(case, intervention, answers)),
        unaddressed={question.name: question.unaddressed for question in intervention.fields},
        area=place.area.id,
        district=place.district.id if place.district else None,
        area_served=agency is not None,
        today=today,
        timezone=ZoneInfo(place.region.timezone),
    )
    findings = [finding for rule in intervention.rules for finding in rule.findings(seen)]
    if agency is None and not any(finding.blocks for finding in findings):
        findings.append(_not_served(intervention, place))
    findings += _general(case, intervention, agency, directory, place, today)
    return Assessment(intervention, case, place, agency, answers, tuple(problems), tuple(findings))


def _not_served(intervention: Intervention, place: Place) -> Finding:
    return Finding(
        "GEN-001",
        Level.BLOCK,
        f"{intervention.title} is not offered in {place.area.title}.",
        intervention.source,
        "location",
    )


def _general(
    case: Case,
    intervention: Intervention,
    agency: Agency | None,
    directory: Directory,
    place: Place,
    today: date,
) -> Iterator[Finding]:
    if case.lawful_basis is None and any(
        shared_facts()[path].sensitivity is not Sensitivity.PUBLIC for path in intervention.facts
    ):
        yield Finding(
            "GEN-002",
            Level.ADVISE,
            "No lawful basis for sharing is recorded. It is a record of its own, apart from the "
            "person's agreement.",
            "UK GDPR art. 6; DPA 2018 s.35",
            "lawful_basis",
        )
    yield from _people_elsewhere(case, intervention, directory, place)
    if agency is None:
        return
    if agency.email is None:
        yield Finding(
            "GEN-003",
            Level.ADVISE,
            f"The directory has no address for {agency.title}: the draft's To is empty, for you "
            "to fill in, and the system can't submit it.",
            agency.source,
        )
    else:
        if not agency.is_verified(today):
            yield Finding(
                "GEN-004",
                Level.ADVISE,
                f"Nobody has checked {agency.email} within {agency.review_after_days} days: "
                "check it with the agency before anything is submitted.",
                agency.source,
            )
        if agency.alert:
            yield Finding("GEN-005", Level.ADVISE, agency.alert, agency.source)


def _people_elsewhere(
    case: Case, intervention: Intervention, directory: Directory, place: Place
) -> Iterator[Finding]:
    for role, person in case.people:
        path = f"people.{role}.postcode"
        if person is None or person.postcode is None:
            continue
        told = intervention.facts
        if not any(path == fact or path.startswith(f"{fact}.") for fact in told):
            continue
        home, _ = locate(Location(postcode=person.postcode), directory)
        if home is None or home.area.id != place.area.id:
            where = f"in {home.area.title}" if home else "not one that we know in the region"
            yield Finding(
                "GEN-006",
                Level.ADVISE,
                f"This person's postcode is {where}, but the referral goes to the agency for "
                f"{place.area.title}, as the case's location says. Check that this is meant.",
                GENERAL_SOURCE,
                path,
            )


def _missing_facts(case: Case, intervention: Intervention) -> Iterator[Problem]:
    known = shared_facts()
    for path in intervention.facts.required:
        for where in _gaps(case, path):
            label = known[path].label
            yield Problem(
                where, "is missing.", f"{intervention.title} needs it: {label.lower()}.", "missing"
            )


def _gaps(case: Case, path: str) -> Iterator[str]:
    """Where a required fact is not given; a fact of every incident may be missing in several."""
    group, *rest = path.split(".")
    if group == "consents":
        return  # consent is the rules' matter
    if group == "incidents":
        if not case.incidents:
            yield "incidents"
        for number, incident in enumerate(case.incidents, 1):
            if rest and getattr(incident, rest[0]) is None:
                yield f"incidents.{number}.{rest[0]}"
        return
    value: Any = case
    for part in (group, *rest):
        value = getattr(value, part, None)
        if value is None:
            yield path
            return


def _free_texts(
    case: Case, intervention: Intervention, answers: Mapping[str, Answer]
) -> Iterator[tuple[str, str]]:
    for question in intervention.fields:
        answer = answers.get(question.name)
        if question.type in ("line", "text") and isinstance(answer, str):
            yield f"answers.{intervention.id}.{question.name}", answer
    told = set(intervention.facts)
    if case.location.place and told & {"location", "location.place"}:
        yield "location.place", case.location.place
    if case.lawful_basis and told & {"lawful_basis", "lawful_basis.reason"}:
        yield "lawful_basis.reason", case.lawful_basis.reason
    names = [name for name in ("what", "place") if told & {"incidents", f"incidents.{name}"}]
    for number, incident in enumerate(case.incidents, 1):
        for name in names:
            text = getattr(incident, name)
            if text:
                yield f"incidents.{number}.{name}", text
