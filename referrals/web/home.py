"""The first page: begin a referral, go on with one, and what wants looking at."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.web.routes import page, shown


def home(request: Request) -> Response:
    return page(request, "home.html")


def routes() -> list[BaseRoute]:
    return [shown("/", home)]
