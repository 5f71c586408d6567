"""What keeps everything that waits from being submitted, or may: told at the top of the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from referrals.bootstrap import relays_of
from referrals.web.layout import moment
from referrals.web.words import clock_of

if TYPE_CHECKING:
    from referrals.ports import Outbox
    from referrals.web.site import Site


def notices_of(site: Site, outbox: Outbox, waiting: int, *, of_one: bool = False) -> list[str]:
    """In words, the gravest first; none if nothing speaks against submitting.

    Args:
        waiting: how many messages there are that wait.
        of_one: for one referral, which relays concern only as long as it waits.
    """
    copy = _copy(site, outbox)
    if copy:
        return [copy]
    found = [_trouble(site, waiting)]
    if waiting or not of_one:
        found += _relays_away(site, outbox)
    return [one for one in found if one]


def _relays_away(site: Site, outbox: Outbox) -> list[str]:
    from referrals.transports.failover import shared_name

    relays = [one for one in relays_of(site.settings).values() if one.host]
    states, clock = outbox.relay_states(site.now), clock_of(site.service)
    told = []
    for relay in relays:
        state = states.get(shared_name(relay.name, relay.host))
        if state is None or state.fault is None:
            continue
        since = f" since {moment(clock(state.since))}" if state.since else ""
        told.append(
            f"The relay {relay.name} {state.fault.words}. It has been away{since}, and is tried "
            "again by itself."
        )
    if told and len(told) < len(relays):
        told[-1] += " The others are used meanwhile."
    return told


def _copy(site: Site, outbox: Outbox) -> str:
    copied = outbox.copied()
    if copied is None:
        return ""
    told = copied.as_of.year > 1  # else the audit has no time that could be read
    after = f" after {moment(clock_of(site.service)(copied.as_of))}" if told else " of what came"
    return (
        f"This outbox is a restored copy, so nothing is submitted now. It knows nothing{after}: "
        "what waits in it may have been submitted since. What is queued now is kept. An "
        "administrator runs `referrals outbox restored` on the server, which says what is to be "
        "done."
    )


def _trouble(site: Site, waiting: int) -> str:
    if site.courier.fault:
        return (
            "Nothing can be submitted just now. What is queued is safe and is tried again by "
            f"itself. {site.courier.fault}"
        )
    if not waiting or site.courier.should_run:
        return ""
    if not site.can_submit:
        return (
            "No relay (outgoing mail server) is set up, so what is queued waits. Whoever looks "
            "after this service sets one up."
        )
    return "This page does not submit what is queued: `referrals deliver` does."
