"""The journey's first pages: the case, what fits it, and the details."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.case import People
from referrals.eligibility import Assessment
from referrals.errors import Problem
from referrals.rules import ConsentGiven, Finding
from referrals.web.checking import incident_rows
from referrals.web.fields import (
    MOST_ITEMS,
    Typed,
    every_field,
    field_at,
    numbers,
    renumbered,
    without,
)
from referrals.web.forms import case_form, details_form
from referrals.web.journeys import Journey, begin, journey_of, keep_you, taken
from referrals.web.reading import read_out
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import User


def start(request: Request, _: Posted) -> Response:
    journey = begin(request)
    if not journey.you:
        return goto(f"/you?next={journey.id}")
    keep_you(journey.site, journey.user, journey.you)  # for as long again
    return goto(journey.url("case"))


# The case


def case(request: Request) -> Response:
    journey = journey_of(request)
    wanted = request.query_params.get("show") == "problems"
    return _case(request, journey, _wrong_in_case(journey) if wanted else (), 200)


def _case_typed(journey: Journey, sent: Posted) -> Typed:
    # The incidents are those of the page, however many there were before.
    before = {
        name: values for name, values in journey.typed.items() if not name.startswith("incidents.")
    }
    return taken(before, sent, case_form(journey.service.directory, sent.values))


def keep_case(request: Request, user: User, sent: Posted) -> str:
    journey = journey_of(request, user)
    return journey.keep(typed=_case_typed(journey, sent)).url("case")


def case_posted(request: Request, sent: Posted) -> Response:
    journey = journey_of(request)
    typed = _case_typed(journey, sent)
    action = sent.get("action")
    if action == "add-incident" or action.startswith("remove-incidents."):
        typed = _changed_list(typed, "incidents", action, "on-day", "")
        at = max(numbers(typed, "incidents"), default=1) if action == "add-incident" else 1
        return goto(journey.keep(typed=typed).url("case", f"incidents.{at}"))
    journey = journey.keep(typed=typed)
    if action == "save":
        return goto("/")
    wrong = _wrong_in_case(journey)
    if wrong:
        return _case(request, journey, wrong, 422)
    if journey.first_gap:
        return goto(journey.first_gap)
    back = journey.stage in ("check", "done") and journey.chosen
    if back:
        return goto(journey.url("check"))
    return goto(journey.keep(stage="choose").url("choose"))


def _wrong_in_case(journey: Journey) -> list[Problem]:
    fields = list(every_field(journey.case_groups))
    return [one for one in journey.reading.problems if field_at(one.where, fields)]


def _case(request: Request, journey: Journey, wrong: Iterable[Problem], status: int) -> Response:
    reference, where, incidents = journey.case_groups
    return page(
        request,
        "case.html",
        status,
        journey=journey,
        reference=reference.fields[0],
        where=where,
        incidents=incidents.groups,
        full=len(incidents.groups) >= MOST_ITEMS,
        errors=journey.errors(wrong, journey.case_groups),
    )


def _changed_list(typed: Typed, group: str, action: str, marker: str, value: str) -> Typed:
    """A list with one item more, which is empty but for a marker, or one less."""
    if action.startswith("remove-"):
        number = action.rpartition(".")[2]
        if number.isascii() and number.isdigit() and len(number) < 5:
            return without(typed, group, int(number))
        return typed
    typed = renumbered(typed, group)
    listed = numbers(typed, group)
    if len(listed) < MOST_ITEMS:
        if group == "incidents" and not listed:
            typed[f"{group}.1.{marker}"] = [""]
            listed = [1]
        typed[f"{group}.{len(listed) + 1}.{marker}"] = [value]
    return typed


# What fits


@dataclass(frozen=True)
class Offer:
    """An intervention against this case. `needs` are the rules that still say no."""

    assessment: Assessment
    chosen: bool

    @property
    def needs(self) -> tuple[Finding, ...]:
        return tuple(read_out(self.assessment.blocks, self.assessment.intervention))

    @property
    def may_be_chosen(self) -> bool:
        """What rules say no may still be answered, recorded or set aside."""
        return self.assessment.agency is not None and all(map(self._may_lift, self.needs))

    def _may_lift(self, finding: Finding) -> bool:
        if finding.missing or finding.overridable:
            return True
        rule = next(
            (one for one in self.assessment.intervention.rules if one.code == finding.code), None
        )
        if rule is None:
            return False
        by_basis = isinstance(rule.check, ConsentGiven) and rule.check.unless_lawful_basis
        return by_basis or any(rule.check.answers_read())


def choose(request: Request) -> Response:
    journey = journey_of(request)
    return goto(journey.first_gap) if journey.first_gap else _choose(request, journey, None, 200)


def _choose(request: Request, journey: Journey, error: str | None, status: int) -> Response:
    offers = _offers(journey)
    fit = [one for one in offers if one.assessment.fits]
    may = [one for one in offers if not one.assessment.fits and one.may_be_chosen]
    return page(
        request,
        "choose.html",
        status,
        journey=journey,
        fit=fit,
        may=may,
        others=[one for one in offers if one not in fit and one not in may],
        error=error,
        errors=error,
        today=journey.service.today(journey.reading.place),
    )


def _offers(journey: Journey) -> list[Offer]:
    found = map(journey.assess, sorted(journey.service.directory.interventions))
    return [Offer(one, one.intervention.id in journey.chosen) for one in found if one]


def _chosen(journey: Journey, sent: Posted) -> tuple[str, ...]:
    wanted = sent.all("chosen")
    return tuple(
        one.assessment.intervention.id
        for one in _offers(journey)
        if one.assessment.intervention.id in wanted and one.may_be_chosen
    )


def keep_choice(request: Request, user: User, sent: Posted) -> str | None:
    journey = journey_of(request, user)
    chosen = () if journey.first_gap else _chosen(journey, sent)
    return journey.keep(chosen=chosen).url("choose") if chosen else None


def choose_posted(request: Request, sent: Posted) -> Response:
    journey = journey_of(request)
    if journey.first_gap:
        return goto(journey.first_gap)
    chosen = _chosen(journey, sent)
    journey = replace(journey, chosen=chosen)
    if not chosen:
        return _choose(request, journey, "Choose at least one kind of help.", 422)
    return goto(journey.keep(stage="details").url("details"))


# The details


def details(request: Request) -> Response:
    journey = journey_of(request)
    if journey.gap:
        return goto(journey.gap)
    wanted = request.query_params.get("show") == "problems"
    return _details(request, journey, journey.lacking if wanted else (), 200)


def _details(request: Request, journey: Journey, wrong: Iterable[Problem], status: int) -> Response:
    incidents = [group for group in journey.case_groups if group.id == "incidents"]
    told = any(
        path.partition(".")[0] == "incidents" for one in journey.interventions for path in one.facts
    )
    return page(
        request,
        "details.html",
        status,
        journey=journey,
        groups=journey.details_groups,
        incidents=incident_rows(journey, incidents[0]) if told else None,
        errors=journey.errors(wrong, journey.details_groups),
        full=len(numbers(journey.typed, "consents")) >= MOST_ITEMS,
    )


def _details_typed(journey: Journey, sent: Posted) -> Typed:
    people = {
        name: list(sent.all(name))[-1:]
        for number in numbers(sent.values, "consents")
        for name in (f"consents.{number}.person",)
        if sent.get(name) in People.model_fields
    }
    before = {**journey.typed, **people}
    return taken(before, sent, details_form(journey.service.directory, journey.chosen, before))


def keep_details(request: Request, user: User, sent: Posted) -> str | None:
    journey = journey_of(request, user)
    if journey.gap:
        return None
    return journey.keep(typed=_details_typed(journey, sent)).url("details")


def details_posted(request: Request, sent: Posted) -> Response:
    journey = journey_of(request)
    if journey.gap:
        return goto(journey.gap)
    typed = _details_typed(journey, sent)
    action = sent.get("action")
    if action.startswith("add-consents."):
        role = action.rpartition(".")[2]
        if role in People.model_fields:
            typed = _changed_list(typed, "consents", action, "person", role)
        journey = journey.keep(typed=typed)
        return goto(
            journey.url("details", f"consents.{max(numbers(typed, 'consents'), default=1)}")
        )
    if action.startswith("remove-consents."):
        typed = _changed_list(typed, "consents", action, "person", "")
        return goto(journey.keep(typed=typed).url("details", "consents"))
    journey = journey.keep(typed=typed)
    if action == "save":
        return goto("/")
    if action == "incidents":
        return goto(journey.url("case", "incidents"))
    if journey.lacking and action != "check":
        return _details(request, journey, journey.lacking, 422)
    return goto(journey.keep(stage="check").url("check"))


# Giving up


def delete(request: Request) -> Response:
    return page(request, "home_delete.html", journey=journey_of(request))


def delete_posted(request: Request, _: Posted) -> Response:
    journey_of(request).forget()
    return goto("/")


def routes() -> list[BaseRoute]:
    at = "/referrals/{journey}"
    return [
        posted("/referrals", start),
        shown(f"{at}/case", case),
        posted(f"{at}/case", case_posted, keep=keep_case),
        shown(f"{at}/choose", choose),
        posted(f"{at}/choose", choose_posted, keep=keep_choice),
        shown(f"{at}/details", details),
        posted(f"{at}/details", details_posted, keep=keep_details),
        shown(f"{at}/delete", delete),
        posted(f"{at}/delete", delete_posted),
    ]
