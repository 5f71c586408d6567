"""Templates and values in, subject, text and HTML out.

The templates run in Jinja's sandbox; an undefined variable is an error; HTML is escaped, subject
and text never. A template sees what its intervention's config names, and nothing else of a case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import BytecodeCache, FileSystemLoader, StrictUndefined, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import TemplateModule
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape
from pydantic import BaseModel

from referrals.case import Case, age_on
from referrals.directory import Intervention, Question
from referrals.eligibility import Assessment
from referrals.errors import ConfigurationError, Problem
from referrals.rules import Answer
from referrals.texts import day_words


@dataclass(frozen=True)
class Letter:
    """A referral in words; the marking is not yet in it as a header."""

    subject: str
    text: str = field(repr=False)
    html: str = field(repr=False)


class Group:
    """Named values for a template. It can't itself be printed: that would tell everything."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__ = values

    def __str__(self) -> str:
        raise TemplateError("A group of values can't be printed: name one of its values.")

    __html__ = __str__

    def __repr__(self) -> str:
        return "Group()"


class Chosen(str):
    """A choice: prints its label, and keeps the value that the config gives it."""

    value: str

    @classmethod
    def of(cls, value: str, label: str) -> Chosen:
        made = cls(label)
        made.value = value
        return made

    def __repr__(self) -> str:
        return "Chosen()"


_WORDS = {
    "crime": "recorded as a crime",
    "non-crime": "recorded as a non-crime incident",
    "not-reported": "not reported to the police",
    "not-known": "not known",
    "in-person": "in person",
    "phone": "by phone",
    "video": "by video call",
    "writing": "in writing",
    "email": "by e-mail",
    "public-task": "public task (UK GDPR art. 6(1)(e))",
    "law-enforcement": "law enforcement purpose (DPA 2018 s.35)",
    "legal-obligation": "legal obligation (UK GDPR art. 6(1)(c))",
    "vital-interests": "vital interests (UK GDPR art. 6(1)(d))",
    "legitimate-interests": "legitimate interests (UK GDPR art. 6(1)(f))",
    "consent": "consent (UK GDPR art. 6(1)(a))",
    "disability": "disability",
    "race": "race or ethnicity",
    "religion": "religion or belief",
    "sexual-orientation": "sexual orientation",
    "transgender": "transgender identity",
    "other": "another ground",
}


def shown(value: Any) -> Any:
    """How a value reads in a letter. Absent values must be guarded, not printed."""
    kind = type(value)
    if kind is str or kind is Markup:
        return value
    if kind is date:
        return day_words(value)
    match value:
        case None:
            raise TemplateError("An absent value was printed: guard it with `if`.")
        case bool():
            return "Yes" if value else "No"
        case datetime():
            return f"{value:%H:%M} on {day_words(value)}"
        case date():
            return day_words(value)
        case Enum():
            return _WORDS[str(value.value)]
        case tuple() | list():
            return "; ".join(str(shown(item)) for item in value)
        case Chosen():
            return str(value)
        case _:
            return value


_TO_ESCAPE = re.compile("[&<>\"'\n]")


def _lines(value: Any) -> Markup:
    """Text over several lines as HTML, escaped."""
    return Markup(_as_html(value))  # noqa: S704


def _as_html(value: Any) -> str:
    if type(value) is Markup:
        return value
    text = value if type(value) is str else str(shown(value))
    if _TO_ESCAPE.search(text) is None:
        return text
    return Markup("<br>\n").join(escape(line) for line in text.split("\n"))


def _printed(value: Any) -> str:
    """What `{{ value }}` is in HTML: as `escape(shown(value))`, at a third of the cost."""
    kind = type(value)
    if kind is Markup:
        return value  # type: ignore[no-any-return]
    text = value if kind is str else shown(value)
    return text if type(text) is str and _TO_ESCAPE.search(text) is None else escape(text)


def _hanging(value: Any) -> str:
    """Text over several lines set in, so that no line of it can pass for one of ours."""
    text = str(shown(value))
    return re.sub(r"\n(?=[^\n])", "\n    ", text) if "\n" in text else text


def _given(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Of rows of label and value, those that have a value."""
    return [row for row in rows if row[1] is not None and row[1] != []]


class _OneCall(CodeGenerator):
    """Compiles `{{ value }}` in HTML into one call, where Jinja makes three and a new object."""

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.autoescape and not frame.eval_ctx.volatile:
            self.write("environment.printed(")
        else:
            super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.autoescape and not frame.eval_ctx.volatile:
            self.write(")")
        else:
            super()._output_child_post(node, frame, finalize)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with a short way for what a letter does two hundred times.

    A Group holds plain values and a macro is a template's own: neither has anything to guard. The
    rest goes the sandbox's long way. What a macro makes of texts alone, such as a heading, is kept
    for the next letter: its module sees nothing but its arguments.
    """

    code_generator_class = _OneCall
    printed = staticmethod(_printed)

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if (kind is Group or kind is TemplateModule) and attribute[:1] != "_":
            try:
                return obj.__dict__[attribute]
            except KeyError:
                pass
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if type(__obj) is not Macro:
            return super().call(__context, __obj, *args, **kwargs)
        kwargs.pop("_loop_vars", None)  # what Context.call takes out, too
        kwargs.pop("_block_vars", None)
        if not kwargs and _TEXTS.issuperset(map(type, args)):
            return _said(__obj, *args)
        return __obj(__context.eval_ctx, *args, **kwargs)


_TEXTS = frozenset({str, Markup})


@lru_cache(maxsize=512, typed=True)
def _said(macro: Macro, *texts: str) -> str:
    return macro(*texts)


def environment(
    folder: Path, compiled: BytecodeCache | None = None
) -> ImmutableSandboxedEnvironment:
    """Where templates live and what they may use: filters `lines` and `hanging`
    for a value, `given` for rows of label and value.

    `compiled` keeps what Jinja makes of them, so that the next start need not make it again.
    """
    made = _Sandbox(
        loader=FileSystemLoader(folder),
        bytecode_cache=compiled,
        undefined=StrictUndefined,
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters["lines"] = _lines
    made.filters["hanging"] = _hanging
    made.filters["given"] = _given
    return made


def letter_values(
    assessment: Assessment, *, reference: str, marking: str, today: date
) -> dict[str, Any]:
    """Everything that the intervention's templates may use, and nothing else."""
    case, intervention = assessment.case, assessment.intervention
    agency = assessment.agency
    values: dict[str, Any] = {
        "referral": Group(
            {
                "reference": reference,
                "case_reference": case.reference,
                "date": today,
                "acknowledge_by": intervention.acknowledge_by(today),
                "marking": marking,
            }
        ),
        "intervention": Group({"title": intervention.title, "id": intervention.id}),
        "agency": Group({"title": agency.title if agency else ""}),
        "referrer": _whole(case.referrer),
        "answers": Group(
            {
                question.name: _answer(question, assessment.answers.get(question.name))
                for question in intervention.fields
            }
        ),
    }
    overridden = [finding for finding in assessment.findings if finding.override]
    values["overrides"] = [
        Group(
            {
                "rule": finding.text,
                "reason": finding.override.reason,
                "authorised_by": finding.override.authorised_by,
                "on": finding.override.on,
            }
        )
        for finding in overridden
        if finding.override
    ]
    return values | _told(case, intervention, assessment, today)


def _answer(question: Question, answer: Answer | None) -> Any:
    if isinstance(answer, tuple):
        addressed = [value for value in answer if value not in question.unaddressed]
        return [Chosen.of(value, question.labels[value]) for value in addressed]
    if isinstance(answer, str) and question.options:
        return Chosen.of(answer, question.labels[answer])
    return answer


def _whole(model: BaseModel | None) -> Group | None:
    if model is None:
        return None
    values = dict(model)  # its fields, as they are
    for name, value in values.items():
        if isinstance(value, BaseModel):
            values[name] = _whole(value)
    return Group(values)


@lru_cache(maxsize=64)
def _tree(paths: tuple[str, ...]) -> Mapping[str, Any]:
    """Dotted paths as groups within groups; what has nothing within it is wanted whole."""
    tree: dict[str, Any] = {}
    for path in paths:
        place = tree
        for part in path.split("."):
            place = place.setdefault(part, {})
    return tree


def _told(
    case: Case, intervention: Intervention, assessment: Assessment, today: date
) -> dict[str, Any]:
    """The facts that the config names, in the shape of the case."""
    told: dict[str, Any] = {}
    for group, inner in _tree(tuple(intervention.facts)).items():
        match group:
            case "incidents":
                told[group] = [_picked(incident, inner) for incident in case.incidents]
            case "consents":
                told[group] = Group(
                    {role: _whole(case.consent_of(role, intervention.id)) for role in inner}
                )
            case "people":
                told[group] = Group(
                    {role: _person(case, role, wanted, today) for role, wanted in inner.items()}
                )
            case "location":
                told[group] = _place(assessment, inner)
            case "reference" | "referrer":
                continue  # always there
            case _:
                told[group] = _picked(getattr(case, group), inner)
    return told


def _person(case: Case, role: str, wanted: Mapping[str, Any], today: date) -> Any:
    person = case.person(role)
    made = _picked(person, wanted)
    if "date_of_birth" in wanted:
        born = person.date_of_birth if person else None
        made.__dict__["age"] = None if born is None else age_on(today, born)
    return made


def _place(assessment: Assessment, wanted: Mapping[str, Any]) -> Group:
    """Area and district by the names of the directory, however they were typed."""
    place, location = assessment.place, assessment.case.location
    values = {
        "area": place.area.title,
        "district": place.district.title if place.district else None,
        "postcode": location.postcode,
        "place": location.place,
    }
    return Group({name: value for name, value in values.items() if not wanted or name in wanted})


def _picked(value: Any, wanted: Mapping[str, Any]) -> Any:
    """The wanted part of a value. What a group lacks is None, so that no letter needs a guard."""
    if not wanted:
        return _whole(value) if isinstance(value, BaseModel) else value
    return Group({name: _picked(getattr(value, name, None), rest) for name, rest in wanted.items()})


def render(
    templates: ImmutableSandboxedEnvironment, folder: str, values: Mapping[str, Any]
) -> Letter:
    """The three parts of a letter.

    Raises:
        ConfigurationError: naming the file, the line and what is wrong with the template.
    """
    subject = _render(templates, f"{folder}/subject.txt.j2", values).strip()
    text = _render(templates, f"{folder}/body.txt.j2", values)
    html = _render(templates, f"{folder}/body.html.j2", values)
    return Letter(subject, text, html)


def _render(templates: ImmutableSandboxedEnvironment, name: str, values: Mapping[str, Any]) -> str:
    try:
        return templates.get_template(name).render(values)
    except Exception as error:
        # Whatever a template does wrong is the template's fault; its own text may hold values.
        raise ConfigurationError([template_problem(name, error)]) from None


def template_problem(name: str, error: Exception) -> Problem:
    """What is wrong with a template, without the values that it was given."""
    from jinja2 import TemplateNotFound, TemplateSyntaxError, UndefinedError

    file, line, source = _place_of(error, name)
    where = f"templates/email/{file}" + (f": line {line}" if line else "")
    match error:
        case TemplateNotFound():
            missing = str(error.name)
            wanted = missing if missing == name or missing in source else "a file"
            return Problem(where, f"needs {wanted}, which is not there.", "Write that file.")
        case TemplateSyntaxError():
            where = f"templates/email/{error.name or name}: line {error.lineno}"
            return Problem(where, f"is not a template: {error.message}", "Mend that line.")
        case UndefinedError():
            return Problem(
                where,
                f"uses {_undefined(error, source)}, which it is not given.",
                "Declare it in the intervention's facts or fields, or take it out.",
                "undefined",
            )
        case TemplateError():
            return Problem(where, str(error.message), "Mend the template.", "template")
        case _:
            kind = type(error).__name__
            return Problem(where, f"can't be rendered ({kind}).", "Mend the template.", "template")


def _undefined(error: Exception, source: str) -> str:
    """The name out of Jinja's own words, if the template has it: it could be a value else."""
    found = re.search(r"attribute '(\w+)'$|^'(\w+)' is undefined", str(error))
    name = (found[1] or found[2]) if found else ""
    return name if name and name in source else "a name"


def _place_of(error: Exception, name: str) -> tuple[str, int | None, str]:
    """The innermost template and line that an error came from, layouts included, and its text."""
    file, line, source = name, None, ""
    trace = error.__traceback__
    while trace is not None:
        code_file = Path(trace.tb_frame.f_code.co_filename)
        if code_file.suffix == ".j2":
            file, line = "/".join(code_file.parts[-2:]), trace.tb_lineno
            with suppress(OSError):
                source = code_file.read_text(encoding="utf-8")
        trace = trace.tb_next
    return file, line, source
