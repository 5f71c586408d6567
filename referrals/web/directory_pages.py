"""The directory: who is written to, at which address, and whether somebody has checked it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.addresses import Address, Standing, addresses, unaddressed
from referrals.cli.held import counted
from referrals.problems import problems_of
from referrals.verification import Verification
from referrals.web.hold_pages import holds_shown
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role, Site, site_of, user_of

if TYPE_CHECKING:
    from referrals.errors import Problem

COLOURS = {
    Standing.NO_ADDRESS: "grey",
    Standing.NEVER_VERIFIED: "red",
    Standing.LAPSED: "red",
    Standing.REVIEW_SOON: "yellow",
    Standing.VERIFIED: "green",
}
TAGS = {
    Standing.NO_ADDRESS: "No address",
    Standing.NEVER_VERIFIED: "Never checked",
    Standing.LAPSED: "Check again",
    Standing.REVIEW_SOON: "Check soon",
    Standing.VERIFIED: "Checked",
}
_DONE = {
    "verified": "It is recorded that the address is right.",
    "withdrawn": "The record is taken back.",
    "held": "The agency is held. Nothing goes to it until it is released.",
    "held-before": "The agency was held before already. That was left as it is.",
    "released": "The agency is released. What was kept for it goes to its present address.",
}
_PARTS = ("day", "month", "year")


@dataclass(frozen=True)
class Group:
    """Agencies to which the same areas refer."""

    title: str
    addresses: list[Address]


def directory(request: Request) -> Response:
    site = site_of(request)
    service = site.service
    holds = holds_shown(site, user_of(request))
    found = addresses(service.directory, service.today())
    return page(
        request,
        "directory.html",
        groups=_groups(found, several=len(service.directory.regions) > 1),
        wanting=sum(one.is_wanting for one in found),
        unaddressed=unaddressed(service.directory),
        faults=site.config_faults,
        holds=holds,
        held_and_gone=[one for id, one in holds.items() if id not in service.directory.agencies],
        done=_DONE.get(request.query_params.get("done", "")),
        counted=counted,
        colours=COLOURS,
        tags=TAGS,
    )


def _groups(found: list[Address], *, several: bool) -> list[Group]:
    """By the areas from which they receive, those for most areas first."""
    groups: dict[str, list[Address]] = {}
    for one in sorted(found, key=lambda one: -len(one.areas)):
        titles = [
            f"{area.title}, {region.title}" if several else area.title for region, area in one.areas
        ]
        title = f"For {' and '.join(titles)}" if titles else "Receive nothing now"
        groups.setdefault(title, []).append(one)
    return [Group(title, members) for title, members in groups.items()]


def directory_agency(request: Request) -> Response:
    return _agency(request)


def _agency(
    request: Request, typed: dict[str, str] | None = None, problems: tuple[Problem, ...] = ()
) -> Response:
    site, user = site_of(request), user_of(request)
    address = _address(request, site)
    agency = address.agency
    recorded = None
    if user.may(Role.ADMINISTRATOR):
        typed = typed or {"by": user.title or user.name}
        recorded = site.recorded(agency)
    errors: dict[str, dict[str, Any]] = {
        problem.where: {"text": _said(problem)} for problem in problems
    }
    links = {"on": "#on-day", "by": "#by"}
    return page(
        request,
        "directory_agency.html",
        422 if problems else 200,
        address=address,
        agency=agency,
        recorded=recorded,
        typed=typed,
        errors=[
            {"text": error["text"], "href": links.get(where, "#on-day")}
            for where, error in errors.items()
        ],
        at=errors,
        colours=COLOURS,
        tags=TAGS,
        held=holds_shown(site, user).get(agency.id),
        broken=_broken(site, agency.id),
        counted=counted,
        done=_DONE.get(request.query_params.get("done", "")),
        changed=request.query_params.get("done") == "changed",
    )


def _broken(site: Site, agency: str) -> tuple[str, ...]:
    """References that the last release could not readdress, if it was in this process."""
    running = site.releases.of(agency)
    return running.broken if running is not None and running.is_over else ()


_NAMES = {"on": "The day on which they were asked", "by": "Who asked them"}


def _said(problem: Problem) -> str:
    if problem.where == "on" and problem.code == "date":
        return "Enter the day on which they were asked, such as 27 3 2026"
    return f"{_NAMES.get(problem.where, problem.where)} {problem.what} {problem.remedy}"


def _address(request: Request, site: Site) -> Address:
    wanted, service = request.path_params["agency"], site.service
    for address in addresses(service.directory, service.today()):
        if address.agency.id == wanted:
            return address
    raise HTTPException(404)


def directory_verify(request: Request, posted_form: Posted) -> Response:
    """Record it, if the address that was shown is still the directory's."""
    site, user = site_of(request), user_of(request)
    agency = _address(request, site).agency
    typed = {name: posted_form.get(name if name == "by" else f"on-{name}").strip()
             for name in (*_PARTS, "by")}  # fmt: skip
    on = "-".join([typed["year"], typed["month"].zfill(2), typed["day"].zfill(2)])
    try:
        one = Verification.of(agency, on, typed["by"], site.service.today())
    except ValidationError as error:
        return _agency(request, typed, tuple(problems_of(error)))
    if posted_form.get("address") != one.address:
        # Whoever asked, asked about what the page showed.
        return goto(f"/directory/{agency.id}?done=changed")
    with site.outbox(user) as outbox:
        outbox.verify(one, site.now)
    return goto(f"/directory/{agency.id}?done=verified")


def directory_withdraw(request: Request, _: Posted) -> Response:
    site, user = site_of(request), user_of(request)
    agency = _address(request, site).agency
    with site.outbox(user) as outbox:
        outbox.withdraw(agency.id, agency.email or "", site.now)
    return goto(f"/directory/{agency.id}?done=withdrawn")


def routes() -> list[BaseRoute]:
    one = "/directory/{agency}"
    return [
        shown("/directory", directory),
        shown(one, directory_agency),
        posted(f"{one}/verify", directory_verify, role=Role.ADMINISTRATOR),
        posted(f"{one}/withdraw", directory_withdraw, role=Role.ADMINISTRATOR),
    ]
