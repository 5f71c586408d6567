"""Every intervention as the directory describes it, and its letter with a made-up case."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.case import Sensitivity, shared_facts
from referrals.directory import Agency, Directory, Intervention, QuestionType
from referrals.rules import Level
from referrals.samples import sample_case
from referrals.service import Referral, Service
from referrals.web.letter_frame import header_lines, letter_frame
from referrals.web.routes import page, shown
from referrals.web.site import site_of

KINDS = {
    QuestionType.LINE: "One line",
    QuestionType.TEXT: "Text",
    QuestionType.CHOICE: "One choice",
    QuestionType.CHOICES: "One or more choices",
    QuestionType.YES_NO: "Yes or no",
    QuestionType.DATE: "Date",
    QuestionType.MOMENT: "Date and time",
    QuestionType.NUMBER: "Whole number",
}
SENSITIVITIES = {
    Sensitivity.PUBLIC: "Not about a person",
    Sensitivity.PERSONAL: "Personal",
    Sensitivity.SPECIAL: "Special category",
    Sensitivity.THIRD_PARTY: "About somebody else",
}
LEVELS = {
    Level.BLOCK: "Stops the referral",
    Level.ADVISE: "Advice",
    Level.INFO: "Note",
}


class Way(NamedTuple):
    """Where referrals from some areas or districts go."""

    places: tuple[str, ...]
    agency: Agency


def letters(request: Request) -> Response:
    directory = site_of(request).service.directory
    found = sorted(directory.interventions.values(), key=lambda one: one.title)
    return page(
        request, "letters.html", interventions=[(one, _ways(directory, one)) for one in found]
    )


def letter(request: Request) -> Response:
    site = site_of(request)
    service = site.service
    intervention = _intervention(request)
    referral = _sample(service, intervention)
    facts = [
        (fact_title(path), shared_facts()[path], path in intervention.facts.required)
        for path in intervention.facts
    ]
    return page(
        request,
        "letter.html",
        intervention=intervention,
        ways=_ways(service.directory, intervention),
        referral=referral,
        headers=header_lines(service.draft(referral)),
        facts=facts,
        today=service.today(),
        kinds=KINDS,
        sensitivities=SENSITIVITIES,
        levels=LEVELS,
    )


def letter_html(request: Request) -> Response:
    """The HTML part alone, for the frame."""
    return letter_frame(_sample(site_of(request).service, _intervention(request)).letter.html)


def fact_title(path: str) -> str:
    """A fact with whom or what it is of: `Person harmed: phone`."""
    known = shared_facts()
    group, *rest = path.split(".")
    label = known[path].label.replace("_", " ")
    if group in ("people", "consents") and (group == "consents" or rest[1:]):
        of = known[f"people.{rest[0]}"].label
    elif group == "incidents" and rest:
        of = "Each incident"
    else:
        return label[:1].upper() + label[1:]
    return f"{of}: {label[:1].lower()}{label[1:]}"


def _intervention(request: Request) -> Intervention:
    known = site_of(request).service.directory.interventions
    try:
        return known[request.path_params["intervention"]]
    except KeyError:
        raise HTTPException(404) from None


def _sample(service: Service, intervention: Intervention) -> Referral:
    raw = sample_case(service.directory, [intervention.id], service.today())
    case, place = service.read(raw)
    return service.prepare(service.assess(case, place, intervention.id))


def _ways(directory: Directory, intervention: Intervention) -> list[Way]:
    """Each agency once, with the places that it takes referrals from."""
    titles = dict(_titles(directory))
    found: dict[str, list[str]] = {}
    for place, agency in intervention.routes.items():
        found.setdefault(agency, []).append(titles.get(place, place))
    return [Way(tuple(places), directory.agencies[agency]) for agency, places in found.items()]


def _titles(directory: Directory) -> Iterator[tuple[str, str]]:
    for place in directory.places:
        yield place.area.id, place.area.title
        if place.district:
            yield place.district.id, place.district.title


def routes() -> list[BaseRoute]:
    return [
        shown("/letters", letters),
        shown("/letters/{intervention}", letter),
        shown("/letters/{intervention}/html", letter_html),
    ]
