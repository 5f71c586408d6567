"""Proves what a letter's templates do, by reading them and by rendering them with canaries.

A canary is a value that stands nowhere else. With one in every fact and field of a case we see
where each comes out: never in a subject, a header or a file name unless it is public; in the text
and the HTML alike; and as typed, even if it looks like a template or like HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from referrals.case import Basis, Case, How, People, Record, Sensitivity, Strand, shared_facts
from referrals.directory import Directory, Intervention, Place, Question, QuestionType
from referrals.directory_files import TEMPLATE_PARTS
from referrals.eligibility import Assessment, assess, read_case
from referrals.errors import ConfigurationError, MessageRefused, Problem
from referrals.message import LONGEST_SUBJECT, Sender, compose_draft
from referrals.reference import referral_reference
from referrals.rendering import Letter, letter_values, render, shown, template_problem
from referrals.samples import sample_case

_HOSTILE = " {{ 7*7 }} <script>alert(1)</script> & \"quoted\" 'single' --\n.\n<b>From </b>"
_TAGS = {
    "a", "b", "blockquote", "body", "br", "caption", "dd", "div", "dl", "dt", "em", "h1", "h2",
    "h3", "head", "hr", "html", "i", "li", "meta", "ol", "p", "span", "strong", "table", "tbody",
    "td", "th", "thead", "title", "tr", "ul",
}  # fmt: skip
_ATTRIBUTES = {
    "align", "border", "cellpadding", "cellspacing", "charset", "colspan", "content", "dir",
    "lang", "name", "role", "rowspan", "scope", "style", "valign", "width",
}  # fmt: skip
_MARKING = "MARKING"
_LONGEST_SUBJECT = LONGEST_SUBJECT - len(": ") - 60  # the longest marking


@dataclass(frozen=True)
class Canary:
    path: str
    text: str
    sensitivity: Sensitivity
    typed: str
    """The whole value that `text` is the start of."""


@dataclass
class _Cage:
    """Hands out canaries and remembers them."""

    hostile: bool
    canaries: dict[str, Canary] = field(default_factory=dict)

    def line(self, path: str, sensitivity: Sensitivity, suffix: str = "") -> str:
        text = f"qz{len(self.canaries):03}zq{suffix}"
        self.canaries[path] = Canary(path, text, sensitivity, text)
        return text

    def words(
        self,
        path: str,
        sensitivity: Sensitivity,
        *,
        lines: bool,
        least: int = 0,
        most: int | None = None,
    ) -> str:
        text = typed = self.line(path, sensitivity)
        if self.hostile:
            typed += _HOSTILE if lines else _HOSTILE.replace("\n", " ")
        typed = typed.ljust(least, "x")[:most].strip()
        self.canaries[path] = Canary(path, text, sensitivity, typed)
        return typed

    def day(self, path: str, sensitivity: Sensitivity) -> str:
        value = date(1901, 1, 1) + timedelta(days=37 * len(self.canaries))
        text = str(shown(value))
        self.canaries[path] = Canary(path, text, sensitivity, text)
        return value.isoformat()


def check_intervention(
    intervention: Intervention,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    today: date,
) -> list[Problem]:
    """Every problem with this intervention's templates; none if they may be used."""
    problems = list(dict.fromkeys(_read_statically(intervention, templates)))
    if problems:
        return problems  # rendering would only say the same again
    for name, letter, _ in _letters(intervention, directory, templates, today, problems):
        problems += _check_subject_and_size(intervention, name, letter)
    problems += _check_canaries(intervention, directory, templates, today)
    return list(dict.fromkeys(problems))


# By reading


def parsed_parts(
    templates: ImmutableSandboxedEnvironment, folder: str
) -> Iterator[tuple[str, nodes.Template | Problem]]:
    """Each part of a letter by its name, or what is wrong with its form."""
    assert templates.loader is not None  # noqa: S101 - `environment` always sets one
    for part in TEMPLATE_PARTS:
        name = f"{folder}/{part}"
        try:
            source = templates.loader.get_source(templates, name)[0]
            tree = templates.parse(source, name)
            templates.compile(source, name)  # finds filters that there are not
        except TemplateError as error:
            yield name, template_problem(name, error)
        else:
            yield name, tree


def _read_statically(
    intervention: Intervention, templates: ImmutableSandboxedEnvironment
) -> Iterator[Problem]:
    declared = _declared_tree(intervention)
    for name, tree in parsed_parts(templates, intervention.template):
        if isinstance(tree, Problem):
            yield Problem(tree.where, tree.what, tree.remedy, "syntax")
            continue
        yield from unsafe_parts(name, tree)
        for chain, line in (*_bare_names(tree), *_chains(tree)):
            missing = _undeclared(chain, declared)
            if missing:
                yield Problem(
                    f"templates/email/{name}: line {line}",
                    f"uses {missing}, which the intervention does not declare.",
                    f"Add it to facts or fields in config/interventions/{intervention.id}.toml, "
                    "or take it out.",
                    "undeclared",
                )


def _declared_tree(intervention: Intervention) -> dict[str, Any]:
    tree: dict[str, Any] = {"answers": {question.name: {} for question in intervention.fields}}
    for path in intervention.facts:
        place = tree
        for part in path.split("."):
            place = place.setdefault(part, {})
        if path.endswith(".date_of_birth"):
            tree["people"][path.split(".")[1]]["age"] = {}
    return tree


def _bare_names(tree: nodes.Template) -> Iterator[tuple[tuple[str, ...], int]]:
    """Each name that is not local, where it first stands; `incidents` by itself for example."""
    wanted = meta.find_undeclared_variables(tree)
    for node in tree.find_all(nodes.Name):
        if node.name in wanted:
            wanted.discard(node.name)
            yield (node.name,), node.lineno


def _chains(tree: nodes.Template) -> Iterator[tuple[tuple[str, ...], int]]:
    """`people.victim.name` as a tuple, for each such chain on a name that is not local."""
    inner: set[int] = set()
    found: Iterable[nodes.Getattr | nodes.Getitem] = tree.find_all((nodes.Getattr, nodes.Getitem))
    for node in found:
        chain = _chain(node)
        if chain and id(node) not in inner:
            yield chain, node.lineno
        below: nodes.Node = node.node
        while isinstance(below, nodes.Getattr | nodes.Getitem):
            inner.add(id(below))
            below = below.node


def _chain(node: nodes.Node) -> tuple[str, ...] | None:
    parts: list[str] = []
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        if isinstance(node, nodes.Getattr):
            parts.append(node.attr)
        elif isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            parts.append(node.arg.value)
        else:
            return None
        node = node.node
    return (node.name, *reversed(parts)) if isinstance(node, nodes.Name) else None


def _undeclared(chain: tuple[str, ...], declared: Mapping[str, Any]) -> str | None:
    groups = (set(Case.model_fields) | {"answers"}) - {"referrer"}  # whom every letter is given
    if chain[0] not in groups:
        return None  # a loop's own name, or a value that every letter has: rendering checks those
    place: Mapping[str, Any] = declared
    for depth, part in enumerate(chain):
        if part not in place:
            return ".".join(chain[: depth + 1])
        place = place[part]
        if not place and chain[0] != "answers":
            return None  # declared as a whole from here on
    return None


def unsafe_parts(name: str, tree: nodes.Template) -> Iterator[Problem]:
    where = f"templates/email/{name}: line "
    for node in tree.find_all(nodes.Filter):
        if node.name in ("safe", "forceescape", "urlize", "xmlattr"):
            yield Problem(
                f"{where}{node.lineno}",
                f"uses the filter {node.name}, which lets HTML through.",
                "Take it out: values are escaped as they should be.",
                "unsafe",
            )
    for block in tree.find_all(nodes.ScopedEvalContextModifier):
        yield Problem(
            f"{where}{block.lineno}", "switches escaping on or off.", "Take it out.", "unsafe"
        )


# By rendering


def _letters(
    intervention: Intervention,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    today: date,
    problems: list[Problem],
) -> Iterator[tuple[str, Letter, Assessment]]:
    """With everything given, and with no more than what is required."""
    full = sample_case(directory, [intervention.id], today)
    for name, raw in (("sample", full), ("shortest", _shortest(full, intervention))):
        case, place = read_case(raw, directory, today)
        assessment = assess(case, place, intervention, directory, today)
        try:
            letter = render(
                templates, intervention.template, _values(assessment, intervention, today)
            )
        except ConfigurationError as error:
            problems += error.problems
        else:
            yield name, letter, assessment


def _values(assessment: Assessment, intervention: Intervention, today: date) -> dict[str, Any]:
    reference = referral_reference(assessment.case.reference, intervention.id)
    return letter_values(assessment, reference=reference, marking=_MARKING, today=today)


def _shortest(full: Mapping[str, Any], intervention: Intervention) -> dict[str, Any]:
    required = {question.name for question in intervention.fields if question.required}
    answers = full["answers"][intervention.id]
    kept = {name: value for name, value in answers.items() if name in required}
    location = {key: full["location"][key] for key in ("area", "place") if key in full["location"]}
    short: dict[str, Any] = {
        "reference": full["reference"],
        "referrer": {key: full["referrer"][key] for key in full["referrer"] if key != "phone"},
        "location": location,
        "answers": {intervention.id: kept},
    }
    for path in intervention.facts.required:
        group, *rest = path.split(".")
        if group == "people":
            source: Any = full
            place: Any = short
            for part in (group, *rest[:-1]):
                source = source[part]
                place = place.setdefault(part, {})
            place[rest[-1]] = source[rest[-1]]
            if "safe_contact" in rest[:-1]:  # whose way and times go together
                place |= {key: source[key] for key in ("method", "times")}
        elif group in ("location", "lawful_basis"):
            short[group] = full.get(group, {})
        elif group == "incidents":
            short["incidents"] = [
                {key: incident[key] for key in ("on", "what")} for incident in full["incidents"]
            ]
    return short


def _check_subject_and_size(
    intervention: Intervention, name: str, letter: Letter
) -> Iterator[Problem]:
    where = f"templates/email/{intervention.template}/subject.txt.j2"
    if not letter.subject or not letter.subject.isascii() or not letter.subject.isprintable():
        yield Problem(
            where, "must give one line of printable ASCII.", "Mend the subject.", "subject"
        )
    elif len(letter.subject) > _LONGEST_SUBJECT:
        yield Problem(where, "is too long.", f"Use {_LONGEST_SUBJECT} characters.", "subject")
    for part, content in (("body.txt.j2", letter.text), ("body.html.j2", letter.html)):
        if not content.strip():
            yield Problem(
                f"templates/email/{intervention.template}/{part}",
                f"is empty with the {name} case.",
                "Write the letter.",
                "empty",
            )


def _check_canaries(
    intervention: Intervention,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    today: date,
) -> Iterator[Problem]:
    place = next(
        place
        for place in reversed(list(directory.places))
        if directory.agency_for(intervention, place)
    )
    structures = []
    for hostile in (False, True):
        cage = _Cage(hostile)
        case = Case.model_validate(_caged_case(intervention, place, cage))
        assessment = assess(case, place, intervention, directory, today)
        values = _values(assessment, intervention, today)
        try:
            letter = render(templates, intervention.template, values)
        except ConfigurationError as error:
            yield from error.problems
            return
        page = Page()
        page.feed(letter.html)
        page.close()
        structures.append(page.structure)
        yield from _page_problems(intervention, page)
        yield from _leaks(intervention, case, letter, cage)
        yield from _missing(intervention, letter, page, cage)
        if hostile:
            yield from _altered(intervention, letter, page, cage)
    if structures[0] != structures[1]:
        yield Problem(
            f"templates/email/{intervention.template}/body.html.j2",
            "lets a value make HTML of its own.",
            "Put every value where text stands, and never inside a tag or a style.",
            "unsafe",
        )


def _caged_case(intervention: Intervention, place: Place, cage: _Cage) -> dict[str, Any]:
    """A canary in every fact that there is, told or not, and in every field of its own."""
    facts = shared_facts()
    case: dict[str, Any] = {
        "reference": "CANARY-1",
        "referrer": {
            name: _fact(cage, f"referrer.{name}", facts) for name in _names("referrer", facts)
        },
        "location": {
            "area": place.area.id,
            "postcode": _fact(cage, "location.postcode", facts),
            "place": _fact(cage, "location.place", facts),
        },
        "incidents": [
            {
                "on": "2001-02-03",
                "what": _fact(cage, "incidents.what", facts),
                "record": Record.CRIME,
                "reference": _fact(cage, "incidents.reference", facts),
                "strand": Strand.RACE,
                "place": _fact(cage, "incidents.place", facts),
            }
        ],
        "people": {role: _caged_person(cage, role, facts) for role in People.model_fields},
        "consents": [
            {
                "person": role,
                "interventions": [intervention.id],
                "given": True,
                "on": cage.day(f"consents.{role}.on", Sensitivity.PERSONAL),
                "recorded_by": cage.words(
                    f"consents.{role}.recorded_by", Sensitivity.PERSONAL, lines=False
                ),
                "how": How.IN_PERSON,
            }
            for role in People.model_fields
        ],
        "lawful_basis": {
            "basis": Basis.PUBLIC_TASK,
            "reason": _fact(cage, "lawful_basis.reason", facts),
            "recorded_by": _fact(cage, "lawful_basis.recorded_by", facts),
            "on": cage.day("lawful_basis.on", Sensitivity.PERSONAL),
        },
        "answers": {
            intervention.id: {
                question.name: _caged_answer(cage, intervention, question)
                for question in intervention.fields
            }
        },
    }
    return case


def _names(group: str, facts: Mapping[str, Any]) -> list[str]:
    prefix = f"{group}."
    inner = [path.removeprefix(prefix) for path in facts if path.startswith(prefix)]
    return [name for name in inner if "." not in name]


def _fact(cage: _Cage, path: str, facts: Mapping[str, Any]) -> str:
    sensitivity = facts[path].sensitivity
    last = path.rpartition(".")[2]
    if last == "email":
        return cage.line(path, sensitivity, "@canary.example.com")
    if last == "date_of_birth":
        return cage.day(path, sensitivity)
    lines = last in ("address", "access_needs", "avoid", "place", "what", "reason")
    return cage.words(path, sensitivity, lines=lines and path != "incidents.place")


def _caged_person(cage: _Cage, role: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    group = f"people.{role}"
    person: dict[str, Any] = {
        name: _fact(cage, f"{group}.{name}", facts)
        for name in _names(group, facts)
        if name != "safe_contact"
    }
    person["safe_contact"] = {
        name: _fact(cage, f"{group}.safe_contact.{name}", facts)
        for name in _names(f"{group}.safe_contact", facts)
    }
    return person


def _caged_answer(cage: _Cage, intervention: Intervention, question: Question) -> Any:
    path = f"answers.{intervention.id}.{question.name}"
    match question.type:
        case QuestionType.TEXT | QuestionType.LINE:
            lines = question.type is QuestionType.TEXT
            return cage.words(
                path,
                question.sensitivity,
                lines=lines,
                least=question.min_length,
                most=question.max_length,
            )
        case QuestionType.DATE:
            return cage.day(path, question.sensitivity)
        case QuestionType.MOMENT:
            return f"{cage.day(path, question.sensitivity)} 06:07"
        case QuestionType.YES_NO:
            return True
        case QuestionType.NUMBER:
            return question.minimum if question.minimum is not None else question.maximum or 0
        case QuestionType.CHOICE:
            return question.options[0].value
        case QuestionType.CHOICES:
            return [option.value for option in question.options]


def _is_told(intervention: Intervention, path: str) -> bool:
    if path.startswith(("referrer.", "answers.")):
        return True
    return any(path == fact or path.startswith(f"{fact}.") for fact in intervention.facts)


def _leaks(
    intervention: Intervention, case: Case, letter: Letter, cage: _Cage
) -> Iterator[Problem]:
    reference = referral_reference(case.reference, intervention.id)
    folder = f"templates/email/{intervention.template}"
    headers = _headers(letter, case)
    file_name = f"{reference}-{intervention.id}.eml"
    for canary in cage.canaries.values():
        private = canary.sensitivity is not Sensitivity.PUBLIC
        if private and canary.text in letter.subject:
            yield Problem(
                f"{folder}/subject.txt.j2",
                f"puts {canary.path} ({canary.sensitivity}) into the subject.",
                "Take it out: subjects are shown on locked screens and kept in logs.",
                "leak",
            )
        elif private and (canary.text in headers or canary.text in file_name):
            yield Problem(
                folder,
                f"puts {canary.path} ({canary.sensitivity}) into a header or the file name.",
                "Take it out.",
                "leak",
            )
        if not _is_told(intervention, canary.path):
            for part, content in (("body.txt.j2", letter.text), ("body.html.j2", letter.html)):
                if canary.text in content:
                    yield Problem(
                        f"{folder}/{part}",
                        f"tells {canary.path}, which the intervention does not declare.",
                        "Declare it or take it out.",
                        "undeclared",
                    )


def _headers(letter: Letter, case: Case) -> str:
    """All headers but From and Reply-To, which are the referrer's own."""
    sender = Sender(case.referrer.role[:5], "from@example.com", None)
    try:
        content = compose_draft(letter, sender, "to@example.com", _MARKING)
    except MessageRefused:
        return ""  # `_check_subject_and_size` has said it
    message = message_from_bytes(content, policy=default)
    return "\n".join(str(value) for name, value in message.items() if name != "From")


def _missing(
    intervention: Intervention, letter: Letter, page: Page, cage: _Cage
) -> Iterator[Problem]:
    """What only one of the two parts tells."""
    for canary in cage.canaries.values():
        in_text, in_html = canary.text in letter.text, canary.text in page.text
        if in_text != in_html:
            told, untold = ("text", "html") if in_text else ("html", "text")
            part = "body.html.j2" if untold == "html" else "body.txt.j2"
            yield Problem(
                f"templates/email/{intervention.template}/{part}",
                f"does not tell {canary.path}, which the {told} part does.",
                "Tell the same facts in both.",
                "uneven",
            )


def unused(
    intervention: Intervention,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    today: date,
) -> list[str]:
    """Facts and fields in free words that are declared but that no part of the letter tells."""
    place = next(p for p in directory.places if directory.agency_for(intervention, p))
    cage = _Cage(hostile=False)
    case = Case.model_validate(_caged_case(intervention, place, cage))
    assessment = assess(case, place, intervention, directory, today)
    letter = render(templates, intervention.template, _values(assessment, intervention, today))
    return [
        canary.path
        for canary in cage.canaries.values()
        if _is_told(intervention, canary.path) and canary.text not in letter.text
    ]


def _altered(
    intervention: Intervention, letter: Letter, page: Page, cage: _Cage
) -> Iterator[Problem]:
    """Hostile values must arrive as typed; white space apart, since lines are set in or broken."""
    for part, content in (("body.txt.j2", letter.text), ("body.html.j2", page.text)):
        told = _squeezed(content)
        folded = told.casefold()
        for canary in cage.canaries.values():
            starts = _squeezed(canary.text).casefold() in folded
            if starts and _squeezed(canary.typed) not in told:
                yield Problem(
                    f"templates/email/{intervention.template}/{part}",
                    f"changes what was typed as {canary.path}.",
                    "Print values as they are, without filters of your own.",
                    "altered",
                )


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _page_problems(intervention: Intervention, page: Page) -> Iterator[Problem]:
    for what in sorted(page.faults):
        yield Problem(
            f"templates/email/{intervention.template}/body.html.j2",
            what,
            "Mail clients drop or distrust it: take it out.",
            "unsafe",
        )


class Page(HTMLParser):
    """The tags of a page, its visible text, and what a mail client would not trust."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.structure: list[str] = []
        self.faults: set[str] = set()
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "br":  # a value of several lines has as many as it needs
            self.structure.append(f"{tag} {attrs}")
        if tag not in _TAGS:
            self.faults.add(f"has a <{tag}> in it.")
        for name, value in attrs:
            if name not in _ATTRIBUTES:
                self.faults.add(f"has the attribute {name} on a <{tag}>.")
            if value and any(bad in value.lower() for bad in ("url(", "javascript:", "//")):
                self.faults.add(f"has a <{tag}> that fetches something.")

    def handle_endtag(self, tag: str) -> None:
        self.structure.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.faults.add("has an HTML comment, which the agency would get.")


def starter(intervention: Intervention) -> dict[str, str]:
    """A first letter for a new intervention, telling all that it declares: by file name."""
    questions = "".join(
        f'  ("{_quotable(question.label)}", answers.{question.name}),\n'
        for question in intervention.fields
    )
    facts = shared_facts()
    people = "".join(
        f'  ("{facts[path].label}", {path}),\n'
        for declared in intervention.facts
        for path in facts
        if path.startswith(("people.", "location."))
        and f"{path}.".startswith(f"{declared}.")
        and not any(other.startswith(f"{path}.") for other in facts)
    )
    calls = []
    if people:
        calls.append(f'say.section("Who and where", [\n{people}])')
    if questions:
        calls.append(f'say.section("About this referral", [\n{questions}])')
    if any(path.startswith("incidents") for path in intervention.facts):
        calls.append("say.incidents(incidents)")
    calls += [
        f'say.agreement("{role.replace("_", " ").capitalize()}", consents.{role})'
        for role in People.model_fields
        if f"consents.{role}" in tuple(intervention.facts)
    ]
    if "lawful_basis" in tuple(intervention.facts):
        calls.append("say.basis(lawful_basis)")
    title = _quotable(intervention.title.lower())
    opening = f"Please would you consider this referral for {title}."
    text = "".join(f"{{{{ {call} -}}}}\n" for call in calls)
    html = "".join(f"{{{{ {call} }}}}\n" for call in calls)
    return {
        "subject.txt.j2": "Referral: {{ intervention.title }} - {{ referral.reference }}\n",
        "body.txt.j2": (
            '{% extends "_layout/body.txt.j2" %}\n'
            '{% import "_layout/macros.txt.j2" as say %}\n'
            f'{{% block opening %}}\n{{{{ "{opening}" }}}}\n{{% endblock %}}\n'
            f"{{% block facts %}}\n{text}{{% endblock %}}\n"
        ),
        "body.html.j2": (
            '{% extends "_layout/body.html.j2" %}\n'
            '{% import "_layout/macros.html.j2" as say %}\n'
            f'{{% block opening %}}\n{{{{ say.paragraph("{opening}") }}}}\n{{% endblock %}}\n'
            f"{{% block facts %}}\n{html}{{% endblock %}}\n"
        ),
    }


def _quotable(words: str) -> str:
    """Fit to stand between double quotes in a template."""
    return words.replace('"', "'").replace("\\", "/")
