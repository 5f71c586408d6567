"""The journey's forms, made from the models of a case and from config/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from referrals.case import Case, Override, People, Sensitivity, shared_facts
from referrals.directory import Directory, Intervention, Question, QuestionType
from referrals.rendering import shown
from referrals.rules import AgeAtLeast, AgeBelow, AnsweredIfYounger, ConsentGiven
from referrals.texts import as_date, as_yes_no, given_line, given_text
from referrals.web.fields import Field, Group, Kind, Typed, last, listed, numbers

# From the models


def _info(path: str) -> FieldInfo:
    """The field of the case's models at a path; numbers of a list count for nothing."""
    model: type[BaseModel] = Case
    parts = [part for part in path.split(".") if not part.isdigit()]
    for part in parts[:-1]:
        found = _model_in(model.model_fields[part].annotation)
        if found is None:
            raise KeyError(path)
        model = found
    return model.model_fields[parts[-1]]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    return next((part for part in _parts(annotation) if _is(part, BaseModel)), None)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation, what stands within it and its validators."""
    yield annotation
    for part in (*get_args(annotation), *getattr(annotation, "__metadata__", ())):
        yield from _parts(part)


def _is(part: Any, kind: type) -> bool:
    return isinstance(part, type) and issubclass(part, kind)


_BY_VALIDATOR = (
    (given_line, Kind.LINE),
    (given_text, Kind.TEXT),
    (as_date, Kind.DATE),
    (as_yes_no, Kind.YES_NO),
)


def _kind(info: FieldInfo) -> tuple[Kind, tuple[tuple[str, str], ...]]:
    """What the field looks like, and its options, whose words are those of the letters."""
    for part in (*_parts(info.annotation), *info.metadata):
        if _is(part, StrEnum):
            return Kind.CHOICE, tuple((str(one), _capital(str(shown(one)))) for one in part)
        for validator, kind in _BY_VALIDATOR:
            if getattr(part, "func", None) is validator:
                return kind, ()
    return Kind.LINE, ()


@cache
def fact(path: str) -> Field:
    """The field of a fact of the case, neither required nor marked optional."""
    info = _info(path)
    kind, options = _kind(info)
    extra = info.json_schema_extra
    level = extra["sensitivity"] if isinstance(extra, dict) else Sensitivity.PUBLIC
    known = shared_facts().get(path)
    return Field(
        name=path,
        label=info.title or path.rpartition(".")[2],
        kind=kind,
        hint=info.description or "",
        options=options,
        sensitivity=known.sensitivity if known else Sensitivity(str(level)),
    )


def _numbered(
    group: str, number: int, names: Iterable[str], *, required: bool = True
) -> Iterator[Field]:
    """Fields of one of a list's items; those that the model demands are required."""
    for name in names:
        plain = fact(f"{group}.{name}")
        demanded = _info(plain.name).is_required()
        yield replace(
            plain,
            name=f"{group}.{number}.{name}",
            required=required and demanded,
            optional=not demanded,
        )


@cache
def _leaves(path: str) -> tuple[str, ...]:
    """The facts within a fact, or the fact itself."""
    within = [one for one in shared_facts() if one.startswith(f"{path}.")]
    groups = {one.rpartition(".")[0] for one in within}
    return tuple(one for one in within if one not in groups) or (path,)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# The forms


def you_form() -> Group:
    """Who makes the referral."""
    demanded = {path: _info(path).is_required() for path in _leaves("referrer")}
    fields = (
        replace(fact(path), required=needed, optional=not needed)
        for path, needed in demanded.items()
    )
    return Group("referrer", "Your details", tuple(fields))


def _where(directory: Directory) -> dict[str, Field]:
    """The fields of a location; an area or a district is chosen among the directory's."""
    made = {path: replace(fact(path), optional=True) for path in _leaves("location")}
    areas = [(one.id, one.title) for region in directory.regions.values() for one in region.areas]
    districts = [(one.district.id, one.district.title) for one in directory.places if one.district]
    for name, options in (("area", areas), ("district", districts)):
        path = f"location.{name}"
        made[path] = replace(made[path], kind=Kind.CHOICE, options=tuple(options), hint="")
    return made


def case_form(directory: Directory, typed: Typed) -> list[Group]:
    """Where it is and what happened; always with room for one incident."""
    where = _where(directory)
    where["location.area"] = replace(where["location.area"], optional=False)
    incidents = tuple(
        Group(
            f"incidents.{number}",
            f"Incident {at}",
            tuple(_numbered("incidents", number, _leaves_of("incidents"))),
            number=at,
        )
        for at, number in enumerate(numbers(typed, "incidents") or [1], 1)
    )
    return [
        Group("reference", "Your case", (replace(fact("reference"), required=True),)),
        Group("location", "Where help is needed", tuple(where.values())),
        Group("incidents", "What happened", groups=incidents),
    ]


def _leaves_of(group: str) -> list[str]:
    """The names of an item's fields."""
    return [path.partition(".")[2] for path in _leaves(group)]


@dataclass(frozen=True)
class Wanted:
    """What the chosen interventions want to know of the case, as one."""

    interventions: tuple[Intervention, ...]

    def facts(self) -> dict[str, tuple[Intervention, ...]]:
        """By fact, who is told of it; in the order of the models."""
        told: dict[str, list[Intervention]] = {path: [] for path in shared_facts()}
        for one in self.interventions:
            paths = [leaf for path in one.facts for leaf in _leaves(path)]
            paths += [f"people.{role}.date_of_birth" for role in _aged(one)]
            paths += [f"consents.{role}" for role in _asked(one)]
            for path in dict.fromkeys(paths):
                told[path].append(one)
        return {path: tuple(by) for path, by in told.items() if by}

    def required(self) -> set[str]:
        return {path for one in self.interventions for path in one.facts.required}

    def whom(self, by: Sequence[Intervention]) -> str:
        """`For Mediation.`, unless it is for all."""
        if len(by) == len(self.interventions):
            return ""
        return f"For {listed([one.title for one in by])}."


def _aged(one: Intervention) -> Iterator[str]:
    for rule in one.rules:
        if isinstance(rule.check, AgeBelow | AgeAtLeast | AnsweredIfYounger):
            yield rule.check.person


def _asked(one: Intervention) -> Iterator[str]:
    for rule in one.rules:
        if isinstance(rule.check, ConsentGiven):
            yield rule.check.person


def details_form(directory: Directory, chosen: Sequence[str], typed: Typed) -> list[Group]:
    """What the chosen interventions ask for, each fact once. Incidents are `case_form`'s."""
    wanted = Wanted(tuple(directory.intervention(name) for name in chosen))
    told, required = wanted.facts(), wanted.required()
    groups = [_person(role, wanted) for role in People.model_fields]
    where = _where(directory)
    places = tuple(
        replace(where[path], required=True, optional=False, note=wanted.whom(by))
        for path, by in told.items()
        if path in where and path in required
    )
    groups.append(Group("location", "The place", places))
    roles = {
        path.partition(".")[2]: by for path, by in told.items() if path.startswith("consents.")
    }
    if roles:
        groups.append(_agreement(roles, typed))
    if any(path.startswith("lawful_basis") for path in told):
        groups.append(_lawful_basis(required))
    for one in wanted.interventions:
        fields = tuple(_question(one.id, question) for question in one.fields)
        groups.append(Group(f"answers.{one.id}", one.title, fields, intro=one.summary))
    return [group for group in groups if group.fields or group.groups]


def _person(role: str, wanted: Wanted) -> Group:
    required = wanted.required()
    told = {path: by for path, by in wanted.facts().items() if path.startswith(f"people.{role}.")}
    audiences = [wanted.whom(by) for by in told.values()]
    usual = max(audiences, key=audiences.count, default="")
    fields = [
        replace(
            fact(path),
            required=path in required,
            optional=path not in required,
            note="" if wanted.whom(by) == usual else wanted.whom(by) or "For all of them.",
        )
        for path, by in told.items()
    ]
    person = shared_facts()[f"people.{role}"]
    intro = usual
    if person.sensitivity is Sensitivity.THIRD_PARTY:
        # Said once, of the whole person.
        intro += " Somebody besides the person you refer: give only what is needed."
        fields = [replace(one, sensitivity=Sensitivity.PERSONAL) for one in fields]
    return Group(f"people.{role}", person.label, tuple(fields), intro=intro.strip())


def _lawful_basis(required: set[str]) -> Group:
    paths = _leaves("lawful_basis")
    needed = not required.isdisjoint(("lawful_basis", *paths))
    return Group(
        "lawful_basis",
        "Lawful basis for sharing",
        tuple(replace(fact(path), required=needed) for path in paths),
        intro="A record of its own, apart from anybody’s agreement."
        + ("" if needed else " Fill in all of it, or leave all of it empty."),
    )


def _agreement(roles: Mapping[str, tuple[Intervention, ...]], typed: Typed) -> Group:
    """The records of each person's answer, with room for one where there is none."""
    listed = numbers(typed, "consents")
    free = max(listed, default=0)
    people = []
    for role, by in roles.items():
        own = [number for number in listed if last(typed, f"consents.{number}.person") == role]
        if not own:
            free += 1
            own = [free]
        # The person's own facts stand under the person's name alone.
        title = f"Agreement of the {shared_facts()[f'people.{role}'].label.lower()}"
        records = tuple(
            Group(
                f"consents.{number}",
                f"Record {at}" if len(own) > 1 else "",
                tuple(_record(number, by)),
                number=at,
                role=role,
            )
            for at, number in enumerate(own, 1)
        )
        people.append(Group(f"consents.{role}", title, groups=records, role=role))
    return Group(
        "consents",
        "Agreement",
        groups=tuple(people),
        intro=(
            "What each person answered when asked. Nothing is filled in for you. Leave a record "
            "empty if the person has not been asked."
        ),
    )


def _record(number: int, by: Sequence[Intervention]) -> Iterator[Field]:
    place = f"consents.{number}"
    yield Field(
        f"{place}.interventions",
        "Asked about",
        Kind.CHOICES,
        options=tuple((one.id, one.title) for one in by),
    )
    yield from _numbered(
        "consents", number, ("given", "on", "how", "recorded_by", "withdrawn_on"), required=False
    )


def _question(intervention_id: str, question: Question) -> Field:
    kinds: Mapping[QuestionType, Kind] = {one: Kind(one.value) for one in QuestionType}
    return Field(
        f"answers.{intervention_id}.{question.name}",
        question.label,
        kinds[question.type],
        hint=question.hint,
        options=tuple((option.value, option.label) for option in question.options),
        required=question.required,
        optional=not question.required,
        sensitivity=question.sensitivity,
    )


def override_form(number: int) -> Group:
    """A supervisor's decision on one rule; which, the page knows."""
    names = [name for name in Override.model_fields if name != "code"]
    return Group(f"overrides.{number}", "", tuple(_numbered("overrides", number, names)))
