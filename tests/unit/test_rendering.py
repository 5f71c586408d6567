"""Templates: what they may do, what they are told, and how values read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from referrals import case
from referrals.case import Record, Strand
from referrals.directory import Directory
from referrals.errors import ConfigurationError, Problem
from referrals.rendering import Chosen, Group, Letter, environment, letter_values, render, shown
from referrals.samples import sample_case
from referrals.service import Service

TODAY = date(2026, 11, 24)
CANARY = "qz-canary-zq"
PARTS = ("subject.txt.j2", "body.txt.j2", "body.html.j2")


def write(folder: Path, name: str = "letter", **parts: str) -> None:
    """A letter of three parts; those not given are plain."""
    (folder / name).mkdir(exist_ok=True)
    for part in PARTS:
        text = parts.get(part.removesuffix(".j2").replace(".", "_"), "plain")
        (folder / name / part).write_text(text, encoding="utf-8")


def rendered(folder: Path, values: Mapping[str, Any], **parts: str) -> Letter:
    write(folder, **parts)
    return render(environment(folder), "letter", values)


def problem_of(folder: Path, values: Mapping[str, Any], **parts: str) -> Problem:
    with pytest.raises(ConfigurationError) as raised:
        rendered(folder, values, **parts)
    assert CANARY not in str(raised.value)
    assert raised.value.__suppress_context__
    (problem,) = raised.value.problems
    return problem


def text_of(folder: Path, template: str, **values: Any) -> str:
    return rendered(folder, values, body_txt=template).text


def html_of(folder: Path, template: str, **values: Any) -> str:
    return rendered(folder, values, body_html=template).html


# The sandbox


class Thing:
    """Says what it is in HTML by itself."""

    def __html__(self) -> str:
        return "<b>Thing</b>"


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        '<b> & "it\'s"',
        "two\nlines",
        Markup("<i>as it is</i>"),
        7,
        1.5,
        True,
        TODAY,
        Thing(),
        datetime(2026, 11, 24, 9, 30),  # noqa: DTZ001
        Strand.RACE,
        ("one", "<two>"),
        Chosen.of("a", "A & B"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_short_ways_give_what_jinja_gives(tmp_path: Path, value: Any) -> None:
    """We compile and call some things ourselves, to be quick."""
    template = """
        {%- macro name(a, b="-") -%}
        [{{ a }}|{{ b }}|{{ caller() if caller is defined else "" }}]
        {%- endmacro %}
        {%- macro texts(a) %}({{ a }}){% endmacro %}
        {{ value }} {{ name(value) }} {{ name(value, b=value) }} {{ texts("a<b") }}
        {{ group.it }}
        {% for one in [value, value] %}{{ name(one, one) }}{{ loop.index }}{% endfor %}
        {% call name(value) %}{{ value }}{% endcall %} {{ value|lines }}
        {{ group.nothing is defined }}
    """
    values = {"value": value, "group": Group({"it": value})}
    write(tmp_path, body_html=template, body_txt=template)
    assert_as_jinja(tmp_path, values)


@pytest.mark.parametrize(
    "template",
    [
        "{{ it.it.it }} {{ it.class }} {{ it.it.no is defined }} {{ it.no is defined }}",
        "{% for one in list if one.it %}{{ one.it }}{% else %}none{% endfor %}",
        "{% set made %}{{ it.it.it }}{% endset %}{{ made }}",
        "{% filter upper %}{{ it.class }}{% endfilter %}",
        "{% macro m(a, b=it.class) %}{{ a }}{{ b }}{% endmacro %}{{ m('x') }}{{ m('x', '&') }}",
        "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m('x', 'y', z='&') }}",
        "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m('x') }}",
        "{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m('x') }}",
        "{% macro m(a) %}{{ caller() }}{{ caller() }}{% endmacro %}{% call m('x') %}&{% endcall %}",
        "{% set n = namespace(i=0) %}{% macro m(a) %}{% set n.i = n.i + 1 %}{{ n.i }}{% endmacro %}"
        "{{ m('x') }}{{ m('x') }}",
        '{% import "other" as say %}{{ say.m("a", "<b>") }}{{ say.m("a", it.class) }}{{ say.m("a",'
        ' "<b>") }}{{ say.m(b="<b>", a="c") }}',
        '{% import "other" as say %}{{ say.all("a", ["&", "b"]) if list else "" }}',
        '{% import "other.html.j2" as say %}{{ say.m("a", "<b>") + it.class }}',
        '{% from "other" import m with context %}{{ m("a", "b") }}',
        "{{ 'a%s'|format(it.class) }} {{ 'a'.upper() }} {{ range(3)|join(it.class) }}",
        "{% autoescape false %}{{ it.class }}{% endautoescape %}",
        "{% autoescape list %}{{ it.class }}{{ [1] }}{% endautoescape %}",
    ],
)
def test_other_ways_to_write_a_letter_give_what_jinja_gives(tmp_path: Path, template: str) -> None:
    for name in ("other", "other.html.j2"):
        (tmp_path / name).write_text(
            "{% macro m(a, b) %}<{{ a }}{{ b }}>{% endmacro %}"
            "{% macro all(a, list) %}{% for one in list %}{{ a }}{{ one }}{% endfor %}"
            "{% endmacro %}",
            encoding="utf-8",
        )
    inner = Group({"it": "<it>"})
    values = {"it": Group({"it": inner, "class": "<&>"}), "list": [inner, Group({"it": None})]}
    write(tmp_path, body_html=template, body_txt=template)
    assert_as_jinja(tmp_path, values)


def assert_as_jinja(folder: Path, values: Mapping[str, Any]) -> None:
    ours, theirs = environment(folder), ImmutableSandboxedEnvironment()
    settings = "loader undefined autoescape finalize filters trim_blocks lstrip_blocks"
    for name in [*settings.split(), "keep_trailing_newline"]:
        setattr(theirs, name, getattr(ours, name))

    for part in PARTS:
        one, other = (each.get_template(f"letter/{part}") for each in (ours, theirs))
        for _ in range(2):
            assert one.render(values) == other.render(values)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ (''|attr('__class__')) }}",
        "{{ value.__init__.__globals__ }}",
        "{{ group.__dict__ }}",
        "{{ group.__init__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ self.__init__ }}",
        "{{ '%s'.format.__self__ }}",
        "{{ '{0.__class__}'.format(group) }}",
        "{{ list.append(1) }}",
        "{{ range(10000000)|list|length }}",
    ],
)
@pytest.mark.parametrize("part", ["subject_txt", "body_txt", "body_html"])
def test_a_template_can_t_get_out_of_the_sandbox(tmp_path: Path, template: str, part: str) -> None:
    values = {"value": CANARY, "group": Group({"name": CANARY}), "list": [CANARY]}
    problem = problem_of(tmp_path, values, **{part: f"one\n{template}"})
    assert problem.where.startswith("templates/email/letter/")
    assert "line 2" in problem.where


@pytest.mark.parametrize(
    "value",
    ["{{ 7*7 }}", "{% for x in y %}", "{# gone #}", "{{ ''.__class__ }}", "# line", "{%- raw -%}"],
)
def test_a_value_with_template_syntax_arrives_as_written(tmp_path: Path, value: str) -> None:
    letter = rendered(
        tmp_path,
        {"value": value},
        subject_txt="{{ value }}",
        body_txt="{{ value|hanging }}",
        body_html="<p>{{ value|lines }}</p>",
    )
    assert (letter.subject, letter.text) == (value, value)
    assert letter.html == f"<p>{value}</p>".replace("'", "&#39;")


# What is absent or too much


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ nobody }}", "uses nobody, which it is not given."),
        ("{{ group.nobody }}", "uses nobody, which it is not given."),
        ("{% if nobody %}x{% endif %}", "uses nobody, which it is not given."),
        ("{% for one in nobody %}x{% endfor %}", "uses nobody, which it is not given."),
        ("{{ group.name.first }}", "uses first, which it is not given."),
        ("{{ group['no such'] }}", "uses a name, which it is not given."),
        (
            '{% import "letter/subject.txt.j2" as say %}{{ say.no() }}',
            "uses no, which it is not given.",
        ),
    ],
)
def test_an_undefined_variable_is_said_with_file_and_line(
    tmp_path: Path, template: str, what: str
) -> None:
    problem = problem_of(
        tmp_path, {"group": Group({"name": CANARY})}, body_txt=f"one\ntwo\n{template}"
    )
    assert problem.where == "templates/email/letter/body.txt.j2: line 3"
    assert problem.what == what
    assert "Declare it" in problem.remedy


@pytest.mark.parametrize("template", ["{{ {}[value] }}", "{% include value %}"])
def test_a_value_that_names_something_is_not_repeated(tmp_path: Path, template: str) -> None:
    """Jinja's own words would give it."""
    problem = problem_of(tmp_path, {"value": CANARY}, body_txt=template)
    assert CANARY not in str(problem)


@pytest.mark.parametrize("part", ["body_txt", "body_html", "subject_txt"])
@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ group }}", "A group of values can't be printed"),
        ("{{ group|lines }}", "A group of values can't be printed"),
        ("{{ group|hanging }}", "A group of values can't be printed"),
        ("{{ groups }}", "A group of values can't be printed"),
        ("{{ group.absent }}", "An absent value was printed"),
        ("{{ group.absent|lines }}", "An absent value was printed"),
        ("{{ group.absent|hanging }}", "An absent value was printed"),
    ],
)
def test_a_group_or_nothing_can_t_be_printed(
    tmp_path: Path, part: str, template: str, words: str
) -> None:
    group = Group({"name": CANARY, "absent": None})
    problem = problem_of(tmp_path, {"group": group, "groups": [group]}, **{part: f"1\n{template}"})
    file = {"body_txt": "body.txt.j2", "body_html": "body.html.j2"}.get(part, "subject.txt.j2")
    assert problem.where == f"templates/email/letter/{file}: line 2"
    assert words in problem.what


def test_a_group_passes_for_nothing_else() -> None:
    """Python and Jinja ask what a value can do by such names."""
    assert not hasattr(Group({"name": CANARY}), "__wrapped__")


def test_a_group_s_repr_says_nothing() -> None:
    assert CANARY not in repr(Group({"name": CANARY}))
    assert CANARY not in repr(Chosen.of("a", CANARY))


def test_any_other_fault_is_said_by_its_kind_and_without_values(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, {"value": CANARY}, body_html="<p>\n{{ value + 1 }}")
    assert problem.where == "templates/email/letter/body.html.j2: line 2"
    assert problem.what == "can't be rendered (TypeError)."


def test_a_fault_in_a_layout_is_said_with_the_layout_s_line(tmp_path: Path) -> None:
    (tmp_path / "_layout").mkdir()
    (tmp_path / "_layout" / "body.txt.j2").write_text("one\n{{ nobody }}\n", encoding="utf-8")
    problem = problem_of(tmp_path, {}, body_txt='{% extends "_layout/body.txt.j2" %}')
    assert problem.where == "templates/email/_layout/body.txt.j2: line 2"


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, {}, body_txt='{% include "_layout/none.txt.j2" %}')
    assert problem.where.startswith("templates/email/letter/body.txt.j2")
    assert "_layout/none.txt.j2, which is not there" in problem.what


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", "{% nothing %}", "{{ x|nothing }}"])
def test_a_mistake_of_syntax_is_said_with_its_line(tmp_path: Path, template: str) -> None:
    problem = problem_of(tmp_path, {"x": CANARY}, body_html=f"one\n{template}\n")
    assert problem.where == "templates/email/letter/body.html.j2: line 2"
    assert problem.what.startswith("is not a template")


@pytest.mark.parametrize("name", ["../secret.txt.j2", "/etc/hostname"])
def test_a_template_can_t_reach_outside_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt.j2").write_text(CANARY, encoding="utf-8")
    folder = tmp_path / "templates"
    folder.mkdir()
    problem = problem_of(folder, {}, body_txt=f'{{% include "{name}" %}}')
    assert "which is not there" in problem.what


# Escaping


def test_html_is_escaped_and_text_and_subject_are_not(tmp_path: Path) -> None:
    value = '<b onclick="x">\'&amp;</b>'
    template = "{{ value }}"
    letter = rendered(
        tmp_path, {"value": value}, subject_txt=template, body_txt=template, body_html=template
    )
    assert (letter.subject, letter.text) == (value, value)
    assert letter.html == "&lt;b onclick=&#34;x&#34;&gt;&#39;&amp;amp;&lt;/b&gt;"


def test_lines_are_breaks_in_html_and_escaped(tmp_path: Path) -> None:
    assert html_of(tmp_path, "{{ v|lines }}", v="a\n<b>\n") == "a<br>\n&lt;b&gt;<br>\n"


def test_a_label_in_html_is_escaped_too(tmp_path: Path) -> None:
    value = Chosen.of("a", "A & <B>")
    assert html_of(tmp_path, "{{ v }};{{ v|lines }}", v=value) == ";".join(
        ["A &amp; &lt;B&gt;"] * 2
    )


def test_a_forged_heading_stays_set_in(tmp_path: Path) -> None:
    """Only our own lines start at the margin, so nothing typed can pass for one of them."""
    forged = "quiet\n\nFROM\nSomebody else\nPlease reply: no"
    text = text_of(tmp_path, "What: {{ v|hanging }}\nFROM\n", v=forged)
    at_margin = [line for line in text.splitlines() if line and not line.startswith("    ")]
    assert at_margin == ["What: quiet", "FROM"]


# Words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "Yes"),
        (False, "No"),
        (date(2026, 2, 1), "1 February 2026"),
        (datetime(2026, 12, 5, 6, 7), "06:07 on 5 December 2026"),  # noqa: DTZ001 - local
        (3, 3),
        (0, 0),
        ("", ""),
        ("as typed", "as typed"),
        (Chosen.of("one", "The first"), "The first"),
        ([Chosen.of("one", "The first"), Chosen.of("two", "Two")], "The first; Two"),
        ((), ""),
        ((True, date(2026, 1, 1)), "Yes; 1 January 2026"),
        (Record.NON_CRIME, "recorded as a non-crime incident"),
        (Strand.RACE, "race or ethnicity"),
    ],
)
def test_values_read_as_words(value: Any, words: Any) -> None:
    assert shown(value) == words


CHOICES = [
    kind
    for kind in vars(case).values()
    if isinstance(kind, type) and issubclass(kind, Enum) and kind.__module__ == case.__name__
]
CHOICES.remove(case.Sensitivity)  # of a question, not of a case


@pytest.mark.parametrize("kind", CHOICES)
def test_every_choice_of_a_case_has_words(kind: Any) -> None:
    for choice in kind:
        assert shown(choice) != choice.value or choice is Strand.DISABILITY


def test_nothing_has_no_words() -> None:
    with pytest.raises(TemplateError):
        shown(None)


def test_a_choice_is_compared_by_its_value_in_a_template(tmp_path: Path) -> None:
    template = "{% if v.value == 'one' %}{{ v }}{% endif %}"
    assert text_of(tmp_path, template, v=Chosen.of("one", "The first")) == "The first"


# Minimum disclosure


def full_values(
    service: Service, directory: Directory, intervention_id: str, **told: Any
) -> dict[str, Any]:
    """What the templates get of a case that has everything, with other facts declared."""
    every = list(directory.interventions)
    raw = sample_case(directory, every, TODAY)
    raw["location"] = {"area": "city", "district": "nottingham", "place": "The steps"}
    raw["people"]["victim"]["email"] = "canary@example.com"
    case, place = service.read(raw)
    intervention = directory.interventions[intervention_id]
    if told:
        intervention = intervention.model_copy(
            update={"facts": type(intervention.facts).model_validate(told)}
        )
    assessment = service.assess(case, place, intervention_id)
    assessment = type(assessment)(
        **{**vars(assessment), "intervention": intervention},
    )
    return letter_values(assessment, reference="REF", marking="M", today=TODAY)


ALWAYS = {"referral", "intervention", "agency", "referrer", "answers", "overrides"}


def test_what_is_not_declared_is_not_given(service: Service, directory: Directory) -> None:
    values = full_values(
        service, directory, "mediation", required=["people.victim.name"], optional=[]
    )
    assert set(values) == ALWAYS | {"people"}
    assert set(vars(values["people"])) == {"victim"}
    assert set(vars(values["people"].victim)) == {"name"}


def test_without_facts_only_what_every_letter_needs_is_given(
    service: Service, directory: Directory
) -> None:
    assert set(full_values(service, directory, "mediation", required=[])) == ALWAYS


@pytest.mark.parametrize("intervention_id", ["mediation", "target-hardening"])
def test_an_intervention_s_own_answers_are_the_only_ones_given(
    service: Service, directory: Directory, intervention_id: str
) -> None:
    values = full_values(service, directory, intervention_id)
    own = {question.name for question in directory.interventions[intervention_id].fields}
    assert set(vars(values["answers"])) == own


def test_the_age_comes_only_with_the_date_of_birth(service: Service, directory: Directory) -> None:
    with_birth = full_values(
        service, directory, "positive-engagement", required=["people.young_person.date_of_birth"]
    )
    person = with_birth["people"].young_person
    assert set(vars(person)) == {"date_of_birth", "age"}
    assert person.age == 15
    without = full_values(
        service, directory, "positive-engagement", required=["people.young_person.name"]
    )
    assert set(vars(without["people"].young_person)) == {"name"}


def test_of_a_group_declared_in_part_only_that_part_is_given(
    service: Service, directory: Directory
) -> None:
    values = full_values(
        service,
        directory,
        "repeat-victim-panel",
        required=["incidents.on", "people.victim.safe_contact.times", "location.district"],
        optional=["consents.victim", "lawful_basis.basis", "reference", "referrer.name"],
    )
    assert set(values) == ALWAYS | {
        "incidents",
        "people",
        "location",
        "consents",
        "lawful_basis",
    }
    assert {frozenset(vars(incident)) for incident in values["incidents"]} == {frozenset({"on"})}
    assert set(vars(values["people"].victim.safe_contact)) == {"times"}
    assert set(vars(values["location"])) == {"district"}
    assert values["location"].district == "Nottingham"
    assert set(vars(values["consents"])) == {"victim"}
    assert set(vars(values["lawful_basis"])) == {"basis"}


def test_a_group_declared_whole_is_given_whole(service: Service, directory: Directory) -> None:
    values = full_values(
        service,
        directory,
        "mediation",
        required=["people.victim", "location", "lawful_basis", "incidents"],
    )
    assert values["people"].victim.email == "canary@example.com"
    assert values["people"].victim.safe_contact.method
    assert values["location"].place == "The steps"
    assert values["lawful_basis"].reason
    assert values["incidents"][0].what


def test_another_s_consent_is_not_given(service: Service, directory: Directory) -> None:
    """The record given is the one that covers this intervention, and no other."""
    values = full_values(
        service, directory, "target-hardening", required=["consents.victim"], optional=[]
    )
    assert values["consents"].victim is None


def test_measures_without_an_address_are_not_told(service: Service, directory: Directory) -> None:
    raw = sample_case(directory, ["target-hardening"], TODAY)
    raw["answers"]["target-hardening"]["measures"] = ["cpo-patrols", "pruning"]
    case, place = service.read(raw)
    assessment = service.assess(case, place, "target-hardening")
    values = letter_values(assessment, reference="REF", marking="", today=TODAY)
    assert values["answers"].measures == ["Additional CPO patrols"]


def test_an_override_is_told_with_its_reason(service: Service, directory: Directory) -> None:
    raw = sample_case(directory, ["mediation"], TODAY)
    raw["answers"]["mediation"]["court_proceedings"] = True
    raw["overrides"] = [
        {
            "code": "MED-006",
            "reason": "The court itself suggested it.",
            "authorised_by": "Inspector Sample",
            "on": "2026-11-20",
        }
    ]
    case, place = service.read(raw)
    letter = service.prepare(service.assess(case, place, "mediation")).letter
    for part in (letter.text, letter.html):
        assert "The court itself suggested it." in part
        assert "Inspector Sample" in part
        assert "20 November 2026" in part


# The letters that ship


@pytest.mark.parametrize("given", ["all", "required"])
def test_every_letter_reads_without_traces_of_its_making(
    service: Service, directory: Directory, given: str
) -> None:
    for intervention_id in directory.interventions:
        raw = sample_case(directory, [intervention_id], TODAY)
        if given == "required":
            needed = directory.interventions[intervention_id].fields
            answers = raw["answers"][intervention_id]
            for question in needed:
                if not question.required and question.name != "parent_informed":
                    answers.pop(question.name, None)
        case, place = service.read(raw)
        letter = service.prepare(service.assess(case, place, intervention_id)).letter
        for part in (letter.subject, letter.text, letter.html):
            assert not re.search(
                r"\bNone\b(?! known)|\bTrue\b|\bFalse\b|\{[{%]|Group\(|[a-z]_[a-z]", part
            ), intervention_id
        assert "\n\n\n" not in letter.text, intervention_id
        assert not re.search(r"[ \t]\n", letter.text), intervention_id
        lines = letter.text.splitlines()
        assert lines[0] == lines[-1] == "OFFICIAL-SENSITIVE"


def test_a_letter_s_repr_says_nothing_of_its_text() -> None:
    assert CANARY not in repr(Letter("Subject", CANARY, CANARY))
