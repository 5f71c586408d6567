"""How the page knows who is asking: the port, signing in and out, and this machine alone."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Protocol
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.cli.held import counted
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role, User, lapsed_of, roles_with, session_of, site_of
from referrals.web.store import Session
from referrals.web.visitors import new_visitor


class SignIn(Protocol):
    """A way to sign in. One of them is chosen by `web.login`."""

    def user(self, request: Request, session: Session) -> User | None:
        """Who is asking, by their session or their request; None if nobody has signed in.

        Asked at each request, in a thread.
        """
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


def enter(request: Request, name: str, roles: str = "", title: str = "") -> None:
    """Begin a session of somebody who has proved who they are, under a new token.

    The one before ends: a token that somebody else may have planted is worth nothing afterwards.
    Where it was the same person's and had lapsed, it opens nothing, and more forms may be open.
    """
    site, lapsed = site_of(request), lapsed_of(request)
    if lapsed is None or lapsed.user.name != name:
        site.store.end(session_of(request).token)
    request.state.session = site.store.begin(site.now, name, roles, title)


def leave(request: Request) -> None:
    site = site_of(request)
    site.store.end(session_of(request).token)
    request.state.session = new_visitor(site.store, site.now)
    request.state.user = None
    request.state.lapsed = None


def sign_in_page(request: Request) -> Response:
    """To the page where one signs in, and from there back to what was asked for.

    What was being posted is not taken: nobody knows whose it is, or the page keeps nothing.
    """
    if request.method not in ("GET", "HEAD"):
        return page(request, "sign-in-again.html", 401)
    path = request.url.path
    return goto("/sign-in" if path == "/" else f"/sign-in?{urlencode({'next': path})}")


_QUERY = re.compile(r"[\w=&-]+", re.ASCII)


def next_page(path: str) -> str:
    """A page of ours to go on to; `/` for whatever is no plain path, with a plain query or none."""
    bare, mark, query = path.partition("?")
    plain = (
        bare.startswith("/")
        and not bare.startswith(("//", "/sign-", "/account", "/api/"))
        and bare.isascii()
        and bare.isprintable()
        and not set(bare) & set("\\#% ")
        and (_QUERY.fullmatch(query) if mark else True)
    )
    return path if plain and len(path) <= 200 else "/"


def after_sign_in(request: Request, name: str, path: str) -> str:
    """The page to go on to for whoever has signed in.

    Where somebody else was before their session lapsed is not for this one to see.
    """
    lapsed = lapsed_of(request)
    return next_page(path) if lapsed is None or lapsed.user.name == name else "/"


def why_again(request: Request, kept: bool) -> str:
    """Why one has to sign in again; nothing for those who were not signed in.

    Args:
        kept: whether what they sent meanwhile was saved.
    """
    site, lapsed = site_of(request), lapsed_of(request)
    if lapsed is None:
        return ""
    web = site.settings.web
    if site.now < lapsed.session.seen_at + timedelta(minutes=web.idle_minutes):
        hours = counted(web.longest_hours, "hour")
        why = f"It is {hours} since you signed in, so you have to do so again."
    else:
        why = "You were away for too long, so you have to sign in again."
    return f"{why} What you typed is kept." if kept else why


def sign_out_routes(more: Mapping[str, str] | None = None) -> list[BaseRoute]:
    """`/sign-out`, and the page after it.

    Args:
        more: where else one may want to sign out, as `text` and `href`.
    """

    def sign_out(request: Request) -> Response:
        if session_of(request).user is None:
            if lapsed_of(request):
                leave(request)
            return goto("/signed-out")
        return page(request, "sign-out.html")

    def signing_out(request: Request, _: Posted) -> Response:
        leave(request)
        answer = goto("/signed-out")
        # Not "cookies", which would be those of the whole organisation's domain.
        answer.headers["Clear-Site-Data"] = '"cache", "storage"'
        return answer

    def signed_out(request: Request) -> Response:
        if session_of(request).user is not None:
            return goto("/")
        return page(request, "signed-out.html", more=more)

    return [
        shown("/sign-out", sign_out, role=None),
        posted("/sign-out", signing_out, role=None),
        shown("/signed-out", signed_out, role=None),
    ]


def roles_named(names: Iterable[str]) -> list[Role]:
    """The roles among what a provider or a proxy lists, as `sender` or `referrals-sender`."""
    bare = {name.strip("/ ").lower().removeprefix("referrals-") for name in names}
    return [role for role in Role if role in bare]


def no_role() -> HTTPException:
    return HTTPException(403, "no-role")
