"""The outbox: what was queued, what became of it, and what a person decides about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.cli.held import counted
from referrals.cli.hold import holds_by_agency, kept, waiting_by_hold
from referrals.delivery import DeliveryStatus
from referrals.errors import NotInOutbox, NotPossibleNow
from referrals.holding import check_not_moved
from referrals.reference import is_reference
from referrals.telling import agency_title
from referrals.web import words
from referrals.web.notices import notices_of
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role, site_of, user_of

if TYPE_CHECKING:
    from referrals.directory import Directory
    from referrals.holding import Hold
    from referrals.ports import Outbox
    from referrals.queueing import Attempt, Held

_A_PAGE = 25
_MOST_FOUND = 500
_WAITING = (DeliveryStatus.QUEUED, DeliveryStatus.DELAYED)
_KEPT = "kept"
"""Of the filter: what a hold keeps, whatever its status."""
_STATUSES = [status for status in DeliveryStatus if status is not DeliveryStatus.DRAFTED]


@dataclass(frozen=True)
class Row:
    """A message as a list shows it."""

    held: Held
    intervention: str
    told: words.Told
    answer: str
    is_late: bool


def row_of(
    held: Held,
    directory: Directory,
    today: date,
    holds: Mapping[str, Hold] | None = None,
) -> Row:
    late = held.may_be_answered and held.acknowledge_by < today
    return Row(
        held,
        intervention_title(held, directory),
        words.told(held, kept=kept(held, holds or {}) is not None),
        words.answer(held, today),
        late,
    )


def hold_title(hold: Hold, directory: Directory) -> str:
    """The agency's name, or its id if it has left the directory."""
    agency = directory.agencies.get(hold.agency)
    return agency.title if agency else hold.agency


def intervention_title(held: Held, directory: Directory) -> str:
    known = directory.interventions.get(held.intervention)
    return known.title if known else held.intervention


# The list


def outbox_list(request: Request) -> Response:
    """Filters: `status`, or `kept` by a hold, and `find`, a whole reference or case reference."""
    site, asked = site_of(request), request.query_params
    find = asked.get("find", "").strip()
    only_kept = asked.get("status") == _KEPT
    status = _status(asked.get("status", ""))
    days = site.settings.delivery.keep_unfinished_days
    service = site.service
    today = service.today()
    with site.outbox(user_of(request)) as outbox:
        counts = outbox.counts()
        old = [held for held, _ in outbox.unfinished(site.now - timedelta(days=days))]
        holds = waiting_by_hold(outbox)
        by_agency = {hold.agency: hold for hold, _ in holds}
        waiting = sum(each for _, each in holds)
        if find:
            found = [
                held
                for held in _found(outbox, find)
                if (status is None or held.status is status)
                and not (only_kept and kept(held, by_agency) is None)
            ]
            total, number = len(found), 1
        else:
            everything = sum(counts.values())
            total = counts.get(str(status), 0) if status else waiting if only_kept else everything
            number = page_number(asked, total, _A_PAGE)
            found = outbox.held(
                status=status, kept=only_kept, limit=_A_PAGE, offset=(number - 1) * _A_PAGE
            )
        notices = notices_of(site, outbox, sum(counts.get(str(one), 0) for one in _WAITING))
    clock = words.clock_of(service)
    chosen = {"status": _KEPT} if only_kept else {"status": str(status)} if status else {}
    return page(
        request,
        "outbox.html",
        rows=[row_of(held, service.directory, today, by_agency) for held in found],
        clock=clock,
        counts=[(one, counts.get(str(one), 0)) for one in _STATUSES],
        status=status,
        only_kept=only_kept,
        waiting=waiting,
        holds=[
            (hold, each, hold_title(hold, service.directory), words.held_words(hold, clock))
            for hold, each in holds
        ],
        find=find,
        total=total,
        everything=sum(counts.values()),
        pages=pagination("/outbox", chosen, number, total, _A_PAGE) if not find else None,
        notices=notices,
        old=old,
        days=days,
        counted=counted,
    )


def _status(text: str) -> DeliveryStatus | None:
    return next((status for status in _STATUSES if status == text), None)


def _found(outbox: Outbox, find: str) -> list[Held]:
    """By its reference, dashes or not, or by its case's."""
    text = find.upper()
    letters = text.replace("-", "").replace(" ", "")
    if is_reference(letters):
        by_reference = outbox.held(
            reference="-".join(letters[at : at + 4] for at in range(0, len(letters), 4)),
            limit=_MOST_FOUND,
        )
        if by_reference:
            return by_reference
    return outbox.held(case_reference=text, limit=_MOST_FOUND)


def page_number(asked: Mapping[str, str], total: int, a_page: int) -> int:
    """Which page is asked for, from 1; the last one where there are not so many."""
    text = asked.get("page", "")
    wanted = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1
    return max(1, min(wanted, ceil(total / a_page)))


def pagination(
    path: str, chosen: Mapping[str, str], number: int, total: int, a_page: int
) -> dict[str, Any] | None:
    """Options of GOV.UK Frontend's pagination; None where one page is enough."""
    last = ceil(total / a_page)
    if last <= 1:
        return None

    def link(to: int) -> str:
        return f"{path}?{urlencode({**chosen, 'page': to})}"

    items: list[dict[str, Any]] = []
    near = {1, last, number - 1, number, number + 1}
    for one in range(1, last + 1):
        if one in near:
            items.append({"number": str(one), "href": link(one), "current": one == number})
        elif items and "ellipsis" not in items[-1]:
            items.append({"ellipsis": True})
    made: dict[str, Any] = {"items": items}
    if number > 1:
        made["previous"] = {"href": link(number - 1)}
    if number < last:
        made["next"] = {"href": link(number + 1)}
    return made


# One referral


@dataclass(frozen=True)
class Message:
    """One message of a referral, and how its attempts went, the last one first."""

    row: Row
    agency_title: str
    phone: str | None
    next_step: str
    attempts: list[Attempt]
    replaced_by: Held | None
    """The message to another address that was made of it."""
    replaces: Held | None


_DONE = {
    "retried": "It is tried again now.",
    "retried-kept": "It is queued again, and kept as long as the agency is held.",
    "cancelled": "It is cancelled and is not tried again.",
    "answered": "The agency’s answer is recorded.",
}


def outbox_show(request: Request) -> Response:
    """What `outbox show` tells: the newest message of a reference, and those before it."""
    reference = request.path_params["reference"].upper()
    site = site_of(request)
    service = site.service
    today, clock = service.today(), words.clock_of(service)
    with site.outbox(user_of(request)) as outbox:
        found = outbox.held(reference=reference, limit=10)
        if not found:
            raise NotInOutbox(f"{reference} is not in the outbox.")
        tries = [list(reversed(outbox.attempts(one.id))) for one in found]
        holds = holds_by_agency(outbox)
        waiting = sum(one.status in _WAITING for one in found)
        notices = notices_of(site, outbox, waiting, of_one=True)
    newest, agencies = found[0], service.directory.agencies
    by_id = {one.id: one for one in found}
    made_of = {one.replaces: one for one in found if one.replaces is not None}
    messages = [
        Message(
            row=row_of(one, service.directory, today, holds),
            agency_title=agency_title(one, service.directory),
            phone=agencies[one.agency].phone if one.agency in agencies else None,
            next_step=words.next_step(
                one,
                today,
                clock,
                hold=kept(one, holds),
                moved_to=_moved_to(one, service.directory),
            ),
            attempts=attempts,
            replaced_by=made_of.get(one.id),
            replaces=by_id.get(one.replaces) if one.replaces is not None else None,
        )
        for one, attempts in zip(found, tries, strict=True)
    ]
    return page(
        request,
        "outbox_one.html",
        reference=reference,
        messages=messages,
        clock=clock,
        may={
            "retry": newest.may_be_retried
            and kept(newest, holds) is None
            and _moved_to(newest, service.directory) is None,
            "cancel": any(one.may_be_cancelled for one in found),
            "answered": any(one.may_be_answered for one in found),
            "remind": newest.may_be_answered and newest.acknowledge_by < today,
        },
        moving=newest.status in (DeliveryStatus.QUEUED, DeliveryStatus.SENDING)
        and kept(newest, holds) is None,
        done=_DONE.get(request.query_params.get("done", "")),
        notices=notices,
        earlier=_earlier(messages[1:]),
        colours=words.COLOURS,
    )


def _moved_to(held: Held, directory: Directory) -> str | None:
    """The address that its agency has now, if it was to go to another."""
    agency = directory.agencies.get(held.agency)
    now = agency.email if agency else None
    return now if now != held.recipient else None


def _earlier(messages: Sequence[Message]) -> str:
    """A heading for messages that are not the newest: what is different about them."""
    rerouted = [one.replaced_by is not None for one in messages]
    if messages and all(rerouted):
        return "Queued before, to another address"
    return "Queued before" if any(rerouted) else "Queued before, with other facts"


def _newest(request: Request, may: Callable[[Held], bool]) -> Held:
    """The newest message of the reference that something may be done with.

    Raises:
        NotInOutbox, NotPossibleNow.
    """
    reference = request.path_params["reference"].upper()
    with site_of(request).outbox(user_of(request)) as outbox:
        found = outbox.held(reference=reference, limit=10)
    if not found:
        raise NotInOutbox(f"{reference} is not in the outbox.")
    for held in found:
        if may(held):
            return held
    raise NotPossibleNow(f"{reference} is {found[0].status}, so that can’t be done now.")


def _confirm(request: Request, kind: str, held: Held) -> Response:
    service = site_of(request).service
    return page(
        request,
        "outbox_confirm.html",
        kind=kind,
        held=held,
        row=row_of(held, service.directory, service.today()),
        agency_title=agency_title(held, service.directory),
    )


def outbox_cancel(request: Request) -> Response:
    return _confirm(request, "cancel", _newest(request, lambda held: held.may_be_cancelled))


def outbox_answered(request: Request) -> Response:
    return _confirm(request, "answered", _newest(request, lambda held: held.may_be_answered))


def outbox_do_retry(request: Request, _: Posted) -> Response:
    site, reference = site_of(request), request.path_params["reference"].upper()
    with site.outbox(user_of(request)) as outbox:
        for newest in outbox.held(reference=reference, limit=1):
            check_not_moved(newest, site.service.directory.agencies.get(newest.agency))
        held = outbox.retry(reference, site.now)
        is_kept = kept(held, holds_by_agency(outbox)) is not None
    site.courier.kick()
    return goto(f"/outbox/{reference}?done={'retried-kept' if is_kept else 'retried'}")


def outbox_do_cancel(request: Request, _: Posted) -> Response:
    site, reference = site_of(request), request.path_params["reference"].upper()
    with site.outbox(user_of(request)) as outbox:
        outbox.cancel(reference, site.now)
    return goto(f"/outbox/{reference}?done=cancelled")


def outbox_do_answered(request: Request, _: Posted) -> Response:
    """The day recorded is today, as with `referrals ack`."""
    site, reference = site_of(request), request.path_params["reference"].upper()
    with site.outbox(user_of(request)) as outbox:
        outbox.acknowledge(reference, site.service.today(), site.now)
    return goto(f"/outbox/{reference}?done=answered")


def routes() -> list[BaseRoute]:
    one = "/outbox/{reference}"
    return [
        shown("/outbox", outbox_list),
        shown(one, outbox_show),
        posted(f"{one}/retry", outbox_do_retry, role=Role.SENDER),
        shown(f"{one}/cancel", outbox_cancel, role=Role.SENDER),
        posted(f"{one}/cancel", outbox_do_cancel, role=Role.SENDER),
        shown(f"{one}/answered", outbox_answered, role=Role.SENDER),
        posted(f"{one}/answered", outbox_do_answered, role=Role.SENDER),
    ]
