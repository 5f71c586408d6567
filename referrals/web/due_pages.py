"""Answers that are late or soon will be, and reminders of them as drafts."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.cli.held import counted, days_words
from referrals.delivery import DeliveryStatus
from referrals.errors import NotPossibleNow
from referrals.message import Sender
from referrals.reminder import file_name, reminder, why_not
from referrals.telling import agency_title
from referrals.web import downloads, words
from referrals.web.journeys import you_of
from referrals.web.outbox_pages import intervention_title
from referrals.web.routes import Posted, page, posted, shown
from referrals.web.site import Site, User, site_of, user_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from referrals.holding import Hold
    from referrals.queueing import Held
    from referrals.service import Service

_SOON_DAYS = 7


@dataclass(frozen=True)
class Awaited:
    """A referral whose answer is awaited. `why_not`: nobody can be reminded of it, and why."""

    held: Held
    agency_title: str
    phone: str | None
    intervention: str
    days_late: int
    why_not: str | None
    told: words.Told

    @property
    def lateness(self) -> str:
        return f"{days_words(self.days_late)} late"


def _awaited(held: Held, service: Service, today: date, holds: Mapping[str, Hold]) -> Awaited:
    agency = service.directory.agencies.get(held.agency)
    return Awaited(
        held=held,
        agency_title=agency_title(held, service.directory),
        phone=agency.phone if agency else None,
        intervention=intervention_title(held, service.directory),
        days_late=(today - held.acknowledge_by).days,
        why_not=_why_not(held, service, holds),
        told=words.told(held),
    )


def _why_not(held: Held, service: Service, holds: Mapping[str, Hold]) -> str | None:
    if held.agency in holds:
        return f"The agency is {words.held_words(holds[held.agency], words.clock_of(service))}."
    if held.status is DeliveryStatus.UNCERTAIN and held.due_at is not None:
        return "It is still being tried, so it is too early to remind anybody."
    why = why_not(held, service.directory)
    return why[0].upper() + why[1:] if why else None


def _late(site: Site, user: User, until: date) -> list[Held]:
    """Those awaited by a day before `until`; of each reference the newest."""
    with site.outbox(user) as outbox:
        newest = {held.reference: held for held in outbox.unacknowledged(until)}
    return list(newest.values())


def due(request: Request) -> Response:
    site = site_of(request)
    return _due(request, site, user_of(request))


def _due(request: Request, site: Site, user: User, error: str = "") -> Response:
    service = site.service
    today = service.today()
    holds = site.holds()
    awaited = [
        _awaited(held, service, today, holds)
        for held in _late(site, user, today + timedelta(days=_SOON_DAYS + 1))
    ]
    return page(
        request,
        "due.html",
        422 if error else 200,
        late=[one for one in awaited if one.days_late > 0],
        soon=[one for one in awaited if one.days_late <= 0],
        soon_days=_SOON_DAYS,
        sender=_sender(site, user),
        errors=[{"text": error, "href": "#reference"}] if error else None,
        counted=counted,
    )


def due_reminders(request: Request, typed: Posted) -> Response:
    """Drafts to those that were chosen: one as it is, several as an archive."""
    site, user = site_of(request), user_of(request)
    service = site.service
    wanted = set(typed.all("reference"))
    if not wanted:
        return _due(request, site, user, "Choose the referrals to send a reminder of")
    holds = site.holds()
    files = {
        file_name(held): _reminder(held, site, service, user)
        for held in _late(site, user, service.today())
        if held.reference in wanted and _why_not(held, service, holds) is None
    }
    if not files:
        raise NotPossibleNow("None of these is late any more, or none can be reminded of.")
    if len(files) == 1:
        [(name, content)] = files.items()
        return downloads.eml(name, content)
    return downloads.zipped("reminders.zip", files, service.today())


def due_reminder(request: Request) -> Response:
    """The draft to one agency."""
    site, user = site_of(request), user_of(request)
    service = site.service
    reference = request.path_params["reference"].upper()
    for held in _late(site, user, service.today()):
        if held.reference == reference:
            why = _why_not(held, service, site.holds())
            if why:
                raise NotPossibleNow(why)
            return downloads.eml(file_name(held), _reminder(held, site, service, user))
    raise HTTPException(404)


def _reminder(held: Held, site: Site, service: Service, user: User) -> bytes:
    sender = _sender(site, user)
    return reminder(held, service.directory, service.templates, service.mail.marking, sender)


def _sender(site: Site, user: User) -> Sender | None:
    """Who they said they are; None leaves From to their mail client."""
    typed = you_of(site, user)
    name, email = (typed.get(f"referrer.{part}", ("",))[-1] for part in ("name", "email"))
    return Sender(name, email) if email else None


def routes() -> list[BaseRoute]:
    return [
        shown("/due", due),
        posted("/due/reminders", due_reminders),
        shown("/due/{reference}/reminder.eml", due_reminder),
    ]
