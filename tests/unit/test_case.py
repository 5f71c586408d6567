"""The case model: consents, ages, what lies in the future, and a repr that tells nothing."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from referrals.case import Case, Consent, Person, Sensitivity, age_on, shared_facts

TODAY = date(2026, 11, 24)
TOMORROW = TODAY + timedelta(days=1)


def raw_case(**more: Any) -> dict[str, Any]:
    return {
        "reference": "T-1",
        "referrer": {
            "name": "Sam Officer",
            "role": "PCSO",
            "organisation": "Example Council",
            "email": "sam@council.example.com",
        },
        "location": {"area": "city"},
        **more,
    }


def raw_consent(**more: Any) -> dict[str, Any]:
    return {
        "person": "victim",
        "interventions": ["mediation"],
        "given": True,
        "on": "2026-11-01",
        "recorded_by": "Sam Officer",
        "how": "phone",
        **more,
    }


def read(**more: Any) -> Case:
    return Case.model_validate(raw_case(**more), context={"today": TODAY})


def kinds(**more: Any) -> list[tuple[str, str]]:
    """Where and how a case with these values is refused."""
    with pytest.raises(ValidationError) as refused:
        read(**more)
    errors = refused.value.errors(include_url=False, include_input=False)
    return [(".".join(map(str, error["loc"])), error["type"]) for error in errors]


# --- consents


def agreed(*records: dict[str, Any]) -> bool | None:
    """Whether the record that counts is an agreement that stands; None if there is no record."""
    case = read(consents=[raw_consent(**record) for record in records])
    found = case.consent_of("victim", "mediation")
    return None if found is None else found.given and found.withdrawn_on is None


GIVEN_1 = {"on": "2026-11-01"}
GIVEN_5 = {"on": "2026-11-05"}
GIVEN_10 = {"on": "2026-11-10"}
GIVEN_12 = {"on": "2026-11-12"}
REFUSED_5 = {"on": "2026-11-05", "given": False}
WITHDRAWN_10 = {"on": "2026-11-01", "withdrawn_on": "2026-11-10"}


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([], None),
        ([GIVEN_1], True),
        ([REFUSED_5], False),
        ([WITHDRAWN_10], False),
        ([GIVEN_1, REFUSED_5], False),
        ([REFUSED_5, GIVEN_10], True),
        ([GIVEN_5, REFUSED_5], False),
        ([WITHDRAWN_10, GIVEN_12], True),
        ([WITHDRAWN_10, GIVEN_10], False),
        # Agreed twice, then took it back: the withdrawal is the last word, whichever it hangs on.
        ([WITHDRAWN_10, GIVEN_5], False),
        ([{"on": "2026-11-01", "withdrawn_on": "2026-11-01"}], False),
        ([{"person": "other_party"}], None),
        ([{"interventions": ["victim-hardening"]}], None),
        ([{"interventions": ["victim-hardening", "mediation"]}], True),
        ([REFUSED_5, {"on": "2026-11-20", "interventions": ["victim-hardening"]}], False),
        ([REFUSED_5, {"on": "2026-11-20", "person": "other_party"}], False),
    ],
)
def test_the_newest_word_of_this_person_on_this_intervention_counts(
    records: list[dict[str, Any]], expected: bool | None
) -> None:
    """UK GDPR art. 7(3): an agreement may be taken back at any time; a doubt protects them."""
    assert agreed(*records) is expected
    assert agreed(*reversed(records)) is expected


def test_interventions_may_be_listed_in_one_cell() -> None:
    case = read(consents=[raw_consent(interventions="mediation; victim-hardening")])

    assert case.consents[0].interventions == ["mediation", "victim-hardening"]


def test_a_choice_is_the_same_in_capitals_and_with_a_blank_behind_it() -> None:
    """As a cell begins with a capital, and often ends with a blank."""
    incident = {"on": "2026-11-01", "what": "Shouting", "record": "Non-Crime ", "strand": "Race"}
    consent = raw_consent(person="Victim", how=" In-person", interventions="Mediation; X")
    case = read(incidents=[incident], consents=[consent])

    assert (case.incidents[0].record, case.incidents[0].strand) == ("non-crime", "race")
    assert (case.consents[0].person, case.consents[0].how) == ("victim", "in-person")
    assert case.consents[0].interventions == ["mediation", "x"]
    assert kinds(consents=[raw_consent(how="Pigeon")]) == [("consents.0.how", "enum")]
    assert kinds(consents=[raw_consent(how=7)]) == [("consents.0.how", "enum")]


@pytest.mark.parametrize("given", ["", "maybe", 1, 0, None, "given"])
def test_agreement_is_a_plain_yes_or_no(given: Any) -> None:
    assert kinds(consents=[raw_consent(given=given)]) == [("consents.0.given", "yes-no")]


@pytest.mark.parametrize("field", ["person", "interventions", "given", "on", "recorded_by", "how"])
def test_a_consent_must_be_provable(field: str) -> None:
    """UK GDPR art. 7(1): whose, for what, when, how, and who wrote it down."""
    consent = raw_consent()
    del consent[field]

    assert kinds(consents=[consent]) == [(f"consents.0.{field}", "missing")]


def test_a_consent_is_for_something() -> None:
    assert kinds(consents=[raw_consent(interventions=[])]) == [
        ("consents.0.interventions", "too_short")
    ]


@pytest.mark.parametrize(
    "consent",
    [
        {"given": False, "withdrawn_on": "2026-11-10"},
        {"on": "2026-11-10", "withdrawn_on": "2026-11-09"},
    ],
)
def test_a_withdrawal_follows_an_agreement(consent: dict[str, Any]) -> None:
    assert kinds(consents=[raw_consent(**consent)]) == [("consents.0", "withdrawn")]


# --- ages


@pytest.mark.parametrize(
    ("born", "day", "age"),
    [
        (date(2008, 11, 24), date(2026, 11, 23), 17),
        (date(2008, 11, 24), date(2026, 11, 24), 18),
        (date(2008, 11, 24), date(2026, 11, 25), 18),
        (date(2010, 11, 25), TODAY, 15),
        (date(2010, 11, 24), TODAY, 16),
        (date(2016, 11, 25), TODAY, 9),
        (date(2016, 11, 24), TODAY, 10),
        (date(2008, 2, 29), date(2026, 2, 28), 17),
        (date(2008, 2, 29), date(2026, 3, 1), 18),
        (date(2008, 2, 29), date(2024, 2, 28), 15),
        (date(2008, 2, 29), date(2024, 2, 29), 16),
        (date(2008, 3, 1), date(2024, 2, 29), 15),
        (date(2008, 2, 28), date(2026, 2, 28), 18),
        (date(2008, 12, 31), date(2026, 12, 30), 17),
        (date(2008, 12, 31), date(2027, 1, 1), 18),
        (TODAY, TODAY, 0),
    ],
)
def test_an_age_is_reached_at_the_start_of_the_birthday(born: date, day: date, age: int) -> None:
    """Family Law Reform Act 1969 s.9; 29 February is 1 March in a common year."""
    assert age_on(day, born) == age


@given(st.dates(date(1900, 1, 1), date(2100, 12, 30)), st.integers(0, 40_000))
def test_nobody_grows_younger(born: date, days: int) -> None:
    day = min(born + timedelta(days=days), date(2100, 12, 30))

    assert 0 <= age_on(day + timedelta(days=1), born) - age_on(day, born) <= 1
    assert age_on(born, born) == 0


# --- what lies in the future

BASIS = {"basis": "public-task", "reason": "To prevent harm.", "recorded_by": "Sam"}
OVERRIDE = {"code": "MED-004", "reason": "Both are safe with it.", "authorised_by": "Chris"}
DATED: list[tuple[str, Any]] = [
    ("consents.0.on", lambda day: {"consents": [raw_consent(on=day)]}),
    ("consents.0.withdrawn_on", lambda day: {"consents": [raw_consent(withdrawn_on=day)]}),
    ("incidents.0.on", lambda day: {"incidents": [{"on": day, "what": "Abuse."}]}),
    ("lawful_basis.on", lambda day: {"lawful_basis": {**BASIS, "on": day}}),
    ("overrides.0.on", lambda day: {"overrides": [{**OVERRIDE, "on": day}]}),
    (
        "people.young_person.date_of_birth",
        lambda day: {"people": {"young_person": {"date_of_birth": day}}},
    ),
]


@pytest.mark.parametrize(("where", "values"), DATED)
def test_what_is_recorded_has_happened(where: str, values: Any) -> None:
    read(**values(TODAY.isoformat()))
    assert kinds(**values(TOMORROW.isoformat())) == [(where, "future")]
    assert (where, "past") in kinds(**values("1900-01-01")), "what programs write for no date"


# --- the model is closed, frozen and silent


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"notes": "x"}, "notes"),
        ({"people": {"witness": {}}}, "people.witness"),
        ({"people": {"victim": {"dob": "2000-01-01"}}}, "people.victim.dob"),
        ({"location": {"area": "city", "ward": "x"}}, "location.ward"),
        ({"consents": [raw_consent(consent=True)]}, "consents.0.consent"),
    ],
)
def test_an_unknown_key_is_a_problem_and_not_a_guess(more: dict[str, Any], where: str) -> None:
    assert kinds(**more) == [(where, "extra_forbidden")]


@pytest.mark.parametrize("reason", ["", "ok", "ok, fine.", "  ok       "])
def test_a_supervisors_reason_is_a_sentence(reason: str) -> None:
    override = {**OVERRIDE, "on": "2026-11-01", "reason": reason}

    assert kinds(overrides=[override])[0][0] == "overrides.0.reason"


def test_a_case_does_not_change() -> None:
    case = read(people={"victim": {"name": "Alex Sample"}})

    with pytest.raises(ValidationError):
        case.people.victim.name = "Robin"  # type: ignore[misc,union-attr]


def test_nothing_of_a_case_is_in_its_repr() -> None:
    secret = "Alex Sample"
    person = {"name": secret, "address": secret, "safe_contact": {"method": secret, "times": "x"}}
    case = read(
        people={"victim": person},
        consents=[raw_consent(recorded_by=secret)],
        incidents=[{"on": "2026-11-01", "what": secret}],
        lawful_basis={**BASIS, "on": "2026-11-01", "reason": f"{secret} is at risk"},
        overrides=[{**OVERRIDE, "on": "2026-11-01", "authorised_by": secret}],
        answers={"mediation": {"dispute": secret}},
    )
    parts: list[BaseModel] = [
        case,
        case.referrer,
        case.location,
        case.people,
        *case.consents,
        *case.incidents,
        *case.overrides,
    ]
    for part in [*parts, case.lawful_basis, case.people.victim]:
        for shown in (repr(part), str(part), f"{part}", f"{[part]}", f"{part!r:>3}"):
            assert secret not in shown
            assert "Sam" not in shown
    assert repr(case) == "Case()"


def test_a_refusal_by_pydantic_does_not_repeat_the_input() -> None:
    with pytest.raises(ValidationError) as refused:
        read(consents=[raw_consent(on="Alex Sample")], lawful_basis="Alex Sample")

    assert "Alex" not in str(refused.value) + repr(refused.value)


# --- facts


def test_every_fact_has_a_label_and_a_sensitivity() -> None:
    facts = shared_facts()

    for name in Person.model_fields:
        for role in ("victim", "other_party", "young_person", "parent_or_carer"):
            assert facts[f"people.{role}.{name}"].label
    for path, fact in facts.items():
        if path.startswith(("people.other_party", "people.parent_or_carer")):
            assert fact.sensitivity is Sensitivity.THIRD_PARTY, path
        if fact.sensitivity is Sensitivity.PUBLIC:
            assert not path.startswith(("people.victim.", "people.young_person.", "consents."))
    assert facts["incidents.strand"].sensitivity is Sensitivity.SPECIAL
    assert facts["people.victim.access_needs"].sensitivity is Sensitivity.SPECIAL
    assert facts["location.postcode"].sensitivity is Sensitivity.PERSONAL


def test_consents_stand_by_person_and_answers_are_no_shared_facts() -> None:
    named = {path for path in shared_facts() if path.startswith(("consents", "answers"))}

    assert named == {
        f"consents.{role}" for role in ("victim", "other_party", "young_person", "parent_or_carer")
    }


def test_every_field_of_a_consent_is_known() -> None:
    """A field added without a thought to what it reveals would be shown as public."""
    assert set(Consent.model_fields) == {
        "person",
        "interventions",
        "given",
        "on",
        "recorded_by",
        "how",
        "withdrawn_on",
    }
