"""Who makes the referral: asked once, kept for the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.case import Referrer
from referrals.problems import problems_of
from referrals.web.fields import Typed, cells_of, told
from referrals.web.forms import you_form
from referrals.web.journeys import (
    KIND,
    Errors,
    keep_unfinished_you,
    keep_you,
    taken,
    unfinished_you,
    you_of,
)
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import User, site_of, user_of


def you(request: Request) -> Response:
    site, user = site_of(request), user_of(request)
    return _page(request, unfinished_you(site, user) or you_of(site, user), Errors(), 200)


def keep_typed(request: Request, user: User, sent: Posted) -> str:
    keep_unfinished_you(site_of(request), user, taken({}, sent, [you_form()]))
    return _own(request, user)


def you_posted(request: Request, sent: Posted) -> Response:
    typed = taken({}, sent, [you_form()])
    errors = _errors(typed)
    if errors:
        return _page(request, typed, errors, 422)
    keep_you(site_of(request), user_of(request), typed)
    keep_unfinished_you(site_of(request), user_of(request), None)
    return goto(_back(request))


def _errors(typed: Typed) -> Errors:
    group = you_form()
    cells = cells_of([group], typed)
    try:
        Referrer.model_validate({name.partition(".")[2]: cell for name, cell in cells.items()})
    except ValidationError as error:
        found = {f"referrer.{one.where}": one for one in problems_of(error)}
    else:
        return Errors()
    at: Mapping[str, str] = {
        one.name: told(replace(found[one.name], where=one.name), one, typed)
        for one in group.fields
        if one.name in found
    }
    return Errors(at, tuple({"text": text, "href": f"#{name}"} for name, text in at.items()))


def _page(request: Request, typed: Typed, errors: Errors, status: int) -> Response:
    return page(
        request, "you.html", status, group=you_form(), typed=typed, errors=errors,
        action=_own(request, user_of(request)),
        back=_back(request),
    )  # fmt: skip


def _own(request: Request, user: User) -> str:
    """This page, with where to go on to."""
    journey = _next(request, user)
    if journey is None:
        return "/you"
    return f"/you?next={journey}" + ("&back=check" if _from_check(request) else "")


def _from_check(request: Request) -> bool:
    return request.query_params.get("back") == "check"


def _next(request: Request, user: User) -> str | None:
    """The referral to go on with, if it is this user's own."""
    wanted = request.query_params.get("next", "")
    site = site_of(request)
    found = site.store.load(KIND, user.name, wanted, site.now)
    return found.id if found else None


def _back(request: Request) -> str:
    journey = _next(request, user_of(request))
    if journey is None:
        return "/"
    return f"/referrals/{journey}/{'check' if _from_check(request) else 'case'}"


def routes() -> list[BaseRoute]:
    return [shown("/you", you), posted("/you", you_posted, keep=keep_typed)]
