"""An agency that is held: nothing goes to it until it is released, to the address it then has.

What waits for it is kept meanwhile. Should the directory have another address by then, each message
is made anew for that: nothing but To, Date and Message-ID changes, and the old one is cancelled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from referrals.delivery import DeliveryStatus
from referrals.errors import AddressUnverified, MessageRefused, NoAddress, NotPossibleNow
from referrals.message import readdressed
from referrals.texts import day_words

if TYPE_CHECKING:
    from referrals.directory import Agency
    from referrals.queueing import Held

GROUP = 200
"""So many messages are rerouted in one transaction."""


class Reason(StrEnum):
    """Why an agency is held. Codes alone, since the audit holds no words that anybody typed."""

    WRONG_ADDRESS = "wrong-address"
    AGENCY_ASKED = "agency-asked"
    NOT_ANSWERING = "not-answering"
    OTHER = "other"

    @property
    def words(self) -> str:
        return _REASONS[self]


_REASONS = {
    Reason.WRONG_ADDRESS: "its address was found wrong",
    Reason.AGENCY_ASKED: "the agency asked for it",
    Reason.NOT_ANSWERING: "the agency does not answer",
    Reason.OTHER: "for another reason",
}


@dataclass(frozen=True)
class Hold:
    """`by` is the actor in whose name the audit has it."""

    agency: str
    since: datetime
    by: str
    why: Reason

    @property
    def words(self) -> str:
        """`held since 24 November 2026 12:00 UTC by jo: its address was found wrong`"""
        since = f"{day_words(self.since.date())} {self.since:%H:%M} UTC"
        return f"held since {since} by {self.by}: {self.why.words}"

    @property
    def detail(self) -> dict[str, Any]:
        """What the audit says of it."""
        return {"agency": self.agency, "why": str(self.why)}


@dataclass(frozen=True)
class Addressed:
    """How many of an agency's messages to one address have one status, and are not finished.

    `waits`: they are tried again by themselves. `whole`: their content is kept.
    """

    recipient: str
    status: DeliveryStatus
    waits: bool
    whole: bool
    number: int


@dataclass(frozen=True)
class Rerouting:
    """What is to be given which address, and that nobody had checked it, if so.

    Uncertain messages may be at the old address already, and failed ones are not wanted by it; so
    both are taken along only if a person says so.
    """

    agency: str
    recipient: str
    accepted_unverified: bool
    with_uncertain: bool = False
    with_failed: bool = False

    @property
    def statuses(self) -> list[DeliveryStatus]:
        return [
            DeliveryStatus.QUEUED,
            DeliveryStatus.DELAYED,
            *([DeliveryStatus.UNCERTAIN] if self.with_uncertain else []),
            *([DeliveryStatus.FAILED] if self.with_failed else []),
        ]

    def takes(self, one: Addressed) -> bool:
        return one.recipient != self.recipient and one.whole and one.status in self.statuses

    def message(
        self, reference: str, old_message_id: str, old: Kept, token: str, now: datetime
    ) -> Readdressed | None:
        """The message to the new address; None if the old one is not what was queued any more.

        Args:
            token: random letters and digits that make the Message-ID unique.
        """
        if hashlib.sha256(old.content).hexdigest() != old.sha256:
            return None
        domain = old_message_id.rpartition("@")[2]
        message_id = f"<{reference}.{token}@{domain}"
        try:
            content = readdressed(old.content, self.recipient, date=now, message_id=message_id)
        except MessageRefused:
            return None
        return Readdressed(message_id, content, hashlib.sha256(content).hexdigest())

    def detail(self, old: Kept, intervention: str, sha256: str) -> dict[str, Any]:
        """What the audit says of one message that was rerouted."""
        return {
            "agency": self.agency,
            "intervention": intervention,
            "replaced_address": old.recipient,
            "replaced_sha256": old.sha256,
            "address": self.recipient,
            "sha256": sha256,
            "accepted_unverified": self.accepted_unverified,
        }


@dataclass(frozen=True)
class Kept:
    """The bytes that wait, their hash, and where they were to go."""

    recipient: str
    sha256: str
    content: bytes


@dataclass(frozen=True)
class Readdressed:
    """The bytes that go to the new address."""

    message_id: str
    content: bytes
    sha256: str


@dataclass(frozen=True)
class Rerouted:
    """What became of one message; `new` is None if it could not be rerouted, and has failed.

    `joined`: the same referral was queued to the new address already, so no other was made.
    """

    reference: str
    old: int
    new: int | None
    joined: bool = False


NOT_INTACT = "Its bytes are not those that were queued. Make the referral anew."


@dataclass(frozen=True)
class Plan:
    """What releasing an agency comes to, by how its messages are addressed now.

    `going`: just released. `moving`: rerouted. `staying`: uncertain or failed, and not taken along.
    `under_way`: being submitted to another address, so that the hold can't end yet.
    """

    going: tuple[Addressed, ...]
    moving: tuple[Addressed, ...]
    staying: tuple[Addressed, ...]
    under_way: tuple[Addressed, ...]

    @property
    def waiting(self) -> int:
        """How many messages can't stay where they are."""
        return number_of(one for one in (*self.going, *self.moving, *self.staying) if one.waits)

    @classmethod
    def of(cls, addressed: Sequence[Addressed], rerouting: Rerouting) -> Plan:
        def here(one: Addressed) -> bool:
            return one.recipient == rerouting.recipient

        sending = DeliveryStatus.SENDING
        return cls(
            going=tuple(one for one in addressed if here(one) and one.waits),
            moving=tuple(one for one in addressed if rerouting.takes(one)),
            staying=tuple(
                one
                for one in addressed
                if not here(one)
                and one.whole
                and one.status != sending
                and not rerouting.takes(one)
            ),
            under_way=tuple(one for one in addressed if not here(one) and one.status == sending),
        )


def number_of(some: Iterable[Addressed]) -> int:
    return sum(one.number for one in some)


def check_present_address(agency: Agency, today: date, *, accept_unverified: bool) -> bool:
    """Whether the directory's address is unverified, and that was accepted.

    Raises:
        NoAddress: it has none.
        AddressUnverified: nobody checked it within its review time, and that was not accepted.
    """
    if agency.email is None:
        raise no_address(agency.id)
    verified = agency.is_verified(today)
    if not verified and not accept_unverified:
        raise AddressUnverified(
            f"{agency.id}: nobody has checked {agency.email} within {agency.review_after_days} "
            f"days. Ask {agency.title} whether it is right, then `referrals directory verify "
            f"{agency.id}`; or add --accept-unverified, which is recorded."
        )
    return not verified


def no_address(agency: str) -> NoAddress:
    return NoAddress(
        f"{agency}: the directory has no address for it, so what waits can go nowhere. Give it one "
        "in your config/ (agencies.toml), or cancel what waits: `referrals outbox cancel`."
    )


def check_not_moved(held: Held, agency: Agency | None) -> None:
    """Raises NotPossibleNow if the directory has another address by now: nobody tries the old one.

    Args:
        agency: as the directory has it now; None if it has left it.
    """
    if agency is not None and agency.email is not None and agency.email != held.recipient:
        raise NotPossibleNow(
            f"{held.reference} was to go to {held.recipient}, and the directory has "
            f"{agency.email} for {agency.id} now. `referrals hold {agency.id}`, then `referrals "
            f"release {agency.id}` with --with-failed or --with-uncertain, makes it anew for that."
        )


def not_held(agency: str) -> NotPossibleNow:
    return NotPossibleNow(f"{agency} is not held. `referrals hold` lists those that are.")


def still_elsewhere(agency: str, messages: int) -> NotPossibleNow:
    """Why a hold can't end yet."""
    number = "1 message waits or is" if messages == 1 else f"{messages:,} messages wait or are"
    return NotPossibleNow(
        f"{agency} is still held: {number} being submitted to another address than the directory "
        "has now. Run it again in a moment."
    )
