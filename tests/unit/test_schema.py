"""The JSON Schema of a case takes what we take, and refuses what we refuse."""

from __future__ import annotations

import copy
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from referrals.case import Sensitivity
from referrals.case_files import parse
from referrals.directory import Directory, Option, Question, QuestionType
from referrals.directory_files import read_directory
from referrals.samples import sample_case
from referrals.schema import answers_schema, case_schema
from tests.conftest import CONFIG, TEMPLATES

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 24)
INTERVENTIONS = sorted(path.stem for path in (ROOT / "config/interventions").glob("*.toml"))


@cache
def checker(intervention: str | None = None) -> Draft202012Validator:
    directory = read_directory(CONFIG, TEMPLATES)
    offered = directory.intervention(intervention) if intervention else None
    schema = case_schema(directory, offered)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(found: Draft202012Validator, raw: Any) -> list[str]:
    return [error.json_path for error in found.iter_errors(raw)]


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_it_takes_the_sample_of_each_intervention(directory: Directory, intervention: str) -> None:
    raw = sample_case(directory, [intervention], TODAY)

    assert faults(checker(), raw) == []
    assert faults(checker(intervention), raw) == []


@pytest.mark.parametrize("name", ["city.json", "mediation.json"])
def test_it_takes_the_sample_files(directory: Directory, name: str) -> None:
    (raw,) = parse((ROOT / "samples" / name).read_bytes(), name)

    assert faults(checker(), raw) == []
    for intervention in raw["answers"]:
        assert faults(checker(intervention), raw) == []


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_it_asks_for_each_required_answer(directory: Directory, intervention: str) -> None:
    for question in directory.intervention(intervention).fields:
        raw = sample_case(directory, [intervention], TODAY)
        raw["answers"][intervention].pop(question.name, None)
        found = [list(error.path) for error in checker().iter_errors(raw)]
        assert found == ([["answers", intervention]] if question.required else [])


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_it_asks_for_each_required_fact_of_the_intervention(
    directory: Directory, intervention: str
) -> None:
    needed = checker(intervention)
    for path in directory.intervention(intervention).facts.required:
        raw = sample_case(directory, [intervention], TODAY)
        *groups, last = path.split(".")
        place: Any = raw
        for group in groups:
            place = place[group]
        del (place[1] if isinstance(place, list) else place)[last]
        assert faults(needed, raw)
    bare = sample_case(directory, [intervention], TODAY)
    del bare["answers"][intervention]
    assert faults(needed, bare) == ["$.answers"]
    del bare["answers"]
    assert "$" in faults(needed, bare)


def change(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(raw)
    *groups, last = path.split("/")
    place: Any = made
    for group in groups:
        place = place[int(group)] if isinstance(place, list) else place[group]
    place[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("notes", "x"),
        ("people/witness", {}),
        ("people/victim/dob", "1985-01-01"),
        ("people/victim/name", 7),
        ("location", {"place": "Market Square"}),
        ("referrer/email", None),
        ("consents/0/given", "yes"),
        ("consents/0/given", 1),
        ("consents/0/on", "17th of May"),
        ("consents/0/on", "2026-1-1"),
        ("consents/0/on", 20261101),
        ("consents/0/how", "telepathy"),
        ("consents/0/person", "witness"),
        ("consents/0/interventions", []),
        ("incidents/0/record", "maybe"),
        ("answers/exile", {}),
        ("answers/target-hardening/notes", "x"),
        ("answers/target-hardening/measures", []),
        ("answers/target-hardening/measures", ["moat"]),
        ("answers/target-hardening/pattern", "short"),
        ("answers/target-hardening/from_day", "soon"),
        ("answers/mediation/party_a_tenure", "castle"),
        ("answers/mediation/domestic_abuse", "no"),
        ("answers/police-dispersal-order/starts", "2026-12-01"),
        ("answers/police-dispersal-order/starts", "2026-12-01 18:00Z"),
    ],
)
def test_it_refuses_what_we_refuse(directory: Directory, path: str, value: Any) -> None:
    raw = sample_case(directory, INTERVENTIONS, TODAY)
    found = checker()
    assert faults(found, raw) == []

    assert faults(found, change(raw, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("consents/0/on", "31/01/2026"),
        ("people/young_person/date_of_birth", "17/05/2013"),
        ("answers/police-dispersal-order/starts", "31/01/2026T18:00:00"),
        ("people/victim/phone", None),
        ("location", {"postcode": "NG5 6LU"}),
        ("lawful_basis", None),
    ],
)
def test_it_takes_the_other_ways_of_writing(directory: Directory, path: str, value: Any) -> None:
    raw = sample_case(directory, INTERVENTIONS, TODAY)

    assert faults(checker(), change(raw, path, value)) == []


def test_every_type_of_question_has_its_schema(directory: Directory) -> None:
    options = (Option(value="one", label="One"), Option(value="two", label="Two"))
    more: dict[QuestionType, dict[str, Any]] = {
        QuestionType.CHOICE: {"options": options},
        QuestionType.CHOICES: {"options": options},
        QuestionType.NUMBER: {"minimum": 1, "maximum": 3},
        QuestionType.LINE: {"max_length": 5, "hint": "Five at most."},
    }
    fields = tuple(
        Question(
            name=kind.value.replace("-", "_"),
            label=kind.value,
            type=kind,
            sensitivity=Sensitivity.PUBLIC,
            **more.get(kind, {}),
        )
        for kind in QuestionType
    )
    free = Question(
        name="free", label="Free", type=QuestionType.NUMBER, sensitivity=Sensitivity.PUBLIC
    )
    offered = directory.intervention("mediation").model_copy(update={"fields": (*fields, free)})
    schema = answers_schema(offered)
    Draft202012Validator.check_schema(schema)
    found = Draft202012Validator(schema)

    right = {
        "line": "12345",
        "text": "x",
        "choice": "one",
        "choices": ["one", "two"],
        "yes_no": False,
        "date": "2026-01-31",
        "moment": "2026-01-31 18:00",
        "number": 3,
        "free": -1_000,
    }
    assert faults(found, right) == []
    wrong = {
        "line": "123456",
        "text": "",
        "choice": "three",
        "choices": "one",
        "yes_no": "no",
        "date": "2026-01-31 18:00",
        "moment": "18:00",
        "number": 4,
        "free": "7",
    }
    for key, value in wrong.items():
        assert faults(found, right | {key: value}), key
    assert schema["properties"]["line"]["description"] == "Five at most."
