"""How the page knows who is asking: the port, and the way for a page of this machine alone."""

from __future__ import annotations

import getpass
import os
from collections.abc import Sequence
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.web.site import Role, User, roles_with
from referrals.web.store import Session


class SignIn(Protocol):
    """A way to sign in. One of them is chosen by `web.login`."""

    def user(self, request: Request, session: Session) -> User | None:
        """Who is asking, by their session or their request; None if nobody has signed in."""
        ...

    def first(self, request: Request) -> Response:
        """What to answer to somebody who has not signed in."""
        ...

    def routes(self) -> Sequence[BaseRoute]:
        """Its own pages."""
        ...

    can_sign_out: bool


class ThisMachine:
    """Whoever can reach 127.0.0.1 is the person who started it."""

    can_sign_out = False

    def __init__(self) -> None:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = f"uid {os.getuid()}"
        self._user = User(name, roles_with(Role))

    def user(self, request: Request, session: Session) -> User | None:
        return self._user

    def first(self, request: Request) -> Response:
        raise AssertionError("there is always somebody")

    def routes(self) -> Sequence[BaseRoute]:
        return ()
