"""Builds the page's application from the settings: it alone knows all of its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from referrals.bootstrap import LiveService
from referrals.errors import ReferralsError
from referrals.settings import Login, Settings
from referrals.web import (
    api,
    assets,
    audit_pages,
    batch_pages,
    checking,
    directory_pages,
    due_pages,
    faults,
    handover,
    health,
    help_pages,
    hold_pages,
    home,
    journey,
    letters_pages,
    metrics,
    outbox_pages,
    you,
)
from referrals.web.courier import Courier
from referrals.web.crashes import note_crash
from referrals.web.guard import Guard, Sessions
from referrals.web.layout import environment
from referrals.web.login import SignIn, ThisMachine
from referrals.web.proxy import BehindProxy
from referrals.web.releases import Releases
from referrals.web.repeated import repeated
from referrals.web.routes import SignInFirst
from referrals.web.site import Site
from referrals.web.store import Store, open_store

_LOOK_EVERY_S = 2.0
"""How often it is seen whether config/ has changed."""


def build_site(settings: Settings) -> Site:
    """Raises ConfigurationError, or OutboxUnusable where the store can't be used."""
    templates = environment()
    templates.globals["asset"] = assets.asset
    store = open_store(settings)
    return Site(
        settings=settings,
        _service=LiveService(settings),
        store=store,
        templates=templates,
        sign_in=_sign_in(settings, store),
        courier=Courier(settings),
        releases=Releases(),
    )


def _sign_in(settings: Settings, store: Store) -> SignIn:
    """Each way is imported only where it is used: Argon2 and Authlib take their time."""
    web = settings.web
    if web.login is Login.ACCOUNTS:
        from referrals.web.account_pages import WithAccounts

        return WithAccounts(web, store)
    if web.login is Login.OIDC:
        from referrals.web.oidc import WithProvider

        return WithProvider(web)
    return BehindProxy(web) if web.login is Login.PROXY else ThisMachine()


def build_app(site: Site) -> ASGIApp:
    """The ASGI application. Its lifespan runs the courier."""
    web = site.settings.web
    idle, longest = timedelta(minutes=web.idle_minutes), timedelta(hours=web.longest_hours)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with (
            site.store.kept_tidy(idle, longest),
            batch_pages.kept_tidy(site),
            repeated(lambda: _look_at_config(site), _LOOK_EVERY_S),
            site.courier,
        ):
            yield
        site.close()

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
    app.router.redirect_slashes = False  # it would name the host and, behind a proxy, http://
    app.add_middleware(Sessions, web=web, store=site.store, sign_in=site.sign_in)
    return metrics.Measured(Guard(app, web))


def _look_at_config(site: Site) -> None:
    try:
        site.look_at_config()
    except Exception as error:
        note_crash(error)


def _routes() -> Iterator[BaseRoute]:
    for section in (
        assets,
        home,
        you,
        journey,
        checking,
        handover,
        batch_pages,
        letters_pages,
        help_pages,
        api,
        health,
        metrics,
        outbox_pages,
        due_pages,
        directory_pages,
        hold_pages,
        audit_pages,
    ):
        yield from section.routes()
