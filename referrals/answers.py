"""An intervention's own questions: reading what was answered, and saying what was not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

from pydantic_core import PydanticCustomError

from referrals.directory import Intervention, Question, QuestionType
from referrals.errors import Problem
from referrals.problems import path_of, unknown_key
from referrals.rules import Answer
from referrals.texts import (
    as_date,
    as_moment,
    as_yes_no,
    fault,
    given_line,
    given_text,
    split_list,
)

_RELATIVE = re.compile(r"today(?:([+-]\d{1,4}))?(?:[T ](\d{2}):(\d{2}))?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,9}", re.ASCII)


def read_answer(question: Question, raw: Any, *, relative: bool = False) -> Answer:
    """The answer in its own type.

    `relative` lets a sample say `today+2` or `today+2T18:00`.

    Raises:
        PydanticCustomError: with what is wrong and what would be right.
    """
    if relative:
        raw = sample_on(raw, date(2026, 1, 1))
    return _READERS[question.type](question, raw)


def _sized(question: Question, text: str) -> str:
    if len(text) < question.min_length:
        raise fault("too-short", "is too short.", f"Use {question.min_length} characters or more.")
    if question.max_length and len(text) > question.max_length:
        raise fault("too-long", "is too long.", f"Use {question.max_length} characters at most.")
    return text


def _number(question: Question, raw: Any) -> int:
    if isinstance(raw, str) and _WHOLE.fullmatch(raw.strip()):
        raw = int(raw)
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise fault("number", "is not a whole number.", "Write it in digits.")
    low, high = question.minimum, question.maximum
    if low is not None and raw < low:
        raise fault("too-small", "is too small.", f"Use {low} or more.")
    if high is not None and raw > high:
        raise fault("too-large", "is too large.", f"Use {high} or less.")
    return raw


def _option(question: Question, raw: Any) -> str:
    found = question.values.get(raw.strip().casefold()) if isinstance(raw, str) else None
    if found is not None:
        return found
    values = ", ".join(option.value for option in question.options)
    raise fault("choice", "is not one of the choices.", f"Use one of: {values}.")


def _options(question: Question, raw: Any) -> tuple[str, ...]:
    parts = split_list(raw)
    if not isinstance(parts, list) or not parts:
        raise fault("list", "is not a list.", 'Write it as ["one", "two"] (one; two in a CSV).')
    return tuple(dict.fromkeys(_option(question, part) for part in parts))


_READERS: Mapping[QuestionType, Callable[[Question, Any], Answer]] = {
    QuestionType.LINE: lambda question, raw: _sized(question, given_line(raw)),
    QuestionType.TEXT: lambda question, raw: _sized(question, given_text(raw)),
    QuestionType.YES_NO: lambda _, raw: as_yes_no(raw),
    QuestionType.DATE: lambda _, raw: as_date(raw),
    QuestionType.MOMENT: lambda _, raw: as_moment(raw),
    QuestionType.NUMBER: _number,
    QuestionType.CHOICE: _option,
    QuestionType.CHOICES: _options,
}


def sample_on(raw: Any, today: date) -> Any:
    """A sample as it reads on a day: `today-30` becomes that date."""
    found = _RELATIVE.fullmatch(raw) if isinstance(raw, str) else None
    if found is None:
        return raw
    day = today + timedelta(days=int(found[1] or 0))
    if found[2] is None:
        return day.isoformat()
    moment = datetime.combine(day, time(int(found[2]), int(found[3])))
    return moment.isoformat(" ", "minutes")


def read_answers(
    intervention: Intervention, raw: Mapping[str, Any]
) -> tuple[dict[str, Answer], list[Problem]]:
    """All answers that can be read, and every problem with the others."""
    answers: dict[str, Answer] = {}
    problems: list[Problem] = []
    known = 0
    for question in intervention.fields:
        name = question.name
        if name not in raw:
            if question.required:
                where = f"answers.{intervention.id}.{name}"
                problems.append(Problem(where, "is missing.", _ask(question), "missing"))
            continue
        known += 1
        try:
            answers[name] = read_answer(question, raw[name])
        except PydanticCustomError as error:
            words = error.context or {}
            where = f"answers.{intervention.id}.{name}"
            problems.append(Problem(where, words["what"], words["remedy"], error.type))
    if known < len(raw):
        problems += _strangers(intervention, raw, f"answers.{intervention.id}")
    return answers, problems


def _ask(question: Question) -> str:
    text = question.hint or question.label
    return text if text.endswith((".", "?")) else f"{text}."


def _strangers(intervention: Intervention, raw: Mapping[str, Any], place: str) -> Iterator[Problem]:
    known = [question.name for question in intervention.fields]
    for key in raw:
        if key not in known:
            yield unknown_key(f"{place}.{path_of([key])}", key, known, private=True)
