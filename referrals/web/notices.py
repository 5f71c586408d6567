"""What keeps everything that waits from being submitted, or may: told at the top of the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from referrals.bootstrap import states_of_relays
from referrals.web.layout import moment
from referrals.web.words import clock_of

if TYPE_CHECKING:
    from referrals.ports import Outbox
    from referrals.web.site import Site


def notices_of(site: Site, outbox: Outbox, waiting: int) -> list[str]:
    """In words, the gravest first; none if nothing speaks against submitting.

    Args:
        waiting: how many messages there are that wait.
    """
    copy = _copy(site, outbox)
    if copy:
        return [copy]
    found = [_trouble(site, waiting)]
    states = states_of_relays(site.settings, outbox.relay_states(site.now))
    away = {name: state for name, state in states.items() if state.fault is not None}
    clock = clock_of(site.service)
    others = " The others are used meanwhile." if len(away) < len(states) else ""
    for name, state in away.items():
        since = f" since {moment(clock(state.since))}" if state.since else ""
        found.append(
            f"The relay {name} {state.fault.words if state.fault else ''}; it has been away{since}."
            f" It is tried again by itself.{others}"
        )
    return [one for one in found if one]


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
