"""Templates and values in, subject, text and HTML out.

The templates run in Jinja's sandbox; an undefined variable is an error; HTML is escaped, subject
and text never. A template sees what its intervention's config names, and nothing else of a case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache, lru_cache
from itertools import chain
from keyword import iskeyword
from pathlib import Path
from typing import Any

from jinja2 import BytecodeCache, FileSystemLoader, StrictUndefined, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import TemplateModule
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape
from pydantic import BaseModel

from referrals.case import Basis, Case, CaseModel, How, Record, Strand, age_on
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

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            raise AttributeError(name)
        return StrictUndefined(obj=self, name=name)

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


_READ_AS: Mapping[type, Callable[[Any], str]] = {
    date: lru_cache(maxsize=1024)(day_words),
    bool: lambda value: "Yes" if value else "No",
    Chosen: str,
    **dict.fromkeys((Record, Strand, How, Basis), _WORDS.__getitem__),
}


def shown(value: Any) -> Any:
    """How a value reads in a letter. Absent values must be guarded, not printed."""
    kind = type(value)
    if kind is str or kind is Markup:
        return value
    if kind in _READ_AS:
        return _READ_AS[kind](value)
    match value:
        case None:
            raise TemplateError("An absent value was printed: guard it with `if`.")
        case datetime():
            return f"{value:%H:%M} on {day_words(value)}"
        case tuple() | list():
            return "; ".join([str(shown(item)) for item in value])
        case _:
            return value


_TO_ESCAPE = re.compile("[&<>\"'\n]")


def _lines(value: Any) -> Markup:
    """Text over several lines as HTML, escaped."""
    if type(value) is Markup:
        return value
    text = value if type(value) is str else str(shown(value))
    if _TO_ESCAPE.search(text) is None:
        return _safe(text)
    return escape(text).replace("\n", _BREAK)


_BREAK = Markup("<br>\n")


def _safe(text: str) -> Markup:
    """`Markup(text)`, without looking for what a text doesn't have."""
    return str.__new__(Markup, text)


def _printed(value: Any) -> str:
    """What `{{ value }}` is in HTML: as `escape(shown(value))`, at a third of the cost."""
    text = value if type(value) is str else shown(value)
    return text if type(text) is str and _TO_ESCAPE.search(text) is None else escape(text)


def _hanging(value: Any) -> str:
    """Text over several lines set in, so that no line of it can pass for one of ours."""
    text = value if type(value) is str else str(shown(value))
    return re.sub(r"\n(?=[^\n])", "\n    ", text) if "\n" in text else text


def _given(rows: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Of rows of label and value, those that have a value."""
    return [
        row for row in rows if (value := row[1]) is not None and (value or type(value) is not list)
    ]


class _ShortWays(CodeGenerator):
    """Compiles what a letter does two hundred times into what takes Python least time.

    A value of a Group is taken from it, what needs neither words nor escaping is printed as it is,
    and a macro is called as the function that it is; for all else there is Jinja's own way in the
    other branch. `it` is set and used at once, and Jinja gives that name to nothing.
    """

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        self.writeline("from referrals.rendering import Group")
        super().visit_Template(node, frame)

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        name = node.attr
        if not name.isascii() or name.startswith("_") or iskeyword(name):
            super().visit_Getattr(node, frame)
            return
        self.write(f"(it.{name} if type(it := ")
        self.visit(node.node, frame)
        self.write(f") is Group else environment.getattr(it, {name!r}))")

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if node.kwargs or node.dyn_args or node.dyn_kwargs or forward_caller:
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        imported = isinstance(node.node, nodes.Getattr)
        constant = all(
            isinstance(one, nodes.Const) and isinstance(one.value, str) for one in node.args
        )
        say = "say_again" if imported and constant else "say"
        self.write(f"environment.{say}(context, ")
        self.visit(node.node, frame)
        self.signature(node, frame)
        self.write(")")

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("(it if type(it := ")

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile:
            super()._output_child_post(node, frame, finalize)
        elif frame.eval_ctx.autoescape:
            self.write(") is Markup else environment.printed(it))")
        else:
            self.write(") is str else str(environment.finalize(it)))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with what `_ShortWays` calls.

    A macro is a template's own, so that there is nothing to guard it from. What an imported one
    makes of constants, such as a heading, is kept for the next letter: it sees its arguments only.
    Templates stay as they are while we run, so that one that is loaded need not be looked for.
    """

    code_generator_class = _ShortWays
    printed = staticmethod(_printed)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.get_template = cache(super().get_template)  # type: ignore[method-assign]

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        # Copied for each part of a letter, which Jinja's ChainMap is slow at.
        return {**self.globals, **(d or {})}

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is TemplateModule and attribute[:1] != "_":
            try:
                return obj.__dict__[attribute]
            except KeyError:
                pass
        return super().getattr(obj, attribute)

    def say(self, context: Context, macro: Any, *values: Any) -> Any:
        if (
            type(macro) is not Macro
            or len(values) != len(macro.arguments)
            or macro.catch_varargs
            or macro.catch_kwargs
            or macro.caller
        ):
            return self.call(context, macro, *values)
        made = macro._func(*values)  # as Macro does, once it knows all that
        return _safe(made) if context.eval_ctx.autoescape else made

    def say_again(self, context: Context, macro: Any, *constants: str) -> Any:
        if type(macro) is Macro:
            return _said(macro, context.eval_ctx.autoescape, *constants)
        return self.call(context, macro, *constants)


@lru_cache(maxsize=512)
def _said(macro: Macro, autoescape: bool, *constants: str) -> str:
    made = str(macro(*constants))
    return _safe(made) if autoescape else made


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


def load_all(templates: ImmutableSandboxedEnvironment) -> list[Problem]:
    """Read every template now: what becomes of the files later changes nothing in these.

    Returns what is no template, naming file and line.
    """
    problems = []
    for name in templates.list_templates(extensions=["j2"]):
        try:
            templates.get_template(name)
        except Exception as error:
            problems.append(template_problem(name, error))
    return problems


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


# To ask whether something is a BaseModel takes as long as all else that is done with it.
_MODELS = frozenset(CaseModel.__subclasses__())


def _whole(model: BaseModel | None) -> Group | None:
    if model is None:
        return None
    return Group(
        {
            name: _whole(value) if type(value) in _MODELS else value
            for name, value in model.__dict__.items()
        }
    )


@lru_cache(maxsize=64)
def _tree(*paths: tuple[str, ...]) -> Mapping[str, Any]:
    """Dotted paths as groups within groups; what has nothing within it is wanted whole."""
    tree: dict[str, Any] = {}
    for path in chain(*paths):
        place = tree
        for part in path.split("."):
            place = place.setdefault(part, {})
    return tree


def _told(
    case: Case, intervention: Intervention, assessment: Assessment, today: date
) -> dict[str, Any]:
    """The facts that the config names, in the shape of the case."""
    facts = intervention.facts
    told: dict[str, Any] = {}
    for group, inner in _tree(facts.required, facts.optional).items():
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
        return _whole(value) if type(value) in _MODELS else value
    values = {}
    for name, rest in wanted.items():
        found = getattr(value, name, None)
        values[name] = _picked(found, rest) if rest or type(found) in _MODELS else found
    return Group(values)


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
