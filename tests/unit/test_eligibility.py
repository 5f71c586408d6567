"""Every intervention at every boundary: area, age, consent, time; as shipped in config/.

A wrong yes sends a victim's details where they must not go; a wrong no leaves them without help.
"""

from __future__ import annotations

import copy
import traceback
from datetime import date, timedelta
from typing import Any

import pytest

from referrals.case import Basis
from referrals.directory import Directory, Facts
from referrals.eligibility import Assessment, assess, read_case
from referrals.errors import CaseInvalid, Problem
from referrals.samples import sample_case

TODAY = date(2026, 11, 24)
INTERVENTIONS = (
    "fire-resistant-mailbox",
    "mediation",
    "police-dispersal-order",
    "positive-engagement",
    "repeat-victim-panel",
    "target-hardening",
    "victim-hardening",
)
COUNTY = (
    "ashfield",
    "bassetlaw",
    "broxtowe",
    "gedling",
    "mansfield",
    "newark-and-sherwood",
    "rushcliffe",
)
COUNTY_POSTCODES = ("NG17 8DA", "S80 2AH", "NG9 1AB", "NG5 6LU", "NG19 7BH", "NG24 1BY", "NG2 7YG")


def raw_of(directory: Directory, *interventions: str) -> dict[str, Any]:
    """A complete case for these interventions, which may be changed at will."""
    return copy.deepcopy(sample_case(directory, interventions, TODAY))


def judge(
    directory: Directory, raw: dict[str, Any], intervention: str, today: date = TODAY
) -> Assessment:
    case, place = read_case(raw, directory, today)
    return assess(case, place, directory.intervention(intervention), directory, today)


def blocks(assessment: Assessment) -> list[str]:
    return [finding.code for finding in assessment.blocks]


def codes(assessment: Assessment) -> list[str]:
    return [finding.code for finding in assessment.findings]


def problems_of(directory: Directory, raw: dict[str, Any], today: date = TODAY) -> list[Problem]:
    with pytest.raises(CaseInvalid) as refused:
        read_case(raw, directory, today)
    assert refused.value.__context__ is None
    return list(refused.value.problems)


def wheres(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.where, problem.code) for problem in problems]


# --- area


def test_the_shipped_interventions_are_the_seven_of_the_source(directory: Directory) -> None:
    assert sorted(directory.interventions) == list(INTERVENTIONS)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize(
    "location",
    [{"area": "city"}, {"district": "nottingham"}, {"postcode": "NG2 3NG"}, {"area": "county"}]
    + [{"district": district} for district in COUNTY]
    + [{"postcode": postcode} for postcode in COUNTY_POSTCODES],
    ids=lambda location: "-".join(location.values()),
)
def test_mediation_is_the_citys_and_the_rest_are_everybodys(
    directory: Directory, intervention: str, location: dict[str, str]
) -> None:
    raw = raw_of(directory, intervention)
    raw["location"] = {"place": raw["location"].get("place", "Market Square"), **location}
    found = judge(directory, raw, intervention)

    in_county = found.place.area.id == "county"
    if intervention == "mediation" and in_county:
        assert blocks(found) == ["MED-001"]
        assert found.agency is None
        assert not found.may_fit
    else:
        assert found.ready, (found.problems, found.blocks)
        assert found.agency is not None


@pytest.mark.parametrize("district", [None, *COUNTY])
def test_the_county_panels_one_address_is_questioned_outside_the_south(
    directory: Directory, district: str | None
) -> None:
    raw = raw_of(directory, "repeat-victim-panel")
    raw["location"] = {"district": district} if district else {"area": "county"}
    found = judge(directory, raw, "repeat-victim-panel")

    asked_first = district not in ("broxtowe", "gedling", "rushcliffe")
    assert ("RVP-003" in codes(found)) is asked_first
    assert found.ready


def test_where_no_rule_speaks_an_unserved_area_is_still_refused(directory: Directory) -> None:
    raw = raw_of(directory, "mediation")
    raw["location"] = {"area": "county"}
    mediation = directory.intervention("mediation")
    silent = mediation.model_copy(
        update={"rules": tuple(rule for rule in mediation.rules if rule.code != "MED-001")}
    )
    case, place = read_case(raw, directory, TODAY)

    assert blocks(assess(case, place, silent, directory, TODAY)) == ["GEN-001"]


# --- consent

NEEDS_CONSENT = [
    ("mediation", "victim", "MED-002"),
    ("mediation", "other_party", "MED-003"),
    ("victim-hardening", "victim", "VIC-001"),
    ("repeat-victim-panel", "victim", "RVP-002"),
    ("positive-engagement", "young_person", "POS-002"),
    ("fire-resistant-mailbox", "victim", "FIR-001"),
]


def record(intervention: str, person: str, **more: Any) -> dict[str, Any]:
    return {
        "person": person,
        "interventions": [intervention],
        "given": True,
        "on": "2026-11-10",
        "recorded_by": "Sam Officer",
        "how": "phone",
        **more,
    }


def with_records(
    directory: Directory, intervention: str, person: str, records: list[dict[str, Any]]
) -> Assessment:
    """The case with these records for one person alone; the others' stay as they are."""
    raw = raw_of(directory, intervention)
    raw.pop("lawful_basis", None)
    others = [one for one in raw["consents"] if one["person"] != person]
    raw["consents"] = others + [record(intervention, person) | one for one in records]
    return judge(directory, raw, intervention)


@pytest.mark.parametrize(("intervention", "person", "code"), NEEDS_CONSENT)
@pytest.mark.parametrize(
    ("records", "missing"),
    [
        ([], True),
        ([{"given": False}], False),
        ([{"withdrawn_on": "2026-11-10"}], False),
        ([{"withdrawn_on": "2026-11-24"}], False),
        ([{"on": "2026-11-01"}, {"given": False}], False),
        ([{}, {"given": False}], False),  # the same day: a doubt protects the person
        ([{"on": "2026-11-01", "withdrawn_on": "2026-11-20"}, {}], False),
        ([{"interventions": ["target-hardening"]}], True),
        ([{"person": "parent_or_carer"}], True),
    ],
    ids=["none", "refused", "withdrawn", "today", "newer", "tie", "last-word", "other", "parent"],
)
def test_without_an_agreement_that_stands_nothing_is_shared(
    directory: Directory,
    intervention: str,
    person: str,
    code: str,
    records: list[dict[str, Any]],
    missing: bool,
) -> None:
    found = with_records(directory, intervention, person, records)

    assert blocks(found) == [code]
    assert found.blocks[0].where == "consents"
    assert found.blocks[0].missing is missing
    assert found.may_fit is missing
    assert not found.blocks[0].overridable


@pytest.mark.parametrize(("intervention", "person", "code"), NEEDS_CONSENT)
@pytest.mark.parametrize(
    "records",
    [
        [{}],
        [{"on": "2026-11-24"}],
        [{"given": False, "on": "2026-11-01"}, {}],
        [{"on": "2026-11-01", "withdrawn_on": "2026-11-05"}, {}],
        [{}, {"given": False, "interventions": ["target-hardening"], "on": "2026-11-20"}],
    ],
    ids=["given", "today", "changed-their-mind", "gave-it-again", "refused-another"],
)
def test_with_an_agreement_that_stands_it_goes_ahead(
    directory: Directory, intervention: str, person: str, code: str, records: list[dict[str, Any]]
) -> None:
    assert with_records(directory, intervention, person, records).ready


@pytest.mark.parametrize(("intervention", "person", "code"), NEEDS_CONSENT)
def test_an_agreement_dated_in_the_future_is_none(
    directory: Directory, intervention: str, person: str, code: str
) -> None:
    raw = raw_of(directory, intervention)
    raw["consents"] = [record(intervention, person, on="2026-11-25")]

    assert wheres(problems_of(directory, raw)) == [("consents.1.on", "future")]


def test_one_partys_agreement_is_not_the_others(directory: Directory) -> None:
    raw = raw_of(directory, "mediation")
    raw["consents"] = []

    assert blocks(judge(directory, raw, "mediation")) == ["MED-002", "MED-003"]


@pytest.mark.parametrize(("intervention", "person", "code"), NEEDS_CONSENT)
@pytest.mark.parametrize("basis", list(Basis))
@pytest.mark.parametrize("records", [[], [{"given": False}]], ids=["none", "refused"])
def test_a_lawful_basis_stands_in_for_agreement_in_the_panel_only(
    directory: Directory,
    intervention: str,
    person: str,
    code: str,
    basis: Basis,
    records: list[dict[str, Any]],
) -> None:
    """And a basis of consent can't stand in for the consent that is not there."""
    raw = raw_of(directory, intervention)
    raw["consents"] = [one for one in raw["consents"] if one["person"] != person]
    raw["consents"] += [record(intervention, person) | one for one in records]
    raw["lawful_basis"] = {
        "basis": str(basis),
        "reason": "To prevent further harm.",
        "recorded_by": "Sam Officer",
        "on": "2026-11-20",
    }
    stands_in = intervention == "repeat-victim-panel" and basis is not Basis.CONSENT

    assert blocks(judge(directory, raw, intervention)) == ([] if stands_in else [code])


@pytest.mark.parametrize("records", [[], [{"given": False}], [{"withdrawn_on": "2026-11-11"}]])
def test_a_reason_of_serious_harm_stands_in_for_agreement_in_fire(
    directory: Directory, records: list[dict[str, Any]]
) -> None:
    raw = raw_of(directory, "fire-resistant-mailbox")
    raw["consents"] = [record("fire-resistant-mailbox", "victim") | one for one in records]
    assert blocks(judge(directory, raw, "fire-resistant-mailbox")) == ["FIR-001"]

    raw["answers"]["fire-resistant-mailbox"]["serious_harm_reason"] = "A petrol bomb was found."
    assert judge(directory, raw, "fire-resistant-mailbox").ready


@pytest.mark.parametrize("intervention", [one for one in INTERVENTIONS if one[0] != "f"])
def test_no_other_intervention_knows_a_reason_of_serious_harm(
    directory: Directory, intervention: str
) -> None:
    raw = raw_of(directory, intervention)
    raw["answers"][intervention]["serious_harm_reason"] = "A petrol bomb was found."

    assert wheres(problems_of(directory, raw)) == [(f"answers.{intervention}.(a key)", "unknown")]


def test_sharing_personal_facts_without_a_basis_is_advised_against(directory: Directory) -> None:
    for intervention in INTERVENTIONS:
        raw = raw_of(directory, intervention)
        raw.pop("lawful_basis", None)
        assert "GEN-002" in codes(judge(directory, raw, intervention))


# --- age


def young(directory: Directory, born: str, today: date = TODAY, **answers: Any) -> Assessment:
    raw = raw_of(directory, "positive-engagement")
    raw["people"]["young_person"]["date_of_birth"] = born
    raw["consents"][0]["on"] = "2026-01-02"
    raw.pop("lawful_basis", None)
    own = raw["answers"]["positive-engagement"]
    del own["parent_informed"]
    own.update(answers)
    return judge(directory, raw, "positive-engagement", today)


@pytest.mark.parametrize(
    ("born", "today", "blocked"),
    [
        ("2008-11-25", TODAY, False),  # 18 tomorrow
        ("2008-11-24", TODAY, True),  # 18 today
        ("2008-11-23", TODAY, True),  # 18 yesterday
        ("2008-02-29", date(2026, 2, 28), False),
        ("2008-02-29", date(2026, 3, 1), True),
        ("2010-02-28", date(2028, 2, 28), True),
        ("2010-03-01", date(2028, 2, 29), False),
        ("2012-02-29", date(2030, 2, 28), False),
        ("2012-02-29", date(2030, 3, 1), True),
        ("1950-01-01", TODAY, True),
    ],
)
def test_positive_engagement_ends_on_the_eighteenth_birthday(
    directory: Directory, born: str, today: date, blocked: bool
) -> None:
    found = young(directory, born, today)

    assert blocks(found) == (["POS-001"] if blocked else [])
    assert not any(finding.missing for finding in found.blocks)


@pytest.mark.parametrize(
    ("born", "under"),
    [
        ("2010-11-25", True),  # 16 tomorrow
        ("2010-11-24", False),  # 16 today
        ("2010-11-23", False),
        ("2008-12-01", False),
        ("2016-11-24", True),
    ],
)
@pytest.mark.parametrize(
    ("answers", "enough"),
    [
        ({}, False),
        ({"parent_informed": False}, False),
        ({"parent_informed": True}, True),
        ({"parent_not_informed_reason": "It would put the child at risk."}, True),
        ({"parent_informed": False, "parent_not_informed_reason": "It is not safe."}, True),
    ],
)
def test_under_sixteen_a_parent_is_told_or_a_reason_given(
    directory: Directory, born: str, under: bool, answers: dict[str, Any], enough: bool
) -> None:
    found = young(directory, born, **answers)

    assert blocks(found) == (["POS-003"] if under and not enough else [])


@pytest.mark.parametrize(
    ("born", "advised"),
    [("2016-11-25", True), ("2016-11-24", False), ("2016-11-23", False), ("2026-11-24", True)],
)
def test_under_ten_is_asked_about_first(directory: Directory, born: str, advised: bool) -> None:
    found = young(directory, born, parent_informed=True)

    assert ("POS-004" in codes(found)) is advised
    assert found.fits


def test_no_age_no_referral(directory: Directory) -> None:
    raw = raw_of(directory, "positive-engagement")
    del raw["people"]["young_person"]["date_of_birth"]
    found = judge(directory, raw, "positive-engagement")

    assert blocks(found) == ["POS-001"]
    assert found.may_fit
    assert wheres(list(found.problems)) == [("people.young_person.date_of_birth", "missing")]


# --- the panel's incidents


@pytest.mark.parametrize("number", [0, 1, 2, 3])
@pytest.mark.parametrize("reason", [None, "A third party saw more that was not reported."])
def test_a_panel_needs_two_incidents_or_a_reason(
    directory: Directory, number: int, reason: str | None
) -> None:
    raw = raw_of(directory, "repeat-victim-panel")
    raw["incidents"] = (raw["incidents"] * 2)[:number]
    if reason:
        raw["answers"]["repeat-victim-panel"]["fewer_incidents_reason"] = reason
    found = judge(directory, raw, "repeat-victim-panel")

    assert blocks(found) == (["RVP-001"] if number < 2 and not reason else [])


# --- the dispersal order


@pytest.mark.parametrize(
    ("starts", "ends", "passes"),
    [
        ("2026-12-11 18:00", "2026-12-13 18:00", True),
        ("2026-12-11 18:00", "2026-12-13 18:01", False),
        ("11/12/2026 18:00", "13/12/2026 17:59", True),
        ("2026-12-11 18:00", "2026-12-11 18:00", False),
        ("2026-12-11 18:00", "2026-12-11 17:00", False),
        ("2027-03-27 12:00", "2027-03-29 13:00", True),
        ("2027-03-27 12:00", "2027-03-29 13:01", False),
        ("2027-10-30 12:00", "2027-11-01 11:00", True),
        ("2027-10-30 12:00", "2027-11-01 11:01", False),
    ],
)
def test_a_dispersal_authority_lasts_48_hours_at_most(
    directory: Directory, starts: str, ends: str, passes: bool
) -> None:
    """Anti-social Behaviour, Crime and Policing Act 2014 s.34(1)."""
    raw = raw_of(directory, "police-dispersal-order")
    raw["answers"]["police-dispersal-order"].update(starts=starts, ends=ends)

    assert blocks(judge(directory, raw, "police-dispersal-order")) == (
        [] if passes else ["DIS-001"]
    )


def test_rights_must_have_been_weighed(directory: Directory) -> None:
    raw = raw_of(directory, "police-dispersal-order")
    raw["answers"]["police-dispersal-order"]["rights_considered"] = False
    found = judge(directory, raw, "police-dispersal-order")

    assert blocks(found) == ["DIS-002"]


@pytest.mark.parametrize("intervention", ["police-dispersal-order", "target-hardening"])
@pytest.mark.parametrize("role", ["victim", "other_party", "young_person", "parent_or_carer"])
def test_a_request_about_a_place_names_nobody(
    directory: Directory, intervention: str, role: str
) -> None:
    raw = raw_of(directory, intervention)
    raw["people"] = {role: {"name": "Robin Instance"}}
    raw["location"]["place"] = "Outside the home of robin  instance"
    found = judge(directory, raw, intervention)

    assert [one.where for one in found.blocks] == ["location.place"]
    assert "nstance" not in repr(found) + "".join(one.text for one in found.findings)


def test_the_dispersal_order_has_no_address(directory: Directory) -> None:
    found = judge(directory, raw_of(directory, "police-dispersal-order"), "police-dispersal-order")

    assert found.agency is not None
    assert found.agency.email is None
    assert "GEN-003" in codes(found)
    assert "GEN-004" not in codes(found)


# --- target hardening


@pytest.mark.parametrize(
    ("measures", "told", "blocked"),
    [
        (["cpo-patrols"], 0, False),
        (["cpo-patrols", "mobile-camera"], 0, False),
        (["cpo-patrols", "pruning"], 1, False),
        (["mobile-camera", "cctv-installation", "pruning"], 2, False),
        (["cctv-installation"], 2, True),
        (["pruning"], 2, True),
        (["cctv-installation", "pruning"], 3, True),
    ],
)
def test_measures_that_nobody_takes_make_no_email(
    directory: Directory, measures: list[str], told: int, blocked: bool
) -> None:
    raw = raw_of(directory, "target-hardening")
    raw["answers"]["target-hardening"]["measures"] = measures
    found = judge(directory, raw, "target-hardening")

    assert codes(found).count("TAR-001") == told
    assert blocks(found) == (["TAR-001"] if blocked else [])


def test_target_hardening_needs_a_reference(directory: Directory) -> None:
    raw = raw_of(directory, "target-hardening")
    del raw["answers"]["target-hardening"]["references"]
    for incident in raw.get("incidents", []):
        incident.pop("reference", None)
    found = judge(directory, raw, "target-hardening")

    assert blocks(found) == ["TAR-002"]
    assert found.may_fit


# --- mediation's grounds for a supervisor

GROUNDS = [
    ("domestic_abuse", "MED-004"),
    ("threat_of_violence", "MED-005"),
    ("court_proceedings", "MED-006"),
]


def override(code: str, **more: Any) -> dict[str, Any]:
    return {
        "code": code,
        "reason": "Both parties asked for it after advice.",
        "authorised_by": "Inspector Example",
        "on": "2026-11-20",
        **more,
    }


@pytest.mark.parametrize(("answer", "code"), GROUNDS)
def test_an_unsafe_mediation_needs_a_supervisors_reason(
    directory: Directory, answer: str, code: str
) -> None:
    raw = raw_of(directory, "mediation")
    raw["answers"]["mediation"][answer] = True
    found = judge(directory, raw, "mediation")
    assert blocks(found) == [code]
    assert found.blocks[0].overridable

    for _, other in GROUNDS:
        raw["overrides"] = [override(other)]
        found = judge(directory, raw, "mediation")
        assert blocks(found) == ([] if other == code else [code])
    raw["overrides"] = [override(f" {code} ")]
    assert judge(directory, raw, "mediation").ready


@pytest.mark.parametrize("code", ["MED-001", "MED-002", "VIC-001", "POS-001", "DIS-001", "XXX-001"])
def test_no_supervisor_sets_consent_age_or_area_aside(directory: Directory, code: str) -> None:
    raw = raw_of(directory, "mediation")
    raw["overrides"] = [override("MED-004"), override(code)]
    (problem,) = problems_of(directory, raw)

    assert (problem.where, problem.code) == ("overrides.2.code", "override")
    assert problem.remedy == "Those are: MED-004, MED-005, MED-006."


@pytest.mark.parametrize(
    ("more", "where", "code"),
    [
        ({"reason": "Fine."}, "overrides.1.reason", "too-short"),
        ({"on": "2026-11-25"}, "overrides.1.on", "future"),
        ({"authorised_by": "  "}, "overrides.1.authorised_by", "missing"),
    ],
)
def test_an_override_is_accounted_for(
    directory: Directory, more: dict[str, str], where: str, code: str
) -> None:
    raw = raw_of(directory, "mediation")
    raw["overrides"] = [override("MED-004", **more)]

    assert wheres(problems_of(directory, raw)) == [(where, code)]


# --- advice


ADVICE = [
    ("fire-resistant-mailbox", {"live_threat": True}, "FIR-002"),
    ("fire-resistant-mailbox", {"occupants": "They want a fireproof one."}, "FIR-003"),
    ("fire-resistant-mailbox", {"landlord_agrees": "not-asked"}, "FIR-005"),
    ("mediation", {"tried": "The perpetrator was visited."}, "MED-007"),
    ("police-dispersal-order", {"alternatives": "A banning order was thought of."}, "DIS-006"),
    ("positive-engagement", {"needs": "Known offenders are near."}, "POS-005"),
    ("repeat-victim-panel", {"person_told": False}, "RVP-005"),
    ("repeat-victim-panel", {"risk_grade": "high"}, "RVP-006"),
    ("target-hardening", {"tried": "The suspect was warned."}, "TAR-005"),
    ("victim-hardening", {"landlord_agrees": "not-asked"}, "VIC-003"),
]


@pytest.mark.parametrize(("intervention", "answers", "code"), ADVICE)
def test_advice_is_given_and_stops_nothing(
    directory: Directory, intervention: str, answers: dict[str, Any], code: str
) -> None:
    raw = raw_of(directory, intervention)
    raw["answers"][intervention].pop("landlord_agrees", None)
    assert code not in codes(judge(directory, raw, intervention))

    raw["answers"][intervention].update(answers)
    found = judge(directory, raw, intervention)
    assert code in codes(found)
    assert found.ready


@pytest.mark.parametrize(
    ("told", "looked_at"),
    [
        (["incidents"], ["what", "place"]),
        (["incidents.place", "incidents.on"], ["place"]),
        (["incidents.what"], ["what"]),
        (["incidents.on"], []),
    ],
)
def test_of_an_incident_what_is_told_is_looked_at(
    directory: Directory, told: list[str], looked_at: list[str]
) -> None:
    facts = Facts(required=("location.place",), optional=tuple(told))
    place_only = directory.intervention("target-hardening").model_copy(update={"facts": facts})
    raw = raw_of(directory, "target-hardening")
    raw["people"] = {"victim": {"name": "Robin Instance"}}
    raw["incidents"][0] |= {"what": "To Robin Instance.", "place": "Robin Instance's home"}
    case, place = read_case(raw, directory, TODAY)
    found = assess(case, place, place_only, directory, TODAY)

    assert [one.where for one in found.blocks] == [f"incidents.1.{name}" for name in looked_at]


@pytest.mark.parametrize(
    ("intervention", "code", "blocked"),
    [
        ("victim-hardening", "VIC-002", True),
        ("fire-resistant-mailbox", "FIR-004", True),
        ("repeat-victim-panel", "RVP-004", False),
    ],
)
def test_another_persons_name_is_noticed(
    directory: Directory, intervention: str, code: str, blocked: bool
) -> None:
    """The suspect's name is not for a victim's helpers (UK GDPR art. 5(1)(c))."""
    raw = raw_of(directory, intervention)
    raw["people"]["other_party"] = {"name": "Robin Instance"}
    text = next(
        question.name
        for question in directory.intervention(intervention).fields
        if question.type == "text"
    )
    raw["answers"][intervention][text] = "It is Robin Instance again, as neighbours say."
    found = judge(directory, raw, intervention)

    assert code in codes(found)
    assert (code in blocks(found)) is blocked


@pytest.mark.parametrize(
    ("postcode", "advised"),
    [(None, False), ("NG2 3NG", False), ("NG5 6LU", True), ("SW1A 1AA", True), ("NG5 1ZZ", True)],
)
def test_a_home_in_another_area_is_pointed_out(
    directory: Directory, postcode: str | None, advised: bool
) -> None:
    raw = raw_of(directory, "victim-hardening")
    raw["location"] = {"area": "city"}
    raw["people"]["victim"]["postcode"] = postcode
    found = judge(directory, raw, "victim-hardening")

    assert ("GEN-006" in codes(found)) is advised
    assert found.ready


def test_a_home_that_the_agency_is_not_told_of_is_not_looked_at(directory: Directory) -> None:
    raw = raw_of(directory, "target-hardening")
    raw["people"] = {"victim": {"postcode": "SW1A 1AA"}}

    assert "GEN-006" not in codes(judge(directory, raw, "target-hardening"))


@pytest.mark.parametrize(
    ("verified_on", "advised"),
    [
        (None, True),
        (TODAY, False),
        (TODAY - timedelta(days=180), False),
        (TODAY - timedelta(days=181), True),
        (TODAY + timedelta(days=1), True),
    ],
)
def test_an_address_that_nobody_checked_lately_is_pointed_out(
    directory: Directory, verified_on: date | None, advised: bool
) -> None:
    agency = directory.agencies["victim-care"].model_copy(update={"verified_on": verified_on})
    checked = _with(directory, agency)
    found = judge(checked, raw_of(directory, "victim-hardening"), "victim-hardening")

    assert ("GEN-004" in codes(found)) is advised
    assert "GEN-005" in codes(found)


def _with(directory: Directory, agency: Any) -> Directory:
    return Directory(
        directory.regions,
        {**directory.agencies, agency.id: agency},
        directory.interventions,
        directory.postcodes,
    )


# --- what is missing, and every problem at once


def said_of(directory: Directory, raw: dict[str, Any], intervention: str) -> list[Problem]:
    """What is amiss with a case, whether the case itself or the intervention needs it."""
    try:
        return list(judge(directory, raw, intervention).problems)
    except CaseInvalid as error:
        return list(error.problems)


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_each_required_fact_is_asked_for_by_its_path(
    directory: Directory, intervention: str
) -> None:
    for path in directory.intervention(intervention).facts.required:
        raw = raw_of(directory, intervention)
        *groups, last = path.split(".")
        place: Any = raw
        for group in groups:
            place = place[group]
        where = path
        if isinstance(place, list):  # of every incident: it is the second that lacks it
            place, where = place[1], f"incidents.2.{last}"
        del place[last]
        assert (where, "missing") in wheres(said_of(directory, raw, intervention))


def test_a_fact_of_every_incident_is_asked_for_where_it_is_missing(directory: Directory) -> None:
    panel = directory.intervention("repeat-victim-panel")
    facts = panel.facts.model_copy(
        update={"required": ("incidents.reference", "incidents.on", "consents.young_person")}
    )  # whether there is a consent is the rules' matter
    strict = panel.model_copy(update={"facts": facts})
    raw = raw_of(directory, "repeat-victim-panel")
    del raw["incidents"][1]["reference"]
    case, place = read_case(raw, directory, TODAY)

    assert wheres(list(assess(case, place, strict, directory, TODAY).problems)) == [
        ("incidents.2.reference", "missing")
    ]
    raw["incidents"] = []
    case, place = read_case(raw, directory, TODAY)
    assert ("incidents", "missing") in wheres(
        list(assess(case, place, strict, directory, TODAY).problems)
    )


def test_a_case_that_did_not_ask_for_an_intervention_is_told_what_it_would_need(
    directory: Directory,
) -> None:
    raw = raw_of(directory, "police-dispersal-order")
    found = judge(directory, raw, "victim-hardening")

    asked = {problem.where for problem in found.problems}
    assert {"people.victim.name", "answers.victim-hardening.tenure"} <= asked
    assert blocks(found) == ["VIC-001"]
    assert found.may_fit


def test_every_problem_is_said_at_once(directory: Directory) -> None:
    raw = raw_of(directory, "mediation", "positive-engagement")
    raw["reference"] = "Smith"
    raw["referrer"]["email"] = "nowhere"
    raw["location"] = {"area": "town", "postcode": "NG5"}
    raw["people"]["victim"]["dob"] = "1985-01-01"
    raw["people"]["young_person"]["date_of_birth"] = "17th of May"
    raw["consents"][0]["how"] = "telepathy"
    raw["consents"][0]["interventions"] = ["mediation", "Mediations", "exile"]
    raw["consents"][1]["interventions"] = "mediation; meditation"
    raw["lawful_basis"] = {"basis": "because", "reason": "", "on": 5}
    raw["overrides"] = [override("MED-001", reason="No.")]
    raw["answers"]["mediation"]["party_a_tenure"] = "castle"
    raw["answers"]["mediation"]["disputes"] = "x"
    del raw["answers"]["positive-engagement"]["reason"]
    raw["answers"]["exile"] = {}
    problems = problems_of(directory, raw)

    assert wheres(problems) == [
        ("reference", "reference"),
        ("referrer.email", "email"),
        ("people.victim.(a key)", "unknown"),
        ("people.young_person.date_of_birth", "date"),
        ("consents.1.how", "enum"),
        ("lawful_basis.basis", "enum"),
        ("lawful_basis.reason", "missing"),
        ("lawful_basis.recorded_by", "missing"),
        ("lawful_basis.on", "date"),
        ("overrides.1.reason", "too-short"),
        ("location.area", "area"),
        ("location.postcode", "postcode"),
        ("answers.(a key)", "unknown"),
        ("consents.1.interventions", "unknown"),
        ("consents.1.interventions", "unknown"),
        ("consents.2.interventions", "unknown"),
        ("overrides.1.code", "override"),
        ("answers.mediation.party_a_tenure", "choice"),
        ("answers.mediation.disputes", "unknown"),
        ("answers.positive-engagement.reason", "missing"),
    ]
    for problem in problems:
        assert problem.what
        assert problem.remedy
    text = str(CaseInvalid(problems))
    assert text.startswith("The case has 20 problems to put right:")
    assert "Did you mean mediation?" in text
    assert "Did you mean dispute?" in text


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"location": None},
        {"location": []},
        {"answers": []},
        {"answers": {"mediation": []}},
        {"consents": {}},
        {"consents": [5]},
        {"consents": [{"interventions": 5}]},
        {"consents": [{"interventions": True}]},
        {"consents": [{"interventions": {"mediation": 1}}]},
        {"overrides": 1.5},
        {"overrides": [{"code": 5}]},
        {"people": "nobody"},
        {"incidents": [[]]},
        {"incidents": [{"on": "2026-11-01", "what": "x"}] * 201},
        {"reference": {"a": 1}},
    ],
)
def test_a_misshapen_case_is_a_problem_and_not_a_crash(
    directory: Directory, broken: dict[str, Any]
) -> None:
    for problem in problems_of(directory, broken):
        assert problem.where
        assert problem.what
        assert problem.remedy


# --- never an echo

CANARY = "Quetzal" + "Vanterpool"
NUMBER = int("86753" + "0986753")


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in entries:
        found += paths_in(inner, (*at, key))
    return found


def changed(raw: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(raw)
    place: Any = made
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    return made


HOSTILE: list[Any] = [
    CANARY,
    f"{CANARY} 12",
    f"{CANARY}@example.com",
    f"2026-11-01 {CANARY}",
    f"{CANARY}\x00",
    f"{CANARY}\n{CANARY}",
    f"{CANARY}\ud800",
    f"{{{{ {CANARY} }}}} {{what}} %s",
    CANARY * 3_000,
    NUMBER,
    float(NUMBER),
    [CANARY],
    [[CANARY], NUMBER],
    {CANARY: CANARY},
    {f"{CANARY}\ud800": NUMBER},
    {"name": {CANARY: [CANARY]}},
    [{CANARY: CANARY}],
]


def shown_of(error: CaseInvalid) -> str:
    """All that a person or a log may see of a refusal."""
    assert error.__cause__ is None
    assert error.__context__ is None
    assert all(problem.what and problem.remedy for problem in error.problems), error
    return "".join(traceback.format_exception(error)) + repr(error)


def test_no_problem_finding_or_repr_repeats_what_was_typed(directory: Directory) -> None:
    """At every place of a full case, every kind of wrong or hostile value."""
    raw = raw_of(directory, *INTERVENTIONS)
    raw["overrides"] = [override("MED-004")]
    refused = passed = 0
    for at in paths_in(raw)[1:]:
        for value in HOSTILE:
            try:
                case, place = read_case(changed(raw, at, value), directory, TODAY)
            except CaseInvalid as error:
                refused += 1
                shown = shown_of(error)
            else:
                passed += 1
                offered = at[1] if at[0] == "answers" else INTERVENTIONS[passed % 7]
                found = assess(case, place, directory.intervention(offered), directory, TODAY)
                shown = repr(case) + str(case) + repr(found) + str(found.problems)
                shown += "".join(f"{one!r}{one.text}{one.where}" for one in found.findings)
            assert CANARY not in shown, at
            assert str(NUMBER) not in shown, at
    assert refused > 1_000
    assert passed > 100


@pytest.mark.parametrize("value", [CANARY, NUMBER, None, [CANARY], {CANARY: 1}])
def test_an_unknown_key_is_not_repeated_unless_it_looks_like_one_of_ours(
    directory: Directory, value: Any
) -> None:
    """A key of our form is shown: without it, a slip of the pen could not be found."""
    raw = raw_of(directory, *INTERVENTIONS)
    groups = [at for at in paths_in(raw) if isinstance(_at(raw, at), dict)]
    for at in groups:
        for key in (CANARY, f"{CANARY} x", f"\ud800{CANARY}", f"1{CANARY}", "", "x" * 41):
            (problem, *_) = problems_of(directory, changed(raw, (*at, key), value))
            assert CANARY not in str(problem) + repr(problem)
            assert problem.remedy
    (problem,) = problems_of(directory, changed(raw, ("people", "victim", "adress"), value))
    assert (problem.where, problem.remedy) == ("people.victim.adress", "Did you mean address?")


def _at(value: Any, at: tuple[Any, ...]) -> Any:
    for key in at:
        value = value[key]
    return value
