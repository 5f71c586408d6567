"""A reminder of a referral that nobody has answered, made from the outbox's account alone.

The letter itself may be forgotten by then. So a reminder tells what the account still has, our
references, the intervention and the days, and names nobody.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from referrals.delivery import DeliveryStatus
from referrals.directory import Directory, Place
from referrals.message import Sender, compose_draft
from referrals.rendering import Group, Letter, render

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from referrals.queueing import Held

FOLDER = "_reminder"

_MESSAGE_ID = re.compile(r"<[!-;=?-~]+@[!-;=?-~]+>")
_NEXT_LINE = re.compile(rb"\r\n(?![ \t])")  # a folded line belongs to the one before
_NOBODY = Sender("", "nobody@invalid.example")


def file_name(held: Held) -> str:
    return f"{held.reference}-{held.intervention}-reminder.eml"


def why_not(held: Held, directory: Directory) -> str | None:
    """Why the agency can't be reminded at the address that the referral went to; None if it can.

    A reminder goes where the referral went, and only if the directory would send it there today.
    """
    agency = directory.agencies.get(held.agency)
    if agency is None or _place(held, directory) is None:
        return (
            f"the directory no longer sends {held.intervention} to {held.agency}. Ask who has it "
            "now, or refer again."
        )
    if agency.email is None:
        return f"the directory has no address for {agency.title} any more. Ask them."
    if agency.email != held.recipient:
        return (
            f"the address has changed: this went to {held.recipient}, and the directory now has "
            f"{agency.email}. Ask {agency.title} whether they have it; if not, refer again."
        )
    if held.status is DeliveryStatus.UNCERTAIN and held.due_at is not None:
        return "it is still being tried: `referrals deliver` first."
    return None


def _place(held: Held, directory: Directory) -> Place | None:
    """Somewhere that this intervention's referrals go to this agency."""
    intervention = directory.interventions.get(held.intervention)
    if intervention is None:
        return None
    for place in directory.places:
        agency = directory.agency_for(intervention, place)
        if agency is not None and agency.id == held.agency:
            return place
    return None


def reminder(
    held: Held,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    marking: str,
    sender: Sender | None = None,
) -> bytes:
    """An .eml that opens ready to edit, to the address that the referral went to.

    It says what it follows (RFC 5322 §3.6.4), so that it stands beside the referral at the agency.
    It is the same on whatever day it is made.

    Args:
        held: one that `why_not` has nothing against.
        sender: without one there is no From, and the mail client fills in whoever opens it.

    Raises:
        ConfigurationError: the template is at fault.
        MessageRefused: the sender can't stand in a header.
    """
    letter = reminder_letter(held, directory, templates, marking, sender)
    content = compose_draft(
        letter, sender or _NOBODY, directory.agencies[held.agency].email, marking
    )
    head, gap, body = content.partition(b"\r\n\r\n")
    lines = _NEXT_LINE.split(head)
    if sender is None:
        lines = [line for line in lines if not line.lower().startswith(b"from:")]
    if _MESSAGE_ID.fullmatch(held.message_id):
        first = held.message_id.encode("ascii")
        lines += [b"In-Reply-To: " + first, b"References: " + first]
    return b"\r\n".join(lines) + gap + body


def reminder_letter(
    held: Held,
    directory: Directory,
    templates: ImmutableSandboxedEnvironment,
    marking: str,
    sender: Sender | None = None,
) -> Letter:
    """Raises ConfigurationError: the template is at fault."""
    place = _place(held, directory)
    region = place.region if place else next(iter(directory.regions.values()))
    zone = ZoneInfo(region.timezone)

    def day(moment: datetime) -> date:
        return moment.astimezone(zone).date()

    values: dict[str, Any] = {
        "referral": Group(
            {
                "reference": held.reference,
                "case_reference": held.case_reference,
                "queued_on": day(held.queued_at),
                "relayed_on": day(held.relayed_at) if held.relayed_at else None,
                "acknowledge_by": held.acknowledge_by,
                "marking": marking,
            }
        ),
        "intervention": Group({"title": directory.interventions[held.intervention].title}),
        "agency": Group({"title": directory.agencies[held.agency].title}),
        "sender": Group({"name": sender.name, "email": sender.address}) if sender else None,
    }
    return render(templates, FOLDER, values)
