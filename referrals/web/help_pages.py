"""Help: what this is, what each status means, what happens to what was typed, accessibility."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.delivery import DeliveryStatus
from referrals.web.routes import page, shown
from referrals.web.site import site_of
from referrals.web.words import MEANINGS

_DRAFTED = (
    "There is a draft for you to read and send from your own e-mail program. Whether you do, this "
    "service can’t know."
)


def help_page(request: Request) -> Response:
    settings = site_of(request).settings
    return page(
        request,
        "help.html",
        meanings=[(status, MEANINGS.get(status, _DRAFTED)) for status in DeliveryStatus],
        delivery=settings.delivery,
        web=settings.web,
    )


def routes() -> list[BaseRoute]:
    # For those too who can't sign in.
    return [shown("/help", help_page, role=None)]
