"""From a request to a page: who is asking, whether they may, and what they typed.

A page is a plain function, `page(request)` or `page(request, posted)`, run in a thread of its own,
since the service, SQLite and the templates wait. `shown` and `posted` make a route of it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from referrals.web.site import Role, session_of, site_of

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


def shown(path: str, page: Shown, *, role: Role | None = Role.REFERRER) -> Route:
    """A page to look at. `role` None: for whoever comes."""

    async def endpoint(request: Request) -> Response:
        check_role(request, role)
        return await run_in_threadpool(page, request)

    return Route(path, endpoint, methods=["GET"], name=page.__name__)


def posted(path: str, page: PostedTo, *, role: Role | None = Role.REFERRER) -> Route:
    """What a form does; its token is checked first (CSRF)."""

    async def endpoint(request: Request) -> Response:
        check_role(request, role)
        async with request.form(max_files=1, max_fields=_MOST_FIELDS) as form:
            values: dict[str, tuple[str, ...]] = {}
            uploads: dict[str, UploadFile] = {}
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    uploads[name] = value
                else:
                    values[name] = (*values.get(name, ()), value)
            token = values.pop("csrf", ("",))[-1]
            if not hmac.compare_digest(token.encode(), session_of(request).csrf.encode()):
                raise HTTPException(403, "expired-form")
            return await run_in_threadpool(page, request, Posted(values, uploads))

    return Route(path, endpoint, methods=["POST"], name=page.__name__)


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


def page(request: Request, template: str, status_code: int = 200, **values: Any) -> Response:
    """A template of web/pages as HTML. It finds there `request`, `user`, `csrf` and `site`."""
    from starlette.responses import HTMLResponse

    site = site_of(request)
    html = site.templates.get_template(template).render(
        request=request,
        site=site,
        user=request.state.user,
        csrf=session_of(request).csrf,
        **values,
    )
    return HTMLResponse(html, status_code)


def goto(path: str) -> Response:
    """See Other: after a form, so that going back or reloading does it no second time."""
    return RedirectResponse(path, status_code=303)
