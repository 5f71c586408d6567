"""How a message in the outbox is told: in words, with what to do next."""

from __future__ import annotations

from datetime import date, datetime
from typing import TYPE_CHECKING

from referrals.delivery import DeliveryStatus
from referrals.texts import day_words

if TYPE_CHECKING:
    from referrals.queueing import Attempt, Held

COLOURS = {
    DeliveryStatus.RELAYED: "green",
    DeliveryStatus.FAILED: "red",
    DeliveryStatus.UNCERTAIN: "yellow",
    DeliveryStatus.DELAYED: "yellow",
}


def attempt_words(attempt: Attempt) -> str:
    """`24 November 2026 12:00:03 UTC, smtp.example.com:587: delayed. 451 4.7.1 come back later`"""
    said = " ".join(str(part) for part in (attempt.code, attempt.enhanced, attempt.words) if part)
    relay = attempt.relay or "relay not known"
    return (
        f"{moment_words(attempt.started_at)}, {relay}: {attempt.outcome or 'under way'}. {said}"
    ).rstrip()


def told_status(held: Held) -> str:
    """The status, and what one has to know with it."""
    if held.status is DeliveryStatus.RELAYED:
        if held.acknowledged_on:
            return "relayed, answered"
        return "relayed, perhaps twice" if held.maybe_doubled else "relayed"
    twice = ", may arrive twice" if held.maybe_doubled else ""
    if held.rerouted_to is not None:
        return f"{held.status}, rerouted to {held.rerouted_to}{twice}"
    waits = held.due_at is not None
    if held.status is DeliveryStatus.UNCERTAIN:
        return "uncertain, tried again" if waits else "uncertain, waits for you"
    return f"{held.status}{twice}"


def next_step(held: Held, today: date) -> str:
    """What a person does about it now."""
    reference = held.reference
    match held.status:
        case DeliveryStatus.FAILED | DeliveryStatus.UNCERTAIN if held.purged_at is not None:
            return (
                "its content is forgotten, so it can't be tried again: if it is still needed, "
                "refer again from the case"
            )
        case DeliveryStatus.QUEUED:
            return "`referrals deliver` tries it"
        case DeliveryStatus.SENDING:
            return "wait: it is being submitted just now"
        case DeliveryStatus.DELAYED:
            return "none: `referrals deliver` tries it again when it is due"
        case DeliveryStatus.FAILED:
            return (
                "mend what the relay says, then `referrals outbox retry "
                f"{reference}`; or `outbox cancel` it"
            )
        case DeliveryStatus.UNCERTAIN if held.due_at is not None:
            return "none: `referrals deliver` tries it again, and it may arrive twice"
        case DeliveryStatus.UNCERTAIN:
            return (
                f"ask the agency whether it came. If so `referrals ack {reference}`, if not "
                f"`referrals outbox retry {reference}`"
            )
        case DeliveryStatus.RELAYED if held.acknowledged_on is not None:
            return "none: the agency has answered"
        case DeliveryStatus.RELAYED if held.acknowledge_by < today:
            return (
                f"the answer is late: `referrals due --draft {reference}`, or "
                f"`referrals ack {reference}` if it has come"
            )
        case DeliveryStatus.RELAYED:
            return f"wait for the answer, then `referrals ack {reference}`"
        case _ if held.rerouted_to is not None:
            return f"none: it was rerouted to {held.rerouted_to}"
        case _:
            return "none: it was taken back"


def moment_words(moment: datetime) -> str:
    return f"{day_words(moment.date())} {moment:%H:%M:%S} UTC"


def days_words(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"


def counted(number: int, thing: str, things: str = "") -> str:
    """`1 message`, `2 messages`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {things or f'{thing}s'}"
