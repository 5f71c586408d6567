"""Which relay is left alone for a while, and for how long: rules alone, no clock and no network.

A relay that can't be reached, or takes nothing just now, is tried again soon, and later each time.
One that refused the login waits much longer: a password that is tried too often may lock the
account. What a relay says of one message says nothing of the relay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from referrals.errors import DeliveryError, RelayRefused

FIRST_REST = timedelta(seconds=5)
LONGEST_REST = timedelta(minutes=5)
FIRST_REST_AFTER_LOGIN = timedelta(minutes=30)
LONGEST_REST_AFTER_LOGIN = timedelta(hours=4)
TRIAL = timedelta(minutes=5)
"""How long others keep away while one lane tries a relay again; should that lane die, so long."""

_LOGIN_CODES = frozenset({432, 530, 534, 535, 538})  # RFC 4954 §4.7.x, §6
_WORDS = {
    "connect": "could not be reached",
    "greeting": "took no mail from us",
    "tls": "could not be used safely (TLS or certificate)",
    "login": "refused the login",
    "sender": "took no message",
}


@dataclass(frozen=True)
class RelayFault:
    """What was wrong with a relay: no word of its own, so no secret and no address.

    `stage` is as in DeliveryError, `code` the code of its reply, if there was one.
    """

    stage: str
    code: int | None = None
    refused_login: bool = False

    @classmethod
    def of(cls, error: DeliveryError) -> RelayFault:
        code = error.reply.code if error.reply else None
        refused = isinstance(error, RelayRefused)
        login = refused and (error.stage == "login" or code in _LOGIN_CODES)
        return cls(error.stage, code, login)

    @property
    def words(self) -> str:
        told = _WORDS.get("login" if self.refused_login else self.stage, "broke the link")
        return f"{told} ({self.code})" if self.code else told


@dataclass(frozen=True)
class RelayState:
    """What all processes on one outbox know of a relay; `fault` is none if it is well.

    Attributes:
        failures: attempts to use it in a row that failed.
        since, until: since when it is left alone, and until when.
        turn: changes whenever this does.
        faults, returns: how often it was left alone, and came back.
    """

    relay: str
    fault: RelayFault | None = None
    failures: int = 0
    since: datetime | None = None
    until: datetime | None = None
    turn: int = 0
    faults: int = 0
    returns: int = 0

    def is_left_alone(self, now: datetime) -> bool:
        """Whether it is not yet to be tried again.

        What a clock put back has left further in the future than it can be counts as over.
        """
        if self.fault is None or self.until is None:
            return False
        longest = max(_longest_rest(self.fault), TRIAL)
        return timedelta(0) < self.until - now <= longest

    @property
    def refused_login(self) -> bool:
        return self.fault is not None and self.fault.refused_login


@dataclass(frozen=True)
class RelayLink:
    """A link to a relay that some process has open."""

    relay: str
    owner: str
    machine: str
    since: datetime


def rest_after(fault: RelayFault, failures: int) -> timedelta:
    """How long to leave a relay alone after so many failures in a row, 1 or more."""
    first = FIRST_REST_AFTER_LOGIN if fault.refused_login else FIRST_REST
    return min(first * (1 << min(failures - 1, 20)), _longest_rest(fault))


def _longest_rest(fault: RelayFault) -> timedelta:
    return LONGEST_REST_AFTER_LOGIN if fault.refused_login else LONGEST_REST


def after_fault(
    before: RelayState, fault: RelayFault, now: datetime, *, on_trial: bool
) -> RelayState:
    """The state after a link could not be had, or not be used.

    Many lanes may meet one fault at once: that is one failure. A refused login is always news.

    Args:
        on_trial: by the one lane that was to try it again.
    """
    known = before.fault
    worse = fault.refused_login and not before.refused_login
    if known is not None and not on_trial and not worse and before.is_left_alone(now):
        return before
    failures = 1 if known is None or worse else before.failures + 1
    return replace(
        before,
        fault=fault,
        failures=failures,
        since=before.since if known is not None else now,
        until=now + rest_after(fault, failures),
        turn=before.turn + 1,
        faults=before.faults + (known is None),
    )


def on_trial(before: RelayState, now: datetime, lasts: timedelta = TRIAL) -> RelayState:
    """The state while one lane tries it again."""
    return replace(before, until=now + lasts, turn=before.turn + 1)


def well_again(before: RelayState) -> RelayState:
    """The state once it has taken something."""
    return replace(
        before,
        fault=None,
        failures=0,
        since=None,
        until=None,
        turn=before.turn + 1,
        returns=before.returns + (before.fault is not None),
    )
