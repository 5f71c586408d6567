"""What every page and call shares: the settings, the service, the store and who is asking."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from starlette.requests import Request

from referrals import bootstrap
from referrals.cli.hold import read_holds

if TYPE_CHECKING:
    from jinja2 import Environment

    from referrals.bootstrap import LiveService
    from referrals.directory import Agency
    from referrals.errors import Problem
    from referrals.holding import Hold
    from referrals.ports import Outbox
    from referrals.service import Service
    from referrals.settings import Settings
    from referrals.verification import Verification
    from referrals.web.courier import Courier
    from referrals.web.login import SignIn
    from referrals.web.releases import Releases
    from referrals.web.store import Session, Store

log = logging.getLogger(__name__)


class Role(StrEnum):
    """What one may do. A sender may do what a referrer may; an administrator may do everything.

    A referrer fills in, checks and drafts, and sees the outbox; a sender submits, and decides on
    what is in the outbox; an administrator verifies addresses, holds and releases agencies, reads
    the audit and keeps accounts.
    """

    REFERRER = "referrer"
    SENDER = "sender"
    ADMINISTRATOR = "administrator"


_INCLUDED = {
    Role.REFERRER: frozenset({Role.REFERRER}),
    Role.SENDER: frozenset({Role.REFERRER, Role.SENDER}),
    Role.ADMINISTRATOR: frozenset(Role),
}


def roles_with(roles: Iterable[Role]) -> frozenset[Role]:
    """The roles, with those that they include."""
    return frozenset().union(*(_INCLUDED[role] for role in roles))


@dataclass(frozen=True)
class User:
    """Who is asking. `name` is what the audit keeps; it is never an address to send to."""

    name: str
    roles: frozenset[Role]
    title: str = field(default="", repr=False)
    """How to call them on the page, where it is known."""

    def may(self, role: Role) -> bool:
        return role in self.roles


@dataclass(frozen=True)
class Lapsed:
    """A session that lapsed within a day, and whose it was."""

    session: Session
    user: User


@dataclass(frozen=True)
class Site:
    """One process's page. Everything in it may be used from several threads."""

    settings: Settings
    _service: LiveService
    store: Store
    templates: Environment
    sign_in: SignIn
    courier: Courier
    """Tries what was queued, in the background."""
    releases: Releases
    """Of agencies that were held, in the background."""

    @property
    def service(self) -> Service:
        """The service with what is known now of the addresses."""
        return self._service.current()

    def recorded(self, agency: Agency) -> Verification | None:
        """What is recorded in the outbox of the address that an agency has now."""
        return next(
            (
                one
                for one in self._service.recorded()
                if (one.agency, one.address) == (agency.id, agency.email)
            ),
            None,
        )

    @property
    def config_faults(self) -> tuple[Problem, ...]:
        """What is wrong in config/ and templates/, while the directory of before is used."""
        return self._service.faults

    def look_at_config(self) -> None:
        """Use what config/ and templates/ have now, if they changed; say so in the log."""
        if not self._service.look():
            return
        if self.config_faults:
            log.warning(
                "config/ has changed and has faults, so the directory of before is used: %s",
                "; ".join(map(str, self.config_faults)),
            )
        else:
            log.warning("config/ has changed: the directory and the letters were read anew.")

    @property
    def now(self) -> datetime:
        return bootstrap.now()

    @property
    def can_submit(self) -> bool:
        """Whether there is a relay."""
        return bool(self.settings.relay.host)

    def holds(self) -> dict[str, Hold]:
        """Which agencies are held; none, where that can't be read."""
        return read_holds(self.settings)

    def outbox(self, user: User) -> Outbox:
        """The queue, opened in the user's name: use it as a context manager.

        Raises:
            OutboxUnusable.
        """
        return bootstrap.open_outbox(self.settings, user.name)

    def close(self) -> None:
        self._service.close()
        self.store.close()


def site_of(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def session_of(request: Request) -> Session:
    """The session that the guard found or began; there is always one within a page."""
    session: Session = request.state.session
    return session


def lapsed_of(request: Request) -> Lapsed | None:
    """The session that the browser had until it lapsed, if that is so."""
    lapsed: Lapsed | None = request.state.lapsed
    return lapsed


def user_of(request: Request) -> User:
    """Who is asking; a page's endpoint is only called once there is somebody who may."""
    user: User = request.state.user
    return user
