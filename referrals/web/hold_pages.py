"""Holding an agency and releasing it: what would happen first, then doing it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.bootstrap import has_outbox
from referrals.cli.held import counted
from referrals.cli.hold import holds_by_agency
from referrals.delivery import DeliveryStatus
from referrals.errors import NoAddress, NotPossibleNow, OutboxError
from referrals.holding import Addressed, Reason, Rerouted, number_of
from referrals.releasing import Choices, Release, carry_out, prepare_release
from referrals.web import words
from referrals.web.outbox_pages import row_of
from referrals.web.releases import Running
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role, Site, User, site_of, user_of

if TYPE_CHECKING:
    from referrals.directory import Agency
    from referrals.holding import Hold
    from referrals.ports import Outbox

PATIENCE_S = 3.0
"""How long a page waits for a release before it says that it is under way."""

_FEW, _MANY = 10, 500

_CHOICES = {
    Reason.WRONG_ADDRESS: "Its address was found wrong",
    Reason.AGENCY_ASKED: "The agency asked for it",
    Reason.NOT_ANSWERING: "The agency does not answer",
    Reason.OTHER: "Another reason",
}


@dataclass(frozen=True)
class Named:
    """An agency by its id; `agency` is none if it has left the directory."""

    id: str
    agency: Agency | None

    @property
    def title(self) -> str:
        return self.agency.title if self.agency else self.id

    @property
    def path(self) -> str:
        return f"/directory/{self.id}"

    @property
    def home(self) -> str:
        """Where to go once something was done."""
        return self.path if self.agency else "/directory"


def _named(request: Request, outbox: Outbox | None = None) -> Named:
    """One that has left the directory counts while something of it is in the outbox.

    Raises:
        HTTPException: 404.
    """
    wanted = request.path_params["agency"]
    agency = site_of(request).service.directory.agencies.get(wanted)
    if agency is None:
        gone = outbox is not None and (wanted in holds_by_agency(outbox)
                                       or outbox.addressed(wanted))  # fmt: skip
        if not gone:
            raise HTTPException(404)
    return Named(wanted, agency)


# Holding


def hold(request: Request) -> Response:
    return _hold(request)


def _hold(request: Request, error: str = "") -> Response:
    site = site_of(request)
    with site.outbox(user_of(request)) as outbox:
        named = _named(request, outbox)
        if named.id in holds_by_agency(outbox):
            return goto(named.home)
        addressed = outbox.addressed(named.id)
    return page(
        request,
        "directory_hold.html",
        422 if error else 200,
        named=named,
        waiting=number_of(one for one in addressed if one.waits),
        under_way=_under_way(addressed),
        reasons=[{"value": str(one), "text": text} for one, text in _CHOICES.items()],
        errors=[{"text": error, "href": "#why"}] if error else None,
        counted=counted,
    )


def hold_posted(request: Request, sent: Posted) -> Response:
    try:
        why = Reason(sent.get("why"))
    except ValueError:
        return _hold(request, "Choose why nothing is to go to this agency")
    site = site_of(request)
    with site.outbox(user_of(request)) as outbox:
        named = _named(request, outbox)
        _, new = outbox.hold(named.id, why, site.now)
    site.releases.forget(named.id)
    return goto(f"{named.home}?done={'held' if new else 'held-before'}")


def _under_way(addressed: Iterable[Addressed]) -> int:
    return number_of(one for one in addressed if one.status is DeliveryStatus.SENDING)


# Releasing


@dataclass(frozen=True)
class Line:
    """Messages to one address, as `10 queued, 2 delayed`."""

    recipient: str
    words: str
    number: int

    @classmethod
    def each(cls, some: Iterable[Addressed]) -> list[Line]:
        ordered = sorted(some, key=lambda one: one.recipient)
        return [
            cls(recipient, _numbers(group), number_of(group))
            for recipient, group in (
                (recipient, list(found))
                for recipient, found in groupby(ordered, key=lambda one: one.recipient)
            )
        ]


def _numbers(some: Iterable[Addressed]) -> str:
    numbers: dict[str, int] = {}
    for one in some:
        numbers[str(one.status)] = numbers.get(str(one.status), 0) + one.number
    return ", ".join(f"{number:,} {status}" for status, number in numbers.items())


def release(request: Request) -> Response:
    return _release(request)


def _release(
    request: Request, sent: Posted | None = None, errors: list[dict[str, str]] | None = None
) -> Response:
    site, user = site_of(request), user_of(request)
    running = site.releases.of(request.path_params["agency"])
    with site.outbox(user) as outbox:
        named = _named(request, outbox)
        held = holds_by_agency(outbox).get(named.id)
        if held is None:
            return goto(named.home)
        to = named.agency.email if named.agency else None
        elsewhere = [
            row_of(one, site.service.directory, site.service.today())
            for one in outbox.disclosed(named.id, to or "", limit=_FEW + 1)
        ]
        found, impossible = None, ""
        try:
            found = prepare_release(outbox, named.id, named.agency, Choices())
        except NoAddress:
            impossible = (
                "The directory has no address for this agency, so what waits for it can go "
                "nowhere. Whoever looks after this service gives it one in config/ (agencies.toml);"
                " or what waits is cancelled."
            )
        except NotPossibleNow:  # it ended this very moment
            return goto(named.home)
    today, clock = site.service.today(), words.clock_of(site.service)
    shared: dict[str, Any] = {
        "named": named,
        "held": held,
        "held_words": words.held_words(held, clock),
        "to": to,
        "counted": counted,
    }
    if running is not None and not running.is_over:
        left = number_of(found.plan.moving) if found else 0
        return page(request, "directory_releasing.html", left=left, **shared)
    staying = found.plan.staying if found else ()
    changed = request.query_params.get("stopped") == "changed"
    return page(
        request,
        "directory_release.html",
        422 if errors else 200,
        plan=found.plan if found else None,
        impossible=impossible,
        going=Line.each(found.plan.going) if found else [],
        moving=Line.each(found.plan.moving) if found else [],
        staying=Line.each(staying),
        under_way=Line.each(found.plan.under_way) if found else [],
        uncertain=_of_status(staying, DeliveryStatus.UNCERTAIN),
        failed=_of_status(staying, DeliveryStatus.FAILED),
        unverified=bool(found and to and not found.is_verified(today)),
        ticked=sent.all("with") if sent else (),
        accepted=bool(sent and sent.get("accept")),
        errors=errors,
        stopped=_CHANGED if changed else running.fault if running else "",
        elsewhere=elsewhere[:_FEW],
        more_elsewhere=len(elsewhere) > _FEW,
        clock=clock,
        **shared,
    )


_CHANGED = (
    "The directory’s address or the hold has changed since that page was shown, so nothing was "
    "done. Look at it again."
)


def _of_status(some: Iterable[Addressed], status: DeliveryStatus) -> int:
    return number_of(one for one in some if one.status is status)


def release_posted(request: Request, sent: Posted) -> Response:
    """Do it, to the address and of the hold that the page showed."""
    site, user = site_of(request), user_of(request)
    choices = Choices(
        accept_unverified=sent.get("accept") == "yes",
        with_uncertain="uncertain" in sent.all("with"),
        with_failed="failed" in sent.all("with"),
    )
    with site.outbox(user) as outbox:
        named = _named(request, outbox)
        if named.id not in holds_by_agency(outbox):
            return goto(f"{named.home}?done=released")  # a second click, or somebody else's
        found = prepare_release(outbox, named.id, named.agency, choices)
    if (sent.get("address"), sent.get("since")) != (found.to or "", found.hold.since.isoformat()):
        return goto(f"{named.path}/release?stopped=changed")
    if found.needs_acceptance(site.service.today()):
        text = (
            "Nobody has checked the address lately. Check it with the agency, or tick that you "
            "accept this"
        )
        return _release(request, sent, [{"text": text, "href": "#accept"}])
    running = begin_release(site, user, found)
    if running.wait(PATIENCE_S) and not running.fault:
        return goto(f"{named.home}?done=released")
    return goto(f"{named.path}/release")


def begin_release(site: Site, user: User, found: Release) -> Running:
    """Carry it out in the background, in the user's name."""
    today = site.service.today()

    def work() -> list[Rerouted]:
        with site.outbox(user) as outbox:
            done = carry_out(outbox, found, today, lambda: site.now)
        site.courier.kick()
        return done

    return site.releases.begin(found.hold.agency, work)


# What another address has


def elsewhere(request: Request) -> Response:
    """Referrals that another address than the directory's has or may have, unanswered."""
    site = site_of(request)
    with site.outbox(user_of(request)) as outbox:
        named = _named(request, outbox)
        to = named.agency.email if named.agency else None
        found = outbox.disclosed(named.id, to or "", limit=_MANY)
    service = site.service
    return page(
        request,
        "directory_elsewhere.html",
        named=named,
        to=to,
        rows=[row_of(one, service.directory, service.today()) for one in found],
        most=_MANY,
        clock=words.clock_of(service),
        counted=counted,
    )


@dataclass(frozen=True)
class HoldShown:
    """A hold as the directory shows it. `waiting`: messages that it keeps; `words`: since when."""

    hold: Hold
    waiting: int
    under_way: int
    words: str


def holds_shown(site: Site, user: User) -> dict[str, HoldShown]:
    """Every hold there is, by agency; none, where that can't be read."""
    if not has_outbox(site.settings):
        return {}
    clock = words.clock_of(site.service)
    made = {}
    with suppress(OutboxError), site.outbox(user) as outbox:  # the directory is read without one
        for one in outbox.holds():
            addressed = outbox.addressed(one.agency)
            waiting = number_of(each for each in addressed if each.waits)
            told = words.held_words(one, clock)
            made[one.agency] = HoldShown(one, waiting, _under_way(addressed), told)
    return made


def routes() -> list[BaseRoute]:
    one = "/directory/{agency}"
    return [
        shown(f"{one}/hold", hold, role=Role.ADMINISTRATOR),
        posted(f"{one}/hold", hold_posted, role=Role.ADMINISTRATOR),
        shown(f"{one}/release", release, role=Role.ADMINISTRATOR),
        posted(f"{one}/release", release_posted, role=Role.ADMINISTRATOR),
        shown(f"{one}/elsewhere", elsewhere),
    ]
