"""Whether the process is up, and whether it can do its work: for whoever watches over it."""

from __future__ import annotations

from datetime import timedelta

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from referrals import bootstrap
from referrals.errors import ReferralsError
from referrals.web.metrics import may_look_inside
from referrals.web.site import Site, site_of


async def _live(_: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    """503 where people could not work. A relay that can't be reached is not such a case: what is
    queued meanwhile is kept, and /metrics tells of it.
    """
    site = site_of(request)
    parts = await run_in_threadpool(_parts, site)
    ready = all(word in ("ok", "off") for word in parts.values())
    told: dict[str, object] = {"ready": ready}
    if may_look_inside(request, site.settings.web):
        told["parts"] = parts
    return JSONResponse(told, 200 if ready else 503)


def _parts(site: Site) -> dict[str, str]:
    """Of each part: ok, off, or what is wrong, without a path or a value."""
    parts = {}
    try:
        site.service.today()
        parts["configuration"] = "ok"
    except ReferralsError as error:
        parts["configuration"] = error.code
    try:
        with bootstrap.open_outbox(site.settings, "health") as outbox:
            outbox.counts()
        parts["outbox"] = "ok"
    except ReferralsError as error:
        parts["outbox"] = error.code
    try:
        site.store.signed_in(site.now, timedelta(minutes=site.settings.web.idle_minutes))
        parts["store"] = "ok"
    except ReferralsError as error:
        parts["store"] = error.code
    courier = site.courier
    parts["courier"] = "ok" if courier.runs else "stopped" if courier.should_run else "off"
    return parts


def routes() -> list[BaseRoute]:
    return [
        Route("/health/live", _live, methods=["GET"]),
        Route("/health/ready", _ready, methods=["GET"]),
    ]
