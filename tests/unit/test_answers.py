"""Answers to an intervention's own questions, each by its type."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from referrals.answers import read_answer, read_answers, sample_on
from referrals.case import Sensitivity
from referrals.directory import Directory, Intervention, Option, Question, QuestionType

TODAY = date(2026, 11, 24)
OPTIONS = (
    Option(value="one-to-one", label="One to one, where necessary"),
    Option(value="group", label="Group work"),
)


def question(kind: str, **more: Any) -> Question:
    return Question.model_validate(
        {"name": "asked", "label": "Asked", "type": kind, "sensitivity": "special", **more}
    )


def read(kind: str, raw: Any, **more: Any) -> Any:
    return read_answer(question(kind, **more), raw)


@pytest.mark.parametrize(
    ("kind", "raw", "answer", "more"),
    [
        ("line", " a line ", "a line", {}),
        ("text", "two\r\nlines", "two\nlines", {}),
        ("text", "x" * 10, "x" * 10, {"min_length": 10, "max_length": 10}),
        ("yes-no", "Yes", True, {}),
        ("yes-no", False, False, {}),
        ("date", "31/01/2026", date(2026, 1, 31), {}),
        ("moment", "31/01/2026 18:00", datetime(2026, 1, 31, 18), {}),  # noqa: DTZ001
        ("number", 7, 7, {}),
        ("number", " -7 ", -7, {}),
        ("number", "3", 3, {"minimum": 3, "maximum": 3}),
        ("choice", "group", "group", {"options": OPTIONS}),
        ("choice", " GROUP WORK ", "group", {"options": OPTIONS}),
        ("choices", ["group"], ("group",), {"options": OPTIONS}),
        ("choices", "Group work; one-to-one; group", ("group", "one-to-one"), {"options": OPTIONS}),
    ],
)
def test_reads_an_answer_in_its_own_type(
    kind: str, raw: Any, answer: Any, more: dict[str, Any]
) -> None:
    found = read(kind, raw, **more)

    assert found == answer
    assert type(found) is type(answer)


@pytest.mark.parametrize(
    ("kind", "raw", "code", "more"),
    [
        ("line", "two\nlines", "one-line", {}),
        ("line", "  ", "missing", {}),
        ("text", 7, "text", {}),
        ("text", "x" * 9, "too-short", {"min_length": 10}),
        ("text", "x" * 11, "too-long", {"max_length": 10}),
        ("yes-no", 1, "yes-no", {}),
        ("date", "31/02/2026", "date", {}),
        ("moment", "31/01/2026", "moment", {}),
        ("number", "seven", "number", {}),
        ("number", "7.0", "number", {}),
        ("number", "\u0667", "number", {}),
        ("number", "9" * 10, "number", {}),
        ("number", 7.0, "number", {}),
        ("number", True, "number", {}),
        ("number", None, "number", {}),
        ("number", 2, "too-small", {"minimum": 3}),
        ("number", 4, "too-large", {"maximum": 3}),
        ("choice", "pair", "choice", {"options": OPTIONS}),
        ("choice", None, "choice", {"options": OPTIONS}),
        ("choice", ["group"], "choice", {"options": OPTIONS}),
        ("choices", [], "list", {"options": OPTIONS}),
        ("choices", " ; ", "list", {"options": OPTIONS}),
        ("choices", {"group": True}, "list", {"options": OPTIONS}),
        ("choices", ["group", "pair"], "choice", {"options": OPTIONS}),
        ("choices", [["group"]], "choice", {"options": OPTIONS}),
    ],
)
def test_refuses_what_is_not_an_answer(
    kind: str, raw: Any, code: str, more: dict[str, Any]
) -> None:
    with pytest.raises(PydanticCustomError) as refused:
        read(kind, raw, **more)

    assert refused.value.type == code
    assert (refused.value.context or {})["remedy"]


@pytest.mark.parametrize(
    ("sample", "reads"),
    [
        ("today", "2026-11-24"),
        ("today+7", "2026-12-01"),
        ("today-30", "2026-10-25"),
        ("today+2T18:00", "2026-11-26 18:00"),
        ("today 06:30", "2026-11-24 06:30"),
        ("todayish", "todayish"),
        (True, True),
        (["a"], ["a"]),
    ],
)
def test_a_sample_may_be_relative_to_today(sample: Any, reads: Any) -> None:
    assert sample_on(sample, TODAY) == reads


def test_a_referrer_may_not_write_relative_days() -> None:
    asked = question("date")

    assert read_answer(asked, "today+1", relative=True) == date(2026, 1, 2)
    with pytest.raises(PydanticCustomError):
        read_answer(asked, "today+1")


def intervention(*questions: Question) -> Intervention:
    return Intervention(
        id="talks",
        title="Talks",
        summary="A made-up intervention.",
        source="nowhere",
        template="talks",
        acknowledge_within_days=1,
        fields=questions,
    )


def asked(name: str, hint: str = "", label: str = "Asked", *, required: bool = True) -> Question:
    return Question(
        name=name,
        label=label,
        hint=hint,
        type=QuestionType.LINE,
        required=required,
        sensitivity=Sensitivity.PUBLIC,
    )


def test_says_every_problem_and_reads_the_rest() -> None:
    offered = intervention(
        asked("first", hint="The first."),
        asked("second", label="Is it?"),
        asked("third", label="Third"),
        asked("fourth", required=False),
        asked("fifth"),
    )

    answers, problems = read_answers(offered, {"fifth": "5", "fourth": 4, "forth": "x", "A b": 1})

    assert answers == {"fifth": "5"}
    assert [(problem.where, problem.code) for problem in problems] == [
        ("answers.talks.first", "missing"),
        ("answers.talks.second", "missing"),
        ("answers.talks.third", "missing"),
        ("answers.talks.fourth", "text"),
        ("answers.talks.forth", "unknown"),
        ("answers.talks.(a key)", "unknown"),
    ]
    assert [problem.remedy for problem in problems[:3]] == ["The first.", "Is it?", "Third."]
    assert "fourth" in problems[4].remedy


def test_every_required_question_of_every_intervention_is_asked_for(directory: Directory) -> None:
    for offered in directory.interventions.values():
        _, problems = read_answers(offered, {})
        assert [problem.where.rpartition(".")[2] for problem in problems] == [
            one.name for one in offered.fields if one.required
        ]
        assert all(problem.what == "is missing." and problem.remedy for problem in problems)
