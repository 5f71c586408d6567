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
from referrals.web.journeys import KIND, Errors, keep_you, taken, you_of
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import site_of, user_of


def you(request: Request) -> Response:
    return _page(request, you_of(site_of(request), user_of(request)), Errors(), 200)


def you_posted(request: Request, sent: Posted) -> Response:
    typed = taken({}, sent, [you_form()])
    errors = _errors(typed)
    if errors:
        return _page(request, typed, errors, 422)
    keep_you(site_of(request), user_of(request), typed)
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
        action=request.url.path + (f"?{request.url.query}" if _next(request) else ""),
        back=_back(request),
    )  # fmt: skip


def _next(request: Request) -> str | None:
    """The referral to go on with, if it is this user's own."""
    wanted = request.query_params.get("next", "")
    site = site_of(request)
    found = site.store.load(KIND, user_of(request).name, wanted, site.now)
    return found.id if found else None


def _back(request: Request) -> str:
    journey = _next(request)
    if journey is None:
        return "/"
    step = "check" if request.query_params.get("back") == "check" else "case"
    return f"/referrals/{journey}/{step}"


def routes() -> list[BaseRoute]:
    return [shown("/you", you), posted("/you", you_posted)]
