"""The use case of ending a hold: what it comes to first, then doing it, to the address of today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING

from referrals.errors import NotPossibleNow
from referrals.holding import (
    Hold,
    Plan,
    Rerouted,
    Rerouting,
    check_present_address,
    no_address,
    not_held,
)

if TYPE_CHECKING:
    from referrals.directory import Agency
    from referrals.ports import Holds
    from referrals.queueing import Held

_AGAIN = 3


@dataclass(frozen=True)
class Choices:
    """What a person says to it."""

    accept_unverified: bool = False
    with_uncertain: bool = False
    with_failed: bool = False


@dataclass(frozen=True)
class Release:
    """A hold that is to end. `to` is the directory's address of the agency; None if it has none."""

    hold: Hold
    agency: Agency | None
    to: str | None
    choices: Choices
    plan: Plan

    def is_verified(self, today: date) -> bool:
        return self.agency is not None and self.agency.is_verified(today)

    def needs_acceptance(self, today: date) -> bool:
        """Whether it can't be carried out, since nobody checked the address to reroute to."""
        unverified = not self.is_verified(today) and not self.choices.accept_unverified
        return bool(self.plan.moving) and unverified


def prepare_release(outbox: Holds, name: str, agency: Agency | None, choices: Choices) -> Release:
    """What releasing an agency would come to.

    Args:
        agency: as the directory has it now; None if it has left the directory.

    Raises:
        NotPossibleNow: it is not held.
        NoAddress: the directory has no address, and something waits for the agency.
    """
    hold = next((one for one in outbox.holds() if one.agency == name), None)
    if hold is None:
        raise not_held(name)
    to = agency.email if agency else None
    plan = Plan.of(outbox.addressed(name), _rerouting(name, to, choices))
    if to is None and (plan.waiting or plan.under_way):
        raise no_address(name)
    return Release(hold, agency, to, choices, plan)


def carry_out(
    outbox: Holds, release: Release, today: date, now: Callable[[], datetime]
) -> list[Rerouted]:
    """Reroute, then end the hold. Where it is broken off, it can be prepared and done again.

    Raises:
        AddressUnverified: nobody checked the address within its review time; nothing was changed.
        NotPossibleNow: something is being submitted to another address, so the hold stands; what
            was rerouted stays so.
    """
    name, agency, to = release.hold.agency, release.agency, release.to
    done: list[Rerouted] = []
    moves = bool(release.plan.moving) and agency is not None and to is not None
    rerouting = _rerouting(name, to, release.choices)
    if moves and agency is not None:
        accepted = check_present_address(
            agency, today, accept_unverified=release.choices.accept_unverified
        )
        rerouting = _rerouting(name, to, release.choices, accepted=accepted)
    for left in reversed(range(_AGAIN)):
        if moves:
            for group in outbox.reroute(rerouting, now()):
                done += group
        try:
            outbox.resume(name, to, now())
            break
        except NotPossibleNow:
            # A page that still has the old address may have queued another meanwhile.
            if not left or not moves:
                raise
    return done


def disclosed(outbox: Holds, release: Release, *, limit: int = 1_000) -> list[Held]:
    """What another address than the present one has or may have."""
    return outbox.disclosed(release.hold.agency, release.to or "", limit=limit)


def _rerouting(name: str, to: str | None, choices: Choices, *, accepted: bool = False) -> Rerouting:
    return Rerouting(
        name,
        to or "",
        accepted_unverified=accepted,
        with_uncertain=choices.with_uncertain,
        with_failed=choices.with_failed,
    )
