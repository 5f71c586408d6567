"""Builds the page's application from the settings: it alone knows all of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from referrals.bootstrap import build_service
from referrals.errors import ReferralsError
from referrals.settings import Settings
from referrals.web import assets, faults, home
from referrals.web.courier import Courier
from referrals.web.guard import Guard, Sessions
from referrals.web.layout import environment
from referrals.web.login import SignIn, ThisMachine
from referrals.web.routes import SignInFirst
from referrals.web.site import Site
from referrals.web.store import Store


def build_site(settings: Settings) -> Site:
    """Raises ConfigurationError, or OutboxUnusable where the outbox folder can't be written."""
    templates = environment()
    templates.globals["asset"] = assets.asset
    store = Store(settings.outbox / "web.sqlite3")
    return Site(
        settings=settings,
        _service=build_service(settings),
        store=store,
        templates=templates,
        sign_in=_sign_in(settings, store),
        courier=Courier(settings),
    )


def _sign_in(settings: Settings, store: Store) -> SignIn:
    return ThisMachine()


def build_app(site: Site) -> ASGIApp:
    """The ASGI application. Its lifespan runs the courier."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with site.courier:
            yield
        site.store.close()

    app = Starlette(
        routes=[*_routes(), *site.sign_in.routes()],
        exception_handlers={
            SignInFirst: faults.sign_in_first,
            ReferralsError: faults.told,
            HTTPException: faults.refused,
            Exception: faults.crashed,
        },
        lifespan=lifespan,
    )
    app.state.site = site
    web = site.settings.web
    app.add_middleware(Sessions, web=web, store=site.store, sign_in=site.sign_in)
    return Guard(app, web)


def _routes() -> Iterator[BaseRoute]:
    for section in (assets, home):
        yield from section.routes()
