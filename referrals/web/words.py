"""How the page tells of a message in the outbox: a word, what it means, and what to do next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from referrals.cli.held import days_words, told_status
from referrals.delivery import DeliveryStatus
from referrals.holding import Hold
from referrals.queueing import Held
from referrals.service import Service
from referrals.texts import day_words
from referrals.web.layout import moment

if TYPE_CHECKING:
    from referrals.web.site import Site

COLOURS = {
    DeliveryStatus.DRAFTED: "grey",
    DeliveryStatus.QUEUED: "blue",
    DeliveryStatus.SENDING: "light-blue",
    DeliveryStatus.RELAYED: "green",
    DeliveryStatus.DELAYED: "yellow",
    DeliveryStatus.FAILED: "red",
    DeliveryStatus.UNCERTAIN: "orange",
    DeliveryStatus.CANCELLED: "grey",
}

MEANINGS = {
    DeliveryStatus.QUEUED: "It is kept safely and waits to be submitted.",
    DeliveryStatus.SENDING: "It is being submitted just now.",
    DeliveryStatus.RELAYED: (
        "The relay (your outgoing mail server) took it. Whether it was read, only an answer can "
        "tell."
    ),
    DeliveryStatus.DELAYED: "The relay (your outgoing mail server) could not take it yet.",
    DeliveryStatus.FAILED: (
        "The relay (your outgoing mail server) will not take it, or it was tried for too long. "
        "The agency has not had it."
    ),
    DeliveryStatus.UNCERTAIN: (
        "The link broke before the relay’s last word. The agency may have had it, or not."
    ),
    DeliveryStatus.CANCELLED: "It was taken back before it was relayed.",
}
KEPT = "kept: agency held"
_REPLACED = "It was to another address, and another message was made of it."
_MAY_DOUBLE = " An earlier attempt may have arrived as well."


@dataclass(frozen=True)
class Told:
    """A message's status: `tag` and `colour` of it, `more` beside it, and what it `means`."""

    tag: str
    colour: str
    more: str
    means: str


def told(held: Held, *, kept: bool = False) -> Told:
    """Args:
    kept: its agency is held, and it would be tried otherwise.
    """
    word, _, more = told_status(held).partition(", ")
    means = MEANINGS.get(held.status, "")
    if kept:
        more = KEPT
    if held.rerouted_to is not None:
        means = _REPLACED
    if held.maybe_doubled and held.status is not DeliveryStatus.UNCERTAIN:
        means += _MAY_DOUBLE
    return Told(word.capitalize(), COLOURS[held.status], more, means)


def held_words(hold: Hold, clock: Callable[[datetime], datetime]) -> str:
    """`held since 24 November 2026, 12:00, by jo: its address was found wrong`"""
    return f"held since {moment(clock(hold.since))}, by {hold.by}: {hold.why.words}"


def kept_words(site: Site) -> dict[str, str]:
    """By agency that is held: what is to be known before somebody submits to it."""
    clock = clock_of(site.service)
    return {
        one.agency: (
            f"This agency is {held_words(one, clock)}. What is submitted now is queued and kept. "
            "It goes out once an administrator releases the agency."
        )
        for one in site.holds().values()
    }


def next_step(
    held: Held,
    today: date,
    clock: Callable[[datetime], datetime],
    *,
    hold: Hold | None = None,
    moved_to: str | None = None,
) -> str:
    """What a person does about it now, in sentences; on the page there are buttons for it.

    Args:
        clock: puts a time into the region's zone.
        hold: what keeps it from being tried.
        moved_to: the address that the agency has now, if it was to go to another.
    """
    if held.rerouted_to is not None:
        return "Nothing: the other message is what counts now."
    if hold is not None:
        return (
            f"Nothing: it is kept. The agency is {held_words(hold, clock)}. It is tried once an "
            "administrator has released the agency, then to the address that is right."
        )
    match held.status:
        case DeliveryStatus.FAILED | DeliveryStatus.UNCERTAIN if held.purged_at is not None:
            return (
                "Its content has been forgotten, so it can’t be tried again. If it is still "
                "needed, refer again from the case."
            )
        case DeliveryStatus.QUEUED:
            return "Nothing: it is submitted by itself."
        case DeliveryStatus.SENDING:
            return "Wait a moment, then look again."
        case DeliveryStatus.DELAYED | DeliveryStatus.UNCERTAIN if held.due_at is not None:
            when = clock(held.due_at)
            twice = ", and may arrive twice" if held.status is DeliveryStatus.UNCERTAIN else ""
            return (
                f"Nothing: it is tried again at {when:%H:%M} on {day_words(when.date())} or soon "
                f"after{twice}."
            )
        case DeliveryStatus.FAILED if moved_to:
            return _anew(moved_to)
        case DeliveryStatus.UNCERTAIN if moved_to:
            return (
                "Ring the agency and ask whether it came. If it did, record their answer. If not: "
                + _anew(moved_to)
            )
        case DeliveryStatus.FAILED:
            return (
                "Read what the relay said, below, and put the cause right. Then try again, or "
                "cancel it and tell the agency in another way."
            )
        case DeliveryStatus.UNCERTAIN:
            return (
                "Ring the agency and ask whether it came. If it did, record their answer; if not, "
                "try again."
            )
        case DeliveryStatus.RELAYED if held.acknowledged_on is not None:
            return "Nothing: the agency has answered."
        case DeliveryStatus.RELAYED if held.acknowledge_by < today:
            late = days_words((today - held.acknowledge_by).days)
            return (
                f"The answer is {late} late. Ring the agency or send them a reminder, and record "
                "their answer once it has come."
            )
        case DeliveryStatus.RELAYED:
            return (
                f"Wait for the agency’s answer, which was asked for by "
                f"{day_words(held.acknowledge_by)}. Record it once it has come."
            )
        case _:
            return "Nothing."


def _anew(address: str) -> str:
    return (
        f"The agency’s address is {address} by now, which is another than this was to go to. An "
        "administrator holds the agency and releases it, and takes this along: then it is made "
        "anew for that address."
    )


def answer(held: Held, today: date) -> str:
    """Whether the agency has answered, in a few words."""
    if held.acknowledged_on is not None:
        return f"recorded {day_words(held.acknowledged_on)}"
    if not held.may_be_answered:
        return "–"
    by = day_words(held.acknowledge_by)
    return f"late, was due {by}" if held.acknowledge_by < today else f"due {by}"


def clock_of(service: Service) -> Callable[[datetime], datetime]:
    """Puts a time into the region's zone, as `service.today` has the region's day."""
    zone = ZoneInfo(next(iter(service.directory.regions.values())).timezone)
    return lambda moment: moment.astimezone(zone)
