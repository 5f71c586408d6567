"""Each named check by itself: where it bites, and where it must not."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from referrals.case import Case
from referrals.rules import Answer, Circumstances, Finding, Level, Rule

TODAY = date(2026, 11, 24)
LONDON = ZoneInfo("Europe/London")


def rule(check: str, **more: Any) -> Rule:
    return Rule.model_validate(
        {
            "code": "TST-001",
            "text": "The rule's own words.",
            "source": "a test",
            "check": check,
            **more,
        }
    )


def case(**more: Any) -> Case:
    referrer = {"name": "S", "role": "PCSO", "organisation": "C", "email": "s@council.example.com"}
    return Case.model_validate(
        {"reference": "T-1", "referrer": referrer, "location": {"area": "city"}, **more}
    )


def seen(
    facts: Case | None = None,
    answers: dict[str, Answer] | None = None,
    texts: tuple[str, ...] = (),
    **more: Any,
) -> Circumstances:
    given: dict[str, Any] = {
        "case": facts or case(),
        "intervention_id": "talks",
        "answers": answers or {},
        "free_texts": tuple((f"text.{number}", text) for number, text in enumerate(texts, 1)),
        "unaddressed": {},
        "area": "city",
        "district": None,
        "area_served": True,
        "today": TODAY,
        "timezone": LONDON,
        **more,
    }
    return Circumstances(**given)


def bites(asked: Rule, circumstances: Circumstances) -> list[Finding]:
    return list(asked.findings(circumstances))


def person(role: str = "victim", **more: Any) -> Case:
    return case(people={role: more})


# --- what a rule may be


@pytest.mark.parametrize(
    "broken",
    [
        {"check": "answer-was", "answer": "x", "value": True},
        {"check": 7},
        {"check": "answer-is", "answer": "x"},
        {"check": "answer-is", "answer": "x", "value": True, "values": False},
        {"check": "notice", "code": "med-1"},
        {"check": "notice", "level": "warn"},
        {"check": "notice", "override": "anybody"},
        {"check": "notice", "text": "Short."},
        {"check": "incidents-at-least", "number": 0},
        {"check": "age-below", "person": "victim", "age": 131},
        {"check": "age-below", "person": "dog", "age": 18},
        {"check": "names-absent", "people": []},
        {"check": "span-at-most", "start": "a", "end": "b", "hours": 48},
    ],
)
def test_a_rule_that_is_wrongly_made_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        rule(**broken)


def test_a_rule_blocks_and_can_not_be_overridden_unless_it_says_so() -> None:
    (finding,) = bites(rule("notice"), seen())

    assert finding.level is Level.BLOCK
    assert finding.blocks
    assert not finding.overridable


OVERRIDE = {
    "code": "TST-001",
    "reason": "It is safe, as both say.",
    "authorised_by": "Chris",
    "on": "2026-11-01",
}


@pytest.mark.parametrize(
    ("level", "override", "code", "blocks"),
    [
        ("block", "supervisor", "TST-001", False),
        ("block", "supervisor", "TST-002", True),
        ("block", "never", "TST-001", True),
        ("advise", "supervisor", "TST-001", False),
        ("info", "never", "TST-001", False),
    ],
)
def test_a_supervisor_sets_aside_only_what_may_be_set_aside(
    level: str, override: str, code: str, blocks: bool
) -> None:
    facts = case(overrides=[{**OVERRIDE, "code": code}])
    (finding,) = bites(rule("notice", level=level, override=override), seen(facts))

    assert finding.blocks is blocks
    assert (finding.override is not None) == (
        (level, override, code) == ("block", "supervisor", "TST-001")
    )
    assert "Chris" not in repr(finding)


def test_circumstances_show_nothing_personal() -> None:
    facts = person(name="Alex Sample")

    assert "Alex" not in repr(seen(facts, {"told": "Alex"}, ("Alex Sample",)))


# --- age

BORN = {"20081125": 17, "20081124": 18, "20101125": 15, "20101124": 16, "20161125": 9}


@pytest.mark.parametrize(("born", "age"), BORN.items())
def test_age_rules_turn_on_the_birthday(born: str, age: int) -> None:
    facts = person("young_person", date_of_birth=f"{born[:4]}-{born[4:6]}-{born[6:]}")
    below = rule("age-below", person="young_person", age=18)
    least = rule("age-at-least", person="young_person", age=10)
    younger = rule("answered-if-younger", person="young_person", age=16, answers=["told", "why"])

    assert bool(bites(below, seen(facts))) == (age >= 18)
    assert bool(bites(least, seen(facts))) == (age < 10)
    assert bool(bites(younger, seen(facts))) == (age < 16)
    assert not bites(younger, seen(facts, {"told": True}))
    assert not bites(younger, seen(facts, {"told": False, "why": "It is not safe."}))
    assert bool(bites(younger, seen(facts, {"told": False}))) == (age < 16)


@pytest.mark.parametrize("facts", [case(), person("young_person", name="Charlie")])
def test_an_unknown_age_is_missing_and_not_young(facts: Case) -> None:
    (finding,) = bites(rule("age-below", person="young_person", age=18), seen(facts))

    assert finding.blocks
    assert finding.missing
    assert finding.where == "people.young_person.date_of_birth"
    assert not bites(rule("age-at-least", person="young_person", age=10), seen(facts))
    assert not bites(
        rule("answered-if-younger", person="young_person", age=16, answers=["told"]), seen(facts)
    )


# --- spans

SPAN: dict[str, Any] = {"start": "starts", "end": "ends", "hours": 48, "as_at": "2026-11-01"}


def span(start: str, end: str) -> list[Finding]:
    moments: dict[str, Answer] = {
        "starts": datetime.fromisoformat(start),
        "ends": datetime.fromisoformat(end),
    }
    return bites(rule("span-at-most", **SPAN), seen(answers=moments))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-12-01 18:00", "2026-12-03 18:00"),
        ("2026-12-01 18:00", "2026-12-01 18:01"),
        ("2026-12-31 12:00", "2027-01-02 12:00"),
        ("2028-02-28 12:00", "2028-03-01 12:00"),
        # Clocks go back on 25 October 2026: two days by the calendar are 49 hours.
        ("2026-10-23 18:00", "2026-10-25 17:00"),
        ("2026-10-25 12:00", "2026-10-27 12:00"),
        # Clocks go forward on 28 March 2027: two days by the calendar are 47 hours.
        ("2027-03-26 18:00", "2027-03-28 19:00"),
        ("2027-03-28 12:00", "2027-03-30 12:00"),
    ],
)
def test_up_to_48_hours_pass(start: str, end: str) -> None:
    assert span(start, end) == []


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-12-01 18:00", "2026-12-03 18:01"),
        ("2026-12-01 18:00", "2026-12-31 18:00"),
        ("2026-10-23 18:00", "2026-10-25 17:01"),
        ("2026-10-23 18:00", "2026-10-25 18:00"),
        ("2027-03-26 18:00", "2027-03-28 19:01"),
    ],
)
def test_a_minute_over_48_hours_does_not(start: str, end: str) -> None:
    (finding,) = span(start, end)

    assert finding.text == "The rule's own words."
    assert finding.where == "answers.talks.ends"


@pytest.mark.parametrize("end", ["2026-12-01 18:00", "2026-12-01 17:59", "2025-12-01 18:00"])
def test_an_end_is_after_its_start(end: str) -> None:
    (finding,) = span("2026-12-01 18:00", end)

    assert finding.blocks
    assert "not after the start" in finding.text


@given(st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)), st.integers(1, 48 * 60))  # noqa: DTZ001
def test_what_lasts_48_hours_at_most_passes_on_any_day(start: datetime, minutes: int) -> None:
    """As elapsed time, whatever the clocks do; the hour that comes twice is taken as the first."""
    began = start.replace(tzinfo=LONDON).astimezone(ZoneInfo("UTC"))
    ended = (began + timedelta(minutes=minutes)).astimezone(LONDON)
    began = began.astimezone(LONDON)
    if began.fold or ended.fold:
        return
    moments: dict[str, Answer] = {
        "starts": began.replace(tzinfo=None),
        "ends": ended.replace(tzinfo=None),
    }
    assert bites(rule("span-at-most", **SPAN), seen(answers=moments)) == []
    longer = {**SPAN, "hours": 1}
    assert bool(bites(rule("span-at-most", **longer), seen(answers=moments))) == (minutes > 60)


def test_without_both_ends_there_is_no_span() -> None:
    moments: dict[str, Answer] = {"starts": datetime(2026, 12, 1, 18)}  # noqa: DTZ001

    assert bites(rule("span-at-most", **SPAN), seen(answers=moments)) == []


# --- answers, incidents, places


@pytest.mark.parametrize(
    ("answer", "value", "hits"),
    [
        (True, True, 1),
        (False, True, 0),
        (False, False, 1),
        (None, False, 0),
        ("high", "high", 1),
        ("low", "high", 0),
        (("cctv", "patrols"), "cctv", 1),
        (("patrols",), "cctv", 0),
    ],
)
def test_answer_is(answer: Answer | None, value: bool | str, hits: int) -> None:
    answers = {} if answer is None else {"asked": answer}
    found = bites(rule("answer-is", answer="asked", value=value), seen(answers=answers))

    assert [finding.where for finding in found] == ["answers.talks.asked"] * hits


def incidents(number: int, reference: str | None = None) -> Case:
    one = {"on": "2026-11-01", "what": "Abuse.", "reference": reference}
    return case(incidents=[one] * number)


@pytest.mark.parametrize(("number", "hits"), [(0, 1), (1, 1), (2, 0), (3, 0)])
def test_enough_incidents_or_a_reason(number: int, hits: int) -> None:
    asked = rule("incidents-at-least", number=2, unless_answer="why")

    assert len(bites(asked, seen(incidents(number)))) == hits
    assert not bites(asked, seen(incidents(number), {"why": "It is urgent."}))
    assert len(bites(rule("incidents-at-least", number=2), seen(incidents(number)))) == hits


@pytest.mark.parametrize(
    ("facts", "answers", "hits"),
    [
        (incidents(0), {}, 1),
        (incidents(2), {}, 1),
        (incidents(1, "26*1"), {}, 0),
        (incidents(1), {"references": "26*1"}, 0),
    ],
)
def test_a_reference_stands_somewhere(facts: Case, answers: dict[str, Answer], hits: int) -> None:
    assert len(bites(rule("reference-listed", answer="references"), seen(facts, answers))) == hits


def test_a_reference_may_have_to_stand_with_an_incident() -> None:
    assert bites(rule("reference-listed"), seen(incidents(1), {"references": "26*1"}))


@pytest.mark.parametrize(
    ("area", "district", "hits"),
    [
        ("city", None, 0),
        ("county", "gedling", 0),
        ("county", "mansfield", 1),
        ("county", None, 1),
    ],
)
def test_district_among(area: str, district: str | None, hits: int) -> None:
    asked = rule("district-among", area="county", districts=["gedling"])

    assert len(bites(asked, seen(area=area, district=district))) == hits


def test_area_served() -> None:
    assert not bites(rule("area-served"), seen())
    assert bites(rule("area-served"), seen(area_served=False))


NO_ADDRESS = {"measures": {"cctv": "Nobody for cameras.", "pruning": "Nobody for pruning."}}


@pytest.mark.parametrize(
    ("chosen", "texts", "blocked"),
    [
        (("patrols",), [], False),
        (("patrols", "cctv"), ["Nobody for cameras."], False),
        (("cctv",), ["Nobody for cameras.", "The rule's own words."], True),
        (
            ("cctv", "pruning"),
            ["Nobody for cameras.", "Nobody for pruning.", "The rule's own words."],
            True,
        ),
        ("pruning", ["Nobody for pruning.", "The rule's own words."], True),
        (None, [], False),
    ],
)
def test_only_what_nobody_takes_stops_a_referral(
    chosen: Answer | None, texts: list[str], blocked: bool
) -> None:
    answers = {} if chosen is None else {"measures": chosen}
    found = bites(
        rule("addressed", answer="measures", level="advise"),
        seen(answers=answers, unaddressed=NO_ADDRESS),
    )

    assert [finding.text for finding in found] == texts
    assert any(finding.blocks for finding in found) is blocked


# --- words and names


@pytest.mark.parametrize(
    ("name", "text", "hits"),
    [
        ("Robin Instance", "It was Robin Instance.", 1),
        ("Robin Instance", "it was ROBIN\n  instance's friend", 1),
        ("Mr. Robin Instance", "robin instance", 1),
        ("Robin Instance", "Robinson Instances", 0),
        ("Robin Instance", "Robin was there.", 0),
        ("Mrs Green", "Mrs Green left.", 1),
        ("Green", "a green door", 0),  # one word alone is a name only as it is spelt
        ("Green", "by Green", 1),
        ("Dr", "Dr Who", 0),
        ("A.B (C*", "a.b (c* was here", 1),
    ],
)
def test_names_absent(name: str, text: str, hits: int) -> None:
    asked = rule("names-absent", people=["victim", "other_party"])
    found = bites(asked, seen(person("other_party", name=name), texts=("Nobody.", text)))

    assert [finding.where for finding in found] == ["text.2"] * hits
    assert all(name not in finding.text for finding in found)


def test_an_unnamed_person_is_nowhere() -> None:
    asked = rule("names-absent", people=["victim", "other_party"])

    assert not bites(asked, seen(person("victim", phone="0115 496 0000"), texts=("victim",)))


@pytest.mark.parametrize(
    ("text", "hits"),
    [
        ("The OFFENDER left.", 1),
        ("Two offenders.", 1),
        ("at fault", 1),
        ("No reoffender here.", 0),
        ("offenderly", 0),
        ("", 0),
    ],
)
def test_words_absent(text: str, hits: int) -> None:
    found = bites(rule("words-absent", words=["offender", "at fault"]), seen(texts=(text,)))

    assert [finding.where for finding in found] == ["text.1"] * hits
