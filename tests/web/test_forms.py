"""A form's fields are those of the models and config/, and what is typed comes back as a case."""

from __future__ import annotations

from datetime import date

import pytest

from referrals.case import shared_facts
from referrals.case_files import flatten, unflatten
from referrals.directory import Directory
from referrals.errors import Problem
from referrals.samples import sample_case
from referrals.service import Service
from referrals.web.fields import (
    MOST_ITEMS,
    Field,
    Kind,
    cells_of,
    every_field,
    field_at,
    numbers,
    told,
    without,
)
from referrals.web.forms import case_form, details_form, fact, override_form, you_form
from referrals.web.reading import read
from tests.conftest import TODAY

DAY = Field("answers.x.day", "Day", Kind.DATE)
MOMENT = Field("answers.x.starts", "From", Kind.MOMENT)


def typed(name: str, *values: str) -> dict[str, list[str]]:
    parts = ("day", "month", "year", "time")
    return {f"{name}-{part}": [value] for part, value in zip(parts, values, strict=False)}


def test_asks_for_all_that_an_intervention_may_be_told(directory: Directory) -> None:
    """Each fact and question has a field of its very name, once, in one of the two forms."""
    for one in directory.interventions.values():
        groups = [*case_form(directory, {}), *details_form(directory, [one.id], {})]
        names = [field.name.replace("incidents.1.", "incidents.") for field in every_field(groups)]
        for path in one.facts:
            leaves = [
                leaf
                for leaf in shared_facts()
                if leaf == path or leaf.startswith(f"{path}.")
                if not any(other.startswith(f"{leaf}.") for other in shared_facts())
            ]
            wanted = {leaf for leaf in leaves if not leaf.startswith("consents.")}
            assert wanted <= set(names), path
        questions = [f"answers.{one.id}.{question.name}" for question in one.fields]
        assert [name for name in names if name.startswith("answers.")] == questions


def test_asks_for_what_several_share_once(directory: Directory) -> None:
    names = [
        field.name
        for field in every_field(details_form(directory, sorted(directory.interventions), {}))
    ]
    assert len(names) == len(set(names))
    assert names.count("people.victim.name") == 1


def test_asks_for_no_person_that_nobody_is_told_of(directory: Directory) -> None:
    groups = details_form(directory, ["victim-hardening"], {})
    assert not [one.name for one in every_field(groups) if "other_party" in one.name]
    assert [one.id for one in groups if one.id.startswith("people.")] == ["people.victim"]


def test_says_whom_a_fact_is_for_if_not_for_all(directory: Directory) -> None:
    groups = details_form(directory, ["mediation", "victim-hardening"], {})
    fields = {one.name: one for one in every_field(groups)}
    assert fields["people.victim.email"].note == "For Victim hardening."
    assert fields["people.victim.name"].note == ""


def test_marks_what_a_fact_needs_by_the_interventions_chosen(directory: Directory) -> None:
    named = {one.name: one for one in every_field(details_form(directory, ["mediation"], {}))}
    assert named["people.victim.address"].required
    assert named["people.victim.phone"].optional
    assert "people.victim.postcode" not in named  # mediation is not told of it
    assert fact("people.victim.phone").label == shared_facts()["people.victim.phone"].label


@pytest.mark.parametrize("number", range(7))
def test_gives_back_the_case_that_was_typed(service: Service, number: int) -> None:
    """A sample's cells, typed into the form's inputs, are its cells again."""
    chosen = [sorted(service.directory.interventions)[number]]
    raw = sample_case(service.directory, chosen, TODAY)
    cells = dict(flatten(raw))
    values: dict[str, list[str]] = {
        name: [cell] for name, cell in cells.items() if name.endswith(".person")
    }
    groups = [
        you_form(),
        *case_form(service.directory, {name: [""] for name in cells}),
        *details_form(service.directory, chosen, values),
    ]
    for one in every_field(groups):
        cell = cells.get(one.name, "")
        if cell and one.kind in (Kind.DATE, Kind.MOMENT):
            day, _, time = cell.partition(" ")
            values |= typed(one.name, *(part.lstrip("0") for part in day.split("-")[::-1]), time)
        elif cell:
            values[one.name] = cell.split("; ") if one.kind is Kind.CHOICES else [cell]
    found = cells_of(groups, values)
    assert unflatten(found.items()) == unflatten(cells.items())
    reading = read(service, found)
    assert reading.case == service.read(unflatten(cells.items()))[0]
    assert not reading.problems


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        (("7", "3", "2026"), "2026-03-07"),
        ((" 07 ", "03", "2026"), "2026-03-07"),
        (("", "", ""), ""),
        ((" ", "", ""), ""),
        (("7", "", "2026"), "2026--07"),
        (("7", "3", "26"), "26-03-07"),
    ],
)
def test_makes_one_day_of_three_inputs(values: tuple[str, ...], cell: str) -> None:
    assert DAY.cell(typed(DAY.name, *values)) == cell


@pytest.mark.parametrize(
    ("time", "cell"), [("18:00", "18:00"), ("9:05", "09:05"), ("18.30", "18:30"), ("six", "six")]
)
def test_makes_one_moment_of_four_inputs(time: str, cell: str) -> None:
    assert MOMENT.cell(typed(MOMENT.name, "7", "3", "2026", time)) == f"2026-03-07 {cell}"


def test_says_which_part_of_a_day_is_absent() -> None:
    problem = Problem(DAY.name, "is not a date.", "Write it as 2026-01-31 or 31/01/2026.", "date")
    assert told(problem, DAY, typed(DAY.name, "7", "", "")) == "Day needs a month and year."
    assert told(problem, DAY, typed(DAY.name, "31", "2", "2026")).startswith(
        "Day is not a real day."
    )


def test_reads_a_value_back_in_words(directory: Directory) -> None:
    assert DAY.words(typed(DAY.name, "7", "3", "2026")) == "7 March 2026"
    assert MOMENT.words(typed(MOMENT.name, "7", "3", "2026", "18:00")) == "18:00 on 7 March 2026"
    assert DAY.words(typed(DAY.name, "31", "2", "2026")) == "31 2 2026"
    record = fact("incidents.record")
    assert record.words({record.name: ["crime"]}) == "Recorded as a crime"


def test_takes_a_record_that_only_names_its_person_for_none(directory: Directory) -> None:
    values = {"consents.1.person": ["victim"], "consents.2.person": ["other_party"]}
    groups = details_form(directory, ["mediation"], values)
    assert cells_of(groups, values) == {}
    values["consents.2.given"] = ["no"]
    assert cells_of(groups, values) == {
        "consents.2.given": "no",
        "consents.2.person": "other_party",
    }


def test_says_a_problem_at_the_number_that_its_field_has(service: Service) -> None:
    """Blank items between are no items to the core, which counts from 1 without gaps."""
    cells = {
        "reference": "CASE-1",
        "location.area": "city",
        "referrer.name": "Sam Officer",
        "referrer.role": "PCSO",
        "referrer.organisation": "Council",
        "referrer.email": "sam@council.example.com",
        "incidents.3.on": "2026-01-03",
        "incidents.3.what": "One",
        "incidents.7.on": "not a day",
        "incidents.7.what": "Two",
        "incidents.9.what": "Three",
    }
    reading = read(service, cells)
    assert [problem.where for problem in reading.problems if "incidents" in problem.where] == [
        "incidents.7.on",
        "incidents.9.on",
    ]
    assert reading.case is not None
    assert len(reading.case.incidents) == 1
    # What the rules say of the rest is there at once.
    assessment = reading.assess(service, "mediation")
    assert assessment is not None
    lacking = [problem.where for problem in reading.lacking([assessment])]
    assert "people.victim.name" in lacking
    assert lacking.count("incidents.7.on") == 1


def test_a_part_that_cannot_be_read_is_not_missing_besides(service: Service) -> None:
    cells = dict(flatten(sample_case(service.directory, ["repeat-victim-panel"], TODAY)))
    cells = {name: cell for name, cell in cells.items() if not name.startswith("incidents.2.")}
    cells["people.victim.name"] = "Alex\nSample"
    cells["incidents.1.on"] = "not a day"
    reading = read(service, cells)
    assessment = reading.assess(service, "repeat-victim-panel")
    assert assessment is not None
    assert {problem.where for problem in assessment.problems} >= {"people.victim.name", "incidents"}
    assert [(one.where, one.code) for one in reading.lacking([assessment])] == [
        ("incidents.1.on", "date"),
        ("people.victim.name", "one-line"),
    ]


def test_nothing_is_made_of_a_case_with_a_mistake_in_it(service: Service) -> None:
    """Even where the mistake is in something that may be left out."""
    cells = dict(flatten(sample_case(service.directory, ["victim-hardening"], TODAY)))
    cells["people.victim.phone"] = "one\ntwo"
    reading = read(service, cells)
    assessment = reading.assess(service, "victim-hardening")
    assert assessment is not None
    assert assessment.ready
    assert not reading.is_ready(assessment)


@pytest.mark.parametrize(
    "name",
    [
        "incidents.²0.what",
        "incidents.0.what",
        "incidents.-1.what",
        f"incidents.{'9' * 5000}.what",
        "incidents.1",
        "incidents.1.what.more",
        "incidents..what",
    ],
)
def test_counts_only_what_an_item_is_called(name: str) -> None:
    assert numbers({name: ["x"]}, "incidents") == []


def test_shows_as_many_items_as_a_case_may_have(directory: Directory) -> None:
    values = {f"incidents.{number}.what": ["x"] for number in range(1, 1_000)}
    assert len(numbers(values, "incidents")) == MOST_ITEMS


def test_closes_the_gap_that_a_removed_item_leaves() -> None:
    values = {"incidents.1.what": ["a"], "incidents.2.what": ["b"], "incidents.3.what": ["c"]}
    assert without(values, "incidents", 2) == {
        "incidents.1.what": ["a"],
        "incidents.2.what": ["c"],
    }


def test_finds_the_field_of_what_lies_within_or_around_it(directory: Directory) -> None:
    fields = list(every_field(case_form(directory, {"incidents.2.what": ["x"]})))

    def name(where: str) -> str | None:
        found = field_at(where, fields)
        return found.name if found else None

    assert name("incidents.2.on") == "incidents.2.on"
    assert name("incidents.2.on.extra") == "incidents.2.on"
    assert name("incidents") == "incidents.2.on"
    assert name("location") == "location.area"
    assert name("answers.mediation.began") is None


def test_asks_for_a_decision_without_its_rule() -> None:
    assert [one.name for one in override_form(2).fields] == [
        "overrides.2.reason",
        "overrides.2.authorised_by",
        "overrides.2.on",
    ]


def test_a_day_to_come_is_refused_at_its_field(service: Service) -> None:
    cells = {"reference": "CASE-1", "location.area": "city", "incidents.1.what": "x"}
    cells["incidents.1.on"] = date(TODAY.year + 1, 1, 1).isoformat()
    found = read(service, cells)
    assert "future" in {one.code for one in found.problems if one.where == "incidents.1.on"}
