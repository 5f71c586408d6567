"""A made-up case, complete for the interventions asked for: a place to start from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from datetime import date, timedelta
from typing import Any

from referrals.answers import sample_on
from referrals.directory import Directory, Intervention
from referrals.rules import (
    AgeAtLeast,
    AgeBelow,
    AnsweredIfYounger,
    ConsentGiven,
    IncidentsAtLeast,
)

_PEOPLE: Mapping[str, Mapping[str, Any]] = {
    "victim": {
        "name": "Alex Sample",
        "address": "Flat 2, 10 Example Street\nNottingham",
        "phone": "07700 900123",
        "safe_contact": {
            "method": "Text message first, then a call to the mobile",
            "times": "Weekdays, 10 am to 2 pm",
            "avoid": "No letters to the home, and no voicemail.",
        },
        "language": "English; no interpreter needed",
        "access_needs": "Uses the stairs with difficulty.",
    },
    "other_party": {
        "name": "Robin Instance",
        "address": "Flat 4, 10 Example Street\nNottingham",
        "phone": "07700 900456",
        "safe_contact": {"method": "Call to the mobile", "times": "After 5 pm"},
        "language": "English",
    },
    "young_person": {
        "name": "Charlie Specimen",
        "phone": "07700 900789",
        "safe_contact": {"method": "Through the parent", "times": "After school"},
    },
    "parent_or_carer": {
        "name": "Jo Specimen",
        "phone": "07700 900321",
        "safe_contact": {"method": "Call to the mobile", "times": "After 4 pm"},
    },
}
# What a person has only where an intervention requires it.
_IF_REQUIRED: Mapping[str, Any] = {
    **{key: _PEOPLE["victim"][key] for key in ("address", "phone", "language", "access_needs")},
    "email": "person@example.com",
    "postcode": "NG1 1AA",
}
_REFERRER = {
    "name": "Sam Officer",
    "role": "Community protection officer",
    "organisation": "Example Council",
    "email": "sam.officer@council.example.com",
    "phone": "0115 496 0000",
}
_INCIDENTS: tuple[tuple[int, dict[str, Any]], ...] = (
    (
        20,
        {
            "what": "Abuse was shouted at the family on their doorstep.",
            "record": "crime",
            "reference": "26*0411111",
            "strand": "race",
            "place": "Outside the home",
        },
    ),
    (
        9,
        {
            "what": "Paint was thrown at the front door in the night.",
            "record": "crime",
            "reference": "26*0420202",
            "strand": "race",
            "place": "The home",
        },
    ),
)


def sample_case(
    directory: Directory, intervention_ids: Iterable[str], today: date
) -> dict[str, Any]:
    """A raw case that can be drafted as it is. Nobody in it exists.

    Phone numbers are from Ofcom's ranges for drama; the e-mail domain is RFC 2606's.
    """
    chosen = [directory.intervention(intervention_id) for intervention_id in intervention_ids]
    told = [path for intervention in chosen for path in intervention.facts]
    case: dict[str, Any] = {
        "reference": "SAMPLE-001",
        "referrer": dict(_REFERRER),
        "location": _location(directory, chosen, told),
    }
    if _named(told, "incidents") or any(
        isinstance(rule.check, IncidentsAtLeast) for one in chosen for rule in one.rules
    ):
        case["incidents"] = [
            {"on": (today - timedelta(days=days)).isoformat(), **incident}
            for days, incident in _INCIDENTS
        ]
    people = _people(chosen, told, today)
    if people:
        case["people"] = people
    consents = _consents(chosen, today)
    if consents:
        case["consents"] = consents
    if _named(told, "lawful_basis"):
        case["lawful_basis"] = {
            "basis": "public-task",
            "reason": "To prevent further harm to the people in this case.",
            "recorded_by": "Sam Officer",
            "on": (today - timedelta(days=3)).isoformat(),
        }
    case["answers"] = {
        intervention.id: {
            question.name: sample_on(_plain(question.sample), today)
            for question in intervention.fields
            if question.sample is not None
        }
        for intervention in chosen
    }
    return deepcopy(case)  # for the caller to change: nothing in it is the directory's or ours


def _plain(sample: Any) -> Any:
    return sample.isoformat() if isinstance(sample, date) else sample


def _named(told: Iterable[str], group: str) -> bool:
    return any(path == group or path.startswith(f"{group}.") for path in told)


def _location(directory: Directory, chosen: list[Intervention], told: list[str]) -> dict[str, Any]:
    best = max(
        (place for place in directory.places),
        key=lambda place: (
            sum(directory.agency_for(one, place) is not None for one in chosen),
            place.district is not None,
        ),
    )
    location: dict[str, Any] = {"area": best.area.id}
    if best.district:
        location["district"] = best.district.id
    if _named(told, "location.place") or "location" in told:
        location["place"] = "Market Square, by the steps"
    return location


def _people(chosen: list[Intervention], told: list[str], today: date) -> dict[str, Any]:
    aged = {
        rule.check.person
        for one in chosen
        for rule in one.rules
        if isinstance(rule.check, AgeBelow | AgeAtLeast | AnsweredIfYounger)
    }
    people = {}
    for role, person in _PEOPLE.items():
        if role in aged or _named(told, f"people.{role}"):
            people[role] = dict(person)
        if role in aged or _named(told, f"people.{role}.date_of_birth"):
            years = 15 if role == "young_person" else 41
            people[role]["date_of_birth"] = date(today.year - years, 1, 15).isoformat()
    for path in (path for one in chosen for path in one.facts.required):
        group, *rest = path.split(".")
        if group == "people" and rest[1:] and rest[1] in _IF_REQUIRED:
            people[rest[0]].setdefault(rest[1], _IF_REQUIRED[rest[1]])
    return people


def _consents(chosen: list[Intervention], today: date) -> list[dict[str, Any]]:
    asked: dict[str, list[str]] = {}
    for intervention in chosen:
        for rule in intervention.rules:
            if isinstance(rule.check, ConsentGiven):
                asked.setdefault(rule.check.person, []).append(intervention.id)
    return [
        {
            "person": person,
            "interventions": interventions,
            "given": True,
            "on": (today - timedelta(days=5)).isoformat(),
            "recorded_by": "Sam Officer",
            "how": "in-person",
        }
        for person, interventions in asked.items()
    ]
