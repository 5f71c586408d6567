"""Check your answers: all that was typed read back, what the rules say, and setting one aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.eligibility import Assessment
from referrals.errors import Problem
from referrals.rules import Finding, Level
from referrals.web.fields import Field, Group, Typed, numbers, without
from referrals.web.forms import override_form, you_form
from referrals.web.journeys import Journey, journey_of, taken
from referrals.web.reading import OF_THE_ADDRESS, read_out
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import User
from referrals.web.words import kept_words


@dataclass(frozen=True)
class Row:
    """One answer as it is read back. `missing` says so where it is needed and not given."""

    label: str
    words: str
    href: str
    missing: bool = False


@dataclass(frozen=True)
class Card:
    title: str
    rows: tuple[Row, ...]


def check(request: Request) -> Response:
    journey = journey_of(request)
    if journey.gap:
        return goto(journey.gap)
    return page(
        request,
        "check.html",
        journey=journey,
        cards=_cards(journey),
        lacking=[_said(journey, one) for one in journey.lacking],
        outcomes=[_outcome(journey, one) for one in journey.assessments],
        kept=kept_words(journey.site),
        today=journey.service.today(journey.reading.place),
    )


@dataclass(frozen=True)
class Outcome:
    """What becomes of one chosen intervention."""

    assessment: Assessment
    ready: bool
    lacking: int
    blocks: tuple[tuple[Finding, str], ...]
    """Rules that say no, each with where to go for it."""
    advice: tuple[tuple[Finding, str], ...]
    set_aside: tuple[Finding, ...]


def _outcome(journey: Journey, assessment: Assessment) -> Outcome:
    intervention = assessment.intervention

    def linked(findings: Iterable[Finding]) -> tuple[tuple[Finding, str], ...]:
        return tuple(
            (one, journey.link(one.where) if one.where else "")
            for one in read_out(findings, intervention)
        )

    advice = (
        one
        for one in assessment.findings
        if one.level is not Level.BLOCK and one.code not in OF_THE_ADDRESS
    )
    own = {problem.where for problem in assessment.problems}
    return Outcome(
        assessment,
        journey.reading.is_ready(assessment),
        sum(problem.where in own for problem in journey.lacking),
        linked(assessment.blocks),
        linked(sorted(advice, key=lambda one: one.level is Level.INFO)),
        tuple(read_out((one for one in assessment.findings if one.override), intervention)),
    )


def _said(journey: Journey, problem: Problem) -> Mapping[str, str]:
    """A problem, away from its field."""
    place = journey.place_of(problem.where)
    groups = journey.case_groups if place and place[0] == "case" else journey.details_groups
    (said,) = journey.errors([problem], groups).listed
    return {"text": said["text"], "href": journey.link(problem.where)}


def _cards(journey: Journey) -> list[Card]:
    missing = {one.where for one in journey.lacking}
    reference, where, incidents = journey.case_groups
    cards = [
        Card("You", tuple(_rows(you_form(), journey.you, missing, _to_you(journey)))),
        Card(
            "The case",
            tuple(
                row
                for group in (reference, where)
                for row in _rows(group, journey.typed, missing, _to(journey, "case"))
            ),
        ),
        Card("What happened", tuple(incident_rows(journey, incidents))),
    ]
    for group in journey.details_groups:
        if group.id == "location":
            continue  # stands with the case
        for inner in group.groups or (group,):
            for record in inner.groups or (inner,):
                rows = tuple(_rows(record, journey.typed, missing, _to(journey, "details")))
                if record.role and not rows:
                    rows = (
                        Row("Answer", "None recorded", journey.url("details?back=check", inner.id)),
                    )
                if record.number and len(inner.groups) > 1:
                    cards.append(Card(f"{inner.title}, {record.title.lower()}", rows))
                elif rows:
                    cards.append(Card(inner.title, rows))
    return [card for card in cards if card.rows]


def _to(journey: Journey, page_name: str) -> Callable[[Field], str]:
    return lambda one: journey.url(f"{page_name}?back=check", one.anchor)


def _to_you(journey: Journey) -> Callable[[Field], str]:
    return lambda one: f"/you?next={journey.id}&back=check#{one.anchor}"


def _rows(
    group: Group, typed: Typed, missing: set[str], href: Callable[[Field], str]
) -> Iterable[Row]:
    for one in group.fields:
        words = one.words(typed)
        if words:
            yield Row(one.label, words, href(one))
        elif one.name in missing or one.required:
            yield Row(one.label, "Not given yet", href(one), missing=True)


def incident_rows(journey: Journey, incidents: Group) -> list[Row]:
    rows = []
    for group in incidents.groups:
        words = {one.leaf: one.words(journey.typed) for one in group.fields}
        if any(words.values()):
            labels = {one.leaf: one.label for one in group.fields}
            known = [
                f"{labels[leaf]}: {text}" if leaf in ("strand", "place", "reference") else text
                for leaf, text in words.items()
                if text and leaf != "on"
            ]
            title = f"{group.title}, {words['on']}" if words["on"] else group.title
            href = journey.url("case?back=check", group.fields[0].anchor)
            rows.append(Row(title, "\n".join(known), href))
    return rows


def remove(request: Request, sent: Posted) -> Response:
    """Go on without one of the chosen interventions; what was typed for it is kept."""
    journey = journey_of(request)
    chosen = tuple(name for name in journey.chosen if name != sent.get("intervention"))
    journey = journey.keep(chosen=chosen)
    return goto(journey.url("check" if chosen else "choose"))


# A supervisor's decision


def set_aside(request: Request) -> Response:
    journey = journey_of(request)
    finding, number = overridden = _overridden(request, journey)
    undecided, _ = _parted(journey.typed, finding.code)
    if undecided:
        kept = {f"overrides.{number}.{leaf}": tuple(one) for leaf, one in undecided.items()}
        typed = taken(journey.typed, Posted(kept), [override_form(number)])
        journey = replace(journey, typed=typed)
    return _set_aside(request, journey, overridden, (), 200)


def _parted(typed: Typed, code: str) -> tuple[Typed, Typed]:
    """What was typed to set a rule aside and not decided, by the end of its name; and the rest."""
    start = f"undecided.{code}."
    undecided = {name: values for name, values in typed.items() if name.startswith(start)}
    rest = {name: values for name, values in typed.items() if name not in undecided}
    return {name.removeprefix(start): values for name, values in undecided.items()}, rest


def keep_decision(request: Request, user: User, sent: Posted) -> str:
    """Under names of its own, which set no rule aside."""
    journey = journey_of(request, user)
    finding, number = _overridden(request, journey)
    undecided = {
        name.replace(f"overrides.{number}.", f"undecided.{finding.code}.", 1): values
        for name, values in taken({}, sent, [override_form(number)]).items()
    }
    _, rest = _parted(journey.typed, finding.code)
    return journey.keep(typed={**rest, **undecided}).url(f"set-aside/{finding.code}")


def _overridden(request: Request, journey: Journey) -> tuple[Finding, int]:
    """The rule that the address names, and the number of its record.

    Raises:
        HTTPException: 404 if no chosen intervention has such a rule to set aside just now.
    """
    code = request.path_params["code"]
    for assessment in journey.assessments:
        for finding in assessment.findings:
            if finding.code == code and finding.overridable:
                listed = journey.override_codes
                free = max(numbers(journey.typed, "overrides"), default=0) + 1
                return finding, next((at for at, one in listed.items() if one == code), free)
    raise HTTPException(404)


def _set_aside(
    request: Request,
    journey: Journey,
    overridden: tuple[Finding, int],
    wrong: Iterable[Problem],
    status: int,
) -> Response:
    finding, number = overridden
    group = override_form(number)
    return page(
        request,
        "check_aside.html",
        status,
        journey=journey,
        finding_shown=finding,
        group=group,
        errors=journey.errors(wrong, [group]),
    )


def set_aside_posted(request: Request, sent: Posted) -> Response:
    journey = journey_of(request)
    finding, number = overridden = _overridden(request, journey)
    _, before = _parted(journey.typed, finding.code)
    if sent.get("action") == "put-back":
        kept = without(before, "overrides", number)
        return goto(journey.keep(typed=kept).url("check"))
    group = override_form(number)
    typed = taken(before, sent, [group])
    typed[f"overrides.{number}.code"] = [finding.code]
    changed = replace(journey, typed=typed)
    wrong = [one for one in changed.reading.problems if one.where.startswith(f"{group.id}.")]
    if wrong:
        return _set_aside(request, changed, overridden, wrong, 422)
    return goto(changed.keep().url("check"))


def routes() -> list[BaseRoute]:
    at = "/referrals/{journey}"
    return [
        shown(f"{at}/check", check),
        posted(f"{at}/remove", remove),
        shown(f"{at}/set-aside/{{code}}", set_aside),
        posted(f"{at}/set-aside/{{code}}", set_aside_posted, keep=keep_decision),
    ]
