"""`templates check`: a letter with each kind of fault, and that the fault is found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from jinja2.bccache import Bucket, BytecodeCache

from referrals.directory import Directory, Intervention, Question
from referrals.directory_files import read_directory
from referrals.errors import Problem
from referrals.rendering import environment
from referrals.template_check import check_intervention, starter, unused

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "templates" / "email"
TODAY = date(2026, 11, 24)
INTERVENTIONS = sorted(path.stem for path in (ROOT / "config/interventions").glob("*.toml"))


class Compiled(BytecodeCache):
    """What Jinja makes of a template, by its name and source: most are the same in every test."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if found := self.kept.get((bucket.key, bucket.checksum)):
            bucket.bytecode_from_string(found)

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.kept[bucket.key, bucket.checksum] = bucket.bytecode_to_string()

    def get_cache_key(self, name: str, filename: str | None = None) -> str:
        return name

    def get_source_checksum(self, source: str) -> str:
        return source


COMPILED = Compiled()


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    """The shipped letters, to spoil."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "templates" / "email"))


def check(
    templates: Path, directory: Directory, what: str | Intervention = "mediation"
) -> list[Problem]:
    intervention = directory.interventions[what] if isinstance(what, str) else what
    others = {**directory.interventions, intervention.id: intervention}
    directory = replace(directory, interventions=others)
    return check_intervention(intervention, directory, environment(templates, COMPILED), TODAY)


def put(templates: Path, part: str, addition: str, *, before: str = "{% endblock %}") -> None:
    """Add to the last block of a part of mediation's letter."""
    file = templates / "mediation" / part
    head, marker, tail = file.read_text(encoding="utf-8").rpartition(before)
    assert marker
    file.write_text(f"{head}{addition}\n{marker}{tail}", encoding="utf-8")


def subject(templates: Path, text: str) -> None:
    (templates / "mediation" / "subject.txt.j2").write_text(text, encoding="utf-8")


# What ships, and what `templates new` writes


@pytest.mark.parametrize("intervention_id", INTERVENTIONS)
def test_the_shipped_letters_pass(directory: Directory, intervention_id: str) -> None:
    assert check(SHIPPED, directory, intervention_id) == []


@pytest.mark.parametrize("intervention_id", INTERVENTIONS)
def test_a_first_letter_passes_and_tells_what_is_declared(
    directory: Directory, templates: Path, intervention_id: str
) -> None:
    intervention = directory.interventions[intervention_id]
    for name, text in starter(intervention).items():
        (templates / intervention_id / name).write_text(text, encoding="utf-8")
    assert check(templates, directory, intervention_id) == []
    assert unused(intervention, directory, environment(templates, COMPILED), TODAY) == []


@pytest.mark.parametrize("label", ['Say "why"', "It's {{ x }}", "100 % <b>", "a\\b", "{% x %}"])
def test_a_first_letter_passes_whatever_a_label_holds(
    directory: Directory, templates: Path, label: str
) -> None:
    mediation = directory.interventions["mediation"]
    first, *others = mediation.fields
    named = mediation.model_copy(
        update={
            "title": f"Mediation & {label}"[:120],
            "fields": (first.model_copy(update={"label": label}), *others),
        }
    )
    for name, text in starter(named).items():
        (templates / "mediation" / name).write_text(text, encoding="utf-8")
    problems = [one for one in check(templates, directory, named) if "title" not in str(one)]
    assert problems == []


# Found by reading


UNTAKEN = "{% if false %}{{ CHAIN }}{% endif %}"


@pytest.mark.parametrize("part", ["subject.txt.j2", "body.txt.j2", "body.html.j2"])
@pytest.mark.parametrize(
    ("chain", "named"),
    [
        ("people.victim.date_of_birth", "people.victim.date_of_birth"),
        ("people.victim.age", "people.victim.age"),
        ("people.young_person.name", "people.young_person"),
        ("people['victim']['email']", "people.victim.email"),
        ("incidents[0].what", "incidents"),
        ("incidents", "incidents"),
        ("incidents|length", "incidents"),
        ("location.place", "location.place"),
        ("consents.young_person.on", "consents.young_person"),
        ("answers.nothing", "answers.nothing"),
        ("people.victim.safe_contact.nothing", "people.victim.safe_contact.nothing"),
    ],
)
def test_an_undeclared_fact_is_found_even_in_a_branch_not_taken(
    directory: Directory, templates: Path, part: str, chain: str, named: str
) -> None:
    if part == "subject.txt.j2":
        subject(templates, f"Referral\n{UNTAKEN}".replace("CHAIN", chain))
    else:
        put(templates, part, UNTAKEN.replace("CHAIN", chain))
    (problem,) = check(templates, directory)
    assert problem.code == "undeclared"
    assert problem.where.startswith(f"templates/email/mediation/{part}: line ")
    assert problem.what == f"uses {named}, which the intervention does not declare."
    assert "config/interventions/mediation.toml" in problem.remedy


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("{{ answers.dispute|safe }}", "uses the filter safe"),
        ("{{ answers.dispute|forceescape }}", "uses the filter forceescape"),
        ("{{ answers.dispute|urlize }}", "uses the filter urlize"),
        ("<p{{ {'title': answers.dispute}|xmlattr }}>", "uses the filter xmlattr"),
        ("{% autoescape false %}{{ answers.dispute }}{% endautoescape %}", "switches escaping"),
        ("{% filter safe %}{{ answers.dispute }}{% endfilter %}", "uses the filter safe"),
        ("{% if false %}{{ answers.dispute|safe }}{% endif %}", "uses the filter safe"),
    ],
)
def test_letting_html_through_is_found(
    directory: Directory, templates: Path, addition: str, words: str
) -> None:
    put(templates, "body.html.j2", addition)
    problems = check(templates, directory)
    assert [one.code for one in problems] == ["unsafe"]
    assert words in problems[0].what
    assert "body.html.j2: line " in problems[0].where


@pytest.mark.parametrize(
    "addition", ["{% if %}", "{{ x", "{% endblock %}{% endblock %}", "{{ x|nothing }}"]
)
@pytest.mark.parametrize("part", ["body.txt.j2", "body.html.j2"])
def test_a_mistake_of_syntax_is_found(
    directory: Directory, templates: Path, part: str, addition: str
) -> None:
    put(templates, part, addition)
    problems = check(templates, directory)
    assert problems
    assert all(f"templates/email/mediation/{part}: line " in one.where for one in problems)
    assert "is not a template" in problems[0].what


def test_a_missing_file_is_found(directory: Directory, templates: Path) -> None:
    (templates / "mediation" / "body.html.j2").unlink()
    (problem,) = check(templates, directory)
    assert "mediation/body.html.j2, which is not there" in problem.what


# Found by rendering


@pytest.mark.parametrize("part", ["body.txt.j2", "body.html.j2"])
@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("{{ nobody }}", "uses nobody, which it is not given."),
        ("{{ referral.nobody }}", "uses nobody, which it is not given."),
        ("{{ people.victim }}", "A group of values can't be printed"),
        ("{{ people.victim.phone }}", "An absent value was printed"),  # where it is not given
        ('{% include "_layout/none.j2" %}', "_layout/none.j2, which is not there"),
        ("{{ ''.__class__ }}", "is unsafe"),
    ],
)
def test_what_fails_with_some_case_is_found(
    directory: Directory, templates: Path, part: str, addition: str, words: str
) -> None:
    put(templates, part, addition)
    problems = check(templates, directory)
    assert problems
    assert any(words in one.what for one in problems), list(map(str, problems))
    assert all(f"mediation/{part}" in one.where for one in problems)


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("<script>x()</script>", "has a <script> in it."),
        ('<img alt="x">', "has a <img> in it."),
        ("<style>p{}</style>", "has a <style> in it."),
        ("<form></form>", "has a <form> in it."),
        ("<iframe></iframe>", "has a <iframe> in it."),
        ("<svg></svg>", "has a <svg> in it."),
        ('<p onclick="x()">x</p>', "has the attribute onclick on a <p>."),
        ('<p ONCLICK="x()">x</p>', "has the attribute onclick on a <p>."),
        ('<a href="https://example.org">x</a>', "has the attribute href on a <a>."),
        ('<a href="javascript:x()">x</a>', "has the attribute href on a <a>."),
        ('<td background="x">x</td>', "has the attribute background on a <td>."),
        ('<p style="background:url(x)">x</p>', "has a <p> that fetches something."),
        ('<p style="background:URL(x)">x</p>', "has a <p> that fetches something."),
        ("<p style=\"x:image-set('//example.org/x')\">x</p>", "has a <p> that fetches something."),
        ("<!-- note -->", "has an HTML comment, which the agency would get."),
        ("<!-- {{ answers.dispute }} -->", "has an HTML comment, which the agency would get."),
        ("<!--[if mso]>x<![endif]-->", "has an HTML comment, which the agency would get."),
    ],
)
def test_html_that_clients_distrust_is_found(
    directory: Directory, templates: Path, addition: str, words: str
) -> None:
    put(templates, "body.html.j2", addition)
    problems = check(templates, directory)
    assert words in [one.what for one in problems]
    assert {one.code for one in problems} <= {"unsafe", "uneven"}
    assert all("body.html.j2" in one.where for one in problems)


@pytest.mark.parametrize(
    "addition",
    [
        '<p style="{{ answers.dispute }}">x</p>',
        "<p style={{ answers.dispute }}>x</p>",
        '<p title="{{ answers.dispute }}">x</p>',
        "<p {{ answers.dispute }}>x</p>",
        "<{{ answers.dispute }}>x",
    ],
)
def test_a_value_inside_a_tag_is_found(
    directory: Directory, templates: Path, addition: str
) -> None:
    put(templates, "body.html.j2", addition)
    problems = check(templates, directory)
    assert "lets a value make HTML of its own." in [one.what for one in problems]


@pytest.mark.parametrize(
    "chain",
    [
        "people.victim.name",
        "people.other_party.name",
        "answers.dispute",
        "referrer.name",
        "referrer.email",
        "people.victim.safe_contact.method",
    ],
)
def test_a_personal_value_in_the_subject_is_found(
    directory: Directory, templates: Path, chain: str
) -> None:
    subject(templates, f"Referral {{{{ {chain}|trim }}}}")
    problems = [one for one in check(templates, directory) if one.code == "leak"]
    assert problems
    assert problems[0].where == "templates/email/mediation/subject.txt.j2"
    assert "into the subject" in problems[0].what


def test_a_public_value_may_stand_in_the_subject(directory: Directory, templates: Path) -> None:
    subject(templates, "Referral {{ referral.reference }} {{ referrer.organisation|length }}")
    assert check(templates, directory) == []


@pytest.mark.parametrize(
    "text", ["", "   \n", "Referral \N{EN DASH} x", "two\nlines", "tab\there", "caf\u00e9"]
)
def test_a_subject_that_is_not_one_line_of_ascii_is_found(
    directory: Directory, templates: Path, text: str
) -> None:
    subject(templates, text)
    problems = check(templates, directory)
    assert [(one.where, one.code) for one in problems] == [
        ("templates/email/mediation/subject.txt.j2", "subject")
    ]


def test_a_subject_that_is_too_long_to_be_sent_is_found(
    directory: Directory, templates: Path
) -> None:
    subject(templates, "word " * 60)
    assert [one.code for one in check(templates, directory)] == ["subject"]


@pytest.mark.parametrize(
    ("part", "other"), [("body.txt.j2", "body.html.j2"), ("body.html.j2", "body.txt.j2")]
)
def test_a_fact_that_only_one_part_tells_is_found(
    directory: Directory, templates: Path, part: str, other: str
) -> None:
    file = templates / "mediation" / part
    text = file.read_text(encoding="utf-8")
    assert "answers.tried" in text
    lines = [line for line in text.splitlines() if "answers.tried" not in line]
    file.write_text("\n".join(lines), encoding="utf-8")
    (problem,) = check(templates, directory)
    assert problem.code == "uneven"
    assert problem.where == f"templates/email/mediation/{part}"
    told = "html" if other == "body.html.j2" else "text"
    assert problem.what == f"does not tell answers.mediation.tried, which the {told} part does."


@pytest.mark.parametrize("part", ["body.txt.j2", "body.html.j2"])
@pytest.mark.parametrize("template", ["", "\n  \n"])
def test_an_empty_part_is_found(
    directory: Directory, templates: Path, part: str, template: str
) -> None:
    (templates / "mediation" / part).write_text(template, encoding="utf-8")
    problems = check(templates, directory)
    assert f"templates/email/mediation/{part}" in {
        one.where for one in problems if one.code == "empty"
    }


@pytest.mark.parametrize(
    "filters", ["|upper", "|striptags", "|replace('&', 'and')", "|truncate(20)"]
)
def test_a_value_that_is_changed_is_found(
    directory: Directory, templates: Path, filters: str
) -> None:
    for part in ("body.txt.j2", "body.html.j2"):
        file = templates / "mediation" / part
        text = file.read_text(encoding="utf-8")
        file.write_text(
            text.replace("answers.dispute", f"answers.dispute{filters}"), encoding="utf-8"
        )
    problems = check(templates, directory)
    assert {(one.where.rpartition("/")[2], one.code) for one in problems} == {
        ("body.txt.j2", "altered"),
        ("body.html.j2", "altered"),
    }
    assert problems[0].what == "changes what was typed as answers.mediation.dispute."


def test_a_fact_told_through_a_loop_that_is_not_declared_is_found(
    directory: Directory, templates: Path
) -> None:
    """Reading can't follow a loop's name; rendering sees that it is not given."""
    for part in ("body.txt.j2", "body.html.j2"):
        put(templates, part, "{% for one in [people.victim] %}{{ one.email }}{% endfor %}")
    problems = check(templates, directory)
    assert {one.what for one in problems} == {"uses email, which it is not given."}


def test_what_is_wrong_is_said_once(directory: Directory, templates: Path) -> None:
    put(templates, "body.html.j2", "<img><img>")
    problems = check(templates, directory)
    assert len(problems) == len(set(problems)) == 1


# What is declared and not told


def test_what_is_declared_and_not_told_is_listed(directory: Directory, templates: Path) -> None:
    for part in ("body.txt.j2", "body.html.j2"):
        file = templates / "mediation" / part
        lines = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if "answers.tried" not in line]
        file.write_text("\n".join(kept), encoding="utf-8")
    mediation = directory.interventions["mediation"]
    assert unused(mediation, directory, environment(templates, COMPILED), TODAY) == [
        "answers.mediation.tried"
    ]
    assert check(templates, directory) == []


# Whatever is required


@pytest.mark.parametrize(
    "path",
    [
        "people.victim",
        "people.victim.email",
        "people.victim.postcode",
        "people.victim.safe_contact",
        "people.other_party.safe_contact.times",
        "people.other_party.access_needs",
        "people.young_person.address",
        "people.parent_or_carer.language",
        "people.young_person.date_of_birth",
        "location.place",
        "location.district",
        "location.area",
        "lawful_basis",
        "incidents",
        "incidents.on",
    ],
)
def test_a_letter_may_print_unguarded_what_is_required(
    directory: Directory, templates: Path, path: str
) -> None:
    """Such as one that requires the times of safe contact, and not the way."""
    mediation = directory.interventions["mediation"]
    facts = type(mediation.facts).model_validate({"required": [path]})
    made = mediation.model_copy(update={"facts": facts})
    for name, text in starter(made).items():
        (templates / "mediation" / name).write_text(text, encoding="utf-8")
    if path.rpartition(".")[2] not in (
        "victim",
        "safe_contact",
        "lawful_basis",
        "incidents",
        "on",
    ):
        for part in ("body.txt.j2", "body.html.j2"):
            put(templates, part, f"{{{{ {path} }}}}")
    assert check(templates, directory, made) == []


# Every type of field


def test_every_type_of_field_is_checked(directory: Directory, templates: Path) -> None:
    """Dates, moments and numbers have canaries too, and `min_length` and `max_length` are kept."""
    fields: list[dict[str, object]] = [
        {"name": "on", "type": "date", "sample": "2026-01-01"},
        {"name": "at", "type": "moment", "sample": "2026-01-01 10:00"},
        {"name": "many", "type": "number", "minimum": 3, "sample": 3},
        {"name": "few", "type": "number", "maximum": 9, "sample": 3},
        {"name": "some", "type": "number", "sample": 3},
        {"name": "short", "type": "line", "max_length": 60, "sample": "x"},
        {"name": "long", "type": "text", "min_length": 300, "sample": "x" * 300},
    ]
    mediation = directory.interventions["mediation"]
    questions = tuple(
        Question.model_validate({"label": field["name"], "sensitivity": "personal", **field})
        for field in fields
    )
    made = mediation.model_copy(update={"fields": (*mediation.fields, *questions)})
    for name, text in starter(made).items():
        (templates / "mediation" / name).write_text(text, encoding="utf-8")
    assert check(templates, directory, made) == []
    subject(templates, "Referral on {{ answers.on }}")
    (problem,) = [one for one in check(templates, directory, made) if one.code == "leak"]
    assert "puts answers.mediation.on (personal) into the subject" in problem.what
    file = templates / "mediation" / "body.html.j2"
    subject(templates, "Referral")
    file.write_text(
        file.read_text(encoding="utf-8").replace("answers.at)", '"later")'), encoding="utf-8"
    )
    (problem,) = check(templates, directory, made)
    assert "does not tell answers.mediation.at" in problem.what


def test_the_directory_that_ships_is_the_one_checked(directory: Directory) -> None:
    assert sorted(read_directory(ROOT / "config", SHIPPED).interventions) == INTERVENTIONS
