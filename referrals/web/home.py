"""The first page: begin a referral, go on with one, and what wants looking at."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals import bootstrap
from referrals.cli.held import counted
from referrals.delivery import DeliveryStatus
from referrals.web.journeys import Journey, journeys_of
from referrals.web.routes import page, shown
from referrals.web.site import site_of, user_of
from referrals.web.words import clock_of


@dataclass(frozen=True)
class Unfinished:
    """A referral that was begun, and the page to go on with."""

    journey: Journey
    titles: str
    href: str


def home(request: Request) -> Response:
    return page(
        request,
        "home.html",
        unfinished=[_unfinished(journey) for journey in journeys_of(request)],
        attention=_attention(request),
        clock=clock_of(site_of(request).service),
    )


def _unfinished(journey: Journey) -> Unfinished:
    titles = ", ".join(one.title for one in journey.interventions)
    return Unfinished(journey, titles, journey.url(journey.stage))


def _attention(request: Request) -> list[dict[str, str]]:
    """What waits for a person, with where to see to it."""
    site = site_of(request)
    if not bootstrap.has_outbox(site.settings):
        return []
    with site.outbox(user_of(request)) as outbox:
        failed = outbox.counts().get(DeliveryStatus.FAILED, 0)
        uncertain = outbox.held(status=DeliveryStatus.UNCERTAIN)
        overdue = len(outbox.unacknowledged(site.service.today()))
    waiting = sum(one.due_at is None for one in uncertain)
    found = (
        (failed, "referral failed", "referrals failed", "/outbox?status=failed"),
        (waiting, "referral is uncertain", "referrals are uncertain", "/outbox?status=uncertain"),
        (overdue, "answer is late", "answers are late", "/due"),
    )
    return [
        {"text": counted(number, one, several), "href": href}
        for number, one, several, href in found
        if number
    ]


def routes() -> list[BaseRoute]:
    return [shown("/", home)]
