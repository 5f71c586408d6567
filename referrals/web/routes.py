"""From a request to a page: who is asking, whether they may, and what they typed.

A page is a plain function, `page(request)` or `page(request, posted)`, run in a thread of its own,
since the service, SQLite and the templates wait. `shown` and `posted` make a route of it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from referrals.web.site import Role, User, lapsed_of, session_of, site_of

Shown = Callable[[Request], Response]
_MOST_FIELDS = 5_000


@dataclass(frozen=True)
class Posted:
    """What a form sent. `values` has every value of a name, in order; blank ones too."""

    values: Mapping[str, tuple[str, ...]] = field(repr=False)
    files: Mapping[str, UploadFile] = field(default_factory=dict, repr=False)

    def get(self, name: str, otherwise: str = "") -> str:
        """The last value of a name."""
        found = self.values.get(name)
        return found[-1] if found else otherwise

    def all(self, name: str) -> tuple[str, ...]:
        return self.values.get(name, ())


PostedTo = Callable[[Request, Posted], Response]
Keep = Callable[[Request, User, Posted], str | None]
"""Saves what this user typed into a form, and does nothing else.

It gives the page to go on from; None if there is nowhere to save it. HTTPException is taken for
that too.
"""


def shown(path: str, page: Shown, *, role: Role | None = Role.REFERRER) -> Route:
    """A page to look at. `role` None: for whoever comes."""

    async def endpoint(request: Request) -> Response:
        check_role(request, role)
        return await run_in_threadpool(page, request)

    return Route(path, endpoint, methods=["GET"], name=page.__name__)


def posted(
    path: str,
    page: PostedTo,
    *,
    role: Role | None = Role.REFERRER,
    turns: CapacityLimiter | None = None,
    keep: Keep | None = None,
) -> Route:
    """What a form does; its token is checked first (CSRF).

    Args:
        turns: how many may run at once, where it costs more than a page should.
        keep: instead of `page`, once the session that the form is of has lapsed.
    """

    async def endpoint(request: Request) -> Response:
        if keep is None or lapsed_of(request) is None:
            check_role(request, role)
        check_charset(request)
        async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
            typed: dict[str, list[str]] = {}
            uploads: dict[str, UploadFile] = {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    uploads[name] = value
                else:
                    typed.setdefault(name, []).append(value)
            [*_, token] = typed.pop("csrf", [""])
            sent = Posted({name: tuple(each) for name, each in typed.items()}, uploads)
            if _is_same(token, session_of(request).csrf):
                check_role(request, role)
                return await run_sync(partial(page, request, sent), limiter=turns)
            if keep is not None:
                path = await run_in_threadpool(_kept, request, token, role, keep, sent)
                if path is not None:
                    return _go_on(request, path)
            check_role(request, role)
            raise HTTPException(403, "expired-form")

    return Route(path, endpoint, methods=["POST"], name=page.__name__)


def _is_same(token: str, csrf: str) -> bool:
    return hmac.compare_digest(token.encode(), csrf.encode())


def _kept(request: Request, token: str, role: Role | None, keep: Keep, sent: Posted) -> str | None:
    """The page to go on from, if the form is of a session that lapsed and what it sent is saved."""
    site, lapsed, user = site_of(request), lapsed_of(request), request.state.user
    if lapsed and _is_same(token, lapsed.session.csrf):
        user = lapsed.user
    elif user is None or not site.store.has_lapsed(user.name, token, site.now):
        return None
    if role is not None and not user.may(role):
        return None
    try:
        return keep(request, user, sent)
    except HTTPException:
        return None


def _go_on(request: Request, path: str) -> Response:
    if request.state.user is not None:
        return goto(path)
    return goto(f"/sign-in?{urlencode({'kept': 'yes', 'next': path})}")


class SignInFirst(Exception):
    """Nobody is signed in, and the page is not for everybody."""


def check_role(request: Request, role: Role | None) -> None:
    """Raises SignInFirst, or HTTPException 403 for somebody who may not."""
    if role is None:
        return
    user = request.state.user
    if user is None:
        raise SignInFirst
    if not user.may(role):
        raise HTTPException(403, "not-allowed")


def check_charset(request: Request) -> None:
    """Raises HTTPException 400 for any but UTF-8, which is what a browser sends.

    Python's codecs are many: one decodes into lone surrogates, another (punycode) takes minutes
    for a body of the size that we take.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    if parameters.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise HTTPException(400)


def page(request: Request, template: str, status_code: int = 200, **values: Any) -> Response:
    """A template of web/templates as HTML. It finds there `request`, `user`, `csrf` and `site`."""
    known = {"user": request.state.user, "csrf": session_of(request).csrf}
    return _rendered(request, template, status_code, known | values)


def bare_page(request: Request, template: str, status_code: int, **values: Any) -> Response:
    """The same where it is not known who is asking: a page without a form."""
    return _rendered(request, template, status_code, {"user": None, **values})


def _rendered(
    request: Request, template: str, status_code: int, values: Mapping[str, Any]
) -> Response:
    site = site_of(request)
    html = site.templates.get_template(template).render(request=request, site=site, **values)
    return HTMLResponse(html, status_code)


def goto(path: str) -> Response:
    """See Other: after a form, so that going back or reloading does it no second time."""
    return RedirectResponse(path, status_code=303)
